"""The benchmark harness: ratios, verdicts, missing peers; nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.cases import CASES, simulated
from benchmarks.growth import exponents

OURS = {
    "version": "pyromix",
    "times": [1.0, 2.0, 9.0],
    "first": 5.0,
    "model_times": [0.5, 0.5, 0.5],
    "first_model": 1.0,
    "loglik": -10.0,
    "peak_mb": 300.0,
}
PEER = {"version": "peer", "times": [20.0, 30.0, 10.0], "first": 21.0, "loglik": -10.5, "peak_mb": 100.0}


@pytest.mark.parametrize(("bound", "met"), [(0.10, True), (0.099, False)])
def test_ratio_is_of_medians_and_held_against_the_bound(bound: float, met: bool) -> None:
    case = harness.Case("c", "y ~ x", data=lambda: None, peers={"lme4": "c.R"}, bounds={"lme4": bound})
    text, outcome = harness.report(case, {"pyromix": OURS, "lme4": PEER})
    assert outcome is met
    assert "ratio to lme4: fit 0.100, model + fit 0.125; log-likelihood +0.5000" in text
    assert f"required: fit <= {bound:g}: {'met' if met else 'NOT MET'}" in text


@pytest.mark.parametrize(("limit", "met"), [(300.0, True), (299.0, False)])
def test_memory_is_held_against_its_limit(limit: float, met: bool) -> None:
    case = harness.Case("c", "y ~ x", data=lambda: None, max_mb=limit)
    text, outcome = harness.report(case, {"pyromix": OURS})
    assert outcome is met
    assert "peak memory 300 MB" in text


def test_a_peer_that_was_not_run_is_said_to_be_so() -> None:
    case = harness.Case("c", "y ~ x", data=lambda: None, peers={"lme4": "c.R"}, bounds={"lme4": 0.1})
    text, _ = harness.report(case, {"pyromix": OURS})
    assert "ratio to lme4: not run" in text


def test_missing_peers_end_a_benchmark_without_an_error(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("PYROMIX_PEERS_PYTHON", str(tmp_path / "no" / "python"))
    monkeypatch.setattr(harness.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--only-peers"])
    assert harness.main("verbagg") == 0
    out = capsys.readouterr().out
    assert "GPBoost: not run: GPBoost is not installed; run benchmarks/install_peers.sh" in out
    assert "glmmTMB: not run: R package glmmTMB is not installed" in out


def test_a_side_without_a_result_is_an_error_that_shows_its_output() -> None:
    with pytest.raises(harness.Failed, match="no luck"):
        harness.run_side([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_each_side_runs_on_one_thread() -> None:
    code = "import os; print('RESULT ' + str(os.environ['OMP_NUM_THREADS']))"
    assert harness.run_side([sys.executable, "-c", code]) == 1


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_script_of_a_case_exists(case: harness.Case) -> None:
    assert set(case.bounds) <= set(case.peers)
    assert all((harness.PEERS / script).is_file() for script in case.peers.values())


@pytest.mark.parametrize("name", ["insteval", "verbagg", "contraception", "sleepstudy"])
def test_data_of_a_case_have_the_columns_of_its_formula(name: str) -> None:
    case = CASES[name]
    df = case.data()
    assert {"insteval": 73421, "verbagg": 7584, "contraception": 1934, "sleepstudy": 180}[name] == len(df)
    assert all(column in case.formula for column in df.columns)
    if case.family == "Binomial":
        response = case.formula.split()[0]
        assert set(df[response]) == {0, 1}


def test_simulated_data_are_the_same_each_time_and_have_ten_rows_a_group() -> None:
    df = simulated(1000)
    assert df.equals(simulated(1000))
    assert set(df["group"].value_counts()) == {10}


def test_exponents_of_linear_and_quadratic_growth() -> None:
    assert exponents([1.0, 10.0, 1000.0]) == pytest.approx([1.0, 2.0])
