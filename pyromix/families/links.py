r"""Link functions, each known by its inverse: the mean as a function of the predictor.

Links onto a probability also know the logarithms of both outcomes, accurate where the probability itself has rounded to
0 or 1, and their first three derivatives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from pyromix.errors import ConfigError
from pyromix.families.normal_cdf import SQRT_HALF, log_ndtr, log_ndtr_derivatives

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Link:
    """A link.

    Attributes
    ----------
    name
        Its usual name.
    inverse
        eta -> mean, elementwise and differentiable.
    """

    name: str
    inverse: Callable[[torch.Tensor], torch.Tensor]


class AbstractBinaryLink(Link, ABC):
    """A link onto the probability of success."""

    #: whether success at eta is as likely as failure at -eta
    symmetric: bool

    @abstractmethod
    def log_failure(self, eta: torch.Tensor) -> torch.Tensor:
        """Log probability of failure."""

    @abstractmethod
    def failure_derivatives(self, eta: torch.Tensor) -> Three:
        """First three derivatives of ``-log_failure``."""

    @abstractmethod
    def log_success(self, eta: torch.Tensor) -> torch.Tensor:
        """Log probability of success."""

    @abstractmethod
    def success_derivatives(self, eta: torch.Tensor) -> Three:
        """First three derivatives of ``-log_success``."""


class _SymmetricLink(AbstractBinaryLink):
    symmetric = True

    def log_success(self, eta: torch.Tensor) -> torch.Tensor:
        return self.log_failure(-eta)

    def success_derivatives(self, eta: torch.Tensor) -> Three:
        first, second, third = self.failure_derivatives(-eta)
        return -first, second, -third


class Logit(_SymmetricLink):
    """``p = 1 / (1 + exp(-eta))``."""

    def log_failure(self, eta: torch.Tensor) -> torch.Tensor:
        # torch's default threshold, 20, would drop the curvature beyond; at 700 its gradient times a count overflows
        return -softplus(eta, threshold=600.0)

    def failure_derivatives(self, eta: torch.Tensor) -> Three:
        p, q = torch.sigmoid(eta), torch.sigmoid(-eta)
        curvature = p * q
        return p, curvature, curvature * (q - p)


class Probit(_SymmetricLink):
    """``p`` is the normal distribution function at eta."""

    def log_failure(self, eta: torch.Tensor) -> torch.Tensor:
        return log_ndtr(-eta)

    def failure_derivatives(self, eta: torch.Tensor) -> Three:
        first, second, third = log_ndtr_derivatives(-eta)
        return first, -second, third


class Cloglog(AbstractBinaryLink):
    r"""``p = 1 - exp(-exp(eta))``; with :math:`h = e^\eta`, :math:`\log(1-p) = -h` and
    :math:`\partial\log p/\partial\eta = a = h/(e^h-1)`, :math:`a' = -ac`, :math:`c = h + a - 1`, :math:`c' = h - ac`.
    """

    symmetric = False

    def log_failure(self, eta: torch.Tensor) -> torch.Tensor:
        return -torch.exp(eta)

    def failure_derivatives(self, eta: torch.Tensor) -> Three:
        h = torch.exp(eta)
        return h, h, h

    def log_success(self, eta: torch.Tensor) -> torch.Tensor:
        h = torch.exp(eta)
        small = h.clamp(max=1e-3)
        near_zero = eta - small * (0.5 - small / 24)
        middle = (-torch.expm1(-h.clamp(1e-3, 1.0))).log()
        near_one = torch.log1p(-torch.exp(-h.clamp(min=1.0)))
        return torch.where(h < 1e-3, near_zero, torch.where(h < 1.0, middle, near_one))

    def success_derivatives(self, eta: torch.Tensor) -> Three:
        h = torch.exp(eta)
        small = h < 0.5
        series = _bernoulli_series(h.clamp(max=0.5))
        large = h.clamp(min=0.5)
        ratio = large * torch.exp(-large) / -torch.expm1(-large)
        c = torch.where(small, series, h + ratio - 1)
        a = torch.where(small, 1 - h + c, ratio)
        ac = a * c
        return -a, ac, a * h - ac * (a + c)


def _bernoulli_series(h: torch.Tensor) -> torch.Tensor:
    r""":math:`h + h/(e^h - 1) - 1 = h/2 + \sum_k B_{2k} h^{2k}/(2k)!`, to the last digit for h <= 0.5."""
    square = h * h
    total = torch.full_like(h, -691 / 1307674368000)
    for coefficient in (1 / 47900160, -1 / 1209600, 1 / 30240, -1 / 720, 1 / 12):
        total = total * square + coefficient
    return 0.5 * h + square * total


def _identity(eta: torch.Tensor) -> torch.Tensor:
    return eta


def _probit_inverse(eta: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-SQRT_HALF * eta)  # torch's ndtr is 0 below -9


def _cloglog_inverse(eta: torch.Tensor) -> torch.Tensor:
    return -torch.expm1(-torch.exp(eta))


LINKS: dict[str, Link] = {
    "identity": Link("identity", _identity),
    "log": Link("log", torch.exp),
    "logit": Logit("logit", torch.sigmoid),
    "probit": Probit("probit", _probit_inverse),
    "cloglog": Cloglog("cloglog", _cloglog_inverse),
}


def link_named(name: str, allowed: tuple[str, ...], family: str) -> Link:
    """The link called ``name``; `ConfigError` listing the allowed ones otherwise."""
    if name not in allowed:
        raise ConfigError(f"{family}(link={name!r}): unknown link; choose one of {', '.join(map(repr, allowed))}.")
    return LINKS[name]
