"""Neural effects."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.fx.experimental.proxy_tensor import make_fx

from pyromix import ConfigError, DataError, DataTypeError, NeuralEffect, NumericalError
from pyromix.sites import Function, Hyper, annotation

X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)


class _Named(torch.nn.Module):
    """Takes named inputs, as networks over data frames do."""

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return 2 * x["a"] + x["b"]


class _Returns(torch.nn.Module):
    """Returns what it is told to."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> object:
        return self.result


def _linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))


def test_output_and_site() -> None:
    module = _linear().double()
    with poutine.trace() as tracer:
        rows = NeuralEffect("f", module)(X)
    assert torch.equal(rows, module(X)) and rows.requires_grad
    site = tracer.trace.nodes["f"]
    role = annotation(site)
    assert isinstance(role, Function) and role.module is module
    tracer.trace.compute_log_prob()
    assert float(site["log_prob_sum"]) == 0.0


def test_named_inputs() -> None:
    rows = NeuralEffect("f", _Named())({"a": X[:, 0], "b": X[:, 1]})
    assert torch.equal(rows, 2 * X[:, 0] + X[:, 1])


def test_a_prior_replaces_the_weights_of_this_run_only() -> None:
    module = _linear().double()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with poutine.trace() as tracer:
        rows = NeuralEffect("f", module, dist.Normal(0.0, 1.0))(X)
    weight, bias = (tracer.trace.nodes[f"f.0.{key}"] for key in ("weight", "bias"))
    assert isinstance(annotation(weight), Hyper) and weight["value"].dtype == torch.float64
    assert weight["fn"].event_shape == (1, 2)
    assert torch.allclose(rows, X @ weight["value"][0] + bias["value"])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("prior", [None, dist.Normal(0.0, 1.0)])
@pytest.mark.parametrize("x", [X, X.float()], ids=["double", "single"])
def test_single_precision_weights_are_fed_and_read_as_they_are(
    prior: dist.Distribution | None, x: torch.Tensor
) -> None:
    value = NeuralEffect("f", _linear(), prior)(x)
    assert value.dtype == torch.float64
    assert torch.equal(value, value.float().double())  # computed in single precision


def test_a_shape_that_the_module_refuses_is_named() -> None:
    message = r"NeuralEffect\('f'\): Sequential refused an input of shape \(\d+, 1\): mat1 and mat2 shapes"
    with pytest.raises(DataError, match=message):
        NeuralEffect("f", _linear().double())(X[:, :1])


ROWS = torch.zeros(3, dtype=torch.float64)
BAD = [
    (lambda: NeuralEffect("f", len), ConfigError, r"NeuralEffect\('f'\): module=<built-in .* is not a torch.nn.Module"),
    (lambda: NeuralEffect("f", _Named(), 1.0), ConfigError, "prior=1.0 must be a scalar distribution or None"),
    (lambda: NeuralEffect("f", _Named(), dist.Normal(torch.zeros(2), 1)), ConfigError, "must be a scalar distribution"),
    (
        lambda: NeuralEffect("f", _Returns(ROWS))([1.0]),
        DataTypeError,
        "its input must be a tensor or a dict of tensors",
    ),
    (lambda: NeuralEffect("f", _Returns(ROWS))({}), DataTypeError, "its input must be a tensor or a dict of tensors"),
    (
        lambda: NeuralEffect("f", _Returns((ROWS,)))(X),
        DataTypeError,
        "the module returned a tuple, expected one tensor",
    ),
    (
        lambda: NeuralEffect("f", _Returns(ROWS[:, None]))(X),
        DataError,
        r"shape \(3, 1\), expected \(3,\); end it with torch\.nn\.Flatten\(0\), or \.sq",
    ),
    (lambda: NeuralEffect("f", _Returns(ROWS[:2]))(X), DataError, r"returned shape \(2,\), expected \(3,\)"),
    (lambda: NeuralEffect("f", _Returns(ROWS.sum()))(X), DataError, r"returned shape \(\), expected \(3,\)"),
    (
        lambda: NeuralEffect("f", _Returns(torch.tensor([0.0, float("nan"), float("inf")])))(X),
        NumericalError,
        r"NeuralEffect\('f'\): _Returns returned nan at row 1, the first of its kind; check its inputs",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_prior_of_the_last_layer_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    module = module.double()
    with poutine.trace() as tracer:
        rows = NeuralEffect("f", module, dist.Normal(0.0, 1.0), layers="last")(X)
    sites = {name: site["value"] for name, site in tracer.trace.nodes.items() if name.startswith("f.")}
    assert set(sites) == {"f.2.weight", "f.2.bias"}
    hidden = torch.tanh(X @ module[0].weight.T + module[0].bias)
    assert torch.allclose(rows, (hidden @ sites["f.2.weight"].T + sites["f.2.bias"])[:, 0])
    (gradient,) = torch.autograd.grad(rows.sum(), module[0].weight)  # the first layer is learned as a point
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "first", "prior": dist.Normal(0.0, 1.0)}, "layers='first'"),
        ({"layers": "last"}, "a prior of the last layer's weights is missing"),
    ],
)
def test_layers_that_do_not_exist(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeuralEffect("f", _linear(), **arguments)


def test_a_last_layer_needs_weights() -> None:
    with pytest.raises(ConfigError, match="_Named has no weights"):
        NeuralEffect("f", _Named(), dist.Normal(0.0, 1.0), layers="last")({"a": X[:, 0], "b": X[:, 1]})


def test_the_check_of_the_output_stays_out_of_traces() -> None:
    """A value that stands for many cannot be looked at; an ordinary one is, with the same message as ever."""
    module = _linear().double()

    def total(weight: torch.Tensor) -> torch.Tensor:
        with poutine.condition(data={"f.0.weight": weight, "f.0.bias": torch.zeros(1).double()}):
            return NeuralEffect("f", module, dist.Normal(0.0, 1.0))(X).sum()

    weights = torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([total(weight) for weight in weights])
    assert torch.allclose(torch.vmap(total)(weights), expected)
    with pyro.validation_enabled(False):  # as in every run of pyromix: Pyro's own checks cannot be traced
        graph = make_fx(torch.func.grad(total))(weights[0])
    assert torch.allclose(graph(weights[1]), X.sum(0)[None])
    with pytest.raises(NumericalError, match="returned nan at row 0"):
        total(torch.full((1, 2), torch.nan, dtype=torch.float64))
