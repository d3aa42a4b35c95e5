"""Damped Newton ascent for concave-looking functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyromix.errors import NumericalError

DECREMENT = 1e-20  # of g^T A^-1 g; log|A| and gradients are off by its square root, in standard deviations
FLOOR = 1e-9  # relative decrement below which a value cannot be trusted to show the improvement
ROUNDING = 1e-12  # relative loss of value that is put down to rounding there
MAX_STEPS = 100
MAX_HALVINGS = 40


class Point(Protocol):
    """A position with its value and Newton direction; `factor` is made on demand."""

    value: float

    def direction(self) -> tuple[Any, float]:
        """Newton direction and decrement ``g^T A^-1 g``."""

    def moved(self, direction: Any, step: float) -> Point:
        """The point a fraction of the direction away."""


def ascend(start: Point, restart: Callable[[], Point] | None = None, decrement: float = DECREMENT) -> Point:
    """Climb to the mode, until ``g^T A^-1 g`` is below `decrement` (times the root of the value's size).

    A full step is taken while it raises the value; otherwise it is halved. A start that is not finite, or that gets
    nowhere, is abandoned for ``restart()`` once.

    Raises
    ------
    NumericalError
        No mode was reached.
    """
    point, problem = _climb(start, decrement)
    if point is None and restart is not None:
        point, problem = _climb(restart(), decrement)
    if point is None:
        raise NumericalError(f"the mode of the random effects was not found: {problem}.")
    return point


def _climb(point: Point, enough: float) -> tuple[Point | None, str]:
    if not _finite(point.value):
        return None, f"the log density at the start is {point.value}"
    last = float("inf")
    for _ in range(MAX_STEPS):
        direction, decrement = point.direction()
        size = 1 + abs(point.value)
        if not _finite(decrement):
            return None, "a Newton direction is not finite"
        close = decrement <= FLOOR * size
        if decrement <= enough * size**0.5 or (close and decrement >= 0.25 * last):
            return point, ""  # at the mode, or as near as rounding allows
        slack = ROUNDING * size if close else -1e-4 * decrement
        step, trial = 1.0, point.moved(direction, 1.0)
        for _ in range(MAX_HALVINGS):
            if _finite(trial.value) and trial.value >= point.value - slack * step:
                break
            step *= 0.5
            trial = point.moved(direction, step)
        else:
            return None, f"no step along the Newton direction helps (decrement {decrement:.3g})"
        point, last = trial, decrement
    return None, f"{MAX_STEPS} Newton steps were not enough"


def _finite(value: float) -> bool:
    return value - value == 0.0
