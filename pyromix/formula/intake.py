"""From a formula and a frame to typed columns: which are read, as what, and which rows are complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import ConfigError, DataError, UnseenLevelError
from pyromix.formula.frame import Column, factor_column, find_column, value_column
from pyromix.formula.levels import Factor, match
from pyromix.formula.parse import Formula
from pyromix.formula.rows import Rows, plural, shown, some

_ROLES = {"response": "response", "fixed": "fixed effects", "random": "random effects", "offset": "offset"}


def check_missing_option(missing: Any, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown ``missing=``."""
    if missing not in allowed:
        raise ConfigError(f"missing={missing!r}; allowed: {', '.join(repr(item) for item in allowed)}.")


@dataclass(frozen=True)
class Columns:
    """Every column a formula reads.

    Attributes
    ----------
    values
        By internal name: the columns of response, fixed part, random parts and offsets.
    groups
        By original name: the grouping factors.
    uses
        By internal name: how the predictor columns are used (see `Usage`).
    residual
        By original name: what the family reads of the rows (times, series, strata).
    """

    values: dict[str, Column]
    groups: dict[str, Column]
    uses: dict[str, set[str]]
    residual: dict[str, Column] = field(default_factory=dict)

    def everything(self) -> list[Column]:
        """Predictors and response first, then grouping factors."""
        return [*self.values.values(), *self.groups.values(), *self.residual.values()]

    def map(self, change: Callable[[Column], Column]) -> Columns:
        """The same with every column changed."""
        parts = ({name: change(c) for name, c in part.items()} for part in (self.values, self.groups, self.residual))
        values, groups, residual = parts
        return Columns(values, groups, self.uses, residual)

    def keep(self, mask: np.ndarray) -> Columns:
        """Only some rows."""
        return self.map(lambda column: column.keep(mask))

    def residual_arrays(self) -> dict[str, np.ndarray]:
        """Labels or numbers of every row, by column; read-only, so that what follows from them can be kept."""
        out = {}
        for name, column in self.residual.items():
            assert column.factor is not None
            array = np.array(column.factor.levels)[column.factor.codes]
            array.flags.writeable = False
            out[name] = array
        return out

    def missing(self, n: int) -> np.ndarray:
        """Rows with a missing value in any column."""
        out = np.zeros(n, dtype=bool)
        for column in self.everything():
            mask = column.missing()
            if mask is not None:
                out |= mask
        return out

    def numbers(self, names: Any) -> dict[str, np.ndarray]:
        """float64 arrays of the named columns, for row-by-row expressions."""
        out = {}
        for name in names:
            column = self.values[name]
            if column.values is None:
                assert column.factor is not None
                raise DataError(f"{column.where}: labels ({some(column.factor.levels, 3)}), but used in arithmetic.")
            out[name] = column.values.astype(np.float64, copy=False)
        return out

    def data(self) -> dict[str, Any]:
        """What the matrix builder sees: numbers as float64, factors as categoricals."""
        return {name: _builder_value(self.values[name], self.uses[name]) for name in self.uses}


def _builder_value(column: Column, uses: set[str]) -> Any:
    if column.factor is not None:
        return column.factor.categorical()
    assert column.values is not None
    if column.values.dtype == bool:
        return pd.Categorical.from_codes(column.values.astype(np.int8), [False, True]) if uses == {"factor"} \
            else column.values  # fmt: skip
    # inside C(...) the labels are the values as given: 2, not 2.0; a Series hands them out as plain numbers
    return pd.Series(column.given.to_numpy()) if "C" in uses else column.values


def roles_of(formula: Formula, response: bool) -> dict[str, str]:
    """Part of the formula that reads each column, by internal name; the first part counts."""
    roles: dict[str, str] = {}
    for part in ("response", "fixed", "random", "offset"):
        if part != "response" or response:
            for name in formula.usage[part].columns:
                roles.setdefault(name, _ROLES[part])
    return roles


def predictor_uses(formula: Formula) -> dict[str, set[str]]:
    """How the columns of the fixed and random parts are used."""
    uses: dict[str, set[str]] = {}
    for part in ("fixed", "random"):
        for name, ways in formula.usage[part].columns.items():
            uses.setdefault(name, set()).update(ways)
    return uses


def read_columns(formula: Formula, frame: pd.DataFrame, rows: Rows, residual: Sequence[str] = ()) -> Columns:
    """Find and type every column of a formula in training data, and those that its family reads."""
    uses = predictor_uses(formula)
    values = {}
    for name, role in roles_of(formula, response=True).items():
        series = find_column(frame, formula.original(name))
        if uses.get(name) == {"C"}:
            values[name] = factor_column(series, formula.original(name), role, rows)
        else:
            values[name] = value_column(series, formula.original(name), role, rows)
        if role == "response":
            _check_numeric_response(values[name])
    groups = {}
    for bar in formula.bars:
        for name in bar.group:
            if name not in groups:
                groups[name] = factor_column(find_column(frame, name), name, "grouping factor", rows)
    more = {name: factor_column(find_column(frame, name), name, "residuals", rows) for name in residual}
    return Columns(values, groups, uses, more)


