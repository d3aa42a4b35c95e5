"""Response families: one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.families.binomial import Binomial
from pyromix.families.gaussian import Gaussian
from pyromix.families.poisson import Poisson
from pyromix.parameters import build, class_named

__all__ = [
    "AbstractFamily",
    "Binomial",
    "Derivatives",
    "Gaussian",
    "Poisson",
    "Prepared",
    "from_config",
    "named",
]

_CLASSES: dict[str, type[AbstractFamily]] = {cls.__name__: cls for cls in (Binomial, Gaussian, Poisson)}


def named(name: str) -> type[AbstractFamily]:
    """The family class called ``name``; `ConfigError` listing the known ones otherwise."""
    return class_named(name, _CLASSES, "family")


def from_config(config: Mapping[str, Any]) -> AbstractFamily:
    """The family whose ``config()`` is given; nothing in it is executed."""
    return build(config, _CLASSES, "family")
