"""A design applied to new data, with everything it learnt from the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import DataError
from pyromix.formula import checks
from pyromix.formula.build import State
from pyromix.formula.frame import align, read_frame
from pyromix.formula.intake import Columns, check_missing_option, read_new_columns, refuse_missing
from pyromix.formula.levels import Crossing, Factor, Members, match
from pyromix.formula.parse import Bar, structure_of
from pyromix.formula.pieces import category_codes, member_weights, read_response, refuse_argument, total_offset
from pyromix.formula.rows import Rows
from pyromix.formula.structures import ANYWHERE


def build_new(state: State, data: Any, *, offset: Any, missing: str, response: bool) -> dict[str, Any]:
    """Everything a `Design` of new data holds, as arrays."""
    check_missing_option(missing, ("propagate", "error"))
    formula = state.formula
    frame = read_frame(data)
    rows = Rows(frame.index)
    n = len(frame)
    extra = _new_offset(state, frame, offset, rows)
    columns = read_new_columns(formula, frame, rows, state.columns, response)
    gone = columns.missing(n)
    if missing == "error":
        refuse_missing(columns, rows, "the new data", "propagate")
    complete = columns if not gone.any() else _strip(columns, ~gone)
    inner = rows if not gone.any() else rows.keep(~gone)

    def scatter(values: np.ndarray) -> np.ndarray:
        if not gone.any():
            return values
        out = np.full((n, *values.shape[1:]), np.nan)
        out[~gone] = values
        return out

    count = int((~gone).sum())
    data_in = complete.data()
    x = state.fixed.build(data_in, count) if count else np.empty((0, len(state.fixed.columns)))
    checks.finite_matrix(x, state.fixed.columns, "fixed effects", inner)
    terms, unseen = _new_terms(state, columns, complete, count, inner, scatter)
    parts: dict[str, Any] = {"y": None, "trials": None}
    if response and count:
        _, y, trials = read_response(formula, complete, state.functions, inner)
        parts = {"y": scatter(y), "trials": None if trials is None else scatter(trials)}
    total = total_offset(formula, complete, state.functions, None, inner) if count else None
    total = None if total is None else scatter(total)
    if extra is not None:
        total = extra if total is None else total + extra
    codes, _ = category_codes(formula, columns)
    return {
        **parts,
        "x": scatter(x[:, list(state.kept)]),
        "terms": terms,
        "offset": total,
        "precision_weights": None,
        "frequency_weights": None,
        "index": frame.index,
        "codes": codes,
        "unseen": unseen,
        "residual": columns.residual_arrays(),
        "missing": gone if gone.any() else None,
    }


def _strip(columns: Columns, mask: np.ndarray) -> Columns:
    """Only complete rows, keeping every known level: codes must stay codes into the fit's levels."""

    def rows_of(column: Any) -> Any:
        factor = column.factor
        return type(column)(
            column.name,
            column.role,
            column.given[mask],
            None if column.values is None else column.values[mask],
            None if factor is None else Factor(factor.codes[mask], factor.levels, factor.unused),
        )

    return columns.map(rows_of)


def _new_offset(state: State, frame: pd.DataFrame, offset: Any, rows: Rows) -> np.ndarray | None:
    if offset is None and state.offset is True:
        raise DataError(
            "offset: the fit had an offset= argument with one value a row, and the new data need theirs. Pass "
            "offset=, name a column in it when fitting, or put offset(...) into the formula."
        )
    if offset is None and isinstance(state.offset, str):
        offset = state.offset
    values = align(offset, "offset", frame)
    if values is not None and np.isinf(values).any():
        refuse_argument("offset", values, np.isinf(values), "infinite value", rows)
    return values


def _new_terms(
    state: State, columns: Columns, complete: Columns, count: int, inner: Rows, scatter: Callable
) -> tuple[list[dict[str, Any]], dict[str, tuple[Any, ...]]]:
    terms: list[dict[str, Any]] = []
    unseen: dict[str, tuple[Any, ...]] = {}
    data = complete.data()
    coded: dict[str, Factor] = {}
    for name, column in columns.groups.items():
        known = state.columns.groups[name].factor
        assert known is not None and column.factor is not None
        coded[name] = match(column.factor, known.levels, column.where)
    for name, bar, matrix, crossing in state.random:
        gone = np.logical_or.reduce([columns.groups[part].factor.codes < 0 for part in bar.group])  # type: ignore[union-attr]
        if bar.structure in ANYWHERE or name in state.anywhere:
            index, levels = _places([columns.groups[part].factor for part in bar.group], crossing, gone)
        else:
            index, levels = _codes([coded[part] for part in bar.group], columns, bar, crossing, gone, name, unseen)
        design = None
        if matrix is not None:
            values = matrix.build(data, count) if count else np.empty((0, len(matrix.columns)))
            checks.finite_matrix(values, matrix.columns, f"random effects of {name!r}", inner)
            design = scatter(values)
        names = ("Intercept",) if matrix is None else matrix.columns
        weight = member_weights(bar, state.formula, complete, state.functions, inner) if count else None
        terms.append(
            {
                "name": name,
                "group": bar.name,
                "structure": structure_of(bar.structure, len(names)),
                "arguments": dict(bar.arguments),
                "index": index,
                "design": design,
                "weight": None if weight is None else scatter(weight),
                "levels": levels,
                "terms": names,
            }
        )
    return terms, unseen


def _codes(
    coded: Sequence[Factor],
    columns: Columns,
    bar: Bar,
    crossing: Crossing | Members,
    gone: np.ndarray,
    name: str,
    unseen: dict[str, tuple[Any, ...]],
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Codes into the fit's levels, -1, -2, ... for labels it has never seen, which are noted."""
    factors: Any = [columns.groups[part].factor for part in bar.group]
    # a label of one column of mm(...) may be known from another
    index, odd = crossing.recode(factors if bar.members else coded)
    missing = gone if odd.ndim == 1 else gone[:, None]
    odd = odd & ~missing
    if odd.any():
        unseen[name], which = crossing.unseen(factors, odd)
        index = index.copy()
        index[odd] = -1 - which  # one code a label: rows of one new level share its effect
    # a missing id makes the row NaN through x; its code must not look like an unseen level
    return np.where(missing, 0, index), crossing.levels


def _places(factors: Any, crossing: Any, gone: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Levels of a structure that takes any place: those of the new rows themselves."""
    found = Crossing.of([Factor(np.where(gone, 0, f.codes), f.levels) for f in factors], crossing.label)
    return found.codes, found.levels
