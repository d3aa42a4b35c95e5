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
    r"""Independent effects with one SD: :math:`u_{gk} \sim N(0, sd^2)`.

    Parameters
    ----------
    sd
        Standard deviation: a number fixes it, a distribution is its prior; by default HalfNormal(scale 10), or scaled
        to the response by `pyromix.model`.
    """

    def __init__(self, sd: Argument = None) -> None:
        self.sd = sd
        self.parameters(Coords((), ("Intercept",)))  # refuse a bad argument here, where the user wrote it

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return (parameter("sd", self.sd, constraints.nonnegative, default, where="IID"),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        eye = torch.eye(len(coords.terms), dtype=torch.float64)
        return BlockOperator(theta["sd"] * eye, len(coords.levels))
