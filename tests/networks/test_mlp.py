"""The perceptron: shapes, values against plain matrix algebra, gradients, seeds, embeddings, saved weights, errors."""

from __future__ import annotations

import io
import re

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import pyromix as pmx
from pyromix.networks import MLP

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def _x(generator: torch.Generator, n: int = 7, p: int = 3) -> torch.Tensor:
    return torch.randn(n, p, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("n_outputs", "shape"), [(1, (7,)), (2, (7, 2))])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_shape_and_dtype(generator: torch.Generator, n_outputs: int, shape: tuple[int, ...], hidden) -> None:
    out = MLP(3, hidden=hidden, n_outputs=n_outputs)(_x(generator))
    assert out.shape == shape
    assert out.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_value_is_the_formula(generator: torch.Generator, name: str) -> None:
    net, x = MLP(3, hidden=(5, 4), activation=name, output_bias=True), _x(generator)
    with torch.no_grad():
        net.linear.weight.normal_(generator=generator)
    w = {key: value.detach() for key, value in net.named_parameters()}
    act = ACTIVATIONS[name]
    h = act(x @ w["layers.0.weight"].T + w["layers.0.bias"])
    h = act(h @ w["layers.2.weight"].T + w["layers.2.bias"])
    expected = h @ w["output.weight"].T + w["output.bias"] + x @ w["linear.weight"].T
    torch.testing.assert_close(net(x), expected[:, 0], rtol=1e-13, atol=1e-13)


def test_the_linear_path_starts_at_zero_and_can_be_left_out(generator: torch.Generator) -> None:
    x = _x(generator)
    torch.testing.assert_close(MLP(3, skip=True, seed=4)(x), MLP(3, skip=False, seed=4)(x), rtol=0, atol=0)
    assert "linear.weight" not in dict(MLP(3, skip=False).named_parameters())


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradients_against_central_differences(generator: torch.Generator, activation: str) -> None:
    net, x = MLP(3, hidden=(4,), activation=activation, layer_norm=True), _x(generator, n=5)
    names, values = zip(*net.named_parameters(), strict=True)

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *values))


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = MLP(3, seed=1), MLP(3, seed=1), MLP(3, seed=2)
    MLP(3, seed=None, embeddings={"g": (4, 2)}, layer_norm=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    third = MLP(3, seed=1)
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not torch.equal(first.output.weight, other.output.weight)


def test_initial_weights_have_the_stated_range() -> None:
    net = MLP(16, hidden=(2000,), seed=3)
    weight = net.layers[0].weight.detach()
    assert weight.abs().max() <= 1 / 4
    # uniform on (-1/4, 1/4): SD 1/(4 sqrt 3); 32,000 draws, so 2 % is over five standard errors
    assert weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)


def test_embeddings_pick_the_rows_of_their_tables(generator: torch.Generator) -> None:
    net = MLP(2, hidden=(), embeddings={"site.a": (4, 3), "sex": (2, 1)})
    assert net.categorical == ("site.a", "sex")
    x, site, sex = _x(generator, p=2), torch.tensor([0, 1, 2, 3, 3, 1, 0]), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    out = net({"numeric": x, "site.a": site, "sex": sex})
    tables = [table.weight.detach() for table in net.embeddings]
    features = torch.cat([x, tables[0][site], tables[1][sex]], dim=1)
    torch.testing.assert_close(out, (features @ net.output.weight.detach().T)[:, 0])
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() and (p.grad != 0).any() for p in net.parameters())


def test_embeddings_alone_are_enough() -> None:
    net = MLP(0, embeddings={"g": (3, 2)})
    codes = torch.tensor([0, 1, 2, 1])
    out = net({"g": codes})
    assert out.shape == (4,)
    assert out[1] == out[3]
    assert torch.equal(net({"g": codes, "numeric": torch.zeros(4, 0)}), out)


def test_standardised_inputs_ignore_shift_and_scale(generator: torch.Generator) -> None:
    x = _x(generator)
    moved = 100 + 1e3 * x
    nets = [MLP(standardize=True, seed=5).build(3, inputs=data) for data in (x, moved)]
    torch.testing.assert_close(nets[0](x), nets[1](moved), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nets[0].input_sd, x.std(0, correction=0))
    # later rows use the stored scale: one row alone gives what it gave among the others
    torch.testing.assert_close(nets[0](x[:1]), nets[0](x)[:1])


def test_a_constant_column_is_centred_and_not_scaled() -> None:
    x = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]], dtype=torch.float64)
    net = MLP(standardize=True).build(2, inputs=x)
    assert net.input_sd[0] == 1
    assert torch.isfinite(net(x)).all()


