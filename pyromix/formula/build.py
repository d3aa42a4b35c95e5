"""How a `Design` is put together from training data: columns, checks, matrices, group codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import FormulaError
from pyromix.formula import checks
from pyromix.formula.frame import align, find_column, read_frame
from pyromix.formula.intake import (
    Columns,
    check_missing_option,
    complete_rows,
    describe_levels,
    read_columns,
    refuse_missing,
)
from pyromix.formula.levels import Crossing, Labels, Members, as_pair, in_series, joined
from pyromix.formula.matrix import ModelMatrix
from pyromix.formula.parse import Bar, Formula, parse, structure_of
from pyromix.formula.pieces import category_codes, check_arguments, member_weights, read_response, total_offset
from pyromix.formula.rank import aliases
from pyromix.formula.rows import Rows
from pyromix.formula.structures import LEVELWISE, TEMPORAL


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
        One entry a random term: name, the term with the columns of its levels, matrix or None, its levels.
    offset
        The ``offset=`` argument if it was a column name; True for any other; None without one.
    positions
        Positions of the rows in the data given, if some were dropped.
    arguments
        Columns named by ``offset=`` and the weights, as given.
    offset_values
        The ``offset=`` argument on the rows kept, if it was no column name.
    proper_priors
        Whether every parameter has a proper prior, so that fewer designs are refused.
    correlated
        Random terms whose levels are correlated by a structure that is handed over.
    anywhere
        Those whose structure takes any place.
    """

    formula: Formula
    functions: Mapping[str, Callable]
    columns: Columns
    fixed: ModelMatrix
    kept: tuple[int, ...]
    random: tuple[tuple[str, Bar, ModelMatrix | None, Crossing | Members], ...]
    offset: str | bool | None
    positions: np.ndarray | None
    arguments: Mapping[str, pd.Series]
    offset_values: np.ndarray | None = None
    proper_priors: bool = False
    correlated: tuple[str, ...] = ()
    anywhere: tuple[str, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and pickles come without what the matrix builder learnt: learn it again from the same columns."""
        self.__dict__.update(state)
        data = self.columns.data()
        for matrix in {id(m): m for m in (self.fixed, *(entry[2] for entry in self.random)) if m is not None}.values():
            matrix.learn(self.functions, data)

    @property
    def numeric_only(self) -> tuple[bool, ...]:
        """For each column kept, whether no factor takes part in it."""
        return tuple(self.fixed.numeric_only[j] for j in self.kept)

    @property
    def involved(self) -> tuple[tuple[str, ...], ...]:
        """For each column kept, the factors that take part in it."""
        return tuple(self.fixed.involved[j] for j in self.kept)

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
    correlated: Collection[str] = (),
    anywhere: Collection[str] = (),
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
    check_arguments(aligned, rows)
    columns = read_columns(formula, frame, rows, getattr(family, "columns", ()))
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
    gaussian = family is None or bool(getattr(family, "has_residual", False)) and not _fixed_residual(family)

    name, y, trials = read_response(formula, columns, functions, rows)
    notes = checks.response(name, y, trials, proper_priors)
    if family is not None and hasattr(family, "check_response"):
        family.check_response(y, trials, rows.describe, name)
    notes += checks.predictors(columns, set(formula.usage["fixed"].columns), n)

    matrices = _Matrices(formula, functions, columns, rows, n)
    fixed, x = matrices.learn(formula.fixed, "fixed effects")
    x, kept, more = _full_rank(x, fixed, columns, proper_priors)
    notes += more + checks.scales(x, [fixed.columns[j] for j in kept], [fixed.numeric_only[j] for j in kept])
    frequencies = aligned["frequency_weights"]
    observations = float(n if frequencies is None else frequencies.sum())
    random, terms = _random_terms(formula, columns, matrices, correlated)
    for entry, term in zip(random, terms, strict=True):
        term["weight"] = member_weights(entry[1], formula, columns, functions, rows)
    for entry, term in zip(random, terms, strict=True):
        q = 1 if term["design"] is None else term["design"].shape[1]
        # one row a level is enough where levels tell something of each other
        limited = gaussian and term["structure"] not in LEVELWISE and term["name"] not in correlated
        notes += checks.groups(term["group"], len(entry[3].levels), q, observations, limited, proper_priors)
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
        offset_values=None if isinstance(offset, str) else aligned["offset"],
        proper_priors=proper_priors,
        correlated=tuple(correlated),
        anywhere=tuple(anywhere),
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
        "residual": columns.residual_arrays(),
        "codes": codes,
        "levels": levels,
        "aliased": tuple(c for j, c in enumerate(fixed.columns) if j not in set(kept)),
        "n_dropped": n_dropped,
        "unused_levels": {**describe_levels(columns.values), **describe_levels(columns.groups)},
        "notes": tuple(dict.fromkeys(notes)),
        "state": state,
    }


def _fixed_residual(family: Any) -> bool:
    """Whether the residual's SD is given: then as many effects as rows tell something of their own SDs."""
    declared = family.parameters() if hasattr(family, "parameters") else ()
    return bool(declared) and all(parameter.fixed is not None for parameter in declared)


def _check_response_alone(formula: Formula) -> None:
    """A response that also predicts itself is a slip."""
    if isinstance(formula.response, str) and formula.response in formula.usage["fixed"].columns:
        name = formula.original(formula.response)
        raise FormulaError(f"formula: the response {name!r} also occurs right of '~'. Drop it there.")


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


def _random_terms(
    formula: Formula, columns: Columns, matrices: _Matrices, correlated: Collection[str]
) -> tuple[list, list[dict[str, Any]]]:
    crossings: dict[Any, Crossing | Members] = {}
    entries, terms = [], []
    for bar, name in zip(formula.bars, formula.effects, strict=True):
        bar = _without_dummy(bar, columns)
        factors = [columns.groups[part].factor for part in bar.group]
        label = _labels_of(bar, name in correlated)
        key = (bar.group, bar.members, label)
        if key not in crossings:
            crossings[key] = Members.of(factors) if bar.members else Crossing.of(factors, label)  # type: ignore[arg-type]
        crossing = crossings[key]
        matrix, values = matrices.learn(bar.terms, f"random effects of {bar.name!r}")
        plain = matrix.columns == ("Intercept",)
        entries.append((name, bar, None if plain else matrix, crossing))
        terms.append(
            {
                "name": name,
                "group": bar.name,
                "structure": structure_of(bar.structure, len(matrix.columns)),
                "arguments": dict(bar.arguments),
                "index": crossing.codes,
                "design": None if plain else values,
                "levels": crossing.levels,
                "terms": matrix.columns,
            }
        )
    return entries, terms


def _without_dummy(bar: Bar, columns: Columns) -> Bar:
    """``propto(0 + id | g, K)`` where g is the same in every row, as glmmTMB needs it: its levels are those of id."""
    if bar.structure != "propto" or len(bar.group) < 2:
        return bar
    varied = [name for name in bar.group[1:] if len(columns.groups[name].factor.levels) > 1]  # type: ignore[union-attr]
    return replace(bar, group=(bar.group[0], *varied))


def _labels_of(bar: Bar, handed_over: bool) -> Labels:
    """What labels of levels of several columns are: for a structure that reads them, the parts."""
    if bar.structure in TEMPORAL:
        return in_series
    return as_pair if handed_over or bar.structure in LEVELWISE else joined
