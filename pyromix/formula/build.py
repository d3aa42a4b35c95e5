"""How a `Design` is put together: columns, checks, matrices, group codes; for training data and for new data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import DataError, FormulaError
from pyromix.formula import checks
from pyromix.formula.frame import align, find_column, read_frame
from pyromix.formula.intake import (
    Columns,
    check_missing_option,
    complete_rows,
    describe_levels,
    read_columns,
    read_new_columns,
    refuse_missing,
)
from pyromix.formula.levels import Crossing, Factor, match
from pyromix.formula.matrix import ModelMatrix
from pyromix.formula.parse import Formula, parse
from pyromix.formula.rank import aliases
from pyromix.formula.rows import Rows, plural
from pyromix.formula.transforms import evaluate


@dataclass(frozen=True)
class State:
    """What a design must remember of its training data.

    Attributes
    ----------
    formula, functions
        As given.
    columns
        The typed columns, without dropped rows.
    fixed
        The fixed part's matrix, with its learnt state.
    kept
        Positions of the columns that are not aliased.
    random
        One entry a random term: name, structure, matrix or None, crossing of its factors.
    offset
        The ``offset=`` argument if it was a column name; True for any other; None without one.
    positions
        Positions of the rows in the data given, if some were dropped.
    arguments
        Columns named by ``offset=`` and the weights, as given.
    """

    formula: Formula
    functions: Mapping[str, Callable]
    columns: Columns
    fixed: ModelMatrix
    kept: tuple[int, ...]
    random: tuple[tuple[str, str, ModelMatrix | None, Crossing], ...]
    offset: str | bool | None
    positions: np.ndarray | None
    arguments: Mapping[str, pd.Series]

    @property
    def numeric_only(self) -> tuple[bool, ...]:
        """For each column kept, whether no factor takes part in it."""
        return tuple(self.fixed.numeric_only[j] for j in self.kept)

    def raw(self) -> dict[str, np.ndarray]:
        """The raw columns by the user's names."""
        given = {c.name: c.given for c in self.columns.everything()}
        return {name: _plain_array(series) for name, series in {**given, **self.arguments}.items()}

    def categories(self) -> dict[str, tuple[Any, ...]]:
        """Categories of the categorical columns among them."""
        return {
            c.name: tuple(c.given.cat.categories.tolist())
            for c in self.columns.everything()
            if isinstance(c.given.dtype, pd.CategoricalDtype)
        }


def _plain_array(series: pd.Series) -> np.ndarray:
    """A column as an array that needs no pickle to be stored."""
    values = series.astype(series.cat.categories.dtype) if isinstance(series.dtype, pd.CategoricalDtype) else series
    array = values.to_numpy()
    if array.dtype == object:
        items = array.tolist()
        text = all(isinstance(item, str) for item in items)
        array = np.array(items, dtype=np.str_) if text else np.array(items)
    return np.array(array)


