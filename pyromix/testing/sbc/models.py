"""The models that are calibrated, priors proper: correlated intercepts and slopes in three families, and structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch

from pyromix.covariances import AR1, GP, IID, Kinship, Unstructured
from pyromix.effects import LinearEffect, RandomEffect
from pyromix.families import AbstractFamily, Binomial, Gaussian, Poisson
from pyromix.program import observe
from pyromix.testing.sbc.problem import Problem

FAMILIES = ("gaussian", "binomial", "poisson")
STRUCTURES = ("ar1", "kinship", "gp")  # of levels, under Gaussian responses


@dataclass(frozen=True)
class Rows:
    """What a program is called with; one row each.

    Attributes
    ----------
    x
        Columns (n, p): intercept and covariate, in (-1, 1).
    group
        Group of each row (n,), out of `groups`.
    y
        The response; ``None`` for the program to draw it.
    trials, offset, precision, mask
        As for `pyromix.observe`.
    """

    x: torch.Tensor
    group: torch.Tensor
    groups: int
    y: torch.Tensor | None = None
    trials: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    precision: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def rows(groups: int, size: int) -> Rows:
    """A fixed design: `groups` of `size` rows each."""
    n = groups * size
    covariate = np.random.default_rng(3).uniform(-1, 1, n)
    x = torch.from_numpy(np.stack([np.ones(n), covariate], axis=1))
    return Rows(x, torch.arange(groups).repeat_interleave(size), groups)


def family_problem(family: str, groups: int = 15, size: int = 7) -> Problem:
    r"""A GLMM of one of the `FAMILIES` with a correlated random intercept and slope.

    .. math:: \eta_n = x_n'\beta + x_n'u_{g(n)}, \quad u_g \sim N(0, D R D), \quad sd \sim HalfNormal,
              \quad R \sim LKJ(2)

    Gaussian responses have SD ``sigma ~ LogNormal(log 0.5, 0.5)``, binomial ones 8 trials a row.
    """
    data = rows(groups, size)
    if family == "binomial":
        data = replace(data, trials=torch.full((groups * size,), 8.0, dtype=torch.float64))
    response, (centre, slope_sd, sd) = {
        "gaussian": (Gaussian(sigma=dist.LogNormal(_t(np.log(0.5)), _t(0.5))), (0.0, 0.7, 0.7)),
        "binomial": (Binomial(), (0.0, 0.7, 0.7)),
        "poisson": (Poisson(), (1.0, 0.4, 0.5)),
    }[family]
    linear = LinearEffect("beta", dist.Normal(_t(centre, 0.0), _t(0.7, slope_sd)))
    structure = Unstructured(sd=dist.HalfNormal(_t(sd)), corr=dist.LKJCholesky(2, _t(2.0)))
    effect = RandomEffect("g", structure, levels=groups)
    return Problem(family, _program(response, linear, effect, slopes=True), data, _respond)


def structure_problem(name: str, levels: int = 25, size: int = 3) -> Problem:
    r"""Levels correlated by one of the `STRUCTURES`, Gaussian responses.

    .. math:: y_n \sim N(x_n'\beta + u_{g(n)}, \sigma^2), \quad u \sim N(0, sd^2 C), \quad sd \sim HalfNormal(0.7)

    ``ar1``: times, :math:`\rho \sim U(-1, 1)`. ``kinship``: VanRaden's matrix of markers with fixed seed. ``gp``: a
    Matern process of smoothness 3/2 over places in (0, 1), its length LogNormal(log 0.2, 0.5).
    """
    data = rows(levels, size)
    sd = dist.HalfNormal(_t(0.7))
    rng = np.random.default_rng(7)
    length = {"lengthscale": dist.LogNormal(_t(np.log(0.2)), _t(0.5))}
    markers = pd.DataFrame(rng.binomial(2, rng.uniform(0.1, 0.9, 60), (levels, 60)), index=range(levels))
    structure, coords = {
        "ar1": lambda: (AR1(sd=sd), None),
        "kinship": lambda: (Kinship(markers=markers, sd=sd), None),
        "gp": lambda: (GP(["MaternKernel", {"nu": 1.5}, {}, []], sd=sd, priors=length), rng.uniform(0, 1, levels)),
    }[name]()
    response = Gaussian(sigma=dist.LogNormal(_t(np.log(0.5)), _t(0.5)))
    linear = LinearEffect("beta", dist.Normal(_t(0.0, 0.0), _t(0.7, 0.7)))
    places = None if coords is None else torch.from_numpy(coords)
    effect = RandomEffect("g", structure, levels=levels, coords=places)
    return Problem(name, _program(response, linear, effect), data, _respond)


def problem_of(name: str) -> Problem:
    """The problem of a family or structure by its name."""
    return structure_problem(name) if name in STRUCTURES else family_problem(name)


def intercept_problem(name: str, family: AbstractFamily, data: Rows, beta_sd: float, sd: Any) -> Problem:
    """Random intercepts alone; `sd` as `pyromix.IID` takes it."""
    linear = LinearEffect("beta", dist.Normal(_t(0.0), _t(beta_sd)))
    return Problem(name, _program(family, linear, RandomEffect("g", IID(sd=sd), levels=data.groups)), data, _respond)


def _program(
    family: AbstractFamily, linear: LinearEffect, effect: RandomEffect, slopes: bool = False
) -> Callable[[Rows], None]:
    def program(data: Rows) -> None:
        eta = linear(data.x) + effect(data.group, data.x if slopes else None)
        extra = {"trials": data.trials, "offset": data.offset, "precision": data.precision, "mask": data.mask}
        observe("y", family, eta, data.y, **extra)

    return program


def _respond(data: Rows, responses: dict[str, torch.Tensor]) -> Rows:
    return replace(data, y=responses["y"])


def _t(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)
