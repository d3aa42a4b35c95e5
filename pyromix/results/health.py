"""The findings about a fit, as a list that prints as a table."""

from __future__ import annotations

import html
from collections.abc import Iterable

from pyromix.results.estimate import HealthRecord

_RANK = {"error": 0, "warn": 1, "info": 2}
_COLUMNS = ("severity", "code", "parameter", "value", "threshold", "remedy")


class Health(tuple[HealthRecord, ...]):
    """Findings about a fit, worst first; an empty one means that every check passed."""

    def __new__(cls, records: Iterable[HealthRecord] = ()) -> Health:
        return super().__new__(cls, sorted(records, key=lambda r: _RANK.get(r.severity, 0)))

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(record.severity != "error" for record in self)

    def to_dicts(self) -> list[dict[str, float | str]]:
        """The findings as plain dictionaries."""
        return [{key: getattr(record, key) for key in _COLUMNS} for record in self]

    def __repr__(self) -> str:
        if not self:
            return "Health: ok, no findings"
        rows = [_COLUMNS, *(tuple(_cell(record, key) for key in _COLUMNS) for record in self)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"Health: {self._verdict()}", *lines])

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Health: ok, no findings</p>"
        head = "".join(f"<th>{key}</th>" for key in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(record, key))}</td>" for key in _COLUMNS) + "</tr>"
            for record in self
        )
        return f"<p>Health: {self._verdict()}</p><table><tr>{head}</tr>{body}</table>"

    def _verdict(self) -> str:
        counts = [(level, sum(record.severity == level for record in self)) for level in _RANK]
        found = ", ".join(f"{count} {level}" for level, count in counts if count)
        return f"{'ok' if self.ok else 'NOT ok'} ({found})"


def _cell(record: HealthRecord, key: str) -> str:
    value = getattr(record, key)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
