"""Rows of a data frame as users know them: labels and positions, for messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


def shown(value: Any) -> str:
    """A value as a user would type it: NumPy scalars without their wrapper."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def some(values: Any, limit: int = 5) -> str:
    """The first few values, and how many more there are."""
    items = list(values)
    text = ", ".join(shown(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def plural(count: int, noun: str) -> str:
    """``1 value``, ``3 values``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Rows:
    """Labels of the rows in use and, where rows were dropped, their positions in the data given."""

    index: pd.Index
    positions: np.ndarray | None = None

    def describe(self, position: int) -> str:
        """``row 'a17' (position 16)`` for the row at ``position`` among those in use."""
        given = position if self.positions is None else int(self.positions[position])
        return f"row {shown(self.index[position])} (position {given})"

    def first(self, mask: np.ndarray) -> str:
        """The first row where ``mask`` holds."""
        return self.describe(int(np.argmax(mask)))

    def few(self, mask: np.ndarray, limit: int = 3) -> str:
        """The first rows where ``mask`` holds."""
        at = np.flatnonzero(mask)
        text = ", ".join(self.describe(int(i)) for i in at[:limit])
        return text if len(at) <= limit else f"{text}, ..."

    def keep(self, mask: np.ndarray) -> Rows:
        """Only the rows where ``mask`` holds."""
        at = np.flatnonzero(mask)
        return Rows(self.index[at], at if self.positions is None else self.positions[at])
