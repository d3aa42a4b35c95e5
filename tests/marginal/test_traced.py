"""Traced runs give what runs give, whatever the structure of the effects."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyromix as pmx
from pyromix.marginal.plan import make_plan
from pyromix.marginal.traced import trace_runs
from pyromix.running import run

LEVELS = 7
INDEX = torch.arange(30) % LEVELS
ROOT = np.random.default_rng(0).normal(size=(LEVELS, 12))
STRUCTURES: dict[str, Any] = {
    "IID": pmx.IID(),
    "AR1": pmx.AR1(),
    "RandomWalk": pmx.RandomWalk(),
    "ARMA": pmx.ARMA(2, 1),
    "Kinship": pmx.Kinship((ROOT @ ROOT.T / 12, list(range(LEVELS)))),
    "GP": pmx.GP(gpytorch.kernels.MaternKernel(nu=1.5) * gpytorch.kernels.PeriodicKernel()),
    "GP by sines": pmx.GP(gpytorch.kernels.RBFKernel(), approximation=pmx.HilbertSpace(5)),
}


def test_programs_that_look_at_values_are_run() -> None:
    """A kernel that GPyTorch evaluates asks whether places are equal, which is a branch."""
    effect = pmx.RandomEffect("u", pmx.GP(gpytorch.kernels.PiecewisePolynomialKernel()), levels=LEVELS)

    def program(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Gaussian(), effect(INDEX), y)

    one = torch.ones((), dtype=torch.float64)
    y = torch.zeros(30, dtype=torch.float64)

    def values(t: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"u.sd": t.exp(), "u.lengthscale": t.exp().reshape(()), "y.sigma": one}

    assert trace_runs(program, (y,), values, lambda at: one, 1, 10_000, gradients=True) is None


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_values_and_gradients(name: str) -> None:
    effect = pmx.RandomEffect("u", STRUCTURES[name], levels=LEVELS)
    prior = dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64))
    y = torch.as_tensor(np.random.default_rng(1).normal(size=30))

    def program(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Gaussian(sigma=prior), effect(INDEX), y)

    hypers = run(program, (y,), hypers="moderate", seed=0).hypers
    sizes = [site.value.numel() for site in hypers.values()]

    def values(t: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = t.split(sizes)
        shapes = [site.value.shape for site in hypers.values()]
        return {k: 0.2 + 0.6 * torch.sigmoid(p.reshape(s)) for k, p, s in zip(hypers, parts, shapes, strict=True)}

    zero = torch.zeros((), dtype=torch.float64)
    traced = trace_runs(program, (y,), values, lambda at: zero, sum(sizes), 10_000, gradients=True)
    assert traced is not None
    bound = pmx.Exact().bind(program, (y,), make_plan(program, (y,)))
    found = []
    for way in (lambda t: traced(t)[0], lambda t: run(program, (y,), values(t))):
        t = torch.linspace(-1, 1, sum(sizes), dtype=torch.float64).requires_grad_(True)
        value = bound.log_marginal(way(t))
        (slope,) = torch.autograd.grad(value, t)
        found.append((value.item(), slope))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-10)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-8, rtol=0)
