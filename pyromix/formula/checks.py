"""Checks of a design as a whole: errors raised before fitting, warnings collected for the caller to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pyromix.errors import (
    DataError,
    DataWarning,
    FewGroupsWarning,
    PyromixWarning,
    RankWarning,
    ScaleWarning,
)
from pyromix.formula.frame import Column
from pyromix.formula.intake import Columns
from pyromix.formula.levels import Factor
from pyromix.formula.matrix import ModelMatrix
from pyromix.formula.rank import Alias
from pyromix.formula.rows import Rows, plural, shown, some

Notes = list[tuple[type[PyromixWarning], str]]

MANY_LEVELS = 1_000
FEW_GROUPS = 5
SCALE_RATIO = 1e3
MOST_BYTES = 4e9


def predictors(columns: Columns, fixed: set[str], n: int) -> Notes:
    """Categorical predictors with one level (an error) or very many (a warning)."""
    notes: Notes = []
    for name, ways in columns.uses.items():
        column = columns.values[name]
        levels = _labels(column, ways)
        if levels is None:
            continue
        if len(levels) == 1:
            raise DataError(
                f"{column.where}: categorical with one level, {shown(levels[0])}, in all {n} rows; it has no "
                "effect to estimate. Drop it from the formula."
            )
        if name in fixed and len(levels) > MANY_LEVELS:
            text = (
                f"{column.where}: {len(levels)} levels make {len(levels) - 1} coefficients; a random intercept "
                f"(1 | {column.name}) is probably meant."
            )
            if 8.0 * len(levels) * n > MOST_BYTES:
                raise DataError(f"{text} The model matrix would need {8e-9 * len(levels) * n:.0f} GB.")
            notes.append((DataWarning, text))
    return notes


def _labels(column: Column, ways: set[str]) -> Sequence[Any] | None:
    """Levels of a column where it is used as a category, else None."""
    if column.factor is not None:
        return column.factor.levels
    assert column.values is not None
    if "C" in ways or (column.values.dtype == bool and "factor" in ways):
        return np.unique(column.values).tolist()
    return None


def response(name: str, y: np.ndarray, trials: np.ndarray | None, proper_priors: bool) -> Notes:
    """A response that does not vary holds no information on any effect."""
    if trials is None:
        constant, value = bool((y == y[0]).all()), f"= {y[0]}"
    else:
        none, every = bool((y == 0).all()), bool((y == trials).all())
        constant, value = none or every, "no success in any row" if none else "every trial a success"
    if not constant:
        return []
    text = f"response {name!r} is constant ({value}) in all {len(y)} rows."
    if proper_priors:
        return [(DataWarning, f"{text} The result is the priors' doing.")]
    raise DataError(f"{text} No effect can be estimated from it; check the column, or give every parameter a prior.")


def trials(success: np.ndarray, failure: np.ndarray, names: tuple[str, str], rows: Rows) -> None:
    """Successes and failures are counts, with at least one trial a row."""
    where = f"cbind({names[0]}, {names[1]}) (response)"
    for bad, what in (
        ((success < 0) | (failure < 0), "negative counts (more successes than trials?)"),
        ((success % 1 != 0) | (failure % 1 != 0), "counts that are not whole numbers"),
        (success + failure == 0, "no trials (successes + failures = 0)"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise DataError(
                f"{where}: {plural(int(bad.sum()), 'row')} with {what}, first {names[0]} = {success[at]:g} "
                f"and {names[1]} = {failure[at]:g} at {rows.describe(at)}. Correct or drop these rows."
            )


def finite_matrix(x: np.ndarray, names: Sequence[str], part: str, rows: Rows) -> None:
    """Columns computed from finite data may still not be finite: log(0), a division by zero."""
    if np.isfinite(x).all():
        return
    bad = ~np.isfinite(x)
    column = int(np.argmax(bad.any(axis=0)))
    at = int(np.argmax(bad[:, column]))
    raise DataError(
        f"{names[column]!r} ({part}): {plural(int(bad[:, column].sum()), 'value')} not finite, first "
        f"{x[at, column]} at {rows.describe(at)}. Correct the data or the transform."
    )


def scales(x: np.ndarray, names: Sequence[str], numeric: Sequence[bool]) -> Notes:
    """Numeric columns on very different scales; orthonormal polynomials have theirs by construction."""
    at = [j for j, number in enumerate(numeric) if number and not names[j].startswith("poly(")]
    if len(at) < 2:
        return []
    sd = x[:, at].std(axis=0)
    order = [i for i in np.argsort(sd) if sd[i] > 0]
    if len(order) < 2 or sd[order[-1]] <= SCALE_RATIO * sd[order[0]]:
        return []
    low, high = order[0], order[-1]
    return [(ScaleWarning, f"predictors on very different scales: sd of {names[at[low]]!r} is "
                           f"{sd[low]:.3g}, of "
                           f"{names[at[high]]!r} {sd[high]:.3g}. They are standardised internally; rescale "
                           "them "
                           "to read the coefficients more easily.")]  # fmt: skip


def rank(x: np.ndarray, matrix: ModelMatrix, found: Sequence[Alias], columns: Columns) -> Notes:
    """One warning for each column that others span."""
    names = matrix.columns
    cells = _empty_cells(matrix, columns)
    notes: Notes = []
    for alias in found:
        name = names[alias.column]
        values = x[:, alias.column]
        term = next(term for term, part in matrix.slices.items() if part.start <= alias.column < part.stop)
        if (values == values[0]).all():
            reason = f"is constant (= {values[0]:g})"
        else:
            reason = "is a linear combination of others: "
            reason += f"{name} ~ {' + '.join(names[j] for j in alias.others) or '1'}"
        if cells.get(term):
            reason += f"; no row in the cell {'; nor in '.join(cells[term][:5])}"
            reason += f" and {len(cells[term]) - 5} more" if len(cells[term]) > 5 else ""
        notes.append((RankWarning, f"fixed effects: column {name!r} {reason}. It is dropped and its coefficient is "
                                   "NaN; "
                                   "remove the term to silence this."))  # fmt: skip
    return notes


def _empty_cells(matrix: ModelMatrix, columns: Columns) -> dict[str, list[str]]:
    """Combinations of factor levels that no row holds, by interaction term."""
    factors = {}
    for name, ways in columns.uses.items():
        column = columns.values[name]
        levels = _labels(column, ways)
        if levels is not None:
            codes = (
                column.factor.codes if column.factor is not None else np.searchsorted(levels, np.asarray(column.values))
            )
            for text in (name, f"C({name})"):
                factors[text] = (column.name, Factor(codes, tuple(levels)))
    out: dict[str, list[str]] = {}
    for term, parts in matrix.categorical_terms().items():
        known = [factors[part] for part in parts if part in factors]
        if len(known) != len(parts) or len(parts) > 4:
            continue
        sizes = [len(factor.levels) for _, factor in known]
        if np.prod(sizes) > 1e6:
            continue
        counts = np.bincount(
            np.ravel_multi_index([factor.codes for _, factor in known], sizes), minlength=np.prod(sizes)
        )
        out[term] = [
            ", ".join(f"{name} = {shown(factor.levels[i])}" for (name, factor), i in zip(known, index, strict=True))
            for index in np.argwhere(counts.reshape(sizes) == 0)
        ]
    return out


def more_columns_than_rows(p: int, n: int, names: Sequence[str]) -> DataError:
    """The error for more coefficients than rows without priors on them."""
    return DataError(
        f"fixed effects: {p} columns (p) and {n} rows (n): p > n, the coefficients are not identified. Drop "
        f"terms ({some(names)}), or give the coefficients a prior."
    )


def groups(name: str, levels: int, q: int, n: float, gaussian: bool, proper_priors: bool) -> Notes:
    """Numbers of levels that leave a variance unidentified, or badly estimated."""
    if levels == 1 and not proper_priors:
        raise DataError(
            f"grouping factor {name!r}: 1 level; its variance cannot be estimated. Drop the term (... | {name})."
        )
    if gaussian and levels >= n:
        raise DataError(
            f"grouping factor {name!r}: {levels} levels for {n:.12g} observations; every group has a single one, "
            "so the effect and the residual cannot be told apart. Drop the term or use a coarser factor."
        )
    if gaussian and q * levels >= n:
        raise DataError(
            f"random term on {name!r}: {q} effects for each of {levels} levels make {q * levels} random "
            f"effects for {n:.12g} observations; they must be fewer. Simplify the term."
        )
    if levels < FEW_GROUPS:
        return [(FewGroupsWarning, f"grouping factor {name!r}: {plural(levels, 'level')}; a variance estimated from "
                                   "fewer "
                                   f"than {FEW_GROUPS} groups is unreliable. Consider a fixed effect.")]  # fmt: skip
    return []


def similar_labels(column: Column) -> Notes:
    """Labels that differ only by blanks or case."""
    assert column.factor is not None
    seen: dict[str, str] = {}
    pairs = []
    for label in column.factor.levels:
        if isinstance(label, str):
            key = label.strip().casefold()
            if key in seen:
                pairs.append((seen[key], label))
            seen.setdefault(key, label)
    if not pairs:
        return []
    return [(DataWarning, f"{column.where}: labels that differ only by blanks or case are different groups: "
                          f"{some(pairs)}. If they are the same, clean them, for example with "
                          ".str.strip().")]  # fmt: skip


def reused_ids(groups_: Mapping[str, Column], bars: Sequence[tuple[str, ...]]) -> Notes:
    """Ids that restart within another factor, as pupil 1, 2, ... in every school.

    Crossed factors can look the same, so this speaks up only where ids are counters that restart in every parent and
    some combination of the two occurs more than once (with one row each, nesting would leave nothing to estimate).
    """
    single = [bar[0] for bar in bars if len(bar) == 1]
    joint = {frozenset(bar) for bar in bars if len(bar) > 1}
    notes: Notes = []
    for a, b in combinations(dict.fromkeys(single), 2):
        if any({a, b} <= both for both in joint):
            continue
        for parent, child in ((a, b), (b, a)):
            if _restarts(groups_[parent].factor, groups_[child].factor):
                notes.append((DataWarning, f"grouping factors {parent!r} and {child!r}: the same ids of {child!r} "
                                           "occur in "
                                           f"every level of {parent!r}. If they are different {child}s, write "
                                           f"(1 | {parent}/{child}); if the factors are crossed, ignore "
                                           "this."))  # fmt: skip
                break
    return notes


def _restarts(parent: Factor | None, child: Factor | None) -> bool:
    assert parent is not None and child is not None
    order = _counter(child.levels)
    if order is None or len(parent.levels) < 2:
        return False
    rank_ = np.empty(len(order), dtype=np.int64)
    rank_[order] = np.arange(len(order))
    size = len(child.levels)
    pairs, counts = np.unique(parent.codes * size + rank_[child.codes], return_counts=True)
    if counts.max() < 2:
        return False
    owner, number = np.divmod(pairs, size)
    held = np.bincount(owner, minlength=len(parent.levels))
    highest = np.zeros(len(parent.levels), dtype=np.int64)
    np.maximum.at(highest, owner, number)
    return bool((highest + 1 == held).all() and held.min() >= 2)


def _counter(levels: Sequence[Any]) -> list[int] | None:
    """Order of the levels if they count from 0, 1, 'a' or 'A' without gaps, else None."""
    try:
        numbers = [int(level) for level in levels]
        if any(float(level) != number for level, number in zip(levels, numbers, strict=True)):
            return None
    except (TypeError, ValueError):
        if not all(isinstance(level, str) and len(level) == 1 and level.isalpha() for level in levels):
            return None
        numbers = [ord(level) for level in levels]
        if min(numbers) not in (ord("a"), ord("A")):
            return None
        first = min(numbers)
    else:
        first = min(numbers)
        if first not in (0, 1):
            return None
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    return order if [numbers[i] for i in order] == list(range(first, first + len(numbers))) else None
