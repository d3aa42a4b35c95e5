"""Gaussian rows by their dense covariance: against torch's normal density, and the way by effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel
from torch.distributions import MultivariateNormal

import pyromix as pmx
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.dense_rows import DenseRows
from pyromix.marginal.plan import make_plan
from pyromix.running import run

N = 40


@pytest.fixture(params=["places", "relatives"])
def data(rng: np.random.Generator, request: pytest.FixtureRequest) -> dict[str, Any]:
    x = torch.from_numpy(np.column_stack([np.ones(N), rng.standard_normal(N)]))
    return {
        "x": x,
        "site": torch.from_numpy(rng.permutation(30)[np.arange(N) % 30]),
        "group": torch.arange(N) % 4,
        "places": torch.from_numpy(rng.random((30, 2))),
        "relatives": relatives(rng) if request.param == "relatives" else None,
        "y": torch.from_numpy(rng.standard_normal(N)),
    }


def relatives(rng: np.random.Generator) -> torch.Tensor:
    """Of rank 20: markers are fewer than animals."""
    z = torch.from_numpy(rng.standard_normal((30, 20)))
    return z @ z.T / 20


def make(data: dict[str, Any]) -> Callable[[Any], None]:
    linear = pmx.LinearEffect("beta")
    if data["relatives"] is None:
        site = pmx.RandomEffect("site", pmx.GP(MaternKernel(nu=0.5), nugget=0.01), 30, data["places"])
    else:
        site = pmx.RandomEffect("site", pmx.Kinship((data["relatives"].numpy(), list(range(30)))), 30)
    group = pmx.RandomEffect("group", pmx.Unstructured(), 4)

    def program(rows: Any) -> None:
        eta = linear(rows["x"]) + site(rows["site"], rows["x"]) + group(rows["group"], rows["x"])
        pmx.observe("y", pmx.Gaussian(), eta, rows["y"])

    return program


VALUES = {
    "beta": [0.3, -0.2],
    "site.sd": [0.8, 0.4],
    "site.lengthscale": 0.3,
    "group.sd": [0.5, 0.7],
    "group.corr_cholesky": [[1.0, 0.0], [0.6, 0.8]],
    "y.sigma": 0.4,
}


def covariance(at: dict[str, torch.Tensor], data: dict[str, Any]) -> torch.Tensor:
    c, places, x = data["relatives"], data["places"], data["x"]
    if c is None:
        apart = (places[:, None] - places + 1e-300).square().sum(-1).sqrt()
        c = torch.exp(-apart / at["site.lengthscale"])
        c = c - torch.diag(c.diagonal()) + 1.01 * torch.eye(30, dtype=torch.float64)
    root = at["group.sd"][:, None] * at["group.corr_cholesky"]
    between = c[data["site"]][:, data["site"]] * (x * at["site.sd"] ** 2 @ x.T)
    within = (data["group"][:, None] == data["group"]) * (x @ root @ root.T @ x.T)
    return between + within + at["y.sigma"] ** 2 * torch.eye(N, dtype=torch.float64)


def bound_and_record(data: dict[str, Any], integrate: bool) -> tuple[BoundCorrelated, Any, dict[str, torch.Tensor]]:
    program = make(data)
    marginal = pmx.Exact("integrate" if integrate else "keep")
    bound = marginal.bind(program, (data,), make_plan(program, (data,)))
    assert isinstance(bound, BoundCorrelated)
    names = [name for name in VALUES if name != "site.lengthscale" or data["relatives"] is None]
    at = {name: torch.tensor(VALUES[name], dtype=torch.float64).requires_grad_(True) for name in names}
    return bound, run(program, (data,), at), at


def test_density_and_gradient_are_those_of_the_normal(data: dict[str, Any]) -> None:
    bound, record, at = bound_and_record(data, integrate=False)
    assert isinstance(bound.rows, DenseRows)
    expected = MultivariateNormal(data["x"] @ at["beta"], covariance(at, data)).log_prob(data["y"])
    found = bound.log_marginal(record)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    slopes = torch.autograd.grad(expected, list(at.values()))
    for got, wanted in zip(torch.autograd.grad(found, list(at.values())), slopes, strict=True):
        got, wanted = (x.tril() if x.dim() == 2 else x for x in (got, wanted))  # a triangular parameter
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("integrate", [False, True])
def test_it_is_the_likelihood_by_effects(data: dict[str, Any], integrate: bool) -> None:
    bound, record, at = bound_and_record(data, integrate)
    free = [value for name, value in at.items() if name != "beta"]
    pairs = []
    for value in (bound.log_marginal(record), bound._by_effects(record)):
        slopes = torch.autograd.grad(value, free, retain_graph=True)
        pairs.append((value.detach(), [x.tril() if x.dim() == 2 else x for x in slopes]))
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-7, atol=1e-9)


def test_restricted_likelihood_is_harvilles(data: dict[str, Any]) -> None:
    bound, record, at = bound_and_record(data, integrate=True)
    x, y, v = data["x"], data["y"], covariance(at, data).detach()
    inverse = torch.linalg.inv(v)
    inner = x.T @ inverse @ x
    beta = torch.linalg.solve(inner, x.T @ inverse @ y)
    expected = MultivariateNormal(x @ beta, v).log_prob(y) - 0.5 * torch.logdet(inner) + np.log(2 * np.pi)
    torch.testing.assert_close(bound.log_marginal(record).detach(), expected, rtol=1e-12, atol=0)


def test_many_rows_a_level_go_by_effects(data: dict[str, Any]) -> None:
    rows = ("x", "site", "group", "y")
    many = {name: torch.cat([value] * 4) if name in rows else value for name, value in data.items()}
    bound, _, _ = bound_and_record(data, integrate=False)
    program = make(many)
    other = pmx.Exact().bind(program, (many,), make_plan(program, (many,)))
    assert isinstance(other, BoundCorrelated)
    assert bound.rows is not None and other.rows is None
