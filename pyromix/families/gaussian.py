"""Gaussian responses."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.families.base import AbstractFamily, Derivatives
from pyromix.parameters import Argument, Parameter, parameter

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(AbstractFamily):
    r"""Gaussian responses, :math:`y_n \sim N(h(\eta_n), \sigma^2)`.

    Parameters
    ----------
    link
        ``"identity"`` or ``"log"``.
    sigma
        Residual SD: a number fixes it, a distribution is its prior; by default HalfNormal(scale 10), or scaled to the
        response by `pyromix.model`.
    """

    links = ("identity", "log")
    has_residual = True

    def __init__(self, link: str = "identity", sigma: Argument = None) -> None:
        super().__init__(link)
        self.sigma = parameter("sigma", sigma, constraints.positive, dist.HalfNormal(_double(10.0)), where="Gaussian")

    def parameters(self) -> tuple[Parameter, ...]:
        return (self.sigma,)

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return dist.Normal(self.link.inverse(eta), dispersion["sigma"])

    def gaussian_sd(self, **dispersion: torch.Tensor) -> torch.Tensor | None:
        return dispersion["sigma"] if self.link.name == "identity" else None

    def log_prob(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> torch.Tensor:
        sigma = dispersion["sigma"]
        return -0.5 * ((y - self.link.inverse(eta)) / sigma).square() - sigma.log() - HALF_LOG_2PI

    def derivatives(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> Derivatives:
        precision = dispersion["sigma"] ** -2
        log_prob = self.log_prob(eta, y, trials, **dispersion)
        if self.link.name == "identity":
            score = (y - eta) * precision
            return Derivatives(log_prob, score, precision.expand_as(eta), torch.zeros_like(eta))
        mu = eta.exp()
        scaled = mu * precision
        return Derivatives(log_prob, scaled * (y - mu), scaled * (2 * mu - y), scaled * (4 * mu - y))


def _double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)
