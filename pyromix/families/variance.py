"""Residual SDs that differ from row to row: nlme's ``weights=varIdent()``, ``varPower()``, ``varExp()``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.errors import ConfigError, DataError
from pyromix.parameters import Argument, Parameter, encode, parameter
from pyromix.remembered import remembered


class AbstractVariance(ABC):
    """How the residual SD follows a column.

    Must define: `parameters`, `read`, `scale`.
    """

    column: str

    def _set_column(self, column: Any) -> None:
        if not isinstance(column, str) or not column:
            raise ConfigError(f"{type(self).__name__}(column={column!r}): pass the name of a column.")
        self.column = column

    @abstractmethod
    def parameters(self, values: torch.Tensor | None = None) -> tuple[Parameter, ...]:
        """Hyper-parameters with their supports and priors; `values` as `read` returned them."""

    @abstractmethod
    def read(self, values: Any, where: str) -> torch.Tensor:
        """The column as numbers (n,); `DataError` naming a row it cannot use."""

    @abstractmethod
    def scale(self, theta: Mapping[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        """Residual SD of every row in units of ``sigma``, (n,)."""

    def config(self) -> dict[str, Any]:
        """Class and constructor arguments as plain JSON values."""
        name = type(self).__name__
        plain = {k: list(v) if isinstance(v, tuple) else encode(v, f"{name}({k}=...)") for k, v in vars(self).items()}
        return {"class": name, **plain}

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None)
        return f"{type(self).__name__}({given})"


class VarIdent(AbstractVariance):
    r"""A residual SD for each stratum: :math:`\sigma_n = \sigma\,r_{s(n)}`, with r = 1 in the first.

    ``sigma`` is the residual SD of the first stratum, ``<response>.ratio`` the others' SDs divided by it, as nlme's
    ``varIdent(form = ~ 1 | stratum)``; strata are in sorted order there and here, nlme takes the first of the data as
    the first.

    Parameters
    ----------
    column
        The column of the strata.
    ratio
        (strata - 1,), > 0, or one number for all: numbers fix them, a distribution is their prior; by default
        LogNormal(0, 1).
    strata
        Labels of the strata, the first being that of ``sigma``; by default those of the data, sorted.

    Raises
    ------
    ConfigError
        A ratio that is not positive, a prior that reaches below zero; one stratum.
    DataError
        A row of another stratum.
    """

    def __init__(self, column: str, ratio: Argument = None, strata: Sequence[Any] | None = None) -> None:
        self._set_column(column)
        self.ratio = ratio
        self.strata = None if strata is None else tuple(strata)
        if self.strata is not None and len(set(self.strata)) < max(2, len(self.strata)):
            raise ConfigError(
                f"VarIdent({column!r}, strata={list(self.strata)!r}): there must be two or more that differ; leave "
                "variance= out where the SD is the same everywhere."
            )

    def with_strata(self, labels: Sequence[Any]) -> VarIdent:
        """The same with its strata named, where they are not."""
        return VarIdent(self.column, self.ratio, labels) if self.strata is None else self

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the ratios."""
        return tuple(map(str, (self.strata or ())[1:]))

    def parameters(self, values: torch.Tensor | None = None) -> tuple[Parameter, ...]:
        count = len(self.strata) if self.strata is not None else 2 if values is None else int(values.max()) + 1
        default = dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
        support = constraints.greater_than(0.0)  # no SD itself, by which a search would start it at the response's
        return (parameter("ratio", self.ratio, support, default, (count - 1,), "VarIdent"),)

    def read(self, values: Any, where: str) -> torch.Tensor:
        return _strata(values, self.strata, f"{where}: column {self.column!r}")

    def scale(self, theta: Mapping[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        ratio = theta["ratio"]
        return torch.cat([ratio.new_ones(1), ratio])[values]


@remembered
def _strata(values: Any, known: tuple[Any, ...] | None, where: str) -> torch.Tensor:
    """The stratum of every row, (n,); worked out once a column."""
    labels = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    found = np.unique(labels).tolist()
    strata = found if known is None else known
    if len(strata) < 2:
        raise DataError(f"{where} has the one stratum {found[0]!r}; leave variance= out.")
    code = {label: k for k, label in enumerate(strata)}
    out = np.array([code.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    if (out < 0).any():
        at = int(np.argmax(out < 0))
        odd = labels.tolist()[at]
        raise DataError(f"{where}, row {at}: {odd!r} is no stratum; there are {', '.join(map(repr, strata))}.")
    return torch.from_numpy(out)


class _VarCovariate(AbstractVariance):
    """A residual SD that follows a number."""

    name: str

    def read(self, values: Any, where: str) -> torch.Tensor:
        try:
            given = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.array(values, dtype=np.float64))
        except (TypeError, ValueError):
            raise DataError(f"{where}: column {self.column!r} is not made of numbers.") from None
        return given.to(torch.float64)

    def parameters(self, values: torch.Tensor | None = None) -> tuple[Parameter, ...]:
        default = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
        given = vars(self)[self.name]
        return (parameter(self.name, given, constraints.real, default, (), type(self).__name__),)


class VarPower(_VarCovariate):
    r"""A residual SD that is a power of a number: :math:`\sigma_n = \sigma\,|v_n|^{power}`; nlme's ``varPower``.

    Parameters
    ----------
    column
        The column of v; no row may be zero.
    power
        A number fixes it, a distribution is its prior; by default Normal(0, 1).

    Raises
    ------
    DataError
        A zero, or a column that is not made of numbers.
    """

    name = "power"

    def __init__(self, column: str, power: Argument = None) -> None:
        self._set_column(column)
        self.power = power
        self.parameters()

    def read(self, values: Any, where: str) -> torch.Tensor:
        given = super().read(values, where)
        if bool((given == 0).any()):
            at = int((given == 0).nonzero()[0])
            raise DataError(
                f"{where}: column {self.column!r} is zero at row {at}, and a power of it is no SD; shift the column, "
                "or use VarExp."
            )
        return given

    def scale(self, theta: Mapping[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        return torch.exp(theta["power"] * values.abs().log())


class VarExp(_VarCovariate):
    r"""A residual SD that is exponential in a number: :math:`\sigma_n = \sigma\,e^{exponent\,v_n}`; ``varExp``.

    Parameters
    ----------
    column
        The column of v.
    exponent
        A number fixes it, a distribution is its prior; by default Normal(0, 1).
    """

    name = "exponent"

    def __init__(self, column: str, exponent: Argument = None) -> None:
        self._set_column(column)
        self.exponent = exponent
        self.parameters()

    def scale(self, theta: Mapping[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        return torch.exp(theta["exponent"] * values)
