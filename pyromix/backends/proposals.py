"""Distributions that importance draws of the hyper-parameters are made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import gammaln, logsumexp

TAILS = 8.0  # degrees of freedom of the variance parameters
DIFFERENCE = 1e-2  # standard deviations, over which curvatures are taken
MANY = 40  # coordinates, beyond which no matrix of them is taken at more than one point

Density = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Proposal(Protocol):
    """A distribution over (d,) that can be drawn from."""

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, d)."""

    def log_density(self, t: np.ndarray) -> np.ndarray:
        """Log density at t (n, d)."""


@dataclass(frozen=True)
class SplitStudent:
    """A Student-t with its own scale on either side of zero in each direction of the root.

    Parameters
    ----------
    centre, root
        (d,) and (d, d); ``t = centre + root w``.
    below, above
        Scales of w, (d,) each.
    df
        Degrees of freedom.
    """

    centre: np.ndarray
    root: np.ndarray
    below: np.ndarray
    above: np.ndarray
    df: float = TAILS

    @classmethod
    def symmetric(cls, centre: np.ndarray, root: np.ndarray, df: float = TAILS) -> SplitStudent:
        """One without skewness."""
        return cls(centre, root, np.ones(len(centre)), np.ones(len(centre)), df)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self.centre + self.white(n, rng) @ self.root.T

    def white(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of w, (n, d)."""
        size = len(self.centre)
        z = np.abs(rng.standard_normal((n, size))) / np.sqrt(rng.chisquare(self.df, (n, 1)) / self.df)
        up = rng.random((n, size)) < self.above / (self.above + self.below)
        return np.where(up, self.above * z, -self.below * z)

    def coordinates(self, t: np.ndarray) -> np.ndarray:
        """w at t, (n, d)."""
        return np.linalg.solve(self.root, (t - self.centre).T).T

    def log_density(self, t: np.ndarray) -> np.ndarray:
        size = len(self.centre)
        if not size:
            return np.zeros(len(t))
        w = self.coordinates(t)
        z = np.where(w > 0, w / self.above, w / self.below)
        constant = student_constant(size, self.df) - np.linalg.slogdet(self.root)[1]
        constant += size * math.log(2.0) - np.log(self.above + self.below).sum()
        return constant - 0.5 * (self.df + size) * np.log1p((z**2).sum(1) / self.df)


@dataclass(frozen=True)
class Mixture:
    """Several proposals, each with its share of the draws, so that no part of a posterior is left without.

    Parameters
    ----------
    parts, shares
        The proposals, and their positive shares that sum to one.
    """

    parts: tuple[Proposal, ...]
    shares: tuple[float, ...]

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, d), part after part; every part has its share up to rounding."""
        ends = np.round(n * np.cumsum(self.shares)).astype(int)
        counts = np.diff(ends, prepend=0)
        return np.concatenate([part.draw(int(count), rng) for part, count in zip(self.parts, counts, strict=True)])

    def log_density(self, t: np.ndarray) -> np.ndarray:
        """Log density at t (n, d)."""
        parts = [math.log(share) + part.log_density(t) for part, share in zip(self.parts, self.shares, strict=True)]
        return np.asarray(logsumexp(np.stack(parts), axis=0))


def student_constant(size: int, df: float) -> float:
    return float(gammaln(0.5 * (df + size)) - gammaln(0.5 * df) - 0.5 * size * math.log(df * math.pi))
