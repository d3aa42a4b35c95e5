r"""Are ranks uniform? Tests of the ranks that simulation-based calibration makes.

Where a sampler is right, the rank r of the true value among L independent posterior draws is uniform on 0, ..., L
[Talts2018]_. Three tests, each with its own blind spot: chi-squared on bins sees any shape but little of small shifts;
the mean rank sees bias; the variance of the ranks sees posteriors that are too narrow or too wide [Modrak2023]_.

Both moments are taken about their known centre, so their null distributions need no estimate. With
:math:`n = L + 1` and :math:`m_2 = (n^2 - 1)/12`, :math:`m_4 = (3n^4 - 10n^2 + 7)/240`:

.. math:: z_1 = \frac{\bar r - L/2}{\sqrt{m_2/N}}, \qquad
          z_2 = \frac{\frac1N\sum(r_i - L/2)^2 - m_2}{\sqrt{(m_4 - m_2^2)/N}}

References
----------
.. [Talts2018] Talts, Betancourt, Simpson, Vehtari & Gelman (2018), Validating Bayesian inference algorithms with
   simulation-based calibration, arXiv:1804.06788.
.. [Modrak2023] Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), Simulation-based calibration
   checking for Bayesian computation: the choice of test quantities shapes sensitivity, Bayesian Analysis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

FLAG = 1e-3  # p-value below which a quantity is flagged, and simulated again
BINS = 20


@dataclass(frozen=True)
class Uniformity:
    """The three tests of one quantity's ranks.

    Attributes
    ----------
    count
        Number of simulations N.
    chi2, chi2_p
        Statistic on equal bins and its p-value.
    mean_z, variance_z
        Normal scores of the mean rank (positive: truths above their posteriors) and of the ranks' variance (positive:
        posteriors too narrow).
    """

    count: int
    chi2: float
    chi2_p: float
    mean_z: float
    variance_z: float

    @property
    def mean_p(self) -> float:
        """Two-sided p-value of the mean rank."""
        return float(2 * stats.norm.sf(abs(self.mean_z)))

    @property
    def variance_p(self) -> float:
        """Two-sided p-value of the ranks' variance."""
        return float(2 * stats.norm.sf(abs(self.variance_z)))

    @property
    def smallest_p(self) -> float:
        """The smallest of the three p-values."""
        return min(self.chi2_p, self.mean_p, self.variance_p)

    @property
    def flagged(self) -> bool:
        """Whether one of them is below `FLAG`."""
        return self.smallest_p < FLAG


def test_uniformity(ranks: np.ndarray, draws: int) -> Uniformity:
    """Hold ranks (N,) in 0, ..., draws against the uniform distribution."""
    ranks = np.asarray(ranks)
    n = draws + 1
    bins = _bins(n, len(ranks))
    counts = np.bincount(ranks * bins // n, minlength=bins)
    expected = np.bincount(np.arange(n) * bins // n, minlength=bins) / n * len(ranks)
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    second = (n**2 - 1) / 12
    fourth = (3 * n**4 - 10 * n**2 + 7) / 240
    centred = ranks - draws / 2
    return Uniformity(
        len(ranks),
        chi2,
        float(stats.chi2.sf(chi2, bins - 1)),
        float(centred.mean() / np.sqrt(second / len(ranks))),
        float(((centred**2).mean() - second) / np.sqrt((fourth - second**2) / len(ranks))),
    )


test_uniformity.__test__ = False  # a function of the library, not pytest's


def _bins(n: int, count: int) -> int:
    """Twenty bins, fewer where a bin would expect less than five ranks."""
    return max(2, min(BINS, n, count // 5))


def rank(truth: float, draws: np.ndarray, rng: np.random.Generator) -> int:
    """Rank of the truth among draws (L,): how many lie below it, ties broken at random."""
    below, equal = int((draws < truth).sum()), int((draws == truth).sum())
    return below + (int(rng.integers(equal + 1)) if equal else 0)


def coverage(ranks: np.ndarray, draws: int, level: float) -> float:
    """Share of truths inside the central interval of that level, read off the ranks.

    With draws = 99 the 50 % and 90 % intervals are exact: they hold 50 and 90 of the 100 possible ranks.
    """
    inside = round(level * (draws + 1))
    lower = (draws + 1 - inside) // 2
    return float(((ranks >= lower) & (ranks < lower + inside)).mean())


def ecdf_difference(ranks: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Fractions z in (0, 1] and ECDF(z) - z of the ranks, at each of the L + 1 steps."""
    counts = np.bincount(np.asarray(ranks), minlength=draws + 1)
    z = np.arange(1, draws + 2) / (draws + 1)
    return z, np.cumsum(counts) / len(ranks) - z


def ecdf_band(count: int, draws: int, level: float = 0.99, simulations: int = 2000) -> float:
    r"""Half-width factor c of a simultaneous band :math:`\pm c\sqrt{z(1-z)/N}` for the ECDF's difference.

    By simulation of uniform ranks with a seed of its own: the share `level` of them stays inside everywhere.
    """
    rng = np.random.default_rng(0)
    z = np.arange(1, draws + 1) / (draws + 1)
    counts = rng.multinomial(count, np.full(draws + 1, 1 / (draws + 1)), size=simulations)
    difference = np.cumsum(counts, axis=1)[:, :-1] / count - z
    return float(np.quantile(np.abs(difference / np.sqrt(z * (1 - z) / count)).max(1), level))
