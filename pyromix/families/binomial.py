"""Successes out of trials; Bernoulli where every trial count is one."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch.nn.functional import softplus

from pyromix.families.base import AbstractFamily, Derivatives


class Binomial(AbstractFamily):
    r"""Binomial responses, :math:`y_n \sim Binomial(m_n, h(\eta_n))`; without trials, 0/1 data.

    Parameters
    ----------
    link
        ``"logit"``, ``"probit"`` or ``"cloglog"``.
    """

    links = ("logit", "probit", "cloglog")

    def __init__(self, link: str = "logit") -> None:
        super().__init__(link)

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        count = torch.ones_like(eta) if trials is None else trials
        if self.link.name == "logit":
            return dist.Binomial(count, logits=eta)
        return dist.Binomial(count, probs=self.link.inverse(eta))

    def log_prob(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> torch.Tensor:
        if self.link.name == "logit":
            count = 1.0 if trials is None else trials
            value = y * eta - count * softplus(eta)
            return value if trials is None else value + _log_choose(trials, y)
        return super().log_prob(eta, y, trials, **dispersion)

    def derivatives(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> Derivatives:
        if self.link.name != "logit":
            return super().derivatives(eta, y, trials, **dispersion)
        p = torch.sigmoid(eta)
        count = 1.0 if trials is None else trials
        log_prob = self.log_prob(eta, y, trials)
        weight = count * p * (1 - p)
        return Derivatives(log_prob, y - count * p, weight, weight * (1 - 2 * p))


def _log_choose(n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
