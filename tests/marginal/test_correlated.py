"""Effects whose levels are correlated: marginal likelihoods and conditionals against dense algebra, in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.distributions import MultivariateNormal

import pyromix as pmx
from pyromix.linalg import correlated
from pyromix.running import run
from tests.marginal.correlated_structures import Decaying, number

N, TIMES, GROUPS = 60, 8, 5
KINDS = ("root", "precision", "whole")
VALUES = {"beta": [0.3, -0.2], "t.sd": 0.7, "t.rho": 0.6, "g.sd": 0.5, "y.sigma": 0.8}
Case = tuple[Callable[[Any], None], dict[str, torch.Tensor]]


@pytest.fixture(params=["dense", "sparse"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How systems without a root are factored."""
    monkeypatch.setattr(correlated, "DENSE", 1200 if request.param == "dense" else 0)


def rows() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(3)
    return {
        "t": torch.from_numpy(rng.integers(0, TIMES, N)),
        "g": torch.from_numpy(rng.integers(0, GROUPS, N)),
        "x": torch.from_numpy(rng.standard_normal((N, 2))),
        "noise": torch.from_numpy(rng.standard_normal(N)),
    }


def case(kind: str, terms: int, family: Any = None) -> Case:
    """A program and values of its hyper-parameters."""
    d = rows()
    family = family or pmx.Gaussian()
    y = d["noise"] if isinstance(family, pmx.Gaussian) else (d["noise"] > 0).double()
    times, groups = pmx.RandomEffect("t", Decaying(kind), levels=TIMES), pmx.RandomEffect("g", pmx.IID(), levels=GROUPS)
    linear = pmx.LinearEffect("beta")

    def program(data: Any) -> None:
        eta = linear(d["x"]) + times(d["t"], d["x"] if terms == 2 else None) + groups(d["g"])
        pmx.observe("y", family, eta, y)

    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES.items()}
    if not isinstance(family, pmx.Gaussian):
        values.pop("y.sigma")
    return program, values


