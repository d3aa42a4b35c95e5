"""Random effects: contributions, sites, shapes and what is refused."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyromix import IID, DataError, DataTypeError, Diagonal, Gaussian, RandomEffect, Unstructured, observe
from pyromix.errors import ConfigError
from pyromix.sites import Hyper, Latent, annotation

INDEX = torch.tensor([0, 2, 1, 2, 0])
DESIGN = torch.tensor([[1.0, 0.5], [1.0, -1.0], [1.0, 2.0], [1.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
U = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=torch.float64)


def _trace(program, **values: torch.Tensor):
    with poutine.trace() as tracer, poutine.condition(data=values):
        result = program()
    return result, tracer.trace


def test_an_intercept_is_looked_up() -> None:
    rows, _ = _trace(lambda: RandomEffect("g", IID(sd=1.0))(INDEX), g=U[:, :1])
    assert rows.tolist() == [1.0, 4.0, 2.0, 4.0, 1.0]


def test_a_slope_is_multiplied() -> None:
    rows, _ = _trace(lambda: RandomEffect("g", Diagonal(sd=1.0))(INDEX, DESIGN[:, 1:]), g=U[:, 1:])
    assert rows.tolist() == [5.0, -40.0, 40.0, 0.0, 30.0]


def test_terms_are_summed() -> None:
    rows, _ = _trace(lambda: RandomEffect("g", Unstructured())(INDEX, DESIGN), g=U)
    assert rows.tolist() == [6.0, -36.0, 42.0, 4.0, 31.0]


@pytest.mark.parametrize("q", [1, 2])
def test_multiple_membership_equals_its_dense_matrix(q: int, generator: torch.Generator) -> None:
    n, m, levels = 7, 3, 5
    index = torch.randint(levels, (n, m), generator=generator)
    weight = torch.rand(n, m, dtype=torch.float64, generator=generator)
    design = torch.randn(n, q, dtype=torch.float64, generator=generator)
    u = torch.randn(levels, q, dtype=torch.float64, generator=generator)
    dense = torch.zeros(n, levels, q, dtype=torch.float64)
    for row in range(n):
        for member in range(m):
            dense[row, index[row, member]] += weight[row, member] * design[row]
    effect = RandomEffect("g", Diagonal(sd=1.0), levels)
    rows, _ = _trace(lambda: effect(index, design, weight), g=u)
    assert torch.allclose(rows, torch.einsum("nlq,lq->n", dense, u))
    rows, _ = _trace(lambda: effect(index, design), g=u)
    assert torch.allclose(rows, (u[index] * design[:, None]).sum((1, 2)))


def test_a_weight_of_each_row() -> None:
    weight = torch.tensor([1, 2, 3, 4, 5])
    rows, _ = _trace(lambda: RandomEffect("g", IID(sd=1.0))(INDEX, weight=weight), g=U[:, :1])
    assert rows.tolist() == [1.0, 8.0, 6.0, 16.0, 5.0]


def test_levels_are_counted_from_the_index() -> None:
    _, trace = _trace(lambda: RandomEffect("g", IID(sd=1.0))(torch.tensor([3, 0])))
    role = annotation(trace.nodes["g"])
    assert isinstance(role, Latent) and role.levels == (0, 1, 2, 3)
    assert trace.nodes["g"]["value"].shape == (4, 1)


@pytest.mark.parametrize("levels", [3, np.int64(3), ["x", "y", "z"], np.array(["x", "y", "z"])])
def test_levels_as_a_count_or_labels(levels) -> None:
    _, trace = _trace(lambda: RandomEffect("g", IID(sd=1.0), levels)(INDEX))
    role = annotation(trace.nodes["g"])
    assert len(role.levels) == 3 and role.group == "g" and role.terms == ("Intercept",)


def test_sites_roles_and_labels() -> None:
    effect = RandomEffect("g.x", Unstructured(), 3, terms=("Intercept", "x"), group="g")
    _, trace = _trace(lambda: effect(INDEX, DESIGN))
    assert [n for n in trace.nodes if not n.startswith("_")] == ["g.x.sd", "g.x.corr_cholesky", "g.x.corr", "g.x"]
    for name in ("g.x.sd", "g.x.corr_cholesky"):
        role = annotation(trace.nodes[name])
        assert isinstance(role, Hyper) and role.labels == ("Intercept", "x")
    assert annotation(trace.nodes["g.x"]).group == "g"
    factor = trace.nodes["g.x.corr_cholesky"]["value"]
    assert torch.allclose(trace.nodes["g.x.corr"]["value"], factor @ factor.T)


def test_a_scalar_sd_has_no_labels() -> None:
    _, trace = _trace(lambda: RandomEffect("g", IID())(INDEX))
    assert annotation(trace.nodes["g.sd"]).labels is None


def test_fixed_parameters_are_recorded_not_sampled() -> None:
    _, trace = _trace(lambda: RandomEffect("g", Unstructured(sd=[1.0, 2.0], corr=0.5))(INDEX, DESIGN))
    assert trace.nodes["g.sd"]["is_observed"] and trace.nodes["g.sd"]["value"].tolist() == [1.0, 2.0]
    assert annotation(trace.nodes["g.sd"]) is None
    assert torch.allclose(trace.nodes["g.corr"]["value"], torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))


def test_single_precision_and_integer_designs_are_taken_in() -> None:
    for dtype in (torch.float32, torch.int64, torch.bool):
        design = torch.ones(5, 1).to(dtype)
        rows, trace = _trace(lambda design=design: RandomEffect("g", IID())(INDEX, design))
        assert rows.dtype == torch.float64 and annotation(trace.nodes["g"]).rows.design.dtype == torch.float64


def test_levels_appended_by_prediction_are_reached_from_the_end() -> None:
    """A handler may lengthen the array; negative indices then name its last entries."""
    longer = torch.cat([U[:, :1], torch.tensor([[100.0], [200.0]], dtype=torch.float64)])
    effect = RandomEffect("g", IID(sd=1.0), 3)
    rows, _ = _trace(lambda: effect(torch.tensor([0, -1, -2])), g=longer)
    assert rows.tolist() == [1.0, 200.0, 100.0]
    with pytest.raises(DataError, match="index -3 at row 2 is outside its 3 levels"):
        _trace(lambda: effect(torch.tensor([0, -1, -3])), g=longer)


def test_inside_a_network() -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def program() -> torch.Tensor:
        u = RandomEffect("g", IID())(INDEX)
        eta = network(torch.stack([x, u], 1)).squeeze(-1)
        return observe("y", Gaussian(), eta, x)

    with poutine.trace() as tracer:
        program()
    tracer.trace.compute_log_prob()
    eta = annotation(tracer.trace.nodes["y"]).eta
    u = tracer.trace.nodes["g"]["value"]
    assert torch.allclose(eta, network(torch.stack([x, u[INDEX, 0]], 1)).squeeze(-1))


DUPLICATE = r"levels must differ, 'a' is there 2 times"
BAD_EFFECTS = [
    (lambda: RandomEffect("", IID()), ConfigError, "the name of its site must be a string"),
    (lambda: RandomEffect(3, IID()), ConfigError, r"RandomEffect\(name=3\)"),
    (
        lambda: RandomEffect("g", IID),
        ConfigError,
        r"RandomEffect\('g'\): covariance=.* is not a covariance; pass an in",
    ),
    (lambda: RandomEffect("g", 1.0), ConfigError, "covariance=1.0 is not a covariance"),
    (lambda: RandomEffect("g", IID(), 0), ConfigError, "levels=0; pass a list of at least one label"),
    (lambda: RandomEffect("g", IID(), []), ConfigError, r"levels=\[\]; pass a list of at least one label"),
    (lambda: RandomEffect("g", IID(), "Subject"), ConfigError, "levels='Subject'; pass a list of at least one label"),
    (lambda: RandomEffect("g", IID(), ["a", "b", "a"]), ConfigError, DUPLICATE),
    (lambda: RandomEffect("g", IID(), terms=[]), ConfigError, r"terms=\[\]; pass a list of at least one label"),
    (lambda: RandomEffect("g", IID(), terms=["x", "x"]), ConfigError, "terms must differ, 'x' is there 2 times"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_EFFECTS)
def test_bad_effects(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


EFFECT = RandomEffect("g", IID(sd=1.0), 3)
BAD_CALLS = [
    (lambda: EFFECT([0, 1]), DataTypeError, "index must be an integer tensor, got list"),
    (lambda: EFFECT(torch.tensor([0.0])), DataTypeError, "index must be an integer tensor, got torch.float32"),
    (lambda: EFFECT(torch.tensor([True])), DataTypeError, "index must be an integer tensor, got torch.bool"),
    (
        lambda: EFFECT(torch.zeros(2, 2, 2).long()),
        DataError,
        r"index has shape \(2, 2, 2\), expected \(n,\) or \(n, mem",
    ),
    (lambda: EFFECT(INDEX, DESIGN[:3]), DataError, r"design has shape \(3, 2\), expected \(5, q\)"),
    (lambda: EFFECT(INDEX, DESIGN[:, 0]), DataError, r"design has shape \(5,\), expected \(5, q\)"),
    (
        lambda: EFFECT(INDEX, DESIGN.numpy()),
        DataTypeError,
        r"RandomEffect\('g'\): design is a ndarray; pass a real tensor",
    ),
    (lambda: EFFECT(INDEX, DESIGN + 0j), DataTypeError, r"design is a complex tensor \(torch.complex128\)"),
    (lambda: EFFECT(INDEX, None, torch.ones(4)), DataError, r"weight has shape \(4,\), expected \(5,\)"),
    (lambda: EFFECT(INDEX, None, [1.0]), DataTypeError, "weight is a list"),
    (lambda: EFFECT(INDEX + 1), DataError, r"index 3 at row 1 is outside its 3 levels \(0 \.\.\. 2\); pass levels="),
    (lambda: EFFECT(INDEX - 1), DataError, "index -1 at row 0 is outside its 3 levels"),
    (
        lambda: RandomEffect("g", IID())(torch.zeros(0).long()),
        DataError,
        "index is empty, so the number of levels is unk",
    ),
    (
        lambda: RandomEffect("g", IID(), terms=["a"])(INDEX, DESIGN),
        DataError,
        r"RandomEffect\('g'\): 1 terms named, the design has 2 columns",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_calls(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_empty_index_is_fine_where_the_levels_are_known() -> None:
    assert EFFECT(torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_one_effect_serves_two_programs() -> None:
    effect = RandomEffect("g", IID(sd=dist.HalfNormal(1.0)), 3)
    before = {key: value for key, value in vars(effect).items() if not key.startswith("_")}
    _trace(lambda: effect(INDEX))
    _trace(lambda: effect(INDEX, DESIGN[:, :1]))
    assert {key: value for key, value in vars(effect).items() if not key.startswith("_")} == before


def test_outside_a_plate_only() -> None:
    def program() -> None:
        with pyro.plate("rows", 5):
            EFFECT(INDEX)

    with pytest.raises(ValueError, match="cannot be expanded to batch shape"):
        program()
