"""Gaussian processes against kernels written out by hand."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.kernels import (
    CosineKernel,
    IndexKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.priors import GammaPrior, LogNormalPrior, SmoothedBoxPrior
from pyro import poutine
from torch.distributions import constraints

import pyromix as pmx
from pyromix.covariances import GP, Coords, Unstructured, from_config
from pyromix.errors import ConfigError, DataError, NumericalError, StructureError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import seeded
from tests.covariances.fits import check_counts, check_gaussian_fit

PLACES = torch.tensor([[0.0, 0.3], [1.2, -0.4], [2.0, 1.0], [0.4, 2.2], [3.1, 0.1]], dtype=torch.float64)
LINE = Coords((0.0, 0.7, 1.5, 3.0, 3.2, 5.0), ("Intercept",))


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _distance(x: torch.Tensor, scale: Any = 1.0) -> torch.Tensor:
    """Euclidean, pair by pair; no square root at zero, where it has no slope."""
    n = len(x)
    rows = [
        [((x[i] - x[j]) / scale).square().sum().sqrt() if i != j else _number(0.0) for j in range(n)] for i in range(n)
    ]
    return torch.stack([torch.stack(row) for row in rows])


class TestGP(CovarianceSuite):
    def make(self) -> GP:
        return GP(MaternKernel(nu=1.5))

    def coords(self) -> Coords:
        return Coords(tuple("abcde"), ("Intercept", "x"), PLACES)

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(0.8, 1.7), "lengthscale": _number(1.3)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        r = math.sqrt(3) * _distance(PLACES) / theta["lengthscale"]
        c = (1 + r) * torch.exp(-r) + 1e-6 * torch.eye(5, dtype=torch.float64)
        return torch.kron(c, torch.diag(theta["sd"] ** 2))


class TestGPWithALengthPerDimension(CovarianceSuite):
    """Sites by label, correlated terms, a nugget."""

    def make(self) -> GP:
        sites = pd.DataFrame(PLACES.numpy(), index=list("abcde"))
        return GP(RBFKernel(ard_num_dims=2), nugget=0.1, sites=sites, terms=Unstructured())

    def coords(self) -> Coords:
        return Coords(tuple("dbe"), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        corr = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
        return {"sd": _double(0.8, 1.7), "corr_cholesky": corr, "lengthscale": _double(0.9, 2.0)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        x = PLACES[[3, 1, 4]] / theta["lengthscale"]
        c = torch.exp(-0.5 * (x[:, None] - x).square().sum(-1)) + 0.1 * torch.eye(3, dtype=torch.float64)
        root = torch.diag(theta["sd"]) @ theta["corr_cholesky"]
        return torch.kron(c, root @ root.T)


class TestGPOfASum(CovarianceSuite):
    """A season that changes slowly, and a weighed trend; the labels are the times."""

    def make(self) -> GP:
        return GP(RBFKernel() * PeriodicKernel() + ScaleKernel(MaternKernel(nu=0.5)))

    def coords(self) -> Coords:
        return LINE

    def theta(self) -> dict[str, torch.Tensor]:
        values = {"lengthscale_1": 4.0, "lengthscale_2": 0.7, "period_length": 1.8, "outputscale": 0.6}
        named = {name: _number(value) for name, value in values.items()}
        return {"sd": _double(1.2), **named, "lengthscale_3": _number(1.5)}

    def permuted(self, coords: Coords, order: list[int]) -> Coords:
        return Coords(tuple(coords.levels[i] for i in order), coords.terms)

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        d = _distance(torch.tensor(coords.levels, dtype=torch.float64)[:, None])
        season = torch.exp(-2 * torch.sin(math.pi * d / theta["period_length"]) ** 2 / theta["lengthscale_2"])
        smooth = torch.exp(-0.5 * (d / theta["lengthscale_1"]) ** 2)
        rough = theta["outputscale"] * torch.exp(-d / theta["lengthscale_3"])
        return theta["sd"] ** 2 * (smooth * season + rough + 1e-6 * torch.eye(len(d), dtype=torch.float64))


D = _distance(torch.tensor(LINE.levels, dtype=torch.float64)[:, None])
X = torch.tensor(LINE.levels, dtype=torch.float64)
FORMULAS = [
    (MaternKernel(nu=0.5), {"lengthscale": 1.3}, torch.exp(-D / 1.3)),
    (MaternKernel(nu=1.5), {"lengthscale": 1.3}, (1 + 3**0.5 * D / 1.3) * torch.exp(-(3**0.5) * D / 1.3)),
    (
        MaternKernel(nu=2.5),
        {"lengthscale": 1.3},
        (1 + 5**0.5 * D / 1.3 + 5 * D**2 / (3 * 1.3**2)) * torch.exp(-(5**0.5) * D / 1.3),
    ),
    (RBFKernel(), {"lengthscale": 40.0}, torch.exp(-(D**2) / (2 * 40.0**2))),
    (RQKernel(), {"lengthscale": 1.3, "alpha": 0.4}, (1 + D**2 / (2 * 0.4 * 1.3**2)) ** -0.4),
    (CosineKernel(), {"period_length": 3.0}, torch.cos(math.pi * D / 3.0)),
    (
        RBFKernel() + MaternKernel(nu=0.5),
        {"lengthscale_1": 2.0, "lengthscale_2": 0.5},
        torch.exp(-(D**2) / 8) + torch.exp(-D / 0.5),
    ),
    (
        RBFKernel() * LinearKernel(),
        {"lengthscale": 2.0, "variance": 0.7},
        torch.exp(-(D**2) / 8) * 0.7 * X[:, None] * X,
    ),
]


@pytest.mark.parametrize(("kernel", "values", "expected"), FORMULAS)
def test_kernels_are_their_formulas(kernel: Any, values: dict[str, float], expected: torch.Tensor) -> None:
    state = copy.deepcopy(kernel.state_dict())
    structure = GP(kernel, sd=2.0, nugget=0.5)
    theta = {"sd": _double(2.0), **{name: _number(value) for name, value in values.items()}}
    assert [p.name for p in structure.parameters(LINE)] == list(theta)
    found = structure.operator(theta, LINE).dense()
    torch.testing.assert_close(found, 4 * (expected + 0.5 * torch.eye(6, dtype=torch.float64)), atol=1e-10, rtol=0)
    # the user's kernel is as it was
    assert all(torch.equal(kernel.state_dict()[key], value) for key, value in state.items())


def test_dimensions_may_have_kernels_of_their_own() -> None:
    kernel = RBFKernel(active_dims=(0,)) * MaternKernel(nu=0.5, active_dims=(1,))
    coords = Coords(tuple("abcde"), ("Intercept",), PLACES)
    theta = {"sd": _double(1.0), "lengthscale_1": _number(0.9), "lengthscale_2": _number(2.0)}
    found = GP(kernel, nugget=0.0).operator(theta, coords).dense()
    first, second = _distance(PLACES[:, :1]), _distance(PLACES[:, 1:])
    expected = torch.exp(-0.5 * (first / 0.9) ** 2 - second / 2.0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_many_draws_of_hyper_parameters_at_once() -> None:
    structure = GP(RBFKernel(ard_num_dims=2))
    coords = Coords(tuple("abcde"), ("Intercept",), PLACES)
    theta = {
        "sd": torch.rand(3, 1, dtype=torch.float64) + 0.5,
        "lengthscale": torch.rand(3, 2, dtype=torch.float64) + 1,
    }
    u = torch.randn(3, 5, 1, dtype=torch.float64)
    together = structure.operator(theta, coords).log_prob(u)
    for i in range(3):
        alone = structure.operator({name: value[i] for name, value in theta.items()}, coords).log_prob(u[i])
        torch.testing.assert_close(together[i], alone)


# -- priors and supports ---------------------------------------------------------------------------------------------
def _parameter(structure: GP, name: str, coords: Coords = LINE) -> Any:
    return next(p for p in structure.parameters(coords) if p.name == name)


def test_lengths_lie_between_the_distances_of_the_sites() -> None:
    prior = _parameter(GP(MaternKernel()), "lengthscale").prior
    quantiles = prior.cdf(_double(0.2, 5.0))  # smallest and largest distance
    torch.testing.assert_close(quantiles, _double(0.01, 0.99), atol=1e-10, rtol=0)
    coords = Coords(tuple("abc"), ("Intercept",), [(0.0, 0.0), (1.0, 10.0), (30.0, 200.0)])
    each = _parameter(GP(MaternKernel(ard_num_dims=2)), "lengthscale", coords).prior.base_dist
    torch.testing.assert_close(each.cdf(_double(1.0, 10.0)), _double(0.01, 0.01), atol=1e-10, rtol=0)
    torch.testing.assert_close(each.cdf(_double(30.0, 200.0)), _double(0.99, 0.99), atol=1e-10, rtol=0)


def test_registered_priors_and_bounds_are_kept() -> None:
    kernel = MaternKernel(lengthscale_prior=GammaPrior(3.0, 6.0)) * PeriodicKernel(
        period_length_prior=LogNormalPrior(1.0, 0.5), lengthscale_constraint=Interval(0.1, 9.0)
    )
    structure = GP(kernel)
    length = _parameter(structure, "lengthscale_1").prior
    assert isinstance(length, dist.Gamma) and length.concentration.dtype == torch.float64
    assert (float(length.concentration), float(length.rate)) == (3.0, 6.0)
    assert isinstance(_parameter(structure, "period_length").prior, dist.LogNormal)
    bounded = _parameter(structure, "lengthscale_2")
    assert isinstance(bounded.prior, dist.Uniform) and (bounded.prior.low, bounded.prior.high) == (0.1, 9.0)
    assert isinstance(bounded.support, constraints.interval)


def test_priors_by_name_come_first_and_numbers_fix() -> None:
    structure = GP(MaternKernel(lengthscale_prior=GammaPrior(3.0, 6.0)), priors={"lengthscale": 2.5})
    assert float(_parameter(structure, "lengthscale").fixed) == 2.5
    kernel = RBFKernel()
    kernel.lengthscale = 0.75
    kernel.raw_lengthscale.requires_grad_(False)
    assert float(_parameter(GP(kernel), "lengthscale").fixed) == pytest.approx(0.75, rel=1e-6)  # a float32 kernel


def test_a_lower_bound_shifts_the_default() -> None:
    bounded = _parameter(GP(RBFKernel(lengthscale_constraint=GreaterThan(2.0))), "lengthscale")
    assert bounded.support.lower_bound == 2.0
    assert float(bounded.prior.sample((500,)).min()) > 2.0


def test_it_is_saved_in_plain_values() -> None:
    kernel = ScaleKernel(RBFKernel(ard_num_dims=2, active_dims=(1, 0), lengthscale_constraint=GreaterThan(0.05)))
    sites = (PLACES.numpy(), list("abcde"))
    priors = {"lengthscale": dist.Gamma(_double(2.0, 3.0), _double(1.0, 1.0)).to_event(1)}
    structure = GP(kernel, sd=1.0, nugget=0.01, sites=sites, priors=priors)
    config = structure.config()
    again = from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    coords = Coords(tuple("bad"), ("Intercept",))
    theta = {"sd": _double(1.0), "outputscale": _number(2.0), "lengthscale": _double(0.5, 1.5)}
    assert [p.name for p in again.parameters(coords)] == ["sd", *[p.name for p in structure.parameters(coords)][1:]]
    torch.testing.assert_close(again.operator(theta, coords).dense(), structure.operator(theta, coords).dense())
    with pytest.raises(ConfigError, match=r"a kernel IndexKernel cannot be saved; those that can: RBFKernel"):
        GP(IndexKernel(num_tasks=2)).config()
    with pytest.raises(ConfigError, match=r"saved kernel 'system' is unknown"):
        from_config({**config, "kernel": ["system", {}, {}, []]})


# -- bad input -------------------------------------------------------------------------------------------------------
BAD = [
    (lambda: GP("matern"), r"GP\(kernel='matern'\): pass a kernel of GPyTorch"),
    (lambda: GP(RBFKernel(batch_shape=torch.Size([2]))), r"its batch shape is \(2,\)"),
    (lambda: GP(ScaleKernel(RBFKernel())), r"outputscale and sd are one scale too many; .* or fix sd=1\.0"),
    (lambda: GP(LinearKernel() * RBFKernel()), r"one scale too many"),
    (lambda: GP(ScaleKernel(RBFKernel()) + ScaleKernel(MaternKernel())), r"one scale too many"),
    (lambda: GP(RBFKernel(), sd=-1.0), r"GP\(sd=\.\.\.\): -1\.0 is not allowed"),
    (lambda: GP(RBFKernel(), nugget=-0.1), r"GP\(nugget=-0\.1\): pass a number >= 0"),
    (lambda: GP(RBFKernel(), priors={"length": 1.0}), r"no hyper-parameter 'length'; the kernel has lengthscale"),
    (
        lambda: GP(RBFKernel(lengthscale_prior=SmoothedBoxPrior(0.1, 1.0))),
        r"the prior SmoothedBoxPrior of lengthscale is not known",
    ),
    (lambda: GP(RBFKernel(), sites=[1.0, 2.0, 3.0]), r"GP\(sites=\.\.\.\): got a list; pass a pandas DataFrame"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_refused_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


ONE = ("Intercept",)
LATE = [
    (GP(RBFKernel()), Coords(("a", "b"), ONE), DataError, r"the labels of its levels are not places \('a', \.\.\.\)"),
    (
        GP(RBFKernel()),
        Coords(("a", "b"), ONE, [1.0, math.nan]),
        DataError,
        r"level 'b' is at \[nan\]; give it a finite",
    ),
    (GP(RBFKernel()), Coords(("a", "b"), ONE, [1.0]), DataError, r"its coordinates have shape \(1, 1\) for 2 levels"),
    (GP(RBFKernel(ard_num_dims=3)), Coords((1.0, 2.0), ONE), ConfigError, r"\(ard_num_dims=3\) over 1 coordinates"),
    (GP(RBFKernel(active_dims=(1,))), Coords((1.0, 2.0), ONE), ConfigError, r"active_dims beyond the 1 coordinates"),
    (GP(RBFKernel()), Coords(tuple(range(4001)), ONE), ConfigError, r"4001 sites, .* at most 4000; choose an"),
    (
        GP(RBFKernel(), sites=([1.0], ["a"])),
        Coords(("b",), ONE),
        StructureError,
        r"levels are not among its ids \('b'\)",
    ),
    (
        GP(RBFKernel(), priors={"lengthscale": dist.Normal(0.0, 1.0)}),
        Coords((1.0, 2.0), ONE),
        ConfigError,
        r"GP\(lengthscale=\.\.\.\): its prior Normal reaches below zero",
    ),
    (
        GP(RBFKernel(), priors={"lengthscale": -1}),
        Coords((1.0, 2.0), ONE),
        ConfigError,
        r"-1 is not allowed; it must be",
    ),
]


@pytest.mark.parametrize(("structure", "coords", "error", "message"), LATE)
def test_refused_where_the_effect_is_used(structure: GP, coords: Coords, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        structure.parameters(coords)


def test_a_singular_process_is_named() -> None:
    coords = Coords(tuple(np.linspace(0, 1, 40).tolist()), ("Intercept",))
    theta = {"sd": _double(1.0), "lengthscale": _number(10.0)}
    with pytest.raises(NumericalError, match=r"GP\(nugget=0\): the correlations of its levels are singular"):
        GP(RBFKernel(), nugget=0.0).operator(theta, coords).logdet_factor()
    assert torch.isfinite(GP(RBFKernel()).operator(theta, coords).logdet_factor())


def test_levels_at_one_place_share_it() -> None:
    coords = Coords(tuple("abcd"), ("Intercept",), [[0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    theta = {"sd": _double(2.0), "lengthscale": _number(1.5)}
    found = GP(MaternKernel(nu=0.5), nugget=0.01).operator(theta, coords).dense()
    x = torch.tensor([0.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    expected = torch.exp(-(x[:, None] - x).abs() / 1.5) + 0.01 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found, 4 * expected, atol=1e-12, rtol=0)


def test_lengths_are_labelled_by_dimension() -> None:
    kernel = RBFKernel(ard_num_dims=2) * MaternKernel(ard_num_dims=2, active_dims=(1, 2))
    places = pd.DataFrame(np.random.default_rng(0).random((6, 3)), columns=["east", "north", "depth"])
    coords = Coords(tuple(range(6)), ("Intercept", "x"), places)
    with pytest.raises(ConfigError, match="ard_num_dims=2"):
        GP(kernel).parameters(coords)
    kernel = RBFKernel(ard_num_dims=3) * MaternKernel(ard_num_dims=2, active_dims=(1, 2))
    labels = {p.name: p.labels for p in GP(kernel).parameters(coords)}
    names = {"lengthscale_1": ("east", "north", "depth"), "lengthscale_2": ("north", "depth")}
    assert labels == {"sd": None, **names}
    unnamed = Coords(coords.levels, coords.terms, places.to_numpy())
    assert _parameter(GP(kernel), "lengthscale_2", unnamed).labels == ("x2", "x3")


def test_it_is_written_as_it_was_made() -> None:
    kernel = RBFKernel(ard_num_dims=2) * (PeriodicKernel(active_dims=(0,)) + MaternKernel(nu=0.5))
    text = "RBFKernel(ard_num_dims=2) * (PeriodicKernel(active_dims=(0,)) + MaternKernel(nu=0.5))"
    assert repr(GP(kernel, sd=1.0, nugget=0.1)) == f"GP({text}, sd=1.0, nugget=0.1)"
    bounded = ScaleKernel(RQKernel(lengthscale_constraint=GreaterThan(0.05)))
    assert "ScaleKernel(RQKernel(lengthscale_constraint=GreaterThan(0.05)))" in repr(GP(bounded, sd=1.0))


def test_source_of_a_model_can_be_run() -> None:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"time": np.repeat(np.linspace(0, 5, 12), 2), "y": rng.standard_normal(24)})
    kernel = RBFKernel(lengthscale_constraint=GreaterThan(0.05)) + PeriodicKernel()
    structure = GP(kernel, sd=dist.HalfNormal(_number(2.0)), priors={"period_length": 1.0}, terms=Unstructured())
    model = pmx.model("y ~ 1 + (1 | time)", df, covariances={"time": structure})
    made: dict[str, Any] = {}
    exec(model.source(), made)
    logs = [_log_prob(program, model.design) for program in (model.program, made["program"])]
    assert logs[0] == pytest.approx(logs[1], abs=1e-10)


def _log_prob(program: Any, design: Any) -> float:
    with seeded(3):
        trace = poutine.trace(program).get_trace(design)
    return float(trace.log_prob_sum())


# -- fits ------------------------------------------------------------------------------------------------------------
TIMES = Coords(tuple(float(t) for t in range(30)), ("Intercept",))


def _exponential(at: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
    x = torch.tensor(coords.levels, dtype=torch.float64)
    c = torch.exp(-(x[:, None] - x).abs() / at["lengthscale"])
    return at["sd"] ** 2 * (c + 1e-6 * torch.eye(len(x), dtype=torch.float64))


def test_maximum_likelihood_is_that_of_the_dense_normal() -> None:
    theta = {"sd": _double(1.3), "lengthscale": _number(4.0)}
    check_gaussian_fit(GP(MaternKernel(nu=0.5)), TIMES, _exponential, theta)


def test_counts() -> None:
    theta = {"sd": _double(1.0), "lengthscale": _number(4.0)}
    check_counts(GP(MaternKernel(nu=0.5)), TIMES, _exponential, theta, rows=90)


def test_the_unit_of_places_does_not_matter() -> None:
    """Places in metres or in thousands of kilometres: the same likelihood, the length in their unit."""
    rng = np.random.default_rng(4)
    t = np.arange(60.0)
    y = np.sin(t / 6) + 0.2 * rng.standard_normal(60)
    fits = []
    for unit in (1.0, 1e4, 1e-4):
        df = pd.DataFrame({"t": t * unit, "y": y})
        fits.append(pmx.model("y ~ 1 + (1 | t)", df, covariances={"t": GP(RBFKernel())}).fit(progress=False))
        assert fits[-1].log_likelihood == pytest.approx(fits[0].log_likelihood, abs=1e-5)
        length = float(fits[-1].estimate.point["t.lengthscale"]) / unit
        assert length == pytest.approx(float(fits[0].estimate.point["t.lengthscale"]), rel=1e-3)
