"""Pareto-smoothed weights against ratios with a known tail."""

from __future__ import annotations

import numpy as np
import pytest

from pyromix.results.psis import psis


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    """Ratios ``u^-k`` have a Pareto tail of shape k. 20,000 draws, 424 in the tail: the error's SD is below 0.08."""
    u = np.random.default_rng(1).random(20_000)
    found = psis(-shape * np.log(u))
    assert found.khat == pytest.approx(shape, abs=0.35)


def test_weights_are_normalised_and_ordered_as_the_ratios() -> None:
    log_weights = np.random.default_rng(2).normal(size=500)
    found = psis(log_weights)
    assert np.exp(found.log_weights).sum() == pytest.approx(1.0, abs=1e-12)
    assert np.array_equal(np.argsort(found.log_weights, kind="stable")[:400], np.argsort(log_weights)[:400])
    weights = np.exp(found.log_weights)
    assert found.effective_size == pytest.approx(1 / np.sum(weights**2))


def test_equal_ratios_are_worth_all_draws() -> None:
    found = psis(np.full(100, -700.0))
    assert found.effective_size == pytest.approx(100.0) and found.khat == -np.inf


def test_excluded_draws_have_no_weight() -> None:
    log_weights = np.zeros(200)
    log_weights[:50] = -np.inf
    found = psis(log_weights)
    assert np.exp(found.log_weights[:50]).max() == 0.0
    assert found.effective_size == pytest.approx(150.0, rel=1e-6)


def test_few_draws_have_no_tail() -> None:
    assert np.isnan(psis(np.arange(10.0)).khat)


def test_nothing_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="no log weight is finite"):
        psis(np.full(30, -np.inf))
