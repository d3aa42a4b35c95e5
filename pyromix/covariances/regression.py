r"""Correlated residuals as regressions of every row on rows before it.

A correlation matrix of the rows of a series, :math:`C = LL^T`, says the same as

.. math:: \varepsilon_i = \sum_{j<i} c_{ij}\varepsilon_j + s_i z_i, \quad z_i \sim N(0, 1), \qquad
    c = I - DL^{-1}, \quad s = (L_{11}, L_{22}, ...), \quad D = diag(s).

Given the rows before it a row is then Gaussian with another predictor and another SD, and all that is made of rows
(densities, marginal likelihoods, leave-one-out scores) is used as it is. Processes with a short memory look few rows
back: `AR1` and `OU` one, an autoregression of order p p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import cholesky
from pyromix.covariances.chains import Chains, read_chains
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.parameters import Parameter
from pyromix.remembered import remembered

OCCASIONS = 2000  # distinct times, where their correlations are factored densely
ENTRIES = 50_000_000  # of the table of rows before each row: 400 MB


class Regression(NamedTuple):
    """Every row's rows before it (n, m), whether there is one, their coefficients (n, m), the rest's SD (n,)."""

    index: torch.Tensor
    linked: torch.Tensor
    coef: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Occasions:
    """Rows as occasions in series: `chains` of rows, and which of the distinct times each row has."""

    chains: Chains
    code: np.ndarray
    times: tuple[float, ...]
    _back: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False, compare=False)

    def back(self, m: int) -> tuple[torch.Tensor, ...]:
        """The m rows before each row and whether there are so many, (n, m), and each row's place in sorted order."""
        if m not in self._back:
            chains, n = self.chains, len(self.code)
            place = np.empty(n, dtype=np.int64)
            place[chains.order] = np.arange(n)
            linked = chains.position[place][:, None] >= np.arange(1, m + 1)
            before = np.where(linked, place[:, None] - np.arange(1, m + 1), 0)
            index = np.where(linked, chains.order[before], np.arange(n)[:, None])
            self._back[m] = tuple(map(torch.from_numpy, (index, linked, place)))
        return self._back[m]

    @cached_property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """All rows before each row, whether there are so many, and rows and times of the series, by their length."""
        chains, n = self.chains, len(self.code)
        starts = np.flatnonzero(chains.position == 0)
        sizes = np.diff(np.append(starts, n))
        longest = int(sizes.max(initial=1))
        index = np.repeat(np.arange(n)[:, None], longest - 1, 1)
        linked = np.zeros((n, longest - 1), dtype=bool)
        groups = []
        for size in np.unique(sizes):
            rows = chains.order[starts[sizes == size][:, None] + np.arange(size)]
            for k in range(1, size):
                index[rows[:, k], :k] = rows[:, :k]
                linked[rows[:, k], :k] = True
            groups.append((torch.from_numpy(rows), torch.from_numpy(self.code[rows])))
        return torch.from_numpy(index), torch.from_numpy(linked), groups

    @property
    def longest(self) -> int:
        """Rows of the longest series."""
        return int(self.chains.position.max(initial=0)) + 1


def columns_of(structure: Any) -> tuple[str, ...]:
    """Names of the columns that say which series a row belongs to and when it was observed."""
    return tuple(name for name in (structure.within, structure.time) if name is not None)


def residual_structure(structure: Any, where: str) -> Covariance:
    """The structure with SDs of one, if it can describe residuals.

    Raises
    ------
    ConfigError
        No structure, one whose levels are no occasions, or one with an SD of its own.
    """
    if not isinstance(structure, Covariance) or not hasattr(structure, "within"):
        raise ConfigError(
            f"{where}: {structure!r} cannot describe residuals; pass AR1, OU, ARMA, CompoundSymmetry, Toeplitz or "
            'Unstructured, e.g. pyromix.AR1("time", within="Subject"). Other structures are random effects.'
        )
    given: Any = structure
    if given.sd is not None:
        raise ConfigError(f"{where}: {structure!r} has an SD; that of a residual is the family's: Gaussian(sigma=...).")
    return type(given)(**{**vars(given), "sd": 1.0})


def read_occasions(structure: Any, columns: Mapping[str, Any], n: int, where: str) -> Occasions:
    """Series and times of the rows from the columns that the structure names.

    Raises
    ------
    ConfigError
        A column that is not there.
    StructureError
        Times that are no numbers, two rows at one time of a series.
    """
    for name in columns_of(structure):
        if name not in columns:
            raise ConfigError(f"{where}: column {name!r} is not there; hand it over: columns={{{name!r}: ...}}.")
    series = None if structure.within is None else columns[structure.within]
    time = None if structure.time is None else columns[structure.time]
    return _read(series, time, n, type(structure).__name__)


