"""Independent effects, each with its own SD."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.base import Coords, Covariance
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, parameter


class Diagonal(Covariance):
    r"""Independent effects with one SD per term: :math:`u_{gk} \sim N(0, sd_k^2)`; lme4's ``||`` for numeric terms.

    Parameters
    ----------
    sd
        Standard deviations, (terms,) or one number for all: numbers fix them, a distribution is their prior (a scalar
        one serves every term); by default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    """

    def __init__(self, sd: Argument = None) -> None:
        self.sd = sd

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return (parameter("sd", self.sd, constraints.nonnegative, default, (len(coords.terms),), "Diagonal"),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        return BlockOperator(torch.diag_embed(theta["sd"]), len(coords.levels))
