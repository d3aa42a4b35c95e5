r"""Levels as points in time of one or more series, and the sparse precision of a process that looks back few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyromix.covariances.base import Coords
from pyromix.errors import StructureError
from pyromix.linalg.operators import Precision
from pyromix.remembered import remembered

DATES = "make a number of it, such as (date - date.min()).dt.days"
WHOLE = 1e-9  # a step this far from a whole one, relative to the times, is whole but for rounding


@dataclass(frozen=True)
class Chains:
    """Levels sorted by series and time.

    Attributes
    ----------
    order
        Level at each sorted place, (n,).
    series, time
        Its series (a code) and its time.
    position
        Its place within its series, from zero.
    gap
        Time since the place before it in its series; one at the start of a series.
    levels
        Labels, for messages.
    """

    order: np.ndarray
    series: np.ndarray
    time: np.ndarray
    position: np.ndarray
    gap: np.ndarray
    levels: Sequence[Any] = ()

    @property
    def linked(self) -> np.ndarray:
        """Whether there is a place before it."""
        return self.position > 0

    @property
    def span(self) -> float:
        """From the first to the last time of the longest series."""
        if not len(self.time):
            return 0.0
        starts = np.flatnonzero(self.position == 0)
        ends = np.append(starts[1:], len(self.time)) - 1
        return float((self.time[ends] - self.time[starts]).max())


def read_chains(coords: Coords, where: str) -> Chains:
    """Read times, or pairs (series, time), from the coordinates of the levels or, if there are none, their labels.

    Parameters
    ----------
    coords
        Its `values` may be numbers, pairs, or an array or tensor of shape (levels,) or (levels, 2).
    where
        Name of the structure, for messages.

    Raises
    ------
    StructureError
        A label that is neither a number nor a pair, a time that is no finite number, two levels at one time of a
        series, or as many values as there are not levels.
    """
    return _read(coords.levels, coords.values, where)


@remembered
def _read(levels: Sequence[Any], values: Any, where: str) -> Chains:
    coords = Coords(levels, (), values)  # type: ignore[arg-type]
    entries = _entries(coords, where)
    paired = [isinstance(entry, (tuple, list)) and len(entry) == 2 for entry in entries]
    if any(paired):
        if not all(paired):
            raise _odd(where, coords, paired.index(False), entries, "is no pair (series, time), as others are")
        codes: dict[Any, int] = {}
        series = np.array([codes.setdefault(entry[0], len(codes)) for entry in entries], dtype=np.int64)
        time = _times([entry[1] for entry in entries], coords, entries, where)
    else:
        series = np.zeros(len(entries), dtype=np.int64)
        time = _times(entries, coords, entries, where)
    order = np.lexsort((time, series))
    series, time = series[order], time[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = series[1:] != series[:-1]
    start = np.flatnonzero(first)
    position = np.arange(len(order)) - np.repeat(start, np.diff(np.append(start, len(order))))
    gap = np.ones(len(order))
    gap[1:] = np.where(first[1:], 1.0, np.diff(time))
    if (gap <= 0).any():
        at = int(np.flatnonzero(gap <= 0)[0])
        a, b = (coords.levels[order[k]] for k in (at - 1, at))
        raise StructureError(
            f"{where}: levels {a!r} and {b!r} are both at time {time[at]:g} of their series; give every level of a "
            "series a time of its own."
        )
    return Chains(order, series, time, position, gap, coords.levels)


def in_steps(chains: Chains, where: str) -> Chains:
    """The same with whole gaps; `StructureError` unless times within a series are whole steps apart."""
    whole = np.round(chains.gap)
    room = WHOLE * max(1.0, float(abs(chains.time).max(initial=0.0)))  # times such as 0.1, 1.1, 2.1
    bad = np.flatnonzero((abs(chains.gap - whole) > room) | (whole < 1))
    if len(bad):
        at = int(bad[0])
        a, b = (chains.levels[chains.order[k]] for k in (at - 1, at))
        raise StructureError(
            f"{where}: levels {a!r} and {b!r} are {chains.gap[at]:g} apart in time; it needs whole steps. Count time "
            "in steps (coords=...), or use pyromix.OU, which takes any times."
        )
    return replace(chains, gap=whole)


def markov(chains: Chains, coefs: Sequence[torch.Tensor], variance: torch.Tensor) -> Precision:
    r"""The precision of a process that regresses each place on the places before it.

    .. math:: u_i = \sum_{l=1}^m c_{li} u_{i-l} + e_i, \quad e_i \sim N(0, v_i), \qquad
        P = A^T V^{-1} A, \quad \log|P| = -\sum_i \log v_i

    with A unit lower triangular, so P has m bands below its diagonal.

    Parameters
    ----------
    coefs
        :math:`c_1, ..., c_m`, each (n,) in sorted order; zero where a series has no place so far back.
    variance
        :math:`v`, (n,).
    """
    m = len(coefs)
    row = [torch.ones_like(variance), *(-c for c in coefs)]  # of A: the place itself, then those before it
    rows, cols, values = [], [], []
    for d in range(m + 1):
        entry = row[0] * row[d] / variance
        for k in range(1, min(m - d, len(variance) - 1) + 1):  # what places later by k add to this one
            later = (row[k] * row[k + d] / variance)[k:]
            entry = entry + torch.cat([later, later.new_zeros(k)])
        here = np.flatnonzero(chains.position >= d)
        a, b = chains.order[here], chains.order[here - d]
        rows.append(np.maximum(a, b))
        cols.append(np.minimum(a, b))
        values.append(entry if d == 0 else entry[torch.from_numpy(here)])
    return Precision(
        len(chains.order), np.concatenate(rows), np.concatenate(cols), torch.cat(values), -variance.log().sum()
    )


def _entries(coords: Coords, where: str) -> Sequence[Any]:
    given = coords.values
    if given is None:
        return coords.levels
    entries = given.tolist() if hasattr(given, "tolist") else list(given)
    if len(entries) != len(coords.levels):
        raise StructureError(
            f"{where}: coords has {len(entries)} values for {len(coords.levels)} levels; pass one time, or one pair "
            "(series, time), per level."
        )
    return entries


def _times(times: Sequence[Any], coords: Coords, entries: Sequence[Any], where: str) -> np.ndarray:
    for k, value in enumerate(times):
        if isinstance(value, (str, bytes, bool, np.bool_, tuple, list)) or not hasattr(value, "__float__"):
            dated = hasattr(value, "isoformat")
            raise _odd(where, coords, k, entries, f"is {'a date: ' + DATES if dated else 'no number'}")
    out = np.array([float(value) for value in times], dtype=np.float64)
    if not np.isfinite(out).all():
        raise _odd(where, coords, int(np.flatnonzero(~np.isfinite(out))[0]), entries, "is no finite number")
    return out


def _odd(where: str, coords: Coords, k: int, entries: Sequence[Any], problem: str) -> StructureError:
    found = "" if coords.values is None else f" has {entries[k]!r}, which"
    return StructureError(
        f"{where}: level {coords.levels[k]!r}{found} {problem}; levels must be times, or pairs (series, time), or pass "
        "such values as coords=..., one per level."
    )
