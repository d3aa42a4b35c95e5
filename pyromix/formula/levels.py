"""Levels of grouping factors and categorical predictors: coded by value, never by position or by luck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import DataError
from pyromix.formula.rows import Rows, shown

Inspector = Callable[[list[Any], np.ndarray], None]


@dataclass(frozen=True)
class Factor:
    """Codes into levels.

    Attributes
    ----------
    codes
        (n,) int64; -1 where the value is missing (or, against known levels, unseen).
    levels
        Labels, sorted, or in the order of a categorical column.
    unused
        Categories that no row holds.
    """

    codes: np.ndarray
    levels: tuple[Any, ...]
    unused: tuple[Any, ...] = ()

    def keep(self, mask: np.ndarray) -> Factor:
        """Only some rows; levels that no row holds any more are dropped."""
        return compact(self.codes[mask], self.levels, self.unused)

    def categorical(self) -> pd.Categorical:
        """As a pandas categorical, which the matrix builder reads fastest."""
        return pd.Categorical.from_codes(self.codes, categories=_index(self.levels))


def _index(levels: Sequence[Any]) -> pd.Index:
    return pd.Index(list(levels), tupleize_cols=False)


def compact(codes: np.ndarray, levels: tuple[Any, ...], unused: tuple[Any, ...] = ()) -> Factor:
    """A factor without levels that no row holds; they are recorded as unused."""
    used = np.bincount(codes[codes >= 0], minlength=len(levels)) > 0
    if used.all():
        return Factor(codes, levels, unused)
    remap = np.append(np.cumsum(used) - 1, -1)
    gone = tuple(level for level, keep in zip(levels, used, strict=True) if not keep)
    return Factor(remap[codes], tuple(np.array(levels, dtype=object)[used].tolist()), unused + gone)


def factorize(series: pd.Series, where: str, rows: Rows, inspect: Inspector | None = None) -> Factor:
    """Code a column by its values.

    Parameters
    ----------
    series
        Any column of hashable values.
    where
        How messages name it, such as ``column 'Subject' (grouping factor)``.
    rows
        The rows, for messages.
    inspect
        Called with the labels of a text column and their codes before they are sorted, which is the slow part.

    Returns
    -------
    Factor

    Raises
    ------
    DataError
        For cells that are no labels, or labels of mixed types.
    """
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes = series.cat.codes.to_numpy(dtype=np.int64)
        _check_labels(list(series.cat.categories), codes, where, rows)
        return compact(codes, tuple(series.cat.categories.tolist()))
    plain = isinstance(series.dtype, np.dtype) and series.dtype.kind != "O"
    if plain or not isinstance(series.dtype, (np.dtype, pd.StringDtype)):
        codes, uniques = pd.factorize(series, sort=True)
        return Factor(codes.astype(np.int64, copy=False), tuple(uniques.tolist()))
    return _factorize_objects(series, where, rows, inspect)


def _factorize_objects(series: pd.Series, where: str, rows: Rows, inspect: Inspector | None) -> Factor:
    try:
        codes, uniques = pd.factorize(series, sort=False)
    except TypeError:
        bad = next(i for i, value in enumerate(series) if not _hashable(value))
        raise DataError(
            f"{where}: a {type(series.iloc[bad]).__name__} at {rows.describe(bad)}; "
            "cells must be single labels or numbers. Make one column of each part."
        ) from None
    labels = uniques.tolist()
    codes = codes.astype(np.int64, copy=False)
    _check_labels(labels, codes, where, rows)
    if inspect is not None:
        inspect(labels, codes)
    order = sorted(range(len(labels)), key=labels.__getitem__)
    rank = np.empty(len(labels) + 1, dtype=np.int64)
    rank[order] = np.arange(len(labels))
    rank[-1] = -1
    return Factor(rank[codes], tuple(labels[i] for i in order))


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _check_labels(labels: list[Any], codes: np.ndarray, where: str, rows: Rows) -> None:
    """Labels must be of one kind: 1 and '1' are different, and nobody can tell whether they are meant to be."""
    text = [label for label in labels if isinstance(label, str)]
    other = [label for label in labels if not isinstance(label, str)]
    for label in other:
        if isinstance(label, (tuple, frozenset, complex)):
            raise DataError(
                f"{where}: {type(label).__name__} {label!r} at {rows.first(codes == labels.index(label))}; "
                "cells must be single labels or numbers."
            )
    if text and other:
        twins = {str(label): label for label in other}
        a = next((label for label in text if label in twins), text[0])
        b = twins.get(a, other[0])
        raise DataError(
            f"{where}: mixes the {type(b).__name__} {shown(b)} at {rows.first(codes == labels.index(b))} with the text "
            f"{a!r} at {rows.first(codes == labels.index(a))}. Convert the column to one type, for example "
            "data[column].astype(str)."
        )
    if other and len({_kind(label) for label in other}) > 1:
        kinds = sorted({type(label).__name__ for label in other})
        raise DataError(f"{where}: mixes values of types {', '.join(kinds)}. Convert the column to one type.")


def _kind(label: Any) -> str:
    return "number" if isinstance(label, (int, float, np.number, np.bool_)) else type(label).__name__


def match(factor: Factor, known: tuple[Any, ...], where: str, fitted: str = "the fit") -> Factor:
    """Recode a factor of new data into known levels by value.

    Returns
    -------
    Factor
        Codes into ``known``, -1 where a value is not among them; ``unused`` lists those values in order.

    Raises
    ------
    DataError
        If the values are text and the known levels numbers with the same digits, or the other way round.
    """
    target = _index(known).get_indexer(_index(factor.levels)) if factor.levels else np.empty(0, dtype=np.int64)
    unseen = tuple(level for level, at in zip(factor.levels, target, strict=True) if at < 0)
    if unseen and {isinstance(level, str) for level in unseen} != {isinstance(level, str) for level in known}:
        text = {_plain(level) for level in known}
        twin = next((level for level in unseen if _plain(level) in text), None)
        if twin is not None:
            like = next(level for level in known if _plain(level) == _plain(twin))
            raise DataError(
                f"{where}: {shown(twin)} ({type(twin).__name__}) in the new data, {shown(like)} "
                f"({type(like).__name__}) in {fitted}. Convert the column to the type it had, for example with "
                f"astype({type(like).__name__})."
            )
    codes = np.append(target, -1).astype(np.int64)[factor.codes]
    return Factor(codes, tuple(known), unseen)


def _plain(level: Any) -> str:
    return str(int(level)) if isinstance(level, float) and level.is_integer() else str(level)


Labels = Callable[[tuple[Any, ...]], Any]


def joined(parts: tuple[Any, ...]) -> str:
    """``a:b``, the label of a combination."""
    return ":".join(map(str, parts))


def in_series(parts: tuple[Any, ...]) -> tuple[Any, Any]:
    """(series, time): the last part is the time."""
    return (parts[0] if len(parts) == 2 else parts[:-1]), parts[-1]


def as_pair(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The combination itself: coordinates, or halves of a pair."""
    return parts


