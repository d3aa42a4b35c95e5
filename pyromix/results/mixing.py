r"""How well chains have mixed: R-hat and effective sample sizes of many quantities at once.

Rank-normalised split R-hat and bulk and tail effective sample sizes [Vehtari2021]_, whose sums of autocorrelations are
cut by the initial positive and made monotone by the initial monotone sequence [Geyer1992]_. All quantities go through
one sort and one Fourier transform, so that thousands of random effects take about as long as one would in a loop.

Arrays are (quantities, chains, draws) throughout.

References
----------
.. [Vehtari2021] Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization,
   Bayesian Analysis 16, 667-718.
.. [Geyer1992] Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7, 473-483.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.special import ndtri
from scipy.stats import rankdata

TAILS = (0.05, 0.95)


@dataclass(frozen=True)
class Mixing:
    """Of each quantity: R-hat, effective draws for its centre, and for its 5 % and 95 % quantiles (the fewer).

    R-hat is infinite where every half of a chain stands still at its own value; all are NaN where nothing varies.
    """

    rhat: np.ndarray
    bulk: np.ndarray
    tail: np.ndarray


def measure(x: np.ndarray) -> Mixing:
    """R-hat (the larger of that of location and that of scale) and effective sizes of (quantities, chains, draws)."""
    halves = _split(x)
    scores = _normal_scores(halves)
    folded = np.abs(halves - np.median(halves, axis=(1, 2), keepdims=True))
    quantiles = np.quantile(x, TAILS, axis=(1, 2))
    tails = [_effective(_split((x <= q[:, None, None]).astype(float))) for q in quantiles]
    return Mixing(
        np.fmax(_plain_rhat(scores), _plain_rhat(_normal_scores(folded))), _effective(scores), np.fmin(*tails)
    )


def _split(x: np.ndarray) -> np.ndarray:
    """Each chain as two; the middle draw of an odd number is left out."""
    half = x.shape[2] // 2
    return np.concatenate([x[:, :, :half], x[:, :, x.shape[2] - half :]], axis=1)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks among all draws of a quantity."""
    ranks = rankdata(x.reshape(len(x), -1), axis=1).reshape(x.shape)
    return ndtri((ranks - 0.375) / (x[0].size + 0.25))


def _plain_rhat(x: np.ndarray) -> np.ndarray:
    n = x.shape[2]
    between = n * x.mean(2).var(1, ddof=1)
    within = x.var(2, ddof=1).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between / within + n - 1) / n)


def _effective(x: np.ndarray) -> np.ndarray:
    """Draws over their integrated autocorrelation time, at most ``S log10 S``; NaN where nothing varies."""
    _, chains, n = x.shape
    covariance = _autocovariance(x).mean(1)
    within = covariance[:, 0] * n / (n - 1)
    total = covariance[:, 0] + (x.mean(2).var(1, ddof=1) if chains > 1 else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within[:, None] - covariance) / total[:, None]
    rho[:, 0] = 1.0
    last = max(-(-(n - 2) // 2) - 1, 0)  # the last pair of lags that is looked at
    pairs = rho[:, 0 : 2 * last + 2 : 2] + rho[:, 1 : 2 * last + 2 : 2]
    negative = pairs < 0
    cut = np.where(negative.any(1), negative.argmax(1), last)
    kept = np.arange(pairs.shape[1]) < cut[:, None]
    time = 2 * np.where(kept, np.minimum.accumulate(pairs, axis=1), 0.0).sum(1) - 1
    time += np.fmax(np.take_along_axis(rho, 2 * cut[:, None], axis=1)[:, 0], 0.0)
    size = chains * n
    ess = size / np.maximum(time, 1 / np.log10(size))
    return np.where(total > 0, ess, np.nan)


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Autocovariances at every lag, biased (divided by the number of draws), of each chain."""
    n = x.shape[2]
    centred = x - x.mean(2, keepdims=True)
    padded = scipy.fft.next_fast_len(2 * n, real=True)
    transformed = scipy.fft.rfft(centred, padded, axis=2)
    return scipy.fft.irfft(transformed.real**2 + transformed.imag**2, padded, axis=2)[:, :, :n] / n
