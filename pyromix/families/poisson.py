"""Counts."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyromix.families.base import AbstractFamily, Derivatives


class Poisson(AbstractFamily):
    r"""Counts, :math:`y_n \sim Poisson(\exp \eta_n)`.

    Parameters
    ----------
    link
        ``"log"``.
    """

    links = ("log",)

    def __init__(self, link: str = "log") -> None:
        super().__init__(link)

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return dist.Poisson(eta.exp())

    def log_prob(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> torch.Tensor:
        return y * eta - eta.exp() - torch.lgamma(y + 1)

    def derivatives(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> Derivatives:
        mu = eta.exp()
        return Derivatives(y * eta - mu - torch.lgamma(y + 1), y - mu, mu, mu)
