"""Checks of responses that families share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyromix.errors import DataError

Describe = Callable[[int], str]


def refuse(bad: np.ndarray, values: np.ndarray, problem: str, remedy: str, where: str, describe: Describe) -> None:
    """Raise `DataError` if any entry of ``bad`` holds: how many, the first value, its row, what to do."""
    count = int(np.count_nonzero(bad))
    if count == 0:
        return
    first = int(np.argmax(bad))
    noun = "value" if count == 1 else "values"
    raise DataError(f"{where}: {count} {noun} {problem}, first {plain(values[first])} at {describe(first)}. {remedy}")


def refuse_not_finite(y: np.ndarray, where: str, describe: Describe) -> None:
    """Refuse NaN and infinities."""
    refuse(~np.isfinite(y), y, "not finite", "Drop or repair those rows.", where, describe)


def refuse_constant(y: np.ndarray, where: str, name: str) -> None:
    """Refuse a response that is the same in every row: it carries nothing to estimate from."""
    if y.size and np.all(y == y.flat[0]):
        value = float(y.flat[0])
        raise DataError(
            f"{where}: response {name!r} is constant (= {value!r}) in all {len(y)} rows. "
            "Nothing can be estimated from it; check the column and any filter applied before."
        )


def plain(value: float) -> str:
    """A number without a trailing ``.0``."""
    return format(float(value), ".15g")
