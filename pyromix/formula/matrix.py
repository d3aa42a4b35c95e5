"""Model matrices: the one place where the formula builder is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import patsy

from pyromix.errors import DataError, FormulaError, PyromixError
from pyromix.formula.parse import Formula
from pyromix.formula.transforms import NAMESPACE

_KEEP_ALL = patsy.NAAction(on_NA="raise", NA_types=[])


class ModelMatrix:
    """Columns of one right-hand side, learnt from the training data and replayed on new data.

    Attributes
    ----------
    columns
        Names of the columns, with the original column names.
    slices
        Term name to its slice of the columns.
    numeric_only
        One flag a column: whether no factor takes part in it.
    involved
        For each column, the factors that take part in it.
    """

    def __init__(self, rhs: str, formula: Formula, functions: Mapping[str, Callable], data: Mapping[str, Any]) -> None:
        self.rhs = rhs
        self._formula = formula
        # the terms as a description: text is read once, and "1" or "0" alone name no data to count rows by
        try:
            self._terms = patsy.ModelDesc.from_formula(rhs).rhs_termlist
        except patsy.PatsyError as error:
            raise FormulaError(f"formula: {formula.restore(rhs)!r}: {error.message}") from None
        self._info: Any = None
        if any(term.factors for term in self._terms):
            self.learn(functions, data)
            self._read_names()
        else:
            name = ("Intercept",) if self._terms else ()
            self.columns: tuple[str, ...] = name
            self.slices = {term: slice(0, 1) for term in name}
            self.numeric_only = tuple(False for _ in name)
            self.involved: tuple[tuple[str, ...], ...] = tuple(() for _ in name)

    def __getstate__(self) -> dict[str, Any]:
        # what the builder learnt cannot be copied or stored; whoever holds the data calls `learn` again
        return {name: value for name, value in self.__dict__.items() if name not in ("_info", "_terms")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._terms = patsy.ModelDesc.from_formula(self.rhs).rhs_termlist
        self._info = None

    def learn(self, functions: Mapping[str, Callable], data: Mapping[str, Any]) -> None:
        """Learn levels, knots, means and the like from training data; the same data give the same state."""
        if not any(term.factors for term in self._terms):
            return
        environment = patsy.EvalEnvironment([{**NAMESPACE, **functions}])
        try:
            with np.errstate(all="ignore"):
                (self._info,) = patsy.build.design_matrix_builders(
                    [self._terms], lambda: iter([data]), environment, _KEEP_ALL
                )
        except PyromixError:
            raise
        except Exception as error:
            raise self._translate(error) from error

    def _read_names(self) -> None:
        restore = self._formula.restore
        self.columns = tuple(restore(name) for name in self._info.column_names)
        self.slices = {restore(name): part for name, part in self._info.term_name_slices.items()}
        kinds = {factor: info.type for factor, info in self._info.factor_infos.items()}
        flags = [False] * len(self.columns)
        involved: list[tuple[str, ...]] = [()] * len(self.columns)
        for term, part in self._info.term_slices.items():
            flag = bool(term.factors) and all(kinds[factor] == "numerical" for factor in term.factors)
            flags[part] = [flag] * (part.stop - part.start)
            factors = tuple(restore(f.name()) for f in term.factors if kinds[f] == "categorical")
            involved[part] = [factors] * (part.stop - part.start)
        self.numeric_only, self.involved = tuple(flags), tuple(involved)

    def categorical_terms(self) -> dict[str, tuple[str, ...]]:
        """Terms that cross two or more factors, with the names of these."""
        if self._info is None:
            return {}
        out = {}
        for term in self._info.term_slices:
            names = [f.name() for f in term.factors if self._info.factor_infos[f].type == "categorical"]
            if len(names) > 1:
                out[self._formula.restore(term.name())] = tuple(names)
        return out

    def build(self, data: Mapping[str, Any], n: int) -> np.ndarray:
        """The matrix (n, p) for data of ``n`` rows, with the state of the training data."""
        if self._info is None:
            return np.ones((n, len(self.columns)))
        try:
            with np.errstate(all="ignore"):
                (matrix,) = patsy.build_design_matrices([self._info], data, NA_action=_KEEP_ALL)
        except PyromixError:
            raise
        except Exception as error:
            raise self._translate(error) from error
        return np.asarray(matrix, dtype=np.float64)

    def _translate(self, error: Exception) -> PyromixError:
        """The builder's errors, and those of functions it called, as ours with the user's column names."""
        cause: BaseException = error
        while isinstance(cause.__cause__, PyromixError) or (
            isinstance(cause, patsy.PatsyError) and cause.__cause__ is not None
        ):
            assert cause.__cause__ is not None
            cause = cause.__cause__
        if isinstance(cause, PyromixError):
            return type(cause)(str(cause))
        origin = getattr(error, "origin", None)
        text = origin.code[origin.start : origin.end] if origin is not None else self.rhs
        message = error.message if isinstance(error, patsy.PatsyError) else f"{type(error).__name__}: {error}"
        if cause is not error:
            message = f"{type(cause).__name__}: {cause}"
        return DataError(f"formula term {self._formula.restore(text)!r}: {self._formula.restore(message)}")
