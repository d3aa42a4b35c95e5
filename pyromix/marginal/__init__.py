"""Marginalisers: program -> program without its random effects."""

from typing import Any

from pyromix.errors import ConfigError
from pyromix.marginal.base import AbstractMarginal, BoundMarginal, Conditional, MarginalProgram
from pyromix.marginal.exact import Exact
from pyromix.marginal.laplace import Laplace
from pyromix.marginal.quadrature import GaussHermite

_NAMED: dict[str, type[AbstractMarginal]] = {"Exact": Exact, "GaussHermite": GaussHermite, "Laplace": Laplace}


def from_config(config: dict[str, Any]) -> AbstractMarginal:
    """The marginaliser that ``config()`` described."""
    given = dict(config)
    name = given.pop("class", None)
    if name not in _NAMED:
        raise ConfigError(f"unknown marginaliser {name!r}; choose one of {', '.join(_NAMED)}.")
    return _NAMED[name](**given)


__all__ = [
    "AbstractMarginal",
    "BoundMarginal",
    "Conditional",
    "Exact",
    "GaussHermite",
    "Laplace",
    "MarginalProgram",
    "from_config",
]
