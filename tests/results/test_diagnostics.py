"""Findings about draws: raised when they should be, silent when not, naming what they are about."""

from __future__ import annotations

import time

import arviz as az
import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from pyromix.errors import Status
from pyromix.results.diagnostics import (
    Entries,
    importance_findings,
    khat_limit,
    leave_one_out_findings,
    posterior_status,
    sampler_findings,
)
from tests.results.models import tensor

SHAPE = (4, 500)


def healthy(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    return {
        "beta": tensor(rng.normal(size=(2000, 2))),
        "g.sd": tensor(np.exp(rng.normal(size=2000))),
        "g": tensor(rng.normal(size=(2000, 5, 2))),
    }


LABELS = {"beta": (("Intercept", "Days"),), "g": (tuple("abcde"), ("Intercept", "Days"))}


def stats(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "diverging": np.zeros(SHAPE, dtype=bool),
        "energy": rng.normal(size=SHAPE),
        "tree_depth": np.full(SHAPE, 4),
        "reached_max_treedepth": np.zeros(SHAPE, dtype=bool),
    }


def one(found):
    (record,) = found
    return record


def test_independent_draws_raise_nothing(rng: np.random.Generator) -> None:
    """Thirteen quantities of independent draws: R-hat exceeds 1.01 in fewer than one of 10,000 such fits."""
    assert sampler_findings(healthy(rng), 4, stats(rng), LABELS) == ()
    assert posterior_status(()) is Status.CONVERGED


def test_divergences_name_what_shifts(rng: np.random.Generator) -> None:
    draws, sampled = healthy(rng), stats(rng)
    low = draws["g.sd"].numpy() < np.exp(-2.2)
    sampled["diverging"] = low.reshape(SHAPE)
    record = one(sampler_findings(draws, 4, sampled, LABELS))
    assert (record.code, record.severity) == ("divergences", "warn")
    assert record.value == f"{low.sum()} ({100 * low.mean():.2g} %)"
    # below -2.2 a standard normal has mean -phi(2.2) / Phi(-2.2) = -2.55
    assert record.parameter.startswith("g.sd (lower there by 2.")
    assert "target_accept" in record.remedy and "parametrisation='noncentered'" in record.remedy
    sampled["diverging"] = rng.random(SHAPE) < 0.1
    record = one(sampler_findings(draws, 4, sampled, LABELS))
    assert record.severity == "error" and posterior_status([record]) is Status.NOT_MIXED
    sampled["diverging"] = np.ones(SHAPE, dtype=bool)
    assert one(sampler_findings(draws, 4, sampled)).parameter == "all"


def test_tree_depth_is_information_until_five_per_cent(rng: np.random.Generator) -> None:
    draws, sampled = healthy(rng), stats(rng)
    sampled["tree_depth"][2, :10] = 10
    sampled["reached_max_treedepth"][2, :10] = True
    record = one(sampler_findings(draws, 4, sampled))
    assert (record.code, record.severity, record.value) == ("tree_depth", "info", "2 %")
    assert record.parameter == "chain 2: 2 %, depth 10"
    sampled["reached_max_treedepth"][2, :30] = True
    assert one(sampler_findings(draws, 4, sampled)).severity == "warn"


def test_energy_is_arviz_bfmi(rng: np.random.Generator) -> None:
    draws, sampled = healthy(rng), stats(rng)
    sampled["energy"][1] = lfilter([1.0], [1.0, -0.99], rng.normal(size=500))
    record = one(sampler_findings(draws, 4, sampled))
    assert record.code == "bfmi" and record.parameter.startswith("chain 1: 0.")
    assert record.value == pytest.approx(az.bfmi(sampled["energy"])[1], rel=1e-12)


def test_rhat_lists_the_five_worst_by_name(rng: np.random.Generator) -> None:
    draws = healthy(rng)
    draws["g"] = draws["g"] + 0.1 * torch.arange(2000)[:, None, None].div(500, rounding_mode="floor") * torch.arange(
        10.0
    ).reshape(1, 5, 2)
    found = {record.code: record for record in sampler_findings(draws, 4, labels=LABELS)}
    record = found["rhat"]
    values = draws["g"].numpy().reshape(4, 500, 10)
    expected = [float(az.rhat(values[:, :, k])) for k in range(10)]
    assert record.value == pytest.approx(max(expected)) and record.severity == "error"
    assert record.parameter.startswith(f"g[e, Days] {expected[9]:.4g}, g[e, Intercept] {expected[8]:.4g}, g[d, Days]")
    assert record.parameter.endswith(f"and {sum(r > 1.01 for r in expected) - 5} more")
    assert posterior_status(list(found.values())) is Status.NOT_MIXED and not Status.NOT_MIXED.ok
    mild = {"a": tensor(rng.normal(size=SHAPE) + [[0.0], [0.0], [0.0], [0.6]]).reshape(-1)}
    record, *_ = sampler_findings(mild, 4)
    assert (record.code, record.severity) == ("rhat", "warn") and posterior_status([record]) is Status.CONVERGED
    # two of eight half chains shifted by 0.6: variance of their means 0.6^2 (3/16) (8/7), R-hat = sqrt(1.077)
    assert record.value == pytest.approx(1.038, abs=0.02)


def test_few_effective_draws_say_how_many_are_needed(rng: np.random.Generator) -> None:
    slow = lfilter([1.0], [1.0, -0.95], rng.normal(size=(4, 1500)), axis=1)[:, 1000:]
    found = {r.code: r for r in sampler_findings({"a": tensor(slow).reshape(-1), "b": healthy(rng)["g.sd"]}, 4)}
    assert found["ess_bulk"].value == pytest.approx(float(az.ess(slow)))
    assert found["ess_tail"].value == pytest.approx(float(az.ess(slow, method="tail")))
    assert found["ess_bulk"].threshold == 400 and found["ess_bulk"].parameter == "a"
    # 2000 (1 - 0.95) / (1 + 0.95) = 51 effective draws; 400 need 3900 a chain, and the estimate is within a factor two
    needed = int(found["ess_bulk"].remedy.split("about ")[1].split()[0])
    assert 2000 <= needed <= 8000


def test_few_chains_and_draws(rng: np.random.Generator) -> None:
    draws = {"a": tensor(rng.normal(size=180))}
    codes = {(r.code, r.severity) for r in sampler_findings(draws, 2)}
    assert {("few_chains", "info"), ("few_draws", "warn")} <= codes
    assert ("few_chains", "warn") in {(r.code, r.severity) for r in sampler_findings(draws, 1)}
    assert sampler_findings({"a": tensor([1.0, 2.0])}, 2)[-1].code == "few_draws", "nothing can be said of one draw"


def test_draws_that_are_not_finite(rng: np.random.Generator) -> None:
    draws = healthy(rng)
    draws["beta"][3, 1] = torch.nan
    record = one(sampler_findings(draws, 4))
    assert (record.code, record.severity, record.parameter) == ("not_finite", "error", "beta")


def test_constant_entries_are_not_judged(rng: np.random.Generator) -> None:
    rho = tensor(rng.uniform(-0.5, 0.5, size=2000))
    factor = torch.zeros(2000, 2, 2, dtype=torch.float64)
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = 1.0, rho, (1 - rho**2).sqrt()
    draws = {"corr_cholesky": factor, "fixed": torch.ones(2000, dtype=torch.float64)}
    assert sampler_findings(draws, 4) == ()
    assert Entries.of(draws, 4, {}).names == ["corr_cholesky[1, 0]", "corr_cholesky[1, 1]"]


def test_long_sites_are_checked_at_evenly_spaced_entries() -> None:
    names = Entries.of({"g": torch.arange(40.0).reshape(4, 10)}, 2, {}, limit=4).names
    assert names == ["g[0]", "g[3]", "g[6]", "g[9]"]


def test_importance_draws() -> None:
    assert importance_findings(0.3, 551.0, 1000) == ()
    assert importance_findings(-np.inf, 1000.0, 1000) == (), "all weights equal"
    record = one(importance_findings(0.6, 551.0, 1000))
    assert (record.code, record.severity) == ("pareto_k", "warn")
    assert posterior_status([record]) is Status.CONVERGED
    for khat in (0.9, np.nan):
        record = one(importance_findings(khat, 551.0, 1000))
        assert record.severity == "error" and "Not reliable" in record.remedy
        assert posterior_status([record]) is Status.UNRELIABLE and not Status.UNRELIABLE.ok
    record = one(importance_findings(0.3, 40.0, 1000))
    assert (record.code, record.severity) == ("effective_size", "warn") and "2500" in record.remedy
    assert khat_limit(1000) == pytest.approx(2 / 3) and khat_limit(10_000) == 0.7


def test_rows_that_cannot_be_left_out() -> None:
    khat = np.array([0.1, 0.9, 0.2, 1.3])
    assert leave_one_out_findings(khat[[0, 2]], ["r0", "r2"], 4000) == ()
    record = one(leave_one_out_findings(khat, ["r0", "r1", "r2", "r3"], 4000))
    assert record.parameter == "rows r3 (1.30), r1 (0.90)" and record.value == 1.3
    assert record.remedy.startswith("2 of 4 rows")


def test_four_hundred_quantities_take_about_a_second(rng: np.random.Generator) -> None:
    """Measured 0.9 s on one shared core; ArviZ, one quantity after the other, takes three times as long."""
    draws = {"g": tensor(rng.normal(size=(4000, 400)))}
    start = time.process_time()
    sampler_findings(draws, 4)
    assert time.process_time() - start < 4
