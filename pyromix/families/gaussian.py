"""Gaussian responses."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.parameters import Argument, Parameter, encode, parameter

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

    Raises
    ------
    ConfigError
        An unknown link; a `sigma` that is not positive, not scalar, or whose prior reaches below zero.
    """

    links = ("identity", "log")
    has_residual = True

    def __init__(self, link: str = "identity", sigma: Argument = None) -> None:
        super().__init__(link)
        self.sigma = sigma
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        self._parameter = parameter("sigma", sigma, constraints.positive, default, where="Gaussian")

    def parameters(self) -> tuple[Parameter, ...]:
        return (self._parameter,)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "sigma": encode(self.sigma, "Gaussian(sigma=...)")}

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return dist.Normal(self.link.inverse(eta), dispersion["sigma"])

    def weigh(self, dispersion: dict[str, torch.Tensor], precision: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**dispersion, "sigma": dispersion["sigma"] / precision.sqrt()}

    def gaussian_sd(self, **dispersion: torch.Tensor) -> torch.Tensor | None:
        return dispersion["sigma"] if self.link.name == "identity" else None

    def log_prob(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> torch.Tensor:
        sigma = dispersion["sigma"]
        return -0.5 * ((y - self.link.inverse(eta)) / sigma).square() - sigma.log() - HALF_LOG_2PI

    def derivatives(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> Derivatives:
        sigma = dispersion["sigma"]
        precision = sigma**-2
        log_prob = self.log_prob(eta, y, trials, **dispersion)
        if self.link.name == "identity":
            score = (y - eta) * precision
            return Derivatives(log_prob, score, precision.expand_as(score), torch.zeros_like(score))
        mu = eta.exp()
        scaled = mu * precision
        return Derivatives(log_prob, scaled * (y - mu), scaled * (2 * mu - y), scaled * (4 * mu - y))
