"""Programs and oracles for the variational backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import scipy.stats
import torch

import pyromix as pmx

SD, SIGMA, WIDTH = 1.3, 0.7, 2.0


def grouped_data(groups: int, per_group: int, seed: int, family: str = "gaussian") -> dict[str, torch.Tensor]:
    """Rows of groups with a random intercept of SD 1.3 and slope of SD 0.65."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), per_group)
    x = rng.normal(size=len(g))
    u = rng.normal(size=(groups, 2)) * SD * np.array([1.0, 0.5])
    eta = 0.5 + 0.8 * x + u[g, 0] + u[g, 1] * x
    y = eta + SIGMA * rng.normal(size=len(g))
    if family == "binomial":
        y = (rng.random(len(g)) < 1 / (1 + np.exp(-eta))).astype(float)
    return {"x": torch.from_numpy(x), "g": torch.from_numpy(g), "y": torch.from_numpy(y)}


def fixed_gaussian(data: dict[str, torch.Tensor]) -> None:
    """Everything Gaussian: known SDs, coefficients with a Gaussian prior."""
    columns = torch.stack([torch.ones_like(data["x"]), data["x"]], 1)
    eta = pmx.LinearEffect("beta", dist.Normal(0.0, WIDTH))(columns)
    sd = [SD, 0.5 * SD]
    eta = eta + pmx.RandomEffect("g", pmx.Unstructured(sd=sd, corr=0.3), levels=int(data["g"].max()) + 1)(
        data["g"], columns
    )
    pmx.observe("y", pmx.Gaussian(sigma=SIGMA), eta, data["y"])


def fixed_evidence(data: dict[str, torch.Tensor], sigma: float = SIGMA) -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence of `fixed_gaussian`, posterior mean and covariance of beta, by dense algebra."""
    x, g, y = (data[k].numpy() for k in ("x", "g", "y"))
    columns = np.stack([np.ones_like(x), x], 1)
    one = np.array([[1.0, 0.15], [0.15, 0.25]]) * SD**2
    v = np.where(g[:, None] == g[None], columns @ one @ columns.T, 0.0) + sigma**2 * np.eye(len(y))
    total = v + WIDTH**2 * columns @ columns.T
    covariance = np.linalg.inv(columns.T @ np.linalg.solve(v, columns) + np.eye(2) / WIDTH**2)
    mean = covariance @ columns.T @ np.linalg.solve(v, y)
    return float(scipy.stats.multivariate_normal(np.zeros(len(y)), total).logpdf(y)), mean, covariance


def intercepts(family: Any) -> Any:
    """A random intercept with free SD, and a line."""

    def program(data: dict[str, torch.Tensor]) -> None:
        columns = torch.stack([torch.ones_like(data["x"]), data["x"]], 1)
        eta = pmx.LinearEffect("beta", dist.Normal(0.0, WIDTH))(columns)
        prior = dist.HalfNormal(torch.tensor(2.0, dtype=torch.float64))
        eta = eta + pmx.RandomEffect("g", pmx.IID(sd=prior), levels=int(data.get("levels", data["g"].max() + 1)))(
            data["g"]
        )
        pmx.observe("y", family, eta, data["y"])

    return program
