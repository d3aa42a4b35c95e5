"""Rank statistics against their definitions, SciPy and distributions that are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from pyromix.testing.sbc.ranks import coverage, ecdf_band, ecdf_difference, rank, test_uniformity

DRAWS = 99


def simulated_ranks(rng: np.random.Generator, count: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Ranks of N(0, 1) truths among draws from N(shift, scale^2)."""
    truths = rng.standard_normal((count, 1))
    return (shift + scale * rng.standard_normal((count, DRAWS)) < truths).sum(1)


def test_scores_are_those_of_the_discrete_uniform_distribution(rng: np.random.Generator) -> None:
    ranks = rng.integers(0, 40, 700)  # far from uniform on 0, ..., 99
    found = test_uniformity(ranks, DRAWS)
    uniform = scipy.stats.randint(0, DRAWS + 1)
    mean, variance = (float(x) for x in uniform.stats("mv"))
    assert found.mean_z == pytest.approx((ranks.mean() - mean) / np.sqrt(variance / 700))
    squares = (np.arange(100) - mean) ** 2  # their mean and variance by enumeration
    assert found.variance_z == pytest.approx(
        (((ranks - mean) ** 2).mean() - squares.mean()) / np.sqrt(squares.var() / 700)
    )
    expected = scipy.stats.chisquare(np.histogram(ranks, np.arange(0, 101, 5))[0])
    assert (found.chi2, found.chi2_p) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize("draws", [99, 50, 7])
def test_each_rank_once_is_perfectly_uniform(draws: int) -> None:
    found = test_uniformity(np.tile(np.arange(draws + 1), 100), draws)
    assert (found.chi2, found.mean_z, found.variance_z) == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.smallest_p > 0.99 and not found.flagged


@pytest.mark.statistical
def test_p_values_are_uniform_under_the_truth(rng: np.random.Generator) -> None:
    """Kolmogorov-Smirnov on 2000 data sets each; false alarm 3 * 1e-4."""
    found = [test_uniformity(rng.integers(0, DRAWS + 1, 200), DRAWS) for _ in range(2000)]
    for p in ("mean_p", "variance_p", "chi2_p"):
        assert scipy.stats.kstest([getattr(test, p) for test in found], "uniform").pvalue > 1e-4, p


@pytest.mark.statistical
def test_power_is_that_of_the_published_figures(rng: np.random.Generator) -> None:
    """Known shares caught at N = 1000: SD 10 % too small 31 % by chi2, 80 % by variance; bias 0.1 SD 42 % by mean.

    300 repetitions: binomial SD below 0.03, so 0.12 is four of them (false alarm below 1e-3).
    """
    narrow = [test_uniformity(simulated_ranks(rng, 1000, scale=0.9), DRAWS) for _ in range(300)]
    biased = [test_uniformity(simulated_ranks(rng, 1000, shift=0.1), DRAWS) for _ in range(300)]
    assert np.mean([test.variance_p < 1e-3 for test in narrow]) == pytest.approx(0.80, abs=0.12)
    assert np.mean([test.chi2_p < 1e-3 for test in narrow]) == pytest.approx(0.31, abs=0.12)
    assert np.mean([test.mean_p < 1e-3 for test in biased]) == pytest.approx(0.42, abs=0.12)


def test_signs_say_which_way(rng: np.random.Generator) -> None:
    """Draws too low: truths above, positive mean; draws too narrow: ranks at both ends, positive variance."""
    assert test_uniformity(simulated_ranks(rng, 500, shift=-0.5), DRAWS).mean_z > 5
    assert test_uniformity(simulated_ranks(rng, 500, scale=0.6), DRAWS).variance_z > 5
    assert test_uniformity(simulated_ranks(rng, 500, scale=1.6), DRAWS).variance_z < -5


def test_ties_are_broken_at_random(rng: np.random.Generator) -> None:
    assert rank(2.0, np.array([1.0, 3.0, 0.0]), rng) == 2
    found = np.bincount([rank(1.0, np.array([0.0, 1.0, 1.0, 2.0]), rng) for _ in range(3000)], minlength=5)
    assert found[0] == found[4] == 0
    assert scipy.stats.chisquare(found[1:4]).pvalue > 1e-5


def test_coverage_is_the_share_in_the_central_ranks() -> None:
    every = np.arange(100)
    assert coverage(every, DRAWS, 0.5) == 0.5 and coverage(every, DRAWS, 0.9) == 0.9
    assert [coverage(np.array([r]), DRAWS, 0.9) for r in (4, 5, 94, 95)] == [0, 1, 1, 0]
    assert [coverage(np.array([r]), DRAWS, 0.5) for r in (24, 25, 74, 75)] == [0, 1, 1, 0]


@pytest.mark.statistical
def test_the_band_holds_the_whole_curve_of_uniform_ranks(rng: np.random.Generator) -> None:
    """99 % of curves inside: of 1000 others, between 970 and 1000 (false alarm below 1e-6, and 1e-3 for the band)."""
    width, inside = ecdf_band(200, DRAWS), 0
    for _ in range(1000):
        z, difference = ecdf_difference(rng.integers(0, DRAWS + 1, 200), DRAWS)
        inside += bool((np.abs(difference[:-1]) <= width * np.sqrt(z * (1 - z) / 200)[:-1]).all())
    assert 970 <= inside <= 1000
    assert difference[-1] == pytest.approx(0, abs=1e-12)
