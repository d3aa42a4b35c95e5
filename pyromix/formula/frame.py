"""Reading a data frame: which column is what, and what in it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyromix.errors import DataError, DataTypeError, FormulaError
from pyromix.formula.levels import Factor, factorize
from pyromix.formula.rows import Rows, plural, shown, some
from pyromix.formula.tokens import nearest

_ACCEPTED = "a pandas DataFrame, a dict of one-dimensional arrays, or an object with to_pandas()"


def read_frame(data: Any, argument: str = "data") -> pd.DataFrame:
    """Whatever holds columns as a DataFrame; the object given is never changed.

    Raises
    ------
    DataTypeError
        For an object that is no table, or columns with several header rows.
    DataError
        For no rows, repeated column names, or arrays of different lengths.
    """
    if isinstance(data, Mapping):
        frame = _from_mapping(data, argument)
    elif isinstance(data, pd.DataFrame):
        frame = data
    elif hasattr(data, "to_pandas"):
        frame = data.to_pandas()
    else:
        frame = None
    if not isinstance(frame, pd.DataFrame):
        raise DataTypeError(f"{argument}: got {type(data).__name__}; accepted: {_ACCEPTED}.")
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataTypeError(
            f"{argument}: its columns are a MultiIndex of {frame.columns.nlevels} levels; accepted: "
            f"{_ACCEPTED} with one header row. Flatten the columns first."
        )
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        at = np.flatnonzero(frame.columns == name).tolist()
        raise DataError(
            f"{argument}: column name {name!r} occurs {len(at)} times, at positions {some(at)}. "
            "Rename or drop the repeats."
        )
    if len(frame) == 0:
        raise DataError(f"{argument}: 0 rows. Columns: {some(frame.columns, 8)}. Check the filter that made it.")
    return frame


def _from_mapping(data: Mapping[Any, Any], argument: str) -> pd.DataFrame:
    columns = {}
    index = _shared_index(data, argument)
    for name, value in data.items():
        column = value if isinstance(value, (pd.Series, pd.api.extensions.ExtensionArray)) else np.asarray(value)
        if column.ndim != 1:
            raise DataError(
                f"{argument}: column {name!r} has shape {tuple(column.shape)}, expected (n,). Pass one "
                "column an entry; an (n, 1) array flattens with .ravel()."
            )
        columns[name] = column.array if isinstance(column, pd.Series) else column
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        first, other = next(iter(lengths)), next(n for n in lengths if lengths[n] != next(iter(lengths.values())))
        raise DataError(
            f"{argument}: column {other!r} has {lengths[other]} values, column {first!r} has "
            f"{lengths[first]}. All columns need the same length."
        )
    if not columns:
        raise DataError(f"{argument}: 0 rows and no columns.")
    return pd.DataFrame(columns, index=index)


def _shared_index(data: Mapping[Any, Any], argument: str) -> pd.Index | None:
    """Row labels of a mapping of Series: one index for all, since rows are never matched by position."""
    series = {name: value for name, value in data.items() if isinstance(value, pd.Series)}
    index: pd.Index | None = None
    first = ""
    for name, value in series.items():
        if index is None:
            index, first = value.index, name
        elif not value.index.equals(index):
            raise DataError(
                f"{argument}: columns {first!r} and {name!r} are Series with different indexes ({some(index, 3)}; "
                f"{some(value.index, 3)}). Put them into one DataFrame first."
            )
    return index


def find_column(frame: pd.DataFrame, name: str, argument: str = "data") -> pd.Series:
    """A column by the name a formula gives it; whole-number column names match their digits."""
    if name in frame.columns:
        return frame[name]
    for column in frame.columns:
        if not isinstance(column, str) and str(column) == name:
            return frame[column]
    columns = [str(column) for column in frame.columns]
    raise FormulaError(
        f"formula: no column {name!r} in {argument}{nearest(name, columns)}. Columns: {some(columns, 12)}."
    )


@dataclass(frozen=True)
class Column:
    """One column, typed.

    Attributes
    ----------
    name, role
        For messages: ``column 'x' (fixed effects)``.
    values
        float64 (NaN = missing) or bool for numbers and flags; None for a factor.
    factor
        Levels and codes (-1 = missing) of a factor, else None.
    given
        The column as it came, without missing-value rows where these were dropped.
    """

    name: str
    role: str
    given: pd.Series
    values: np.ndarray | None = None
    factor: Factor | None = None

    @property
    def where(self) -> str:
        """How messages name the column."""
        return f"column {self.name!r} ({self.role})"

    def missing(self) -> np.ndarray | None:
        """Mask of missing rows, or None if there are none."""
        if self.factor is not None:
            mask = self.factor.codes < 0
        elif self.values is not None and self.values.dtype != bool:
            mask = np.isnan(self.values)
        else:
            return None
        return mask if mask.any() else None

    def keep(self, mask: np.ndarray) -> Column:
        """Only some rows."""
        return replace(
            self,
            given=self.given[mask],
            values=None if self.values is None else self.values[mask],
            factor=None if self.factor is None else self.factor.keep(mask),
        )


def factor_column(series: pd.Series, name: str, role: str, rows: Rows) -> Column:
    """A column used for its labels: a grouping factor, or a categorical predictor inside ``C(...)``."""
    return Column(name, role, series, factor=factorize(series, f"column {name!r} ({role})", rows))


def value_column(series: pd.Series, name: str, role: str, rows: Rows) -> Column:
    """A column used for its values: numbers and flags as they are, text as a factor.

    Raises
    ------
    DataError
        For dates, complex numbers, nested cells, infinite values and numbers kept as text.
    """
    where = f"column {name!r} ({role})"
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        if not series.hasnans:
            return Column(name, role, series, values=series.to_numpy(dtype=bool))
        return factor_column(series.astype(object), name, role, rows)
    if pd.api.types.is_complex_dtype(dtype):
        raise DataError(
            f"{where}: complex numbers ({dtype}), first {shown(series.iloc[0])} at {rows.describe(0)}. "
            "Use the real part, the imaginary part or abs() as columns of their own."
        )
    if pd.api.types.is_numeric_dtype(dtype):
        return _number_column(series, name, role, rows)
    if _is_time(dtype):
        raise DataError(
            f"{where}: {dtype}, not a number, first {shown(series.iloc[0])} at {rows.describe(0)}. Convert "
            f"it, for example (data[{name!r}] - data[{name!r}].min()) / pandas.Timedelta('1D') for days."
        )
    if _is_object(series):
        kinds = pd.api.types.infer_dtype(series, skipna=True)
        if kinds in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
            floats = [np.nan if value is None or pd.isna(value) else float(value) for value in series]
            return _number_column(pd.Series(floats, index=series.index), name, role, rows)
        if kinds in ("datetime", "datetime64", "date", "timedelta", "timedelta64", "period", "time", "complex"):
            raise DataError(
                f"{where}: {kinds} values, not numbers, first {shown(series.iloc[0])} at "
                f"{rows.describe(0)}. Convert them to numbers, for example days since the first."
            )
        if kinds in ("mixed-integer", "mixed"):
            _check_mixed(series, where, rows)

    def inspect(labels: list[Any], codes: np.ndarray) -> None:
        _check_text_numbers(name, role, labels, codes, rows)

    return Column(name, role, series, factor=factorize(series, where, rows, inspect))


def _is_object(series: pd.Series) -> bool:
    return isinstance(series.dtype, np.dtype) and series.dtype.kind == "O"


def _is_time(dtype: Any) -> bool:
    return (
        pd.api.types.is_datetime64_any_dtype(dtype)
        or pd.api.types.is_timedelta64_dtype(dtype)
        or isinstance(dtype, pd.PeriodDtype)
    )


def _number_column(series: pd.Series, name: str, role: str, rows: Rows) -> Column:
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    if series.dtype.kind not in "iu" and np.isinf(values).any():
        bad = np.isinf(values)
        at = int(np.argmax(bad))
        raise DataError(
            f"column {name!r} ({role}): {plural(int(bad.sum()), 'infinite value')}, first "
            f"{values[at]} at {rows.describe(at)}. Correct or drop these rows."
        )
    return Column(name, role, series, values=values)


def _check_mixed(series: pd.Series, where: str, rows: Rows) -> None:
    """Numbers with a few texts among them, as a spreadsheet or a bad parse leaves them."""
    text = np.array([isinstance(value, str) for value in series])
    number = np.array([isinstance(value, (int, float, np.number)) and value == value for value in series])
    if text.any() and number.any():
        at = int(np.argmax(text))
        raise DataError(
            f"{where}: numbers, and {plural(int(text.sum()), 'text value')}, first {series.iloc[at]!r} at "
            f"{rows.describe(at)}. Correct {'it' if text.sum() == 1 else 'them'}, or convert the whole "
            "column with astype(str) if it holds labels."
        )


def _check_text_numbers(name: str, role: str, labels: list[Any], codes: np.ndarray, rows: Rows) -> None:
    """Text that looks numeric would silently become one dummy column a value."""
    if not labels or not isinstance(labels[0], str):
        return
    where = f"column {name!r} ({role})"
    numeric = pd.to_numeric(pd.Series(labels, dtype=object), errors="coerce").notna().to_numpy()
    how = f"pandas.to_numeric(data[{name!r}])"
    label = f"data[{name!r}].astype('category')"
    if numeric.all():
        raise DataError(
            f"{where}: text that looks numeric, such as {labels[0]!r} at {rows.first(codes == 0)}, "
            f"{plural(len(labels), 'distinct value')}. Convert with {how}, or, if these are labels, with {label} or "
            f"C({name})."
        )
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    odd = int(counts[~numeric].sum())
    if numeric.sum() > 1 and odd <= max(1, 0.05 * counts.sum()):
        at = int(np.argmin(numeric))
        raise DataError(
            f"{where}: numbers kept as text, and {plural(odd, 'value')} that cannot be read as a number, first "
            f"{labels[at]!r} at {rows.first(codes == at)}. Correct it and convert with {how}, or, if these are labels, "
            f"use {label}."
        )


def align(value: Any, argument: str, frame: pd.DataFrame) -> np.ndarray | None:
    """An argument with one value a row, in the order of the data.

    A Series is aligned by label, an array taken by position, a string names a column.

    Parameters
    ----------
    value
        Series, array, column name or None.
    argument
        Its name, for messages.
    frame
        The data.

    Returns
    -------
    numpy.ndarray or None
        (n,) float64; NaN where missing.
    """
    if value is None:
        return None
    rows = Rows(frame.index)
    if isinstance(value, str):
        series, label = find_column(frame, value), f"{argument}={value!r}"
    else:
        if isinstance(value, pd.DataFrame):
            raise DataError(
                f"{argument}: a DataFrame of shape {value.shape}, expected one value a row; pass one column of it."
            )
        series, label = _one_a_row(value, argument, frame), argument
    if not (pd.api.types.is_numeric_dtype(series.dtype) or _is_object(series)):
        raise DataError(
            f"{label}: {shown(series.iloc[0])} at {rows.describe(0)} ({series.dtype}) is not a number. Pass numbers."
        )
    try:
        return series.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    except (TypeError, ValueError):
        bad = next(i for i, item in enumerate(series) if isinstance(item, str) or not np.isscalar(item))
        raise DataError(f"{label}: {series.iloc[bad]!r} at {rows.describe(bad)} is not a number.") from None


def _one_a_row(value: Any, argument: str, frame: pd.DataFrame) -> pd.Series:
    if isinstance(value, pd.Series):
        return _by_label(value, argument, frame.index)
    array = np.asarray(value)
    if array.shape != (len(frame),):
        raise DataError(
            f"{argument}: shape {array.shape} with {array.size} values, the data have {len(frame)} rows; "
            "pass one value a row, or a column name."
        )
    return pd.Series(array, index=frame.index)


def _by_label(value: pd.Series, argument: str, index: pd.Index) -> pd.Series:
    if value.index.equals(index):
        return value
    if not index.is_unique or not value.index.is_unique:
        raise DataError(
            f"{argument}: a Series of length {len(value)} whose index differs from that of the data "
            f"({len(index)} rows), and labels repeat, so rows cannot be matched. Pass .to_numpy() if the "
            "order is right, or reset_index() on both."
        )
    unmatched = index.difference(value.index, sort=False)
    side = "rows of the data without a value"
    if not len(unmatched):
        unmatched, side = value.index.difference(index, sort=False), "labels that are not in the data"
    if len(unmatched):
        raise DataError(
            f"{argument}: labels differ from the index of the data; {side}: {some(unmatched)}. Lengths "
            f"{len(value)} and {len(index)}. Align them, or pass .to_numpy() if the order is right."
        )
    return value.reindex(index)
