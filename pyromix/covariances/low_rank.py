r"""Gaussian processes as sums of a few functions, :math:`u(x) = \sum_j f_j(x) c_j`, for many places.

What the approximations share; `GP` takes one of them as its ``approximation``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyromix.covariances.sites import Sites


@dataclass(frozen=True)
class Process:
    """A kernel at hyper-parameter values.

    Attributes
    ----------
    kernel
        The kernel; only its structure is used.
    values
        Hyper-parameters by their path in it, (*batch, shape).
    between
        Its values between places (n, d) and (m, d).
    nugget
        What is added to the diagonal of a covariance before a factor is taken.
    """

    kernel: Any
    values: Mapping[str, torch.Tensor]
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    nugget: float


class Approximation(ABC):
    """A process as a sum of m functions with normal coefficients.

    Attributes
    ----------
    moves
        Whether the functions depend on hyper-parameters.
    """

    moves: bool = True

    @abstractmethod
    def check(self, kernel: Any, sites: Sites) -> None:
        """Refuse a kernel, or places, that it is not for."""

    @abstractmethod
    def size(self, sites: Sites) -> int:
        """Number of functions over these places."""

    @abstractmethod
    def at(self, process: Process, sites: Sites, x: torch.Tensor) -> torch.Tensor:
        """The functions made for the known sites, at places x: (*batch, n, m)."""

    @abstractmethod
    def root(self, process: Process, sites: Sites) -> torch.Tensor:
        """Lower-triangular root of the covariance of their coefficients, (*batch, m, m)."""

    def config(self) -> list[Any]:
        """Class and arguments as plain values."""
        return [type(self).__name__, {key: _plain(value) for key, value in vars(self).items()}]

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={_short(value)}" for key, value in vars(self).items())
        return f"{type(self).__name__}({given})"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    return f"<{len(value)} places>" if isinstance(value, torch.Tensor) else repr(value)
