"""Calibration of the backends and the planted bugs, at full size: hours of one core. See docs/calibration.md."""

from __future__ import annotations

import pytest

import pyromix as pmx
from pyromix.backends import workers
from pyromix.testing.sbc import by_backend
from pyromix.testing.sbc.bugs import planted
from pyromix.testing.sbc.campaign import Cell, calibrate
from pyromix.testing.sbc.controls import PAIRS, caught, wrong_cell
from pyromix.testing.sbc.models import FAMILIES, family_problem
from pyromix.testing.sbc.problem import RANKS
from pyromix.testing.sbc.report import table

pytestmark = [pytest.mark.slow, pytest.mark.statistical]
COUNT = 200
BACKENDS = {
    "nuts": lambda: pmx.NUTS(draws=4 * RANKS, tune=300, chains=1, cores=1),
    "nested-laplace": lambda: pmx.NestedLaplace(RANKS, evaluations=200, cores=1),
}
# simulations at which each is caught with room to spare; those that only change a prior's scale need the most
ENOUGH = {"prior scale x 1.25": 1000, "Jacobian missing": 100}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_is_calibrated(backend: str, family: str) -> None:
    """A quantity fails if it is flagged (p < 1e-3, three tests) at N = 200 and again at 400 fresh ones.

    False alarm: 9e-6 a quantity, 1e-4 a cell of 11, 6e-4 for all six.
    """
    cell = Cell(f"{backend}/{family}", family_problem(family), by_backend(BACKENDS[backend]()))
    verdict = calibrate(cell, COUNT, cores=workers.default_cores())
    print(table(verdict))
    assert verdict.failed == []
    assert verdict.health["errors"] == 0
    assert verdict.health["refused"] <= 0.02 * COUNT


@pytest.mark.parametrize("bug", planted(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug) -> None:
    right = Cell("right", bug.problem, by_backend(BACKENDS["nested-laplace"]()))
    cores = workers.default_cores()
    pairs = calibrate(right, PAIRS, cores=cores, confirm=False)
    verdict = calibrate(wrong_cell(bug, right), ENOUGH.get(bug.name, 50), cores=cores)
    found = caught(bug, verdict.simulations, pairs.simulations)
    print(found)
    assert found.at is not None
    assert found.shift[1] >= 0.2 or abs(found.ratio[1] - 1) >= 0.2
