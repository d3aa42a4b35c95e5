"""Rows of data on the eigenvectors of their levels' covariance; see `pyromix.marginal.rotated` for the symbols."""

from __future__ import annotations

import numpy as np

from pyromix.linalg.known import KnownCovariance


class Rotation:
    """Rows on the eigenvectors of their levels' covariance.

    Parameters
    ----------
    known
        K, over all levels.
    index, design, counts
        Level of each row; its design and frequency weight, or ``None`` for ones.

    Attributes
    ----------
    present
        Levels that have rows.
    root_n
        Square root of N there.
    values, vectors
        D and U.
    """

    def __init__(
        self, known: KnownCovariance, index: np.ndarray, design: np.ndarray | None, counts: np.ndarray | None
    ) -> None:
        self.known, self.index, self.n = known, index, len(index)
        self.z = np.ones(self.n) if design is None else design[:, 0]
        self.counts = np.ones(self.n) if counts is None else counts
        total = np.bincount(index, self.counts * self.z**2, len(known.matrix))
        self.present = np.flatnonzero(total > 0)
        self.root_n = np.sqrt(total[self.present])
        self.place = np.full(len(total), -1)
        self.place[self.present] = np.arange(len(self.present))
        self.values, self.vectors = known.decomposed(self.present, self.root_n)

    @property
    def complete(self) -> bool:
        """Whether every level has rows."""
        return len(self.present) == len(self.known.matrix)

    def means(self, x: np.ndarray) -> np.ndarray:
        """``N^-1/2 Z^T C x``: (n, m) -> (present, m)."""
        out = np.empty((len(self.present), x.shape[1]))
        for k, column in enumerate(x.T):
            total = np.bincount(self.index, self.counts * self.z * column, len(self.place))
            out[:, k] = total[self.present] / self.root_n
        return out

    def within(self, x: np.ndarray, means: np.ndarray) -> np.ndarray:
        """What rows differ from the mean of their level, (n, m)."""
        place = self.place[self.index]
        shared = self.z[:, None] * (means / self.root_n[:, None])[place]
        return x - np.where((place >= 0)[:, None], shared, 0.0)

    def rotate(self, means: np.ndarray) -> np.ndarray:
        """``U^T`` times."""
        return self.vectors.T @ means

    def to_rows(self, rotated: np.ndarray) -> np.ndarray:
        """``C Z N^-1/2 U x``: (present,) -> (n,)."""
        place = self.place[self.index]
        shared = (self.vectors @ rotated / self.root_n)[place]
        return self.counts * self.z * np.where(place >= 0, shared, 0.0)

    def to_levels(self, x: np.ndarray) -> np.ndarray:
        """``K_o N^1/2 U x``, effects per unit variance: (present, m) -> (levels, m)."""
        out = np.empty((len(self.place), x.shape[1]))
        out[self.present] = self.vectors @ (self.values[:, None] * x) / self.root_n[:, None]
        if not self.complete:
            absent = np.flatnonzero(self.place < 0)
            across = self.known.matrix.numpy()[np.ix_(absent, self.present)]
            out[absent] = across @ (self.root_n[:, None] * (self.vectors @ x))
        return out
