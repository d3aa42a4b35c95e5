"""REML heritability over simulated data sets: no bias, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import pyromix as pmx

pytestmark = [pytest.mark.slow, pytest.mark.statistical]
COUNT, LEVELS = 200, 400
LEVEL = 0.9
FALSE_ALARM = 1e-3  # of either test below, at each truth


def families() -> tuple[np.ndarray, list[str]]:
    """Relationship of 400 animals in families of ten, by 600 markers that parents hand down."""
    rng = np.random.default_rng(20)
    frequency = rng.uniform(0.1, 0.9, 600)
    genotypes = np.empty((LEVELS, 600))
    for family in range(LEVELS // 10):
        parents = rng.binomial(1, frequency, (4, 600))
        for child in range(10):
            pick = rng.integers(0, 2, (2, 600))
            mother, father = np.take_along_axis(parents[:2], pick[:1], 0), np.take_along_axis(parents[2:], pick[1:], 0)
            genotypes[10 * family + child] = mother[0] + father[0]
    p = genotypes.mean(0) / 2
    z = genotypes - 2 * p
    return z @ z.T / (2 * (p * (1 - p)).sum()), [f"id {k}" for k in range(LEVELS)]


@pytest.mark.parametrize("truth", [0.3, 0.6])
def test_heritability_is_unbiased_and_its_intervals_cover(truth: float) -> None:
    """200 data sets. The mean against the truth by a t test, the number of intervals that hold it by a binomial test.

    The estimate is a ratio, so its bias is of the order of its variance; at 400 animals that is a tenth of what the t
    test sees. False alarm: 1e-3 each, 4e-3 for all four.
    """
    k, ids = families()
    kinship = pmx.Kinship((k, ids))  # one for all data sets: K is decomposed once
    values, vectors = np.linalg.eigh(k)
    root = vectors * np.sqrt(values.clip(0) * truth / (k.trace() / LEVELS))
    rng = np.random.default_rng(100)
    found = []
    for _ in range(COUNT):
        x = rng.normal(size=LEVELS)
        y = 2.0 + 0.5 * x + root @ rng.normal(size=LEVELS) + np.sqrt(1 - truth) * rng.normal(size=LEVELS)
        data = pd.DataFrame({"id": ids, "x": x, "y": y})
        model = pmx.model("y ~ x + (1 | id)", data, covariances={"id": kinship})
        fit = model.fit(pmx.MaximumLikelihood(criterion="reml"), progress=False)
        found.append(fit.heritability(level=LEVEL).iloc[0])
    table = pd.DataFrame(found)
    held = int(((table["lower"] <= truth) & (truth <= table["upper"])).sum())
    print(
        f"truth {truth}: mean {table['estimate'].mean():.4f}, SD {table['estimate'].std():.4f}, covered {held}/{COUNT}"
    )
    assert stats.ttest_1samp(table["estimate"].astype(float), truth).pvalue > FALSE_ALARM
    assert stats.binomtest(held, COUNT, LEVEL).pvalue > FALSE_ALARM
