"""Importance draws from a posterior, weighted by its density.

If the first proposal fits badly, the next is fitted to the draws made so far; all draws count, with the density of the
mixture in the denominator (adaptive multiple importance sampling: Cornuet, Marin, Mira and Robert, 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from pyromix.backends.proposals import Proposal, SplitStudent
from pyromix.results.psis import Smoothed, psis

CALM = 0.6  # k-hat up to which the largest weights are well behaved; it is itself an estimate, and limits are near 0.7
ENOUGH = 0.5  # effective fraction at which no further proposal is fitted


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
    first: Proposal,
    root: np.ndarray,
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
    first, root
        The first proposal, and a root of the posterior's covariance as the curvature at the mode has it.
    n
        Draws to begin with; as many again are made, each time from a proposal fitted to all before, until the effective
        number of draws is `target` and the largest weights are well behaved, or `limit` draws are made.
    """
    proposals, counts = [first], []
    points, values = np.empty((0, len(root))), np.empty(0)
    size = n
    while True:
        new = proposals[-1].draw(size, rng)
        counts.append(size)
        points, values = np.concatenate([points, new]), np.concatenate([values, density(new)])
        found = _weigh(proposals, counts, points, values)
        poor = found.smoothed.effective_size < target or not found.smoothed.khat <= CALM
        if not poor or len(points) + size > limit:
            return found
        share = found.smoothed.effective_size / len(points)
        proposals.append(_refit(found, root) if share < ENOUGH else proposals[-1])


def _weigh(proposals: list[Proposal], counts: list[int], points: np.ndarray, values: np.ndarray) -> Weighted:
    share = np.log(np.array(counts) / sum(counts))
    mixture = logsumexp(np.stack([p.log_density(points) for p in proposals]) + share[:, None], axis=0)
    log_weights = np.where(np.isfinite(values), values - mixture, -np.inf)
    log_evidence = float(logsumexp(log_weights) - math.log(len(values)))
    error = float(np.std(np.exp(log_weights - log_evidence)) / math.sqrt(len(values)))
    return Weighted(points, values, psis(log_weights), log_evidence, error)


def _refit(found: Weighted, root: np.ndarray) -> SplitStudent:
    """A symmetric proposal with the weighted draws' mean and covariance, held by the curvature's where they are few."""
    weights = np.exp(found.smoothed.log_weights)
    mean = weights @ found.t
    centred = found.t - mean
    covariance = (weights[:, None] * centred).T @ centred
    # few effective draws say little of a covariance: they are joined by the curvature's, as so many draws
    trust = found.smoothed.effective_size / (found.smoothed.effective_size + 2 * len(mean))
    covariance = trust * covariance + (1 - trust) * root @ root.T
    return SplitStudent.symmetric(mean, np.linalg.cholesky(covariance))
