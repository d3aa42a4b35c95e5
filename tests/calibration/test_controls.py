"""Planted bugs change what is fitted in the way they say; the command's table, figure, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pyromix.running import run
from pyromix.testing.sbc import draw
from pyromix.testing.sbc.__main__ import main
from pyromix.testing.sbc.bugs import planted
from pyromix.testing.sbc.campaign import Cell, _append, judge
from pyromix.testing.sbc.controls import caught, moved
from pyromix.testing.sbc.models import family_problem
from pyromix.testing.sbc.problem import _log_likelihood, _log_prior

BUGS = {bug.name: bug for bug in planted()}


def test_all_eight_are_there() -> None:
    assert len(BUGS) == 8


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_changes_the_density_and_its_right_twin_does_not(name: str) -> None:
    bug = BUGS[name]
    truth, data = draw(bug.problem, 2)
    right = run(bug.problem.program, (data,), truth)
    wrong = run(bug.program(bug.problem.program), (bug.data(data),), truth)
    sd = truth["g.sd"]
    likelihood = float(_log_likelihood(wrong) - _log_likelihood(right))
    prior = float(_log_prior(wrong) - _log_prior(right))
    # what the change of the log prior must be, by hand; None: it is the likelihood that changes
    levels, u = data.groups, truth["g"]
    variance = -levels / 2 * sd.log() - 0.5 * (u**2).sum() / sd + levels * sd.log() + 0.5 * (u**2).sum() / sd**2
    expected = {
        "Jacobian missing": -sd.log(),
        # Gamma(2, r): 2 log r - r x
        "prior scale x 1.25": -2 * np.log(1.25) + (2 / 0.7) * sd * (1 - 1 / 1.25),
        "sd taken for a variance": variance,
    }.get(name)
    if expected is None:
        assert prior == 0 and abs(likelihood) > 0.1
    else:
        assert likelihood == 0 and prior == pytest.approx(float(expected), rel=1e-9)


def test_a_likelihood_that_is_dropped_is_flat() -> None:
    bug = BUGS["likelihood dropped"]
    truth, data = draw(bug.problem, 2)
    program, data = bug.problem.program, bug.data(data)
    places = [truth | {"beta": torch.full((2,), b, dtype=torch.float64)} for b in (-2.0, 2.0)]
    values = [float(_log_likelihood(run(program, (data,), place))) for place in places]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def _synthetic(rng: np.random.Generator, count: int, scale: float) -> list[dict]:
    """Posteriors N(0, 1) for truths from it, given as too narrow or too wide."""
    found = []
    for k in range(count):
        rank = int((scale * rng.standard_normal(99) < rng.standard_normal()).sum())
        found.append({"number": k, "cpu": 0.5, "khat": 0.1, "quantities": {"a": [rank, 0.0, scale - 1, scale]}})
    return found


@pytest.mark.statistical
def test_a_bug_is_caught_from_some_number_of_simulations_on(rng: np.random.Generator) -> None:
    right = _synthetic(rng, 30, 1.0)
    wrong = caught(BUGS["weights ignored"], _synthetic(rng, 300, 0.5), right)
    assert wrong.at in (20, 30, 50, 100) and wrong.by == ["a"]
    assert wrong.shift == ("a", pytest.approx(0.5)) and wrong.ratio == ("a", pytest.approx(0.5))
    assert "caught at N =" in str(wrong)
    # false alarm 3e-6
    none = caught(BUGS["weights ignored"], _synthetic(rng, 300, 1.0), right)
    assert none.at is None and "NOT CAUGHT" in str(none)
    assert moved(right, right) == (("a", 0.0), ("a", 1.0))


# -- the command -------------------------------------------------------------------------------------------------------
def _folder(folder: Path, rng: np.random.Generator, scale: float) -> list[str]:
    cell = Cell("nested-laplace/poisson", family_problem("poisson"), lambda *_: None, "evaluations=200")
    for simulation in _synthetic(rng, 150, scale):
        _append(cell, folder, simulation)
    return ["--backend", "nested-laplace", "--family", "poisson", "-n", "50", "--report-only", "--out", str(folder)]


def test_the_report_of_what_a_folder_has(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    assert main(_folder(tmp_path, rng, 1.0)) == 0
    said = capsys.readouterr().out
    assert "nested-laplace/poisson" in said and "150 fits, 0 failed" in said and "k-hat <= 0.7: 100.0 %" in said
    written = json.loads((tmp_path / "nested-laplace-poisson.json").read_text())
    assert written["failed"] == [] and written["first"]["a"]["count"] == 50
    assert (tmp_path / "nested-laplace-poisson.png").read_bytes()[:4] == b"\x89PNG"


def test_a_confirmed_failure_is_the_exit_status(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    assert main(_folder(tmp_path, rng, 0.5)) == 1
    assert "FAILED (again on fresh seeds)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "mcmc"], "--backend mcmc: choose from nuts"),
        (["--backend", "nested-laplace", "--bugs", "typo"], "--bugs 'typo': choose from 'likelihood dropped'"),
    ],
)
def test_an_unknown_name_is_told(arguments: list[str], said: str, capsys) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_counts_out_of_range_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["-n", "3"])
    assert "at least 10" in capsys.readouterr().err


def test_health_is_counted() -> None:
    simulations = [
        {"number": 0, "error": "E: e"},
        {"number": 1, "refused": "r"},
        {"number": 2, "cpu": 1.0, "rhat": 1.005, "tail": 60.0, "khat": None, "quantities": {"a": [3, 0, 0, 1]}},
        {"number": 3, "cpu": 3.0, "rhat": 1.02, "tail": 40.0, "khat": None, "quantities": {"a": [4, 0, 0, 1]}},
    ]
    health = judge("c", simulations, 10).health
    assert {k: health[k] for k in ("fits", "errors", "refused", "rhat", "tail", "cpu")} == {
        "fits": 2,
        "errors": 1,
        "refused": 1,
        "rhat": 0.5,
        "tail": 0.5,
        "cpu": 2.0,
    }
    assert np.isnan(health["khat"])
