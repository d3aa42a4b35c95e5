"""Independent, identically distributed effects."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.base import Coords, Covariance
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, parameter


class IID(Covariance):
    r"""Independent effects with one SD; lme4's ``(1 | g)``.

    .. math:: u_{gk} \sim N(0, sd^2), \qquad \Sigma = sd^2 I

    Parameters
    ----------
    sd
        Standard deviation, >= 0, on the scale of the predictor: a number fixes it, a distribution is its prior; by
        default HalfNormal(scale 10), or scaled to the response by `pyromix.model`.

    Raises
    ------
    ConfigError
        A negative or non-finite number, numbers, or a prior that is not scalar or reaches below zero.
    """

    def __init__(self, sd: Argument = None) -> None:
        self.sd = sd
        self.parameters(Coords((), ("Intercept",)))  # refuse a bad argument here, where the user wrote it

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return (parameter("sd", self.sd, constraints.nonnegative, default, where="IID"),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        sd = theta["sd"]
        return BlockOperator(sd[..., None, None] * torch.eye(len(coords.terms), dtype=sd.dtype), len(coords.levels))
