"""Did a calibration catch a planted bug, from how many simulations on, and how far had the bug moved the posterior?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyromix.testing.sbc.bugs import Bug
from pyromix.testing.sbc.campaign import Cell, Simulation, judge

PAIRS = 30  # simulations that are fitted right as well, to see how far the bug moves the posterior
SIZES = (20, 30, 50, 100, 200, 300, 500, 700, 1000, 1500, 2000)


@dataclass(frozen=True)
class Caught:
    """What a planted bug did.

    Attributes
    ----------
    at
        The smallest N, out of `SIZES`, at which N simulations flag a quantity that 2N fresh ones flag again; ``None``
        if there is none.
    by
        The quantities it is caught by there.
    shift, ratio
        The largest root mean square shift of a posterior mean, in SDs of the right posterior, with its quantity; and
        the posterior SD's ratio, wrong over right, furthest from 1, geometric mean.
    """

    bug: str
    at: int | None
    by: list[str]
    shift: tuple[str, float]
    ratio: tuple[str, float]

    def __str__(self) -> str:
        found = "NOT CAUGHT" if self.at is None else f"caught at N = {self.at} by {', '.join(self.by)}"
        return (
            f"{self.bug:<26} {found}; moves {self.shift[0]} by {self.shift[1]:.2f} SD, "
            f"SD of {self.ratio[0]} x {self.ratio[1]:.2f}"
        )


def wrong_cell(bug: Bug, right: Cell) -> Cell:
    """The same cell with the bug in what is fitted."""
    return Cell(f"{right.name}, {bug.name}", bug.problem, bug.sampler(right.sampler), right.settings, right.seed)


def caught(bug: Bug, wrong: Sequence[Simulation], right: Sequence[Simulation]) -> Caught:
    """Compare simulations with the bug against those of the same numbers without."""
    shift, ratio = moved(wrong, right)
    for size in SIZES:
        if 3 * size <= len(wrong) and (failed := judge(bug.name, wrong, size).failed):
            return Caught(bug.name, size, failed, shift, ratio)
    return Caught(bug.name, None, [], shift, ratio)


def moved(wrong: Sequence[Simulation], right: Sequence[Simulation]) -> tuple[tuple[str, float], tuple[str, float]]:
    """Largest shift and ratio of SDs between simulations of the same numbers, each with its quantity."""
    by_number = {s["number"]: s["quantities"] for s in right if "quantities" in s}
    pairs = [(s["quantities"], by_number[s["number"]]) for s in wrong if s["number"] in by_number and "quantities" in s]
    shifts, ratios = {}, {}
    for name in pairs[0][0]:
        if name.startswith("log "):
            continue
        (mean, sd), (mean0, sd0) = (np.array([pair[k][name][2:] for pair in pairs]).T for k in (0, 1))
        shifts[name] = float(np.sqrt(np.mean(((mean - mean0) / sd0) ** 2)))
        ratios[name] = float(np.exp(np.mean(np.log(sd / sd0))))
    furthest = max(ratios, key=lambda name: abs(np.log(ratios[name])))
    most = max(shifts, key=lambda name: shifts[name])
    return (most, shifts[most]), (furthest, ratios[furthest])
