r"""Importance sampling of a posterior from what is known of it at its mode.

Proposals live on standardised coordinates :math:`w`, :math:`t = c + Rw`. Each is a split Student-t (Geweke, 1989): in
direction k the scale is :math:`s_k^-` below zero and :math:`s_k^+` above, so skewness along the axes is followed. If
the first one fits badly, the next is fitted to the draws made so far; all draws count, with the density of the mixture
in the denominator (adaptive multiple importance sampling: Cornuet, Marin, Mira and Robert, 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from pyromix.results.psis import Smoothed, psis

TAILS = 8.0  # degrees of freedom
WIDEST = 3.0  # largest ratio of a split scale to the curvature's
PROBE = math.sqrt(2.0)  # distance, in standard deviations, at which a split scale is read off
ENOUGH = 0.5  # effective fraction at which no further proposal is fitted


@dataclass(frozen=True)
class SplitStudent:
    """A proposal: centre (d,), root (d, d), scales below and above, (d,) each."""

    centre: np.ndarray
    root: np.ndarray
    below: np.ndarray
    above: np.ndarray
    df: float = TAILS

    @classmethod
    def symmetric(cls, centre: np.ndarray, root: np.ndarray) -> SplitStudent:
        """One without skewness."""
        return cls(centre, root, np.ones(len(centre)), np.ones(len(centre)))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, d)."""
        size = len(self.centre)
        z = np.abs(rng.standard_normal((n, size))) / np.sqrt(rng.chisquare(self.df, (n, 1)) / self.df)
        up = rng.random((n, size)) < self.above / (self.above + self.below)
        w = np.where(up, self.above * z, -self.below * z)
        return self.centre + w @ self.root.T

    def log_density(self, t: np.ndarray) -> np.ndarray:
        """Log density at t (n, d)."""
        size, df = len(self.centre), self.df
        w = np.linalg.solve(self.root, (t - self.centre).T).T
        z = np.where(w > 0, w / self.above, w / self.below)
        constant = gammaln(0.5 * (df + size)) - gammaln(0.5 * df) - 0.5 * size * math.log(df * math.pi)
        constant += size * math.log(2.0) - np.log(self.above + self.below).sum() - np.linalg.slogdet(self.root)[1]
        return constant - 0.5 * (df + size) * np.log1p((z**2).sum(1) / df)


def split_scales(
    density: Callable[[np.ndarray], np.ndarray], centre: np.ndarray, root: np.ndarray, top: float
) -> SplitStudent:
    """The proposal at a mode: in each direction of the root, scales by which the log density falls on either side.

    Parameters
    ----------
    density
        Log density at (n, d).
    top
        Its value at the centre.
    """
    size = len(centre)
    steps = PROBE * np.concatenate([root.T, -root.T])
    fall = top - density(centre + steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = PROBE / np.sqrt(2 * fall)
    scale = np.clip(np.where(fall > 0, scale, WIDEST), 1 / WIDEST, WIDEST)
    return SplitStudent(centre, root, below=scale[size:], above=scale[:size])


@dataclass(frozen=True)
class Weighted:
    """Importance draws: points (n, d), log densities (n,) and what their smoothed weights are worth."""

    t: np.ndarray
    log_density: np.ndarray
    smoothed: Smoothed
    log_evidence: float
    evidence_error: float

    def resample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of n equally weighted draws, by systematic resampling, in random order."""
        weights = np.exp(self.smoothed.log_weights)
        at = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(n) + rng.random()) / n)
        return rng.permutation(np.minimum(at, len(weights) - 1))


def sample(
    density: Callable[[np.ndarray], np.ndarray],
    first: SplitStudent,
    n: int,
    target: float,
    rng: np.random.Generator,
    limit: int,
) -> Weighted:
    """Importance draws from a density given up to a constant.

    Parameters
    ----------
    density
        Log density at points (n, d); -inf where there is none.
    n
        Draws to begin with; as many again are made, each time from a proposal fitted to all before, until the effective
        number of draws is `target` and the largest weights are well behaved, or `limit` draws are made.
    """
    proposals, counts = [first], []
    points, values = np.empty((0, len(first.centre))), np.empty(0)
    size = n
    while True:
        new = proposals[-1].draw(size, rng)
        counts.append(size)
        points, values = np.concatenate([points, new]), np.concatenate([values, density(new)])
        found = _weigh(proposals, counts, points, values)
        poor = found.smoothed.effective_size < target or not found.smoothed.khat <= 0.7
        if not poor or len(points) + size > limit:
            return found
        share = found.smoothed.effective_size / len(points)
        proposals.append(_refit(found, first) if share < ENOUGH else proposals[-1])


def _weigh(proposals: list[SplitStudent], counts: list[int], points: np.ndarray, values: np.ndarray) -> Weighted:
    share = np.log(np.array(counts) / sum(counts))
    mixture = logsumexp(np.stack([p.log_density(points) for p in proposals]) + share[:, None], axis=0)
    log_weights = np.where(np.isfinite(values), values - mixture, -np.inf)
    log_evidence = float(logsumexp(log_weights) - math.log(len(values)))
    error = float(np.std(np.exp(log_weights - log_evidence)) / math.sqrt(len(values)))
    return Weighted(points, values, psis(log_weights), log_evidence, error)


def _refit(found: Weighted, first: SplitStudent) -> SplitStudent:
    """A symmetric proposal with the weighted draws' mean and covariance, no narrower than a part of the first."""
    weights = np.exp(found.smoothed.log_weights)
    mean = weights @ found.t
    centred = found.t - mean
    covariance = (weights[:, None] * centred).T @ centred
    # few effective draws say little of a covariance: they are joined by the curvature's, as so many draws
    trust = found.smoothed.effective_size / (found.smoothed.effective_size + 2 * len(mean))
    covariance = trust * covariance + (1 - trust) * first.root @ first.root.T
    return SplitStudent.symmetric(mean, np.linalg.cholesky(covariance))