def joint(terms: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Design of all effects side by side and their covariance, written out."""
    d = rows()
    z = torch.zeros(N, TIMES * terms, dtype=torch.float64)
    for i in range(N):
        start = int(d["t"][i]) * terms
        z[i, start : start + terms] = d["x"][i] if terms == 2 else 1.0
    tril = torch.tensor([[1.0, 0.0], [0.4, 1.0]] if terms == 2 else [[1.0]], dtype=torch.float64)
    at = torch.arange(TIMES, dtype=torch.float64)
    levels = 0.6 ** (at[:, None] - at).abs()
    covariance = torch.block_diag(0.49 * torch.kron(levels, tril @ tril.T), 0.25 * torch.eye(GROUPS).double())
    return torch.cat([z, torch.nn.functional.one_hot(d["g"], GROUPS).double()], 1), covariance


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_marginal_and_conditional_are_exact(kind: str, terms: int, held: None) -> None:
    program, values = case(kind, terms)
    bound = pmx.Exact().prepare(program, (None,))
    record = run(program, (None,), values)
    d, (z, covariance) = rows(), joint(terms)
    mean = d["x"] @ values["beta"]
    marginal = z @ covariance @ z.T + 0.64 * torch.eye(N, dtype=torch.float64)
    assert float(bound.log_marginal(record)) == pytest.approx(
        float(MultivariateNormal(mean, marginal).log_prob(d["noise"])), rel=1e-12
    )
    gain = torch.linalg.solve(marginal, z @ covariance).T
    mode, left = gain @ (d["noise"] - mean), covariance - gain @ z @ covariance
    found = bound.conditional(record)
    assert_allclose(torch.cat([found.mode["t"].reshape(-1), found.mode["g"].reshape(-1)]), mode, atol=1e-12)
    assert_allclose(
        torch.cat([found.sd["t"].reshape(-1), found.sd["g"].reshape(-1)]), left.diagonal().sqrt(), rtol=1e-10
    )
    drawn = found.draw(20_000, torch.Generator().manual_seed(0), {})
    flat = torch.cat([drawn["t"].flatten(1), drawn["g"].flatten(1)], 1)
    # 20,000 draws: five standard errors of every covariance; false alarm below 1e-3 over all entries
    sd = left.diagonal().sqrt()
    assert (((flat.T.cov() - left) / sd / sd[:, None]).abs() < 5 * 2**0.5 / 20_000**0.5).all()


@pytest.mark.parametrize("family", [pmx.Gaussian(), pmx.Binomial()], ids=["gaussian", "binomial"])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind: str, terms: int, family: Any, held: None) -> None:
    program, values = case(kind, terms, family)
    bound = pmx.Laplace().prepare(program, (None,))
    free = {name: value.clone().requires_grad_(True) for name, value in values.items()}
    slopes = torch.autograd.grad(bound.log_marginal(run(program, (None,), free)), list(free.values()))
    for (name, value), slope in zip(values.items(), slopes, strict=True):
        for i in range(value.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                moved = value.clone()
                moved.view(-1)[i] += step
                with torch.no_grad():
                    sides.append(float(bound.log_marginal(run(program, (None,), {**values, name: moved}))))
            assert float(slope.view(-1)[i]) == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_laplace_is_the_gaussian_at_the_joint_mode(kind: str, held: None) -> None:
    program, values = case(kind, 1, pmx.Binomial())
    bound = pmx.Laplace().prepare(program, (None,))
    d, (z, covariance) = rows(), joint(1)
    y, offset, precision = (d["noise"] > 0).double(), d["x"] @ values["beta"], torch.linalg.inv(covariance)
    u = torch.zeros(len(covariance), dtype=torch.float64)
    for _ in range(50):  # Newton on the log joint density, densely
        p = torch.sigmoid(offset + z @ u)
        hessian = z.T @ ((p * (1 - p))[:, None] * z) + precision
        u = u + torch.linalg.solve(hessian, z.T @ (y - p) - precision @ u)
    eta = offset + z @ u
    fitted = torch.distributions.Bernoulli(logits=eta).log_prob(y).sum() - 0.5 * u @ precision @ u
    expected = fitted + 0.5 * torch.logdet(precision) - 0.5 * torch.logdet(hessian)
    record = run(program, (None,), values)
    assert float(bound.log_marginal(record)) == pytest.approx(float(expected), rel=1e-10)
    assert_allclose(bound.conditional(record).mode["t"][:, 0], u[:TIMES], atol=1e-8)


def test_restricted_likelihood_integrates_the_coefficients(held: None) -> None:
    program, values = case("precision", 1)
    bound = pmx.Exact("integrate").prepare(program, (None,))
    d, (z, covariance) = rows(), joint(1)
    v = z @ covariance @ z.T + 0.64 * torch.eye(N, dtype=torch.float64)
    x, w = d["x"], torch.linalg.inv(v)
    xwx = x.T @ w @ x
    beta = torch.linalg.solve(xwx, x.T @ w @ d["noise"])
    residual = d["noise"] - x @ beta
    expected = -0.5 * (torch.logdet(v) + torch.logdet(xwx) + residual @ w @ residual + (N - 2) * np.log(2 * np.pi))
    record = run(program, (None,), values)
    assert float(bound.log_marginal(record)) == pytest.approx(float(expected), rel=1e-12)
    estimate, spread = bound.coefficients_at(record)["beta"]
    assert_allclose(estimate, beta, rtol=1e-10)
    assert_allclose(spread, torch.linalg.inv(xwx), rtol=1e-10)


def test_a_zero_sd_is_an_ordinary_value() -> None:
    program, values = case("precision", 1)
    bound = pmx.Exact().prepare(program, (None,))
    d = rows()
    z = torch.nn.functional.one_hot(d["g"], GROUPS).double()
    v = 0.25 * z @ z.T + 0.64 * torch.eye(N, dtype=torch.float64)
    expected = MultivariateNormal(d["x"] @ values["beta"], v).log_prob(d["noise"])
    record = run(program, (None,), {**values, "t.sd": number(0.0)})
    assert float(bound.log_marginal(record)) == pytest.approx(float(expected), rel=1e-12)
    assert float(bound.conditional(record).mode["t"].abs().max()) == 0.0
