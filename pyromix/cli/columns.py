"""From cells to typed columns: labels stay the text they are, numbers are converted only where all cells are plain.

A column used for its labels (a grouping factor, ``C(...)``, ``--categorical``) is text: ``01`` and ``1`` differ, ids
of twenty digits keep them all. Any other column is numeric if its cells are numbers, or text if they are words; a few
words among numbers are an error. Empty cells are missing, and so is ``NA`` where all other cells are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyromix.cli.reading import Table
from pyromix.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI]nf(?:inity)?|INF)").fullmatch
# a number as every program writes it, or a missing one: most columns hold nothing else
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NA|NaN|nan|").fullmatch
_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?").fullmatch
_ZERO = re.compile(r"[+-]?0[0-9]").match
NOT_A_NUMBER = ("", "NA", "NaN", "nan")
FEW = 0.05  # share of words among numbers that is taken for a mistake


@dataclass(frozen=True)
class Dialect:
    """How a file writes its cells.

    Attributes
    ----------
    sep
        Character between cells.
    decimal
        Decimal point, ``"."`` or ``","``.
    """

    sep: str = ","
    decimal: str = "."


def to_frame(table: Table, labels: Collection[str], dialect: Dialect, notes: list[str]) -> pd.DataFrame:
    """Data to fit to, its index the lines of the file.

    Parameters
    ----------
    labels
        Columns used for their labels.
    notes
        Receives what a user should know of the conversion.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, cells in table.columns.items():
        if name in labels:
            columns[name] = _categorical(cells)
        else:
            columns[name] = _values(table, name, dialect, notes)
    return pd.DataFrame(columns, index=_index(table))