def _check_numeric_response(column: Column) -> None:
    factor = column.factor
    if factor is None:
        return
    levels = factor.levels
    if len(levels) == 2:
        hint = (f"Recode as 0/1: data[{column.name!r}] = (data[{column.name!r}] == {shown(levels[1])}).astype(float) "
                f"makes {shown(levels[1])} a success.")  # fmt: skip
    else:
        hint = "A response must be numeric; recode it, for example data[column] == 'yes' for one of the values."
    raise DataError(f"{column.where}: labels, not numbers; {plural(len(levels), 'value')}: {some(levels)}. {hint}")


def refuse_missing(columns: Columns, rows: Rows, argument: str = "data", otherwise: str = "drop") -> None:
    """Raise for the first column with missing values, naming rows and remedies."""
    for column in columns.everything():
        mask = column.missing()
        if mask is not None:
            raise DataError(
                f"{column.where}: {plural(int(mask.sum()), 'missing value')} in {argument}, "
                f"{rows.few(mask)}. Fill or drop these rows, or pass missing={otherwise!r}."
            )


def complete_rows(columns: Columns, n: int) -> np.ndarray:
    """Mask of rows without missing values; an error if there is none."""
    keep = ~columns.missing(n)
    if not keep.any():
        counts = {}
        for column in columns.everything():
            mask = column.missing()
            counts[column.name] = 0 if mask is None else int(mask.sum())
        text = ", ".join(f"{name!r}: {count}" for name, count in counts.items() if count)
        raise DataError(
            f"data: all {n} rows have a missing value; missing by column: {text}. Fill some of them or drop "
            "the column from the formula."
        )
    return keep


def read_new_columns(formula: Formula, frame: pd.DataFrame, rows: Rows, known: Columns, response: bool) -> Columns:
    """Type the columns of new data as the training data were, matching labels by value.

    Raises
    ------
    UnseenLevelError
        For a categorical predictor's value that the fit has never seen. Grouping factors are left to the caller: their
        codes are -1 there.
    """
    values = {}
    for name, role in roles_of(formula, response).items():
        series = find_column(frame, formula.original(name), "the new data")
        values[name] = _like(series, known.values[name], role, rows, "C" in known.uses.get(name, ()))
    groups = {}
    for name, column in known.groups.items():
        assert column.factor is not None
        series = find_column(frame, name, "the new data")
        groups[name] = factor_column(series, name, "grouping factor", rows)
    given = [name for name in known.residual if name in frame.columns]  # a mean can do without
    residual = {name: factor_column(frame[name], name, "residuals", rows) for name in given}
    return Columns(values, groups, known.uses, residual)


def _like(series: pd.Series, known: Column, role: str, rows: Rows, labelled: bool) -> Column:
    """A column of new data with the type it had in training."""
    if known.factor is not None:
        new = factor_column(series, known.name, role, rows)
        assert new.factor is not None
        matched = match(new.factor, known.factor.levels, known.where)
        _refuse_unseen(known.where, new.factor, matched, rows)
        return Column(known.name, role, series, factor=matched)
    new = value_column(series, known.name, role, rows)
    assert known.values is not None
    if new.factor is not None:
        raise DataError(
            f"{known.where}: labels ({some(new.factor.levels, 3)}; {series.dtype}) in the new data, numbers "
            f"({known.given.dtype}) in the fit. Convert the column to numbers."
        )
    assert new.values is not None
    if known.values.dtype == bool and new.values.dtype != bool:
        odd = ~np.isin(new.values, (0.0, 1.0)) & ~np.isnan(new.values)
        if odd.any() or np.isnan(new.values).any():
            raise DataError(
                f"{known.where}: {series.dtype} in the new data, True/False in the fit; "
                f"{rows.first(odd | np.isnan(new.values))}. Convert the column with astype(bool)."
            )
        new = Column(known.name, role, series, values=new.values.astype(bool))
    if labelled and new.values is not None:
        seen = np.unique(known.values)
        odd = ~np.isin(new.values, seen) & ~np.isnan(new.values.astype(np.float64))
        if odd.any():
            raise _unseen_predictor(known.where, np.unique(new.values[odd]).tolist(), rows.first(odd), seen.tolist())
    return new


def _refuse_unseen(where: str, new: Factor, matched: Factor, rows: Rows) -> None:
    if matched.unused:
        odd = (matched.codes < 0) & (new.codes >= 0)
        raise _unseen_predictor(where, list(matched.unused), rows.first(odd), list(matched.levels))


def _unseen_predictor(where: str, levels: list[Any], first: str, known: list[Any]) -> UnseenLevelError:
    return UnseenLevelError(
        f"{where}: {plural(len(levels), 'value')} the fit has never seen: {some(levels)}, first at {first}. Known: "
        f"{some(known, 8)}. A fixed effect has no value for a new category; drop these rows or refit with them."
    )


def describe_levels(columns: Mapping[str, Column]) -> dict[str, tuple[Any, ...]]:
    """Categories that no row holds, by column."""
    return {c.name: c.factor.unused for c in columns.values() if c.factor is not None and c.factor.unused}
