"""Counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch

from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.families.responses import refuse, refuse_not_finite
from pyromix.families.stirling import remainder


class Poisson(AbstractFamily):
    r"""Counts, :math:`y_n \sim Poisson(\mu_n)`, :math:`\mu_n = \exp \eta_n`.

    The log density is computed as :math:`y\,(d - e^d + 1)` plus a function of y, with :math:`d = \eta - \log y`, which
    keeps its digits at any count.

    Parameters
    ----------
    link
        ``"log"``.
    """

    links = ("log",)

    def __init__(self, link: str = "log") -> None:
        super().__init__(link)

    def check_response(
        self, y: np.ndarray, trials: np.ndarray | None, describe: Callable[[int], str], name: str = "y"
    ) -> None:
        where = f"column {name!r} (response, Poisson)"
        refuse_not_finite(y, where, describe)
        remedy = "Counts must be >= 0; drop rows where it codes a missing value, or use pyromix.Gaussian()."
        refuse(y < 0, y, "below 0", remedy, where, describe)
        remedy = "Counts must be whole; model a rate as a count with offset(log(exposure)), or use pyromix.Gaussian()."
        refuse(y != np.floor(y), y, "not whole", remedy, where, describe)

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return LogRatePoisson(eta)

    def prepare(self, y: torch.Tensor, trials: torch.Tensor | None = None) -> Prepared:
        """log y (0 at y = 0) and the log density at its own mode, eta = log y (0 at y = 0)."""
        positive = y > 0
        count = torch.where(positive, y, 1.0)
        log_y = count.log()
        saturated = -0.5 * (math.log(2 * math.pi) + log_y) - remainder(count)
        return log_y, torch.where(positive, saturated, 0.0)

    def log_prob(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> torch.Tensor:
        log_y, saturated = prepared or self.prepare(y)
        d = eta - log_y
        return torch.where(y > 0, y * (d - torch.expm1(d)), -torch.exp(eta)) + saturated

    def derivatives(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> Derivatives:
        mu = eta.exp()
        return Derivatives(self.log_prob(eta, y, prepared=prepared), y - mu, mu, mu)


class LogRatePoisson(dist.Poisson):
    """A Poisson distribution by its log rate: exact where the rate itself underflows.

    Parameters
    ----------
    log_rate
        Logarithm of the rate.
    """

    def __init__(self, log_rate: torch.Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> LogRatePoisson:
        new = self._get_checked_instance(LogRatePoisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return _POISSON.log_prob(self.log_rate, value)


_POISSON = Poisson()
