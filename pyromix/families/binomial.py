"""Successes out of trials; Bernoulli where there are no trials."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch

from pyromix.errors import DataError
from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.families.links import AbstractBinaryLink
from pyromix.families.responses import plain, refuse, refuse_not_finite
from pyromix.families.stirling import remainder


class Binomial(AbstractFamily):
    r"""Binomial responses, :math:`y_n \sim Binomial(m_n, h(\eta_n))`; without trials, 0/1 data.

    Built from the logarithms of both outcomes' probabilities, so that no probability is ever rounded to 0 or 1.

    Parameters
    ----------
    link
        ``"logit"``, ``"probit"`` or ``"cloglog"``.
    """

    links = ("logit", "probit", "cloglog")
    link: AbstractBinaryLink

    def __init__(self, link: str = "logit") -> None:
        super().__init__(link)

    def check_response(
        self, y: np.ndarray, trials: np.ndarray | None, describe: Callable[[int], str], name: str = "y"
    ) -> None:
        where = f"column {name!r} (response, Binomial)"
        refuse_not_finite(y, where, describe)
        if trials is None:
            _check_binary(y, where, describe)
        else:
            _check_counts(y, trials, where, describe)

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return LinkBinomial(self, eta, trials)

    def prepare(self, y: torch.Tensor, trials: torch.Tensor | None = None) -> Prepared:
        r"""For 0/1 data, :math:`1 - 2y`. With trials m, where 0 < y < m, :math:`\log(y/m)`, :math:`\log(1-y/m)`, 1 and
        the log density at p = y/m; zeros at y = 0 and y = m.
        """
        if trials is None:
            return (1 - 2 * y,)
        inside = (y > 0) & (y < trials)
        m = torch.where(inside, trials, 2.0)
        s = torch.where(inside, y, 1.0)
        f = m - s
        log_share, log_rest = (s / m).log(), (f / m).log()
        saturated = remainder(m) - remainder(s) - remainder(f) - 0.5 * (math.log(2 * math.pi) + s.log() + log_rest)
        return tuple(torch.where(inside, x, 0.0) for x in (log_share, log_rest, torch.ones_like(m), saturated))

    def log_prob(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> torch.Tensor:
        link = self.link
        if trials is None:
            if link.symmetric:
                (sign,) = prepared or self.prepare(y)
                return link.log_failure(sign * eta)
            return torch.where(y > 0.5, link.log_success(eta), link.log_failure(eta))
        log_share, log_rest, inside, saturated = prepared or self.prepare(y, trials)
        f = trials - y
        d_success = link.log_success(eta) - log_share
        d_failure = link.log_failure(eta) - log_rest
        # zero in exact arithmetic; takes the rounding of d_success and d_failure, times the count, out of the rest
        rounding = y * torch.expm1(d_success) + f * torch.expm1(d_failure)
        return y * d_success + f * d_failure - inside * rounding + saturated

    def derivatives(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> Derivatives:
        link = self.link
        if trials is None and link.symmetric:
            (sign,) = prepared or self.prepare(y)
            point = sign * eta
            first, second, third = link.failure_derivatives(point)
            return Derivatives(link.log_failure(point), -(sign * first), second, sign * third)
        log_prob = self.log_prob(eta, y, trials, prepared=prepared)
        f = (1.0 if trials is None else trials) - y
        pairs = zip(link.success_derivatives(eta), link.failure_derivatives(eta), strict=True)
        first, second, third = (y * success + f * failure for success, failure in pairs)
        return Derivatives(log_prob, -first, second, third)


class LinkBinomial(dist.Binomial):
    """A binomial distribution by the predictor of its probability: exact where the probability rounds to 0 or 1.

    Parameters
    ----------
    family
        The `Binomial` whose link maps the predictor to a probability.
    eta
        The predictor.
    trials
        Number of trials; ``None`` for one.
    """

    def __init__(
        self,
        family: Binomial,
        eta: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.family, self.eta, self.trials = family, eta, trials
        total = torch.ones_like(eta) if trials is None else trials
        super().__init__(total, probs=family.link.inverse(eta), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> LinkBinomial:
        new = self._get_checked_instance(LinkBinomial, _instance)
        new.family, new.eta = self.family, self.eta.expand(batch_shape)
        new.trials = None if self.trials is None else self.trials.expand(batch_shape)
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.family.log_prob(self.eta, value, self.trials)


def _check_binary(y: np.ndarray, where: str, describe: Callable[[int], str]) -> None:
    bad = (y != 0) & (y != 1)
    if not bad.any():
        return
    seen = np.unique(y)
    shown = ", ".join(plain(value) for value in seen[:5]) + (", ..." if len(seen) > 5 else "")
    if len(seen) == 2:
        low, high = plain(seen[0]), plain(seen[1])
        remedy = f"Recode {low} as 0 and {high} as 1, e.g. (y == {high}).astype(float)."
    elif np.all((y >= 0) & (y <= 1)):
        remedy = "For proportions pass the counts: cbind(successes, failures), or trials= in observe."
    else:
        remedy = "For counts out of trials pass cbind(successes, failures), or trials= in observe; else recode."
    first = int(np.argmax(bad))
    raise DataError(
        f"{where}: values {shown} where 0 and 1 are expected, first {plain(y[first])} at {describe(first)}. {remedy}"
    )


def _check_counts(y: np.ndarray, trials: np.ndarray, where: str, describe: Callable[[int], str]) -> None:
    refuse_not_finite(trials, f"{where}, its trials", describe)
    remedy = "Trials must be whole and at least 1; drop rows without trials."
    refuse(trials < 1, trials, "below 1", remedy, f"{where}, its trials", describe)
    refuse(trials != np.floor(trials), trials, "not whole", remedy, f"{where}, its trials", describe)
    refuse(y < 0, y, "below 0", "Successes are counts, >= 0.", where, describe)
    remedy = "Successes are whole counts; for a proportion pass the counts it came from."
    refuse(y != np.floor(y), y, "not whole", remedy, where, describe)
    over = y > trials
    if over.any():
        first = int(np.argmax(over))
        raise DataError(
            f"{where}: {int(over.sum())} rows with more successes than trials, first {plain(y[first])} out of "
            f"{plain(trials[first])} trials at {describe(first)}. Check both columns: cbind(successes, failures) takes "
            "failures, trials= takes totals."
        )
