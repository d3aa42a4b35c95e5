"""Independent effects, each with its own SD."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.base import Coords, Covariance, terms_of
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, parameter


class Diagonal(Covariance):
    r"""Independent effects with one SD per term; lme4's ``(x || g)`` for numeric terms, glmmTMB's ``diag()``.

    .. math:: u_{gk} \sim N(0, sd_k^2), \qquad \Sigma = I_{levels} \otimes diag(sd^2)

    Parameters
    ----------
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior (a
        scalar one serves every term); by default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.

    Raises
    ------
    ConfigError
        A negative or non-finite number, a prior that reaches below zero, or (where the effect is used) a count of
        numbers that is not the count of terms.
    """

    def __init__(self, sd: Argument = None) -> None:
        self.sd = sd
        self.parameters(Coords((), terms_of(sd, "Diagonal(sd=...)")))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return (parameter("sd", self.sd, constraints.nonnegative, default, (len(coords.terms),), "Diagonal"),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        return BlockOperator(torch.diag_embed(theta["sd"]), len(coords.levels))
