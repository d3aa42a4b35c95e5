"""What all ways to hold a symmetric positive definite matrix share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

BATCH = 4_000_000  # entries of a temporary


class AbstractComplement(ABC):
    """A factored symmetric positive definite matrix."""

    logdet: float

    @abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """``S^-1 b``: b (M, m)."""

    @abstractmethod
    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Entries of ``S^-1``; cheap where S has an entry, and within a block of S."""

    @abstractmethod
    def sample(self, noise: np.ndarray) -> np.ndarray:
        """``B noise`` with ``B B^T = S^-1``: noise (M, m)."""


def solved_at(held: AbstractComplement, size: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Entries of the inverse where the factor has none, by solving for its columns, some at a time."""
    out = np.empty(len(rows))
    columns, which = np.unique(cols, return_inverse=True)
    step = max(1, BATCH // size)
    for start in range(0, len(columns), step):
        part = columns[start : start + step]
        unit = np.zeros((size, len(part)))
        unit[part, np.arange(len(part))] = 1.0
        here = (which >= start) & (which < start + step)
        out[here] = held.solve(unit)[rows[here], which[here] - start]
    return out
