"""Posteriors in closed form, so that results of draws are tested without a sampler.

Rows in groups, y = beta + u[g] + e, with known SDs of u and e and a normal prior of beta: all is jointly Gaussian.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyromix as pmx
from pyromix.backends.posterior import posterior_estimate
from pyromix.errors import Status
from pyromix.results import Fit
from tests.results.models import tensor

GROUPS, ROWS = 5, 6
PRIOR_SD, SD, SIGMA = 4.0, 1.2, 0.7
INDEX = torch.arange(GROUPS).repeat_interleave(ROWS)
_RNG = np.random.default_rng(11)
Y = tensor(2.0 + SD * _RNG.normal(size=GROUPS).repeat(ROWS) + SIGMA * _RNG.normal(size=GROUPS * ROWS))
CHAINS, DRAWS = 4, 500


def declared(data: dict[str, torch.Tensor]) -> None:
    """The model with pyromix's effects."""
    x = torch.ones(len(data["y"]), 1, dtype=torch.float64)
    beta = pmx.LinearEffect("beta", prior=dist.Normal(tensor(0.0), tensor(PRIOR_SD)), labels=("Intercept",))(x)
    eta = beta + pmx.RandomEffect("g", pmx.IID(sd=SD), levels=tuple("abcde"))(data["g"])
    pmx.observe("y", pmx.Gaussian(), eta, data["y"], sigma=SIGMA)


def plain(data: dict[str, torch.Tensor]) -> None:
    """The same model in Pyro alone."""
    beta = pyro.sample("beta", dist.Normal(tensor(0.0), tensor(PRIOR_SD)))
    with pyro.plate("groups", GROUPS):
        u = pyro.sample("u", dist.Normal(tensor(0.0), tensor(SD)))
    with pyro.plate("rows", len(data["y"])):
        mean = pyro.deterministic("mean", beta + u[data["g"]])
        pyro.sample("y", dist.Normal(mean, tensor(SIGMA)), obs=data["y"])


def exact(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (beta, u) given y."""
    design = np.column_stack([np.ones(len(y)), np.eye(GROUPS)[INDEX.numpy()]])
    prior = np.diag([PRIOR_SD**-2] + [SD**-2] * GROUPS)
    covariance = np.linalg.inv(prior + design.T @ design / SIGMA**2)
    return covariance @ design.T @ y / SIGMA**2, covariance


def marginal_covariance() -> np.ndarray:
    """Covariance of y with everything integrated out."""
    same = np.equal.outer(INDEX.numpy(), INDEX.numpy())
    return PRIOR_SD**2 + SD**2 * same + SIGMA**2 * np.eye(len(INDEX))


def sample(count: int = CHAINS * DRAWS, seed: int = 3) -> np.ndarray:
    """Independent draws of (beta, u), (count, 1 + groups)."""
    mean, covariance = exact(Y.numpy())
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, size=count)


def declared_fit(**changes: Any) -> Fit:
    """The posterior as the fit of `declared`."""
    values = tensor(sample())
    return make(declared, {"beta": values[:, :1], "g": values[:, 1:, None]}, **changes)


def plain_fit(**changes: Any) -> Fit:
    """The posterior as the fit of `plain`."""
    values = tensor(sample())
    return make(plain, {"beta": values[:, 0], "u": values[:, 1:]}, **changes)


def make(program: Any, draws: dict[str, torch.Tensor], data: Any = None, **changes: Any) -> Fit:
    data = {"y": Y, "g": INDEX} if data is None else data
    given: dict[str, Any] = {"chains": CHAINS, "inference": "conjugate", "settings": {}, "status": Status.CONVERGED}
    return Fit(posterior_estimate(program, (data,), draws, **{**given, **changes}), program, (data,))