def like_frame(
    table: Table, known: Mapping[str, np.ndarray], categories: Mapping[str, tuple[Any, ...]], dialect: Dialect
) -> pd.DataFrame:
    """New data with the types that the fitted data had.

    Parameters
    ----------
    known
        The fitted data's columns.
    categories
        Labels of those that are categorical.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, cells in table.columns.items():
        levels = categories.get(name, known[name])
        examples = np.asarray(levels[:100] if isinstance(levels, tuple) else levels)
        if examples.dtype.kind == "b":
            columns[name] = _flags(table, name)
        elif examples.dtype.kind in "iuf":
            numbers = _numbers(table, name, dialect, "numbers in the fit")
            whole = examples.dtype.kind in "iu" and all(_plain_integer(cell) for cell in cells)
            columns[name] = np.array([int(cell) for cell in cells]) if whole else numbers
        else:
            text = list(dict.fromkeys(str(level) for level in levels if level is not None))
            columns[name] = pd.Series(_labels(cells, bool(text) and all(map(_NUMBER, text))), dtype=object).array
    return pd.DataFrame(columns, index=_index(table))


def success(table: Table, name: str, label: str) -> np.ndarray:
    """1.0 where a column of two labels holds this one, 0.0 where the other, NaN where it is empty or ``NA``."""
    import numpy as np

    gone = {"", "NA"} - {label}
    found = [cell for cell in dict.fromkeys(table.columns[name]) if cell not in gone]
    where = f"{table.path}:{table.lines[0]}:{name}"
    if label not in found:
        raise DataError(f"{where}: no cell is {label!r} (--success); there are {_some(found)}.")
    if len(found) > 2:
        raise DataError(f"{where}: {len(found)} labels ({_some(found)}), but --success needs a column of two.")
    return np.array([np.nan if cell in gone else float(cell == label) for cell in table.columns[name]])


def _some(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _index(table: Table) -> pd.Index:
    import pandas as pd

    return pd.Index(table.lines, dtype="int64", name="line")


# -- labels -----------------------------------------------------------------------------------------------------------
def _categorical(cells: Sequence[str]) -> pd.Categorical:
    """Text categories, numbers by value and the rest by the alphabet."""
    import pandas as pd

    found = dict.fromkeys(cells)
    found.pop("", None)
    numeric = bool(found) and all(_NUMBER(cell) for cell in found if cell != "NA") and found.keys() != {"NA"}
    if numeric:
        found.pop("NA", None)
    levels = sorted(found)
    if numeric:
        levels.sort(key=float)
    codes = {label: code for code, label in enumerate(levels)}
    return pd.Categorical.from_codes([codes.get(cell, -1) for cell in cells], categories=pd.Index(levels, dtype=object))


def _labels(cells: Sequence[str], numeric: bool) -> list[str | None]:
    """Cells as labels; ``NA`` is missing only among numbers, where it cannot be a name."""
    gone = ("", "NA") if numeric else ("",)
    return [None if cell in gone else cell for cell in cells]


# -- values -----------------------------------------------------------------------------------------------------------
def _values(table: Table, name: str, dialect: Dialect, notes: list[str]) -> Any:
    """A column used for its values: float64 or int64 numbers if it can be, else text."""
    import pandas as pd

    cells = [cell.strip() for cell in table.columns[name]]
    if dialect.decimal == "." and all(map(_PLAIN, cells)) and not set(cells) <= set(NOT_A_NUMBER):
        return _converted(cells, dialect)
    odd = [row for row, cell in enumerate(cells) if not _number(cell, dialect) and cell not in NOT_A_NUMBER]
    held = sum(cell not in NOT_A_NUMBER for cell in cells)
    numbers = held - len(odd)
    if not odd and numbers:
        return _numbers(table, name, dialect, "numbers in the other rows")
    if dialect.decimal == "." and odd and all(_COMMA(cells[row]) for row in odd):
        cell = cells[odd[0]]
        raise table.error(odd[0], name, f"{cell!r} has a comma; write {cell.replace(',', '.')}, or pass --decimal ','.")
    if odd and numbers > 1 and len(odd) <= max(1, FEW * held):
        raise table.error(
            odd[0],
            name,
            f"{cells[odd[0]]!r} is not a number, {numbers} other cells are; correct it, leave it empty if it is "
            f"missing, or pass --categorical {name} if these are labels.",
        )
    labels: list[str | None] = [cell or None for cell in table.columns[name]]
    if "NA" in labels:
        row = labels.index("NA")
        notes.append(f"{table.path}:{table.lines[row]}:{name}: 'NA' is a label here, as the column holds text.")
    return pd.Series(labels, dtype=object).array


def _number(cell: str, dialect: Dialect) -> bool:
    if dialect.decimal == "," and "," in cell:
        return _COMMA(cell) is not None
    return _NUMBER(cell) is not None


def _numbers(table: Table, name: str, dialect: Dialect, expected: str) -> np.ndarray:
    """A column of numbers; anything else is an error at its cell."""
    cells = [cell.strip() for cell in table.columns[name]]
    for row, cell in enumerate(cells):
        if cell in NOT_A_NUMBER:
            continue
        if not _number(cell, dialect):
            raise table.error(row, name, f"{cell!r} is not a number, but there are {expected}.")
        if _ZERO(cell):
            raise table.error(
                row,
                name,
                f"{cell!r} starts with a zero as a label does, not a number; pass --categorical {name}, or write "
                f"{cell.lstrip('+-0') or '0'}.",
            )
    return _converted(cells, dialect)


def _converted(cells: Sequence[str], dialect: Dialect) -> np.ndarray:
    """Cells that are numbers or missing: int64 if all are whole, else float64."""
    import numpy as np

    if all(map(_plain_integer, cells)):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    decimal = dialect.decimal
    return np.array([np.nan if cell in NOT_A_NUMBER else float(cell.replace(decimal, ".")) for cell in cells])


def _plain_integer(cell: str) -> bool:
    """Whether a cell is an integer that int64 and float64 both hold exactly."""
    return cell.removeprefix("-").isdecimal() and cell.isascii() and len(cell) <= 15


def _flags(table: Table, name: str) -> np.ndarray:
    """A column of truth values, as pandas or R writes them."""
    import numpy as np

    words = {"true": True, "false": False}
    cells = [cell.strip().lower() for cell in table.columns[name]]
    for row, cell in enumerate(cells):
        if cell not in words:
            raise table.error(row, name, f"{table.columns[name][row]!r} is not True or False, as the fit had them.")
    return np.array([words[cell] for cell in cells])