def build(
    formula: str | Formula,
    data: Any,
    *,
    family: Any,
    offset: Any,
    precision_weights: Any,
    frequency_weights: Any,
    functions: Mapping[str, Callable] | None,
    missing: str,
    proper_priors: bool,
) -> dict[str, Any]:
    """Everything a `Design` holds, as arrays, from training data."""
    check_missing_option(missing, ("error", "drop"))
    functions = dict(functions or {})
    formula = parse(formula, functions) if isinstance(formula, str) else formula
    _check_response_alone(formula)
    frame = read_frame(data)
    arguments = {"offset": offset, "precision_weights": precision_weights, "frequency_weights": frequency_weights}
    aligned = {name: align(value, name, frame) for name, value in arguments.items()}
    rows = Rows(frame.index)
    _check_arguments(aligned, rows)
    columns = read_columns(formula, frame, rows)
    n_dropped = 0
    if missing == "error":
        refuse_missing(columns, rows)
    else:
        keep = complete_rows(columns, len(frame))
        n_dropped = int((~keep).sum())
        if n_dropped:
            columns, rows = columns.keep(keep), rows.keep(keep)
            aligned = {name: None if value is None else value[keep] for name, value in aligned.items()}
    n = len(rows.index)
    gaussian = family is None or bool(getattr(family, "has_residual", False))

    name, y, trials = read_response(formula, columns, functions, rows)
    notes = checks.response(name, y, trials, proper_priors)
    if family is not None and hasattr(family, "check_response"):
        family.check_response(y, trials, rows.describe)
    notes += checks.predictors(columns, set(formula.usage["fixed"].columns), n)

    matrices = _Matrices(formula, functions, columns, rows, n)
    fixed, x = matrices.learn(formula.fixed, "fixed effects")
    x, kept, more = _full_rank(x, fixed, columns, proper_priors)
    notes += more + checks.scales(x, fixed) if len(kept) == len(fixed.columns) else more
    frequencies = aligned["frequency_weights"]
    observations = float(n if frequencies is None else frequencies.sum())
    random, terms = _random_terms(formula, columns, matrices)
    for entry, term in zip(random, terms, strict=True):
        q = 1 if term["design"] is None else term["design"].shape[1]
        notes += checks.groups(term["group"], len(entry[3].levels), q, observations, gaussian, proper_priors)
    for column in columns.groups.values():
        notes += checks.similar_labels(column)
    notes += checks.reused_ids(columns.groups, [bar.group for bar in formula.bars])
    codes, levels = category_codes(formula, columns)
    given = {value: find_column(frame, value) for value in arguments.values() if isinstance(value, str)}
    if rows.positions is not None:
        given = {value: series.iloc[rows.positions] for value, series in given.items()}
    state = State(
        formula=formula,
        functions=functions,
        columns=columns,
        fixed=fixed,
        kept=kept,
        random=tuple(random),
        offset=offset if isinstance(offset, str) else (True if offset is not None else None),
        positions=rows.positions,
        arguments=given,
    )
    return {
        "formula": formula,
        "response": name,
        "y": y,
        "trials": trials,
        "x": x,
        "columns": tuple(fixed.columns[j] for j in kept),
        "factors": _slices(fixed, kept),
        "terms": terms,
        "offset": total_offset(formula, columns, functions, aligned["offset"], rows),
        "precision_weights": aligned["precision_weights"],
        "frequency_weights": frequencies,
        "index": rows.index,
        "codes": codes,
        "levels": levels,
        "aliased": tuple(c for j, c in enumerate(fixed.columns) if j not in set(kept)),
        "n_dropped": n_dropped,
        "unused_levels": {**describe_levels(columns.values), **describe_levels(columns.groups)},
        "notes": tuple(dict.fromkeys(notes)),
        "state": state,
    }


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
        refuse_missing_new(columns, rows)
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
    terms, unseen = _new_terms(state, columns, data_in, count, inner, scatter)
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
        "missing": gone if gone.any() else None,
    }


def refuse_missing_new(columns: Columns, rows: Rows) -> None:
    """Under ``missing="error"`` new data must be complete."""
    for column in columns.everything():
        mask = column.missing()
        if mask is not None:
            raise DataError(f"{column.where}: {plural(int(mask.sum()), 'missing value')} in the new data, "
                            f"{rows.few(mask)}. Fill or drop these rows, or pass missing='propagate'.")


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

    return Columns(
        {name: rows_of(c) for name, c in columns.values.items()},
        {name: rows_of(c) for name, c in columns.groups.items()},
        columns.uses,
    )


def _new_offset(state: State, frame: pd.DataFrame, offset: Any, rows: Rows) -> np.ndarray | None:
    if offset is None and state.offset is True:
        raise DataError("offset: the fit had an offset= argument with one value a row, and the new data need theirs. Pass "
                        "offset=, name a column in it when fitting, or put offset(...) into the formula.")
    if offset is None and isinstance(state.offset, str):
        offset = state.offset
    values = align(offset, "offset", frame)
    if values is not None and np.isinf(values).any():
        _refuse_argument("offset", values, np.isinf(values), "infinite value", rows)
    return values


def _check_response_alone(formula: Formula) -> None:
    """A response that also predicts itself is a slip."""
    if isinstance(formula.response, str) and formula.response in formula.usage["fixed"].columns:
        name = formula.original(formula.response)
        raise FormulaError(f"formula: the response {name!r} also occurs right of '~'. Drop it there.")


def _refuse_argument(name: str, values: np.ndarray, bad: np.ndarray, what: str, rows: Rows) -> None:
    at = int(np.argmax(bad))
    raise DataError(f"{name}: {plural(int(bad.sum()), what)}, first {values[at]} at {rows.describe(at)}. Correct them, or "
                    "drop these rows from the data.")