def test_size_is_settled_once() -> None:
    net = MLP(hidden=(3,), seed=7)
    assert list(net.parameters()) == []
    assert net.build(2) is net
    weight = net.output.weight
    assert net.build(2).output.weight is weight
    with pytest.raises(pmx.ConfigError, match=re.escape("n_inputs=4): this module has n_inputs=2")):
        net.build(4)
    assert torch.equal(weight, MLP(2, hidden=(3,), seed=7).output.weight)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_saved_weights_come_back(generator: torch.Generator, built: bool, wrapped: bool) -> None:
    options = {"hidden": (4,), "embeddings": {"g": (3, 2)}, "standardize": True, "layer_norm": True}
    x, codes = _x(generator, p=2), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    net = MLP(**options, seed=1).build(2, inputs=5 + x)
    copy = MLP(**options, seed=2)
    if built:
        copy.build(2, inputs=x)
    source, target = (torch.nn.Sequential(net), torch.nn.Sequential(copy)) if wrapped else (net, copy)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    inputs = {"numeric": x, "g": codes}
    assert torch.equal(net(inputs), copy(inputs))


def test_dropout_acts_in_training_only(generator: torch.Generator) -> None:
    net, x = MLP(3, dropout=0.5), _x(generator)
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_it_can_be_traced(generator: torch.Generator) -> None:
    net, x = MLP(3, hidden=(4,), embeddings={"g": (3, 2)}), _x(generator)
    codes = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    traced = make_fx(lambda x, g: net({"numeric": x, "g": g}))(x, codes)
    torch.testing.assert_close(traced(x, codes), net({"numeric": x, "g": codes}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_inputs": -1}, r"n_inputs=-1\): the module needs at least one"),
        ({"n_inputs": 0}, r"n_inputs=0\): the module needs at least one"),
        ({"hidden": (4, 0)}, r"hidden=\(4, 0\)\): every width"),
        ({"n_outputs": 0}, r"n_outputs=0\): must be at least 1"),
        ({"activation": "sigmoid"}, r"activation='sigmoid'\): must be one of \['gelu', 'relu', 'silu', 'tanh'\]"),
        ({"dropout": 1.0}, r"dropout=1.0\): must be in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout=nan\)"),
        ({"embeddings": {"numeric": (2, 1)}}, "'numeric' is the key of the numeric columns"),
        ({"embeddings": {"g": (0, 1)}}, r"'g': \(0, 1\)}\): give \(number of levels, dimension\)"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        MLP(**arguments)


def test_the_first_input_settles_an_open_size() -> None:
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    module = MLP(standardize=True)
    assert module(x).shape == (2,)
    assert module.n_inputs == 3 and torch.equal(module.input_mean, x.mean(0))


def test_build_without_what_it_needs() -> None:
    with pytest.raises(pmx.ConfigError, match="standardize=True needs the training columns"):
        MLP(3, standardize=True).build(3)
    with pytest.raises(pmx.ConfigError, match=r"build\(n_inputs=0\): the module has no input"):
        MLP().build(0)
    with pytest.raises(pmx.DataError, match="nan at row 1, column 0; must be finite"):
        MLP(standardize=True).build(1, inputs=torch.tensor([[0.0], [float("nan")]]))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(4), r"shape \(4,\), expected \(n, 2\); a single column is x\[:, None\]"),
        (torch.zeros(4, 3), r"shape \(4, 3\), expected \(n, 2\)"),
        ({"numeric": torch.zeros(4, 2), "z": torch.zeros(4)}, r"missing \[\], unknown \['z'\]"),
        ({}, r"missing \['numeric'\], unknown \[\]"),
    ],
)
def test_bad_numeric_inputs(inputs, message: str) -> None:
    with pytest.raises(pmx.DataError, match=message):
        MLP(2)(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 2), r"the module embeds \['g'\]; pass a dict with keys \['numeric', 'g'\]"),
        ({"numeric": torch.zeros(2, 2)}, r"missing \['g'\]"),
        ({"numeric": torch.zeros(2, 2), "g": torch.tensor([0, 3])}, "'g' has code 3 at position 1.*codes 0 to 2"),
        ({"numeric": torch.zeros(2, 2), "g": torch.tensor([-1, 0])}, "'g' has code -1 at position 0"),
        ({"numeric": torch.zeros(2, 2), "g": torch.tensor([0.0, 1.0])}, "'g'.*torch.float32, expected integer codes"),
        ({"numeric": torch.zeros(2, 2), "g": torch.tensor([[0], [1]])}, r"'g' has shape \(2, 1\)"),
        ({"numeric": torch.zeros(2, 2), "g": torch.tensor([0])}, "differ in their number of rows"),
    ],
)
def test_bad_categorical_inputs(inputs, message: str) -> None:
    with pytest.raises(pmx.DataError, match=message):
        MLP(2, embeddings={"g": (3, 2)})(inputs)
