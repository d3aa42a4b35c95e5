"""R-hat and effective sizes, against ArviZ's, which go through one quantity at a time."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from scipy.signal import lfilter

from pyromix.results.mixing import measure


def chains(rng: np.random.Generator, phi: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Autoregressions of order one, some of them shifted between chains, skewed or tied."""
    x = lfilter([1.0], [1.0, -phi], rng.normal(size=shape), axis=2)
    x[1] += 0.5 * np.arange(shape[1])[:, None]
    x[2] = np.exp(2 * x[2])
    x[3] = np.round(x[3])
    x[4] *= 1 + np.arange(shape[1])[:, None]
    return x


@pytest.mark.parametrize(
    ("phi", "count", "draws"),
    [(0.0, 4, 1000), (0.95, 4, 501), (-0.6, 2, 300), (0.5, 1, 200), (0.999, 3, 100), (-0.95, 4, 101)],
)
def test_the_same_as_arviz(rng: np.random.Generator, phi: float, count: int, draws: int) -> None:
    x = chains(rng, phi, (6, count, draws))
    found = measure(x)
    assert found.bulk == pytest.approx([az.ess(v) for v in x], rel=1e-10)
    assert found.tail == pytest.approx([az.ess(v, method="tail") for v in x], rel=1e-10)
    if count > 1:  # ArviZ asks for two chains; their halves would do
        assert found.rhat == pytest.approx([az.rhat(v) for v in x], rel=1e-10)


def test_independent_draws_are_worth_themselves(rng: np.random.Generator) -> None:
    """The 200 estimated sizes have mean 4000 within 2 % (their SD is about 5 %); R-hat stays below 1.01."""
    found = measure(rng.normal(size=(200, 4, 1000)))
    assert found.bulk.mean() == pytest.approx(4000, rel=0.02)
    assert found.rhat.max() < 1.01


def test_an_autoregression_has_its_closed_form(rng: np.random.Generator) -> None:
    """``S (1 - phi) / (1 + phi)``, means over 50 quantities; each estimate scatters by some 10 %."""
    x = lfilter([1.0], [1.0, -0.8], rng.normal(size=(50, 4, 3000)), axis=2)[:, :, 1000:]
    assert measure(x).bulk.mean() == pytest.approx(8000 * 0.2 / 1.8, rel=0.06)


def test_chains_that_stand_still() -> None:
    x = np.ones((2, 4, 50))
    x[0] *= np.arange(4.0)[:, None]
    found = measure(x)
    assert np.isinf(found.rhat[0]) and np.isnan(found.rhat[1])
    assert np.isnan(found.bulk[1])
