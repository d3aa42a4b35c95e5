"""Link functions, each known by its inverse: the mean as a function of the predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyromix.errors import ConfigError


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


def _cloglog_inverse(eta: torch.Tensor) -> torch.Tensor:
    return -torch.expm1(-torch.exp(eta))


LINKS = {
    "identity": Link("identity", lambda eta: eta),
    "log": Link("log", torch.exp),
    "logit": Link("logit", torch.sigmoid),
    "probit": Link("probit", torch.special.ndtr),
    "cloglog": Link("cloglog", _cloglog_inverse),
}


def link_named(name: str, allowed: tuple[str, ...], family: str) -> Link:
    """The link called ``name``; `ConfigError` listing the allowed ones otherwise."""
    if name not in allowed:
        raise ConfigError(f"{family}(link={name!r}): unknown link; choose one of {', '.join(map(repr, allowed))}.")
    return LINKS[name]