@dataclass(frozen=True)
class Crossing:
    """Levels of ``a:b``: the combinations that occur, in the order of their parts.

    Attributes
    ----------
    codes
        (n,) of each row.
    keys
        Combinations of the parts' codes, by level.
    levels
        Labels, made by `label` of the parts' labels where there are several.
    """

    codes: np.ndarray
    keys: np.ndarray
    levels: tuple[Any, ...]
    label: Labels = joined

    @classmethod
    def of(cls, parts: Sequence[Factor], label: Labels = joined) -> Crossing:
        """The combinations observed; a single factor keeps its own levels."""
        if len(parts) == 1:
            return cls(parts[0].codes, np.arange(len(parts[0].levels)), parts[0].levels)
        combined = _combine(parts, [len(part.levels) for part in parts])
        codes, keys = pd.factorize(combined, sort=True)
        sizes = [len(part.levels) for part in parts]
        digits, rest = [], keys
        for size in reversed(sizes):
            rest, digit = np.divmod(rest, size)
            digits.append(digit)
        columns = [[part.levels[k] for k in digit] for part, digit in zip(parts, reversed(digits), strict=True)]
        labels = tuple(label(combination) for combination in zip(*columns, strict=True))
        return cls(codes.astype(np.int64, copy=False), keys, labels, label)

    def unseen(self, factors: Sequence[Factor], mask: np.ndarray) -> tuple[tuple[Any, ...], np.ndarray]:
        """Distinct labels of the rows where `mask` holds, in the order of the levels, and each such row's label."""
        at = np.flatnonzero(mask)
        if len(factors) == 1:
            codes, which = np.unique(factors[0].codes[at], return_inverse=True)
            return tuple(factors[0].levels[i] for i in codes), which
        codes = np.stack([factor.codes[at] for factor in factors], axis=1)
        codes, which = np.unique(codes, axis=0, return_inverse=True)
        labels = tuple(self.label(tuple(f.levels[i] for f, i in zip(factors, row, strict=True))) for row in codes)
        return labels, which.reshape(-1)

    def recode(self, parts: Sequence[Factor]) -> tuple[np.ndarray, np.ndarray]:
        """Codes of new rows, and where a combination is new; parts are coded into the same levels as here."""
        if len(parts) == 1:
            return parts[0].codes, parts[0].codes < 0
        unseen = np.logical_or.reduce([part.codes < 0 for part in parts])
        combined = _combine(parts, [len(part.levels) for part in parts])
        at = np.searchsorted(self.keys, np.where(unseen, 0, combined))
        at = np.minimum(at, len(self.keys) - 1)
        unseen = unseen | (self.keys[at] != combined)
        return np.where(unseen, -1, at).astype(np.int64), unseen


