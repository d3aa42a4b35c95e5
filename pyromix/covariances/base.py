"""The extension point for covariance structures of random effects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Distribution

from pyromix.linalg.operators import AbstractOperator
from pyromix.parameters import Argument, Parameter, encode, number


@dataclass(frozen=True)
class Coords:
    """What a structure may know of the array it describes.

    Attributes
    ----------
    levels
        Labels of the levels, in the order of the array's first dimension.
    terms
        Labels of the effects within a level, in the order of its second dimension.
    values
        What the user handed over for the levels: times, places, ids; ``None`` if nothing.
    known
        How many of the levels, the first ones, a fit has seen, where further ones are predicted; ``None`` for all.
    """

    levels: tuple[Any, ...]
    terms: tuple[str, ...]
    values: Any = None
    known: int | None = None


class Covariance(ABC):
    """Structured zero-mean Gaussian prior of a random-effect array, given hyper-parameters.

    A structure is two methods. An instance holds only what the user configured (a fixed number, a prior), so one
    instance serves any number of effects. `pyromix.testing.CovarianceSuite` checks a new one against its dense twin.
    """

    @abstractmethod
    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        """Hyper-parameters with their supports and priors."""

    @abstractmethod
    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        """The covariance at hyper-parameter values ``theta`` (by parameter name)."""

    def functions(
        self, theta: Mapping[str, torch.Tensor], coords: Coords, labels: tuple[Any, ...] | None = None
    ) -> torch.Tensor | None:
        """For an effect that is a sum of m functions of a level's place: their values, (levels, m).

        `operator` is then that of their coefficients, an array of shape (1, m * terms) that runs through the functions
        and for each of them through the terms. By default ``None``: every level has an effect of its own.

        Parameters
        ----------
        labels
            Further levels, where it is their values that are asked for.
        """
        return None

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Derived quantities worth recording beside the parameters, by name; none by default."""
        return {}

    def config(self) -> dict[str, Any]:
        """Class and constructor arguments as plain JSON values; `pyromix.covariances.from_config` reads them back.

        Raises
        ------
        ConfigError
            A prior is not among those that a saved model may hold.
        """
        name = type(self).__name__
        return {"class": name, **{k: encode(v, f"{name}({k}=...)") for k, v in vars(self).items()}}

    def source(self, value: Callable[[Any], str]) -> str | None:
        """The call that makes it, for `Model.source`, arguments written by ``value``; ``None``: from its `config`."""
        return None

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None)
        return f"{type(self).__name__}({given})"


def terms_of(argument: Argument, label: str) -> tuple[str, ...]:
    """Stand-ins for the terms that a structure's SDs were written for, so its arguments can be checked at once."""
    if argument is None:
        return ("0",)
    if isinstance(argument, Distribution):
        shape = argument.batch_shape + argument.event_shape
    else:
        shape = number(argument, label).shape
    return tuple(map(str, range(shape[0]))) if len(shape) == 1 else ("0",)
