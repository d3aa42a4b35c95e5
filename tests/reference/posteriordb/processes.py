"""Gaussian processes in plain Pyro."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.reference.posteriordb import oracles
from tests.reference.posteriordb.posteriors import Arrays, Form, Posterior, Tensors, tensor

Data = dict[str, Any]


def kernel(x: torch.Tensor, alpha: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    """Exponentiated quadratic covariance, SD `alpha`, range `rho`."""
    return alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))


def _hyperparameters() -> tuple[torch.Tensor, torch.Tensor]:
    rho = pyro.sample("rho", dist.Gamma(tensor(25.0), tensor(4.0)))
    alpha = pyro.sample("alpha", dist.HalfNormal(tensor(2.0)))
    return rho, alpha


def _data(data: Data) -> Tensors:
    return {name: tensor(data[name]) for name in ("x", "y", "k")}


def gaussian(data: Tensors) -> None:
    rho, alpha = _hyperparameters()
    variance = pyro.sample("sigma", dist.HalfNormal(tensor(1.0)))
    covariance = kernel(data["x"], alpha, rho) + variance * torch.eye(len(data["x"]), dtype=torch.float64)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(data["y"]), covariance), obs=data["y"])


def counts(data: Tensors) -> None:
    rho, alpha = _hyperparameters()
    n = len(data["x"])
    white = pyro.sample("f_tilde", dist.Normal(tensor(0.0), tensor(1.0)).expand([n]).to_event(1))
    jitter = 1e-10 * torch.eye(n, dtype=torch.float64)
    f = pyro.deterministic("f", torch.linalg.cholesky(kernel(data["x"], alpha, rho) + jitter) @ white)
    with pyro.plate("rows", n):
        pyro.sample("k", dist.Poisson(f.exp()), obs=data["k"])


def _counts_point(near: Arrays, rng: np.random.Generator) -> Arrays:
    return {"rho": near["rho"], "alpha": near["alpha"], "f_tilde": rng.standard_normal(11) * 0.5}


def _functions(d: Arrays) -> Arrays:
    """The latent function at every draw; its inputs are the integers from -10 to 10 in steps of two."""
    x = np.arange(-10.0, 11.0, 2.0)
    square = (x[:, None] - x) ** 2
    k = d["alpha"][:, None, None] ** 2 * np.exp(-square / (2 * d["rho"][:, None, None] ** 2)) + 1e-10 * np.eye(11)
    return {"rho": d["rho"], "alpha": d["alpha"], "f": np.einsum("sij,sj->si", np.linalg.cholesky(k), d["f_tilde"])}


POSTERIORS = (
    Posterior("gp_pois_regr-gp_regr", oracles.gp_regr, {"pyro": Form(gaussian, _data)}),
    Posterior(
        "gp_pois_regr-gp_pois_regr",
        oracles.gp_pois_regr,
        {"pyro": Form(counts, _data, derive=_functions)},
        _counts_point,
    ),
)