def _check_arguments(aligned: Mapping[str, np.ndarray | None], rows: Rows) -> None:
    for name, values in aligned.items():
        if values is None:
            continue
        if np.isnan(values).any():
            _refuse_argument(name, values, np.isnan(values), "missing value", rows)
        if np.isinf(values).any():
            _refuse_argument(name, values, np.isinf(values), "infinite value", rows)
        if name != "offset":
            if (values < 0).any():
                _refuse_argument(name, values, values < 0, "negative value", rows)
            if not values.any():
                raise DataError(f"{name}: all {len(values)} values are 0 (first at {rows.describe(0)}), no row would "
                                "count. Pass positive weights, or none.")


def read_response(
    formula: Formula, columns: Columns, functions: Mapping[str, Callable], rows: Rows
) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Name of the response, its values and, for ``cbind``, the trials."""
    numbers = columns.numbers(formula.usage["response"].columns)
    if isinstance(formula.response, str):
        name = site_name(formula.restore(formula.response))
        y = evaluate(formula.response, numbers, functions, "response")
        checks.finite_matrix(y[:, None], [formula.restore(formula.response)], "response", rows)
        return name, np.array(y), None
    success, failure = (evaluate(text, numbers, functions, "response") for text in formula.response)
    shown = (formula.restore(formula.response[0]), formula.restore(formula.response[1]))
    checks.finite_matrix(np.stack([success, failure], axis=1), shown, "response", rows)
    checks.trials(success, failure, shown, rows)
    return site_name(shown[0]), np.array(success), success + failure


def site_name(text: str) -> str:
    """A plain column keeps its name; ``log(y)`` becomes ``log_y``."""
    if "(" not in text and not re.search(r"[+*/]|\s-\s", text):
        return text
    return re.sub(r"\W+", "_", text).strip("_")


def total_offset(
    formula: Formula, columns: Columns, functions: Mapping[str, Callable], extra: np.ndarray | None, rows: Rows
) -> np.ndarray | None:
    """Sum of the formula's offsets and the argument's."""
    total = None if extra is None else np.array(extra)
    for text in formula.offsets:
        names = [name for name in formula.usage["offset"].columns if re.search(rf"\b{name}\b", text)]
        values = evaluate(text, columns.numbers(names), functions, "offset")
        bad = ~np.isfinite(values)
        if bad.any():
            at = int(np.argmax(bad))
            inputs = ", ".join(f"{formula.original(name)} = {columns.values[name].values[at]:g}" for name in names)  # type: ignore[index]
            raise DataError(f"offset({formula.restore(text)}): {plural(int(bad.sum()), 'value')} not finite, first "
                            f"{values[at]} at {rows.describe(at)}, where {inputs}. Exposures must be positive; correct or "
                            "drop these rows.")
        total = np.array(values) if total is None else total + values
    return total


def category_codes(formula: Formula, columns: Columns) -> tuple[dict[str, np.ndarray], dict[str, tuple[Any, ...]]]:
    """Codes and labels of the categorical predictors of the fixed part, by the user's names."""
    codes, levels = {}, {}
    for name in formula.usage["fixed"].columns:
        column = columns.values[name]
        if column.factor is not None:
            codes[column.name], levels[column.name] = column.factor.codes, column.factor.levels
        elif column.values is not None and column.values.dtype == bool:
            codes[column.name], levels[column.name] = column.values.astype(np.int64), (False, True)
    return codes, levels


def _full_rank(
    x: np.ndarray, fixed: ModelMatrix, columns: Columns, proper_priors: bool
) -> tuple[np.ndarray, tuple[int, ...], checks.Notes]:
    n, p = x.shape
    everything = tuple(range(p))
    if proper_priors:
        return x, everything, []
    if p > n:
        raise checks.more_columns_than_rows(p, n, fixed.columns)
    found = aliases(x, fixed.columns[:1] == ("Intercept",))
    if not found:
        return x, everything, []
    gone = {alias.column for alias in found}
    kept = tuple(j for j in everything if j not in gone)
    return np.ascontiguousarray(x[:, kept]), kept, checks.rank(x, fixed, found, columns)


