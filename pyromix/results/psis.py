"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THRESHOLD = 0.7  # of k-hat: beyond it the weighted mean of that many draws is not to be trusted
FEWEST = 25  # draws below which a tail of five cannot be fitted


class Smoothed(NamedTuple):
    """What importance sampling with the smoothed weights is worth.

    Attributes
    ----------
    log_weights
        Smoothed and normalised, (draws,): their exponentials sum to one.
    khat
        Shape of the generalised Pareto tail of the ratios; below 0.5 their variance is finite, beyond 0.7 they are not
        to be used. NaN with fewer than 25 draws, -inf if all ratios are equal.
    effective_size
        ``1 / sum w^2``, between 1 and the number of draws.
    """

    log_weights: np.ndarray
    khat: float
    effective_size: float


def psis(log_weights: np.ndarray) -> Smoothed:
    """Smooth the largest of some importance ratios.

    Parameters
    ----------
    log_weights
        Log ratios of target to proposal at independent draws of the proposal, (draws,), up to a constant. Entries of
        -inf are draws that the target excludes.
    """
    from arviz import psislw

    log_weights = np.asarray(log_weights, dtype=float)
    top = log_weights.max() if len(log_weights) else -np.inf
    if not np.isfinite(top):
        raise ValueError("psis: no log weight is finite, or one is +inf or NaN.")
    shifted = np.maximum(log_weights - top, -1e3)  # exp(-1000) is zero, and no infinity enters a difference
    spread = float(np.ptp(shifted))
    if len(shifted) < FEWEST or spread < 1e-9:
        khat = -np.inf if spread < 1e-9 else np.nan
        smooth = shifted - np.log(np.exp(shifted).sum())
    else:
        smoothed, shape = psislw(shifted.copy())
        smooth, khat = np.asarray(smoothed, dtype=float), float(shape)
    return Smoothed(smooth, khat, float(1.0 / np.exp(2 * smooth).sum()))
