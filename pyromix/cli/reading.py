"""Reading CSV files as they are: every cell is text first, and whatever is wrong is named by file, line and column.

The files follow RFC 4180: the first line names the columns, cells are separated by commas (or by ``sep``), quotes are
doubled inside quotes. UTF-8 with or without its mark, lines ended by LF or CRLF, gzip by the suffix ``.gz``. Blank
lines are skipped, columns without a name (R's row names, a comma at every line's end) are left out.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, cast

from pyromix.errors import DataError

MAX_LINE = 1 << 20  # bytes: a longer line is no table
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
OPTIONS = {";": "';'", "\t": "tab", "|": "'|'"}  # what to pass as --sep


@dataclass(frozen=True)
class Table:
    """Cells of a CSV file.

    Attributes
    ----------
    path
        The file, as it was named.
    header
        Names of all columns, ``""`` where one has none.
    columns
        Cells by column, of the columns asked for.
    lines
        Line of the file on which each row starts, from 1.
    """

    path: str
    header: tuple[str, ...]
    columns: dict[str, list[str]]
    lines: list[int] = field(default_factory=list)

    def error(self, row: int, column: str, message: str) -> DataError:
        """An error at one cell: ``data.csv:17:Days: ...``."""
        return DataError(f"{self.path}:{self.lines[row]}:{column}: {message}")


def read_table(path: str, sep: str = ",", choose: Callable[[Sequence[str]], Sequence[str]] | None = None) -> Table:
    """Read a CSV file.

    Parameters
    ----------
    path
        The file; compressed by gzip if the name ends in ``.gz``.
    sep
        Character between cells.
    choose
        Given the names of the columns, those to keep; all by default. Rows are checked whole.

    Raises
    ------
    DataError
        Naming file, line and, where there is one, column.
    """
    with _opened(path) as stream:
        source = _Source(path, stream)
        rows = _records(source, sep)
        start, header = next(rows, (0, []))
        if not start:
            raise DataError(f"{path}:1: the file is empty; its first line must name the columns.")
        _check_header(path, start, header, sep)
        kept = [name for name in header if name] if choose is None else list(dict.fromkeys(choose(header)))
        cells: list[list[str]] = [[] for _ in kept]
        places = [(header.index(name), cells[k].append) for k, name in enumerate(kept)]
        lines: list[int] = []
        width = len(header)
        for start, row in rows:
            if len(row) != width:
                raise _ragged(path, start, row, header, sep)
            lines.append(start)
            for at, append in places:
                append(row[at])
    if not lines:
        raise DataError(f"{path}:{source.line + 1}: no rows below the header ({_few(header)}).")
    return Table(path, tuple(header), dict(zip(kept, cells, strict=True)), lines)


# -- bytes to lines ---------------------------------------------------------------------------------------------------
@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        if Path(path).is_dir():
            raise DataError(f"{path}: is a directory; name a CSV file.")
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
            yield cast("IO[bytes]", stream)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


class _Source:
    """Lines of a file as text, checked one by one, with those of the record being read."""

    def __init__(self, path: str, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.line = 0
        self.pending: list[str] = []

    def __iter__(self) -> Iterator[str]:
        while raw := self._next():
            self.line += 1
            text = self._text(raw)
            self.pending.append(text)
            yield text

    def _next(self) -> bytes:
        try:
            return self.stream.readline(MAX_LINE + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = "the compressed file is cut off" if isinstance(error, EOFError) else "no intact gzip file"
            reason = "the file ends too early" if isinstance(error, EOFError) else str(error)
            raise DataError(f"{self.path}:{self.line + 1}: {what} ({reason}); copy or compress it again.") from error

    def _text(self, raw: bytes) -> str:
        where = f"{self.path}:{self.line}"
        if self.line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{where}: the text is UTF-16; save the file as UTF-8.")
            if raw[:2] == b"\x1f\x8b":
                raise DataError(f"{where}: the file is compressed; give it a name that ends in .gz.")
        if len(raw) > MAX_LINE:
            raise DataError(
                f"{where}: the line is longer than {MAX_LINE:,} bytes, so this is no table with one row a line."
            )
        if 0 in raw:
            raise DataError(f"{where}: a NUL byte at character {raw.index(0) + 1}; the file is binary or damaged.")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at character {len(raw[: error.start].decode('utf-8')) + 1}"
            raise DataError(f"{where}: {byte} is not UTF-8; save the file as UTF-8.") from None


# -- lines to rows ----------------------------------------------------------------------------------------------------
def _records(source: _Source, sep: str) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of every record; blank lines are skipped."""
    reader = csv.reader(source, delimiter=sep, strict=True)
    while True:
        source.pending.clear()
        start = source.line + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _broken(source, start, sep, str(error)) from None
        if row is None:
            return
        if row:
            yield start, row


def _broken(source: _Source, start: int, sep: str, reason: str) -> DataError:
    """What the parser could not read, in words; a quote without its twin is named where it opens."""
    if "unexpected end of data" in reason or "field larger" in reason:
        try:
            before = next(csv.reader(islice(source.pending, 1), delimiter=sep), [])
        except csv.Error:  # the cell is too long even for one line
            return DataError(f"{source.path}:{start}: a cell is longer than {csv.field_size_limit():,} characters.")
        return DataError(
            f"{source.path}:{start}: the quote that opens in cell {max(len(before), 1)} is never closed; "
            "close it, or double it if it belongs to the text."
        )
    if "new-line character" in reason:
        return DataError(
            f"{source.path}:{source.line}: a carriage return within the line; end the lines by LF or CRLF."
        )
    if "expected after" in reason:
        at = start if source.line == start else f"{start}-{source.line}"
        return DataError(
            f"{source.path}:{at}: text after a closing quote; a quote is missing before it, or must be doubled."
        )
    return DataError(f"{source.path}:{start}: {reason}.")


def _check_header(path: str, line: int, header: Sequence[str], sep: str) -> None:
    where = f"{path}:{line}"
    if len(header) == 1:
        for other, name in SEPARATORS.items():
            if other != sep and other in header[0]:
                raise DataError(f"{where}: the cells are separated by {name}; pass --sep {OPTIONS[other]}.")
    if not any(header):
        raise DataError(f"{where}: no column has a name; the first line must name them.")
    seen: dict[str, int] = {}
    for position, name in enumerate(header, start=1):
        if name and name in seen:
            raise DataError(
                f"{where}:{name}: the column name occurs twice, at positions {seen[name]} and {position}; rename one."
            )
        seen[name] = position
    if all(name.replace(".", "", 1).removeprefix("-").isdigit() for name in header):
        raise DataError(f"{where}: holds numbers ({_few(header)}); the first line must name the columns.")


def _ragged(path: str, line: int, row: Sequence[str], header: Sequence[str], sep: str) -> DataError:
    counts = f"{len(row)} cell{'s' * (len(row) != 1)}, the header has {len(header)}"
    if len(row) < len(header):
        return DataError(f"{path}:{line}:{header[len(row)]}: missing; the line has {counts}.")
    if not any(row[len(header) :]):
        return DataError(f"{path}:{line}: {counts}; the line ends in {sep!r} too many.")
    hint = "quote cells that hold the separator"
    if sep == ",":
        hint = "quote cells that hold a comma, and write 2.5, not 2,5"
    return DataError(f"{path}:{line}: {counts}; first too many: {row[len(header)]!r}; {hint}.")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