@dataclass(frozen=True)
class Members:
    """Levels of ``mm(a, b)``: those of all columns together, of which a row has one a column.

    Attributes
    ----------
    codes
        (n, columns).
    """

    codes: np.ndarray
    levels: tuple[Any, ...]

    @classmethod
    def of(cls, parts: Sequence[Factor]) -> Members:
        """Labels of all columns, sorted, or in the order in which they appear where labels are of several kinds."""
        labels = dict.fromkeys(level for part in parts for level in part.levels)
        if len({_kind(label) for label in labels}) > 1:
            raise DataError("mm(...): its columns hold labels of different types; convert them to one type.")
        levels = tuple(sorted(labels))
        known = {level: k for k, level in enumerate(levels)}
        columns = [np.array([known[level] for level in part.levels], dtype=np.int64)[part.codes] for part in parts]
        return cls(np.stack(columns, axis=1), levels)

    def recode(self, parts: Sequence[Factor]) -> tuple[np.ndarray, np.ndarray]:
        """Codes of new rows, and where a label is new."""
        known = {level: k for k, level in enumerate(self.levels)}
        columns = [
            np.array([known.get(level, -1) for level in (*part.levels, None)], dtype=np.int64)[part.codes]
            for part in parts
        ]
        codes = np.stack(columns, axis=1)
        return codes, codes < 0

    def unseen(self, factors: Sequence[Factor], mask: np.ndarray) -> tuple[tuple[Any, ...], np.ndarray]:
        """Distinct labels where `mask` (n, columns) holds, and the label there."""
        rows, columns = np.nonzero(mask)
        found = [factors[j].levels[factors[j].codes[i]] for i, j in zip(rows, columns, strict=True)]
        labels = tuple(sorted(set(found)))
        at = {label: k for k, label in enumerate(labels)}
        return labels, np.array([at[label] for label in found], dtype=np.int64)


def _combine(parts: Sequence[Factor], sizes: Sequence[int]) -> np.ndarray:
    combined = np.zeros(len(parts[0].codes), dtype=np.int64)
    for part, size in zip(parts, sizes, strict=True):
        combined = combined * size + part.codes
    return combined
