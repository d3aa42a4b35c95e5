"""Response families: one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyromix import covariances
from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.families.binomial import Binomial
from pyromix.families.gaussian import Gaussian
from pyromix.families.poisson import Poisson
from pyromix.families.variance import AbstractVariance, VarExp, VarIdent, VarPower
from pyromix.parameters import build, class_named

__all__ = [
    "AbstractFamily",
    "AbstractVariance",
    "Binomial",
    "Derivatives",
    "Gaussian",
    "Poisson",
    "Prepared",
    "VarExp",
    "VarIdent",
    "VarPower",
    "from_config",
    "named",
]

_VARIANCES: dict[str, type[AbstractVariance]] = {cls.__name__: cls for cls in (VarIdent, VarPower, VarExp)}
_CLASSES: dict[str, type[AbstractFamily]] = {cls.__name__: cls for cls in (Binomial, Gaussian, Poisson)}


def named(name: str) -> type[AbstractFamily]:
    """The family class called ``name``; `ConfigError` listing the known ones otherwise."""
    return class_named(name, _CLASSES, "family")


def from_config(config: Mapping[str, Any]) -> AbstractFamily:
    """The family whose ``config()`` is given; nothing in it is executed."""
    parts = dict(config)
    if isinstance(parts.get("residual"), Mapping):
        parts["residual"] = covariances.from_config(parts["residual"])
    if isinstance(parts.get("variance"), Mapping):
        parts["variance"] = build(parts["variance"], _VARIANCES, "variance")
    return build(parts, _CLASSES, "family")
