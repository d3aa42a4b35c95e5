"""A Gaussian model with known variances, and its exact posterior by dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyromix.families import Gaussian
from pyromix.testing.sbc import Fitted, Problem
from pyromix.testing.sbc.models import intercept_problem, rows

BETA_SD, GROUP_SD, SIGMA = 0.7, 0.6, 0.5
DRAWS = 99


def problem() -> Problem:
    return intercept_problem("conjugate", Gaussian(sigma=SIGMA), rows(5, 4), BETA_SD, GROUP_SD)


def exact(program: Any, data: Any, seed: int) -> Fitted:
    """Independent draws from N(m, V): V^-1 = A'A / sigma^2 + P, m = V A'y / sigma^2, A = [X Z], P the priors'."""
    rng = np.random.default_rng(seed)
    x, y = data.x.numpy(), data.y.numpy()
    a = np.hstack([x, np.eye(data.groups)[data.group.numpy()]])
    prior = np.concatenate([np.full(x.shape[1], BETA_SD**-2), np.full(data.groups, GROUP_SD**-2)])
    covariance = np.linalg.inv(a.T @ a / SIGMA**2 + np.diag(prior))
    mean = covariance @ a.T @ y / SIGMA**2
    found = mean + rng.standard_normal((DRAWS, len(mean))) @ np.linalg.cholesky(covariance).T
    p = x.shape[1]
    return Fitted({"beta": torch.from_numpy(found[:, :p]), "g": torch.from_numpy(found[:, p:, None])})


def shifted(program: Any, data: Any, seed: int) -> Fitted:
    """The same, with the intercept's draws moved by half a posterior SD."""
    found = exact(program, data, seed)
    beta = found.draws["beta"].clone()
    beta[:, 0] += 0.5 * beta[:, 0].std()
    return Fitted({**found.draws, "beta": beta})


def narrowed(program: Any, data: Any, seed: int) -> Fitted:
    """The same, with the slope's draws drawn towards their mean by a third."""
    found = exact(program, data, seed)
    beta = found.draws["beta"].clone()
    beta[:, 1] = beta[:, 1].mean() + (beta[:, 1] - beta[:, 1].mean()) * 2 / 3
    return Fitted({**found.draws, "beta": beta})


def prior(program: Any, data: Any, seed: int) -> Fitted:
    """Draws from the prior: a posterior that has not seen the data."""
    rng = np.random.default_rng(seed)
    beta = rng.normal(0, BETA_SD, (DRAWS, 2))
    return Fitted({"beta": torch.from_numpy(beta), "g": torch.from_numpy(rng.normal(0, GROUP_SD, (DRAWS, 5, 1)))})
