"""Products of two structures against dense Kronecker products."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel

from pyromix.covariances import AR1, GP, IID, Coords, Kinship, Kronecker, Unstructured, from_config
from pyromix.errors import ConfigError, StructureError
from pyromix.testing import CovarianceSuite
from tests.covariances.fits import check_counts, check_gaussian_fit

K = np.array([[1.0, -0.6, 0.3], [-0.6, 1.2, 0.2], [0.3, 0.2, 0.9]])
IDS = ("a", "b", "c")
GRID = tuple(itertools.product(IDS, (1, 2, 4)))


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _pairs(sd: torch.Tensor, rho: torch.Tensor, levels: Any) -> torch.Tensor:
    """Relatives over times, pair by pair."""
    at = {x: i for i, x in enumerate(IDS)}
    cells = [[float(K[at[a], at[c]]) * rho ** abs(t - s) for c, s in levels] for a, t in levels]
    return sd**2 * torch.stack([torch.stack(row) for row in cells])


class TestKronecker(CovarianceSuite):
    def make(self) -> Kronecker:
        return Kronecker(Kinship((K, IDS)), AR1())

    def coords(self) -> Coords:
        return Coords(GRID, ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(1.4), "second.rho": _number(0.6)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        return _pairs(theta["sd"], theta["second.rho"], coords.levels)


class TestKroneckerOfSomePairs(TestKronecker):
    """An incomplete grid in no order."""

    def coords(self) -> Coords:
        return Coords(tuple(GRID[i] for i in (4, 0, 8, 2, 3, 7)), ("Intercept",))


class TestKroneckerWithTheSecondHalfSlowest(TestKronecker):
    def coords(self) -> Coords:
        return Coords(tuple((a, t) for t in (1, 2, 4) for a in IDS), ("Intercept",))


class TestKroneckerWithCorrelatedTerms(CovarianceSuite):
    """Space and time, two parts with hyper-parameters."""

    def make(self) -> Kronecker:
        return Kronecker(GP(MaternKernel(nu=0.5)), AR1(), terms=Unstructured())

    def coords(self) -> Coords:
        return Coords(tuple(itertools.product((0.0, 0.8, 2.0), (1, 2))), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        corr = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
        own = {"sd": _double(0.8, 1.7), "corr_cholesky": corr}
        return {**own, "first.lengthscale": _number(1.1), "second.rho": _number(-0.5)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        x, t = (torch.tensor(half, dtype=torch.float64) for half in ((0.0, 0.8, 2.0), (1.0, 2.0)))
        space = torch.exp(-(x[:, None] - x).abs() / theta["first.lengthscale"]) + 1e-6 * torch.eye(3).double()
        time = theta["second.rho"] ** (t[:, None] - t).abs()
        root = torch.diag(theta["sd"]) @ theta["corr_cholesky"]
        return torch.kron(torch.kron(space, time), root @ root.T)


def test_with_the_identity_it_is_independent_copies() -> None:
    kin = Kinship((K, IDS))
    one = kin.operator({"sd": _double(1.4)}, Coords(IDS, ("Intercept",)))
    copies = Kronecker(IID(), kin).operator(
        {"sd": _double(1.4)}, Coords(tuple(itertools.product("uv", IDS)), ("Intercept",))
    )
    u = torch.randn(2, 3, 1, dtype=torch.float64)
    assert float(copies.log_prob(u.reshape(6, 1))) == pytest.approx(float(one.log_prob(u).sum()), abs=1e-10)


def test_a_singular_part_of_an_incomplete_grid_is_an_ordinary_value() -> None:
    twins = np.array([[1.0, 1.0], [1.0, 1.0]])
    levels = (("p", 1), ("q", 2), ("q", 1))
    dense = (
        Kronecker(Kinship((twins, "pq")), IID()).operator({"sd": _double(2.0)}, Coords(levels, ("Intercept",))).dense()
    )
    expected = 4 * torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(dense, expected, atol=1e-12, rtol=0)


def test_it_is_saved_in_plain_values() -> None:
    config = Kronecker(Kinship((K, IDS)), AR1(rho=0.3), sd=2.0).config()
    again = from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    parameters = again.parameters(Coords(GRID, ("Intercept",)))
    assert [(p.name, float(p.fixed)) for p in parameters] == [("sd", 2.0), ("second.rho", 0.3)]


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"Kronecker\(second='time'\): pass a structure, e\.g\. AR1\(\)"):
        Kronecker(IID(), "time")
    with pytest.raises(ConfigError, match=r"Kronecker\(first=IID\(sd=2\.0\)\): the product has one variance"):
        Kronecker(IID(sd=2.0), IID())
    with pytest.raises(StructureError, match=r"level 'a:1' is no pair; its levels are tuples \(a, b\)"):
        Kronecker(IID(), IID()).parameters(Coords((("a", 1), "a:1"), ("Intercept",)))
    with pytest.raises(ConfigError, match=r"Kronecker: it takes no coords"):
        Kronecker(IID(), IID()).parameters(Coords((("a", 1),), ("Intercept",), [1.0]))


GROWN = Coords(tuple(itertools.product(IDS, range(12))), ("Intercept",))


def _grown(at: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
    times = torch.arange(12, dtype=torch.float64)
    decay = at["second.rho"] ** (times[:, None] - times).abs()
    return at["sd"] ** 2 * torch.kron(torch.from_numpy(K), decay)


def test_maximum_likelihood_is_that_of_the_dense_normal() -> None:
    theta = {"sd": _double(1.3), "second.rho": _number(0.7)}
    check_gaussian_fit(Kronecker(Kinship((K, IDS)), AR1()), GROWN, _grown, theta)


def test_counts() -> None:
    theta = {"sd": _double(1.0), "second.rho": _number(0.7)}
    check_counts(Kronecker(Kinship((K, IDS)), AR1()), GROWN, _grown, theta, rows=108)
