"""Comparisons that the suites share; a failure prints what was compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import norm

FALSE_ALARM = 1e-5  # probability that a statistical check fails on correct code


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A seeded random state, with the caller's restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-8, atol: float | torch.Tensor = 1e-10) -> None:
    """Equal shapes, finite values, equal to the tolerances; an entry each, if `atol` is a tensor."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(got).all(), f"not finite: {got}"
    error = (got - expected).abs()
    bad = error > atol + rtol * expected.abs()
    worst = int(error.reshape(-1).argmax()) if error.numel() else 0
    assert not bad.any(), (
        f"{int(bad.sum())} of {bad.numel()} entries differ; entry {worst}: {got.reshape(-1)[worst].item()!r}, "
        f"expected {expected.reshape(-1)[worst].item()!r}"
    )


def z_limit(comparisons: int) -> float:
    """Largest |z| among so many normal scores, exceeded with probability at most `FALSE_ALARM` (Bonferroni)."""
    return float(norm.isf(FALSE_ALARM / (2 * max(comparisons, 1))))


def covariance_scores(draws: torch.Tensor, expected: torch.Tensor) -> np.ndarray:
    r"""Scores of the second moments of zero-mean Gaussian draws (n, d); each nearly standard normal.

    The draws are whitened by a root of the expected covariance, so that the moments are uncorrelated: off the diagonal
    their variance is :math:`1/n`, on it :math:`2/n`. On the diagonal the Wilson-Hilferty cube root takes out the skew.
    """
    n, d = draws.shape
    values, vectors = torch.linalg.eigh(expected)
    keep = values > 1e-10 * values.max()
    white = draws @ (vectors[:, keep] / values[keep].sqrt())
    moments = (white.T @ white / n).numpy()
    rows, columns = np.tril_indices(int(keep.sum()), -1)
    off = moments[rows, columns] * math.sqrt(n)
    cube = (np.cbrt(np.diag(moments)) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return np.concatenate([off, cube])
