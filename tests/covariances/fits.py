"""Small programs over one structured effect: fitted, and held against the dense normal density of the response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyromix as pmx
from pyromix.covariances import Coords, Covariance

Dense = Callable[[Mapping[str, torch.Tensor], Coords], torch.Tensor]
Theta = Mapping[str, torch.Tensor]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def simulate(dense: Dense, theta: Theta, coords: Coords, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows over every level in turn: x, the level, design, the effects' part and noise."""
    rng = np.random.default_rng(seed)
    covariance = dense(theta, coords).numpy()
    u = torch.from_numpy(rng.multivariate_normal(np.zeros(len(covariance)), covariance))
    levels, terms = len(coords.levels), len(coords.terms)
    index = torch.arange(rows) % levels
    # a row is of one term, as with an indicator per time, so that every term is well seen
    design = torch.eye(terms, dtype=torch.float64)[(torch.arange(rows) // levels) % terms] if terms > 1 else None
    z = torch.zeros(rows, levels * terms, dtype=torch.float64)
    for n in range(rows):
        start = int(index[n]) * terms
        z[n, start : start + terms] = 1.0 if design is None else design[n]
    x = torch.from_numpy(np.column_stack([np.ones(rows), rng.standard_normal(rows)]))
    data = {"x": x, "index": index, "z": z, "signal": z @ u, "noise": torch.from_numpy(rng.standard_normal(rows))}
    return data if design is None else {**data, "design": design}


def program(covariance: Covariance, coords: Coords, family: Any, data: Mapping[str, torch.Tensor]) -> Callable:
    linear = pmx.LinearEffect("beta")
    effect = pmx.RandomEffect("g", covariance, coords.levels, coords.values, terms=coords.terms)

    def run(rows: Any) -> None:
        eta = linear(rows["x"]) + effect(rows["index"], rows.get("design"))
        pmx.observe("y", family, eta, rows["y"])

    return run


def check_gaussian_fit(
    covariance: Covariance, coords: Coords, dense: Dense, theta: Theta, rows: int = 240, seed: int = 0
) -> pmx.Fit:
    """Maximum likelihood: the log-likelihood is that of the dense normal density, whose gradient is zero there."""
    data = simulate(dense, theta, coords, rows, seed)
    data["y"] = data["x"] @ torch.tensor([0.5, -0.3]).double() + data["signal"] + 0.5 * data["noise"]
    fit = pmx.fit(program(covariance, coords, pmx.Gaussian(), data), data, pmx.MaximumLikelihood(), progress=False)
    found = {name: value.clone().requires_grad_(True) for name, value in fit.estimate.point.items()}
    of_effect = {name: found[f"g.{name}"] for name in theta}
    marginal = data["z"] @ dense(of_effect, coords) @ data["z"].T
    marginal = marginal + found["y.sigma"] ** 2 * torch.eye(rows, dtype=torch.float64)
    expected = MultivariateNormal(data["x"] @ found["beta"], marginal).log_prob(data["y"])
    assert fit.log_likelihood == pytest.approx(float(expected.detach()), abs=1e-6)
    wanted = [found[name] for name in ("beta", "y.sigma", *(f"g.{name}" for name in theta))]
    for value, slope in zip(wanted, torch.autograd.grad(expected, wanted), strict=True):
        assert float((slope.abs() * value.detach().abs().clamp(min=0.1)).max()) < 1e-2
    return fit


def check_counts(covariance: Covariance, coords: Coords, dense: Dense, theta: Theta, rows: int = 240) -> pmx.Fit:
    """Counts: a nested Laplace approximation of the posterior, which takes the structure's priors too."""
    data = simulate(dense, theta, coords, rows, 1)
    rate = (1.0 + 0.3 * data["x"][:, 1] + 0.5 * data["signal"]).exp()
    data["y"] = torch.poisson(rate, generator=torch.Generator().manual_seed(2))
    fit = pmx.fit(
        program(covariance, coords, pmx.Poisson(), data), data, pmx.NestedLaplace(draws=100), seed=0, progress=False
    )
    drawn = fit.draws()
    for name, value in theta.items():
        assert drawn[f"g.{name}"].shape[1:] == value.shape and torch.isfinite(drawn[f"g.{name}"]).all()
    assert drawn["g"].shape[1:] == (len(coords.levels), len(coords.terms)) and torch.isfinite(drawn["g"]).all()
    return fit