def _slices(fixed: ModelMatrix, kept: Sequence[int]) -> dict[str, slice]:
    """Terms' slices among the columns kept."""
    before = np.searchsorted(np.asarray(kept, dtype=np.int64), np.arange(len(fixed.columns) + 1))
    return {term: slice(int(before[part.start]), int(before[part.stop])) for term, part in fixed.slices.items()}


class _Matrices:
    """Builds each distinct right-hand side once."""

    def __init__(self, formula: Formula, functions: Mapping, columns: Columns, rows: Rows, n: int) -> None:
        self._formula, self._functions, self._rows, self._n = formula, functions, rows, n
        self._data = columns.data()
        self._done: dict[str, tuple[ModelMatrix, np.ndarray]] = {}

    def learn(self, rhs: str, part: str) -> tuple[ModelMatrix, np.ndarray]:
        if rhs not in self._done:
            matrix = ModelMatrix(rhs, self._formula, self._functions, self._data)
            values = matrix.build(self._data, self._n)
            checks.finite_matrix(values, matrix.columns, part, self._rows)
            self._done[rhs] = (matrix, values)
        return self._done[rhs]


def _random_terms(formula: Formula, columns: Columns, matrices: _Matrices) -> tuple[list, list[dict[str, Any]]]:
    crossings: dict[tuple[str, ...], Crossing] = {}
    used: dict[str, int] = {}
    entries, terms = [], []
    for bar in formula.bars:
        if bar.group not in crossings:
            crossings[bar.group] = Crossing.of([columns.groups[name].factor for name in bar.group])  # type: ignore[misc]
        crossing = crossings[bar.group]
        group = ":".join(bar.group)
        used[group] = used.get(group, -1) + 1
        name = group if not used[group] else f"{group}.{used[group]}"
        matrix, values = matrices.learn(bar.terms, f"random effects of {group!r}")
        plain = matrix.columns == ("Intercept",)
        entries.append((name, bar.structure, None if plain else matrix, crossing))
        terms.append({
            "name": name,
            "group": group,
            "structure": "iid" if len(matrix.columns) == 1 else bar.structure,
            "index": crossing.codes,
            "design": None if plain else values,
            "levels": crossing.levels,
            "terms": matrix.columns,
        })
    return entries, terms


def _new_terms(
    state: State, columns: Columns, data: Mapping, count: int, inner: Rows, scatter: Callable
) -> tuple[list[dict[str, Any]], dict[str, tuple[Any, ...]]]:
    terms, unseen = [], {}
    coded: dict[str, Factor] = {}
    for name, column in columns.groups.items():
        known = state.columns.groups[name].factor
        assert known is not None and column.factor is not None
        coded[name] = match(column.factor, known.levels, column.where)
    for bar, (name, structure, matrix, crossing) in zip(state.formula.bars, state.random, strict=True):
        index, odd = crossing.recode([coded[part] for part in bar.group])
        gone = np.logical_or.reduce([columns.groups[part].factor.codes < 0 for part in bar.group])  # type: ignore[union-attr]
        odd = odd & ~gone
        if odd.any():
            unseen[name] = _labels_at([columns.groups[part].factor for part in bar.group], odd)
        # a missing id makes the row NaN through x; its code must not look like an unseen level
        index = np.where(gone, 0, index)
        design = None
        if matrix is not None:
            values = matrix.build(data, count) if count else np.empty((0, len(matrix.columns)))
            checks.finite_matrix(values, matrix.columns, f"random effects of {name!r}", inner)
            design = scatter(values)
        names = ("Intercept",) if matrix is None else matrix.columns
        terms.append({
            "name": name,
            "group": ":".join(bar.group),
            "structure": "iid" if len(names) == 1 else structure,
            "index": index,
            "design": design,
            "levels": crossing.levels,
            "terms": names,
        })
    return terms, unseen


def _labels_at(factors: Sequence[Any], mask: np.ndarray) -> tuple[Any, ...]:
    """Distinct labels of the rows where ``mask`` holds, in the order of the levels."""
    at = np.flatnonzero(mask)
    if len(factors) == 1:
        return tuple(factors[0].levels[i] for i in np.unique(factors[0].codes[at]))
    codes = np.unique(np.stack([factor.codes[at] for factor in factors], axis=1), axis=0)
    return tuple(":".join(str(f.levels[i]) for f, i in zip(factors, row, strict=True)) for row in codes)
