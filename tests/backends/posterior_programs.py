"""Small programs whose posteriors are known."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyromix as pmx

F64 = torch.float64
Data = dict[str, torch.Tensor]
SIGMA, SD, WIDTH = 0.8, 1.1, 2.0


def grouped(seed: int = 3, groups: int = 8, per: int = 5) -> Data:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), per)
    x = np.column_stack([np.ones(len(g)), rng.normal(size=len(g))])
    y = x @ [0.5, -1.0] + rng.normal(0, SD, groups)[g] + rng.normal(0, SIGMA, len(g))
    return {"x": torch.from_numpy(x), "g": torch.from_numpy(g), "y": torch.from_numpy(y)}


def conjugate(data: Data) -> None:
    """Gaussian throughout: variances known, coefficients N(0, 2^2)."""
    eta = pmx.LinearEffect("beta", dist.Normal(torch.tensor(0.0, dtype=F64), WIDTH))(data["x"])
    eta = eta + pmx.RandomEffect("group", pmx.IID(sd=SD), levels=8)(data["g"])
    pmx.observe("y", pmx.Gaussian(sigma=SIGMA), eta, data["y"])


def variance(data: Data) -> None:
    """The same with the SD of the groups unknown, half-normal(2)."""
    eta = pmx.LinearEffect("beta", dist.Normal(torch.tensor(0.0, dtype=F64), WIDTH))(data["x"])
    eta = eta + pmx.RandomEffect("group", pmx.IID(sd=dist.HalfNormal(2.0)), levels=8)(data["g"])
    pmx.observe("y", pmx.Gaussian(sigma=SIGMA), eta, data["y"])


def plain(data: Data) -> None:
    """`variance` without a word of pyromix's."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2, dtype=F64), WIDTH).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(2.0, dtype=F64)))
    with pyro.plate("groups", 8):
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0, dtype=F64), 1.0))
    mean = data["x"] @ beta + sd * b[..., data["g"]]
    with pyro.plate("rows", len(data["y"])):
        pyro.sample("y", dist.Normal(mean, SIGMA), obs=data["y"])


class Closed:
    """The posterior of (beta, u) at one SD of the groups, and the evidence, by dense algebra."""

    def __init__(self, data: Data, sd: float) -> None:
        x, y = data["x"].numpy(), data["y"].numpy()
        z = np.eye(8)[data["g"].numpy()]
        design = np.hstack([x, z])
        prior = np.diag([WIDTH**2] * 2 + [sd**2] * 8)
        marginal = design @ prior @ design.T + SIGMA**2 * np.eye(len(y))
        gain = np.linalg.solve(marginal, design @ prior).T
        self.mean = gain @ y
        self.covariance = prior - gain @ design @ prior
        sign, logdet = np.linalg.slogdet(2 * np.pi * marginal)
        self.log_evidence = -0.5 * (logdet + y @ np.linalg.solve(marginal, y))


class Integrated:
    """The same with the SD integrated out on a grid under its half-normal prior."""

    def __init__(self, data: Data) -> None:
        grid = np.linspace(1e-3, 9.0, 3000)
        parts = [Closed(data, sd) for sd in grid]
        log = np.array([part.log_evidence for part in parts]) + np.log(np.sqrt(2 / np.pi) / 2) - grid**2 / 8
        weight = np.exp(log - log.max())
        self.log_evidence = log.max() + np.log(weight.sum() * (grid[1] - grid[0]))
        weight /= weight.sum()
        self.sd_mean = weight @ grid
        self.sd_sd = np.sqrt(weight @ grid**2 - self.sd_mean**2)
        self.mean = sum(w * part.mean for w, part in zip(weight, parts, strict=True))
        second = sum(
            w * (part.covariance + np.outer(part.mean, part.mean)) for w, part in zip(weight, parts, strict=True)
        )
        self.covariance = second - np.outer(self.mean, self.mean)
