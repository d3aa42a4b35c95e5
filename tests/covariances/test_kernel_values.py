"""Kernels written out in tensor operations, against GPyTorch's own evaluation and against sums over pairs in floats."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import (
    CosineKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PiecewisePolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)

from pyromix.covariances import GP
from pyromix.covariances.kernel_values import is_written_out

KERNELS: dict[str, Any] = {
    "rbf": RBFKernel(),
    "rbf, a length each": RBFKernel(ard_num_dims=3),
    "matern 1/2": MaternKernel(nu=0.5),
    "matern 3/2, a length each": MaternKernel(nu=1.5, ard_num_dims=2, active_dims=(0, 2)),
    "matern 5/2": MaternKernel(nu=2.5),
    "periodic": PeriodicKernel(),
    "periodic, a period each": PeriodicKernel(ard_num_dims=3),
    "rational quadratic": RQKernel(),
    "rational quadratic, a length each": RQKernel(ard_num_dims=3),
    "cosine": CosineKernel(),
    "linear": LinearKernel(),
    "linear, a variance each": LinearKernel(ard_num_dims=3),
    "scaled over one dimension": ScaleKernel(RBFKernel(), active_dims=(1,)),
    "scaled, its kernel over one": ScaleKernel(RBFKernel(active_dims=(1,))),
    "sum": ScaleKernel(RBFKernel(active_dims=(1,))) + ScaleKernel(LinearKernel(active_dims=(2,))),
    "product and sum": MaternKernel() * PeriodicKernel(active_dims=(0,)) + RBFKernel(ard_num_dims=3),
}


def places(n: int, seed: int) -> torch.Tensor:
    return 3 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(kernel: Any) -> tuple[GP, dict[str, torch.Tensor]]:
    """The structure, and moderate values of its hyper-parameters."""
    made = GP(kernel, sd=1.0)
    rng, values = np.random.default_rng(0), {}
    for name, path in made._names.items():
        shape = tuple(size for size in made.kernel.get_parameter(path).shape if size > 1)
        values[name] = torch.tensor(rng.uniform(0.5, 1.5, shape), dtype=torch.float64)
    return made, values


@pytest.mark.parametrize("name", KERNELS)
def test_values_and_slopes_are_gpytorchs(name: str) -> None:
    made, values = prepared(KERNELS[name])
    assert made._written_out
    x, other = places(12, 1), places(7, 2)
    weights = torch.rand(12, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for written_out in (True, False):
        made._written_out = written_out
        theta = {key: value.clone().requires_grad_(True) for key, value in values.items()}
        matrix = made._correlation(theta, x, other)
        slopes = torch.autograd.grad((weights * matrix).sum(), list(theta.values()))
        found.append((made._correlation(theta, x, x).detach(), matrix.detach(), *slopes))
    # GPyTorch's distance of a place from itself is 3e-8
    for ours, theirs, room in zip(*found, (1e-7, *[1e-10] * (1 + len(values))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=room)


@pytest.mark.parametrize("name", KERNELS)
def test_many_values_at_once(name: str) -> None:
    made, values = prepared(KERNELS[name])
    x = places(6, 1)
    batch = {key: torch.stack([value, 1.3 * value]) for key, value in values.items()}
    both = made._correlation(batch, x, x)
    for k, one in enumerate((values, {key: 1.3 * value for key, value in values.items()})):
        torch.testing.assert_close(both[k], made._correlation(one, x, x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_slopes_are_finite_where_two_places_are_one(name: str) -> None:
    made, values = prepared(KERNELS[name])
    x = places(5, 1)
    theta = {key: value.clone().requires_grad_(True) for key, value in values.items()}
    matrix = made._correlation(theta, x, x[[0, 0, 2, 3, 4]])
    slopes = torch.autograd.grad(matrix.sum(), list(theta.values()))
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


def test_formulas_by_hand() -> None:
    x, other = [0.3, 1.1, 2.0], [1.0, 0.4, 0.7]
    one = {"lengthscale": torch.tensor(0.8, dtype=torch.float64)}
    d = math.dist(x, other) / 0.8
    expected = {
        RBFKernel: math.exp(-0.5 * d * d),
        MaternKernel: (1 + math.sqrt(5) * d + 5 * d * d / 3) * math.exp(-math.sqrt(5) * d),
    }
    for kind, value in expected.items():
        found = GP(kind(), sd=1.0)._correlation(one, *(torch.tensor([v], dtype=torch.float64) for v in (x, other)))
        assert float(found) == pytest.approx(value, rel=1e-14)
        assert float(GP(kind(), sd=1.0)._correlation(one, *[torch.tensor([x], dtype=torch.float64)] * 2)) == 1.0
    waves = sum(math.sin(math.pi * (a - b) / 1.7) ** 2 for a, b in zip(x, other, strict=True))
    theta = {**one, "period_length": torch.tensor(1.7, dtype=torch.float64)}
    found = GP(PeriodicKernel(), sd=1.0)._correlation(
        theta, *(torch.tensor([v], dtype=torch.float64) for v in (x, other))
    )
    assert float(found) == pytest.approx(math.exp(-2 * waves / 0.8), rel=1e-14)


class Own(RBFKernel):
    """A user's kernel, which happens to extend a known one."""

    def forward(self, x1: torch.Tensor, x2: torch.Tensor, **params: Any) -> torch.Tensor:
        return 0.5 * super().forward(x1, x2, **params)


def test_a_kernel_that_is_not_known_is_evaluated_by_gpytorch() -> None:
    for kernel in (Own(), RBFKernel() + Own(), ScaleKernel(Own()), PiecewisePolynomialKernel()):
        assert not is_written_out(kernel, gpytorch)
    x = places(5, 1)
    theta = {"lengthscale": torch.tensor(0.8, dtype=torch.float64)}
    known, own = (GP(kernel, sd=1.0)._correlation(theta, x, x) for kernel in (RBFKernel(), Own()))
    torch.testing.assert_close(own, 0.5 * known, rtol=1e-12, atol=1e-12)


def test_a_scaled_kernel_over_one_dimension_is_saved_with_it() -> None:
    made, values = prepared(KERNELS["scaled over one dimension"])
    again = GP(made.config()["kernel"], sd=1.0)
    x = places(5, 1)
    torch.testing.assert_close(again._correlation(values, x, x), made._correlation(values, x, x), rtol=0, atol=0)
    assert "active_dims=(1,)" in repr(made)
    with_it = GP(ScaleKernel(RBFKernel(active_dims=(1,))), sd=1.0)
    torch.testing.assert_close(with_it._correlation(values, x, x), made._correlation(values, x, x), rtol=0, atol=0)
