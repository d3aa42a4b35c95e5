"""Parts of a design that training data and new data share: response, offsets, weights, category codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyromix.errors import DataError
from pyromix.formula import checks
from pyromix.formula.intake import Columns
from pyromix.formula.parse import Bar, Formula
from pyromix.formula.rows import Rows, plural
from pyromix.formula.transforms import evaluate


def refuse_argument(name: str, values: np.ndarray, bad: np.ndarray, what: str, rows: Rows) -> None:
    """Raise for the bad values of an argument with one value a row."""
    at = int(np.argmax(bad))
    raise DataError(
        f"{name}: {plural(int(bad.sum()), what)}, first {values[at]} at {rows.describe(at)}. Correct them, or "
        "drop these rows from the data."
    )


def check_arguments(aligned: Mapping[str, np.ndarray | None], rows: Rows) -> None:
    """Offsets must be finite; weights also at least 0, and some above."""
    for name, values in aligned.items():
        if values is None:
            continue
        if np.isnan(values).any():
            refuse_argument(name, values, np.isnan(values), "missing value", rows)
        if np.isinf(values).any():
            refuse_argument(name, values, np.isinf(values), "infinite value", rows)
        if name != "offset":
            if (values < 0).any():
                refuse_argument(name, values, values < 0, "negative value", rows)
            if not values.any():
                raise DataError(
                    f"{name}: all {len(values)} values are 0 (first at {rows.describe(0)}), no row would "
                    "count. Pass positive weights, or none."
                )


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
            raise DataError(
                f"offset({formula.restore(text)}): {plural(int(bad.sum()), 'value')} not finite, first "
                f"{values[at]} at {rows.describe(at)}, where {inputs}. Exposures must be positive; correct or "
                "drop these rows."
            )
        total = np.array(values) if total is None else total + values
    return total


def member_weights(
    bar: Bar, formula: Formula, columns: Columns, functions: Mapping[str, Callable], rows: Rows
) -> np.ndarray | None:
    """Weights of ``mm(...)``, (n, columns), summing to one in every row unless they are to stay, or ``None``."""
    if not bar.members:
        return None
    n = len(rows.index)
    if not bar.weights:
        return np.full((n, len(bar.group)), 1 / len(bar.group) if bar.normalised else 1.0)
    parts = []
    for text in bar.weights:
        names = [name for name in formula.usage["offset"].columns if re.search(rf"\b{name}\b", text)]
        parts.append(evaluate(text, columns.numbers(names), functions, "weights"))
    out = np.stack(parts, axis=1)
    shown = f"{bar.name}: weights {', '.join(formula.restore(text) for text in bar.weights)}"
    bad = ~np.isfinite(out).all(1) | (out < 0).any(1)
    if bad.any():
        refuse_argument(shown, out, bad, "negative or infinite weight", rows)
    if bar.normalised:
        total = out.sum(1)
        if (total == 0).any():
            refuse_argument(shown, out, total == 0, "zero total weight", rows)
        out = out / total[:, None]
    return out


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