@remembered
def _read(series: Any, time: Any, n: int, where: str) -> Occasions:
    labels = np.zeros(n, dtype=np.int64) if series is None else _array(series)
    codes = np.unique(labels, return_inverse=True)[1]
    if time is None:  # the rows of a series in their order
        order = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes)
        time = np.empty(n)
        time[order] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    pairs = list(zip(codes.tolist(), _array(time).tolist(), strict=True))
    chains = read_chains(Coords(_Rows(n), ("Intercept",), pairs), where)  # type: ignore[arg-type]
    in_order = np.empty(n)
    in_order[chains.order] = chains.time
    times, code = np.unique(in_order, return_inverse=True)
    return Occasions(chains, code, tuple(times.tolist()))


class _Rows(tuple):
    """Labels of rows, for messages: made when asked for."""

    def __new__(cls, n: int) -> _Rows:
        return super().__new__(cls, range(n))

    def __getitem__(self, k: Any) -> Any:
        return f"row {k}"


def _array(values: Any) -> np.ndarray:
    return values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def residual_parameters(structure: Covariance, occasions: Occasions) -> tuple[Parameter, ...]:
    """The structure's parameters but its SD."""
    coords = _over_terms(structure, occasions) or _over_levels(occasions)
    return tuple(p for p in structure.parameters(coords) if p.name != "sd")


def regress(structure: Any, theta: Mapping[str, torch.Tensor], occasions: Occasions) -> Regression:
    """The regressions at hyper-parameter values ``theta``; `structure` has SDs of one."""
    steps = structure.steps(theta, occasions.chains) if hasattr(structure, "steps") else None
    if steps is not None:
        return _short(occasions, *steps)
    return _dense(_correlations(structure, theta, occasions), occasions, type(structure).__name__)


# -- processes that look a few rows back ------------------------------------------------------------------------------
def _short(occasions: Occasions, coefs: list[torch.Tensor], variance: torch.Tensor) -> Regression:
    """From coefficients and variances in sorted order, as `chains.markov` takes them."""
    index, linked, place = occasions.back(len(coefs))
    coef = torch.stack(coefs, -1)[place]
    return Regression(index, linked, torch.where(linked, coef, 0.0), variance.sqrt()[place])


# -- any correlations -------------------------------------------------------------------------------------------------
def _over_levels(occasions: Occasions) -> Coords:
    return Coords(occasions.times, ("Intercept",))


def _over_terms(structure: Covariance, occasions: Occasions) -> Coords | None:
    """Where the structure correlates terms of a level: occasions as terms."""
    if hasattr(structure, "steps"):
        return None
    return Coords((0,), tuple(f"{time:g}" for time in occasions.times))


def _correlations(structure: Covariance, theta: Mapping[str, torch.Tensor], occasions: Occasions) -> torch.Tensor:
    """Between the distinct times, (times, times)."""
    if len(occasions.times) > OCCASIONS:
        raise UnsupportedError(
            f"{type(structure).__name__}: residuals at {len(occasions.times)} distinct times would be factored "
            f"densely, at most {OCCASIONS} are; use AR1, OU or ARMA(q=0) on whole steps."
        )
    coords = _over_terms(structure, occasions) or _over_levels(occasions)
    return structure.operator(theta, coords).dense()


def _dense(correlations: torch.Tensor, occasions: Occasions, where: str) -> Regression:
    """Series of one length are factored together."""
    n, m = len(occasions.code), occasions.longest - 1
    if n * m > ENTRIES:
        raise UnsupportedError(
            f"{where}: {n} rows in series of up to {m + 1} would need a table of {n * m:,} entries; use AR1, OU or "
            "ARMA(q=0) on whole steps, whose rows look a few rows back."
        )
    index, linked, groups = occasions.tables
    coef, scale = correlations.new_zeros(n, m), correlations.new_zeros(n)
    for rows, code in groups:
        size = rows.shape[1]
        root = cholesky(correlations[code[:, :, None], code[:, None, :]], where)
        diagonal = root.diagonal(dim1=-2, dim2=-1)
        inverse = torch.linalg.solve_triangular(root, torch.eye(size, dtype=root.dtype), upper=False)
        before = -(diagonal[..., None] * inverse).tril(-1)[..., : size - 1]
        padded = torch.nn.functional.pad(before, (0, m - size + 1)).reshape(-1, m)
        coef = coef.index_copy(0, rows.reshape(-1), padded)
        scale = scale.index_copy(0, rows.reshape(-1), diagonal.reshape(-1))
    return Regression(index, linked, coef, scale)
