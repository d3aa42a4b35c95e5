r"""Proposals for posteriors with long tails, such as those that reach a variance of zero.

On the scale of its logarithm a variance that the data do not keep away from zero has a tail to the left which falls off
as the prior's volume alone: exponentially, over many widths of the mode. Out there the effect is gone, and the other
hyper-parameters are distributed as in the model without it. The same holds of correlations that may be perfect. One
component per such tail says just that: a two-sided exponential about the point where the tail begins, times a Student-t
of the others about their mode there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pyromix.backends.proposals import DIFFERENCE, MANY, Density, SplitStudent

FIRST, STRIDE = 3.5, 1.4  # standard deviations from the mode that are looked at first, and the growth from then on
LOOKS = 10
NEGLIGIBLE = 9.0  # fall of the log density, with the others at their best, beyond which no tail is looked for
STEADY = 0.15  # relative change of the tail's rate between two looks, below which it will not change
BEGUN = 3.0  # times that rate: where it is below, the tail has begun
HEAVIER = 0.7  # of the tail's rate: the proposal's
DF = 6.0  # degrees of freedom of the other parameters


@dataclass(frozen=True)
class Boundary:
    """``t_k - edge`` two-sided exponential, the other coordinates a Student-t independent of it.

    Attributes
    ----------
    k, edge, sign
        The coordinate, where its tail begins, and on which side of the mode it is (1 or -1).
    out, back
        Rates of the exponentials away from the mode and towards it.
    others
        Proposal of the other coordinates, in their order.
    log_mass
        Log of the mass that the tail adds, on the density's scale.
    """

    k: int
    edge: float
    sign: int
    out: float
    back: float
    others: SplitStudent
    log_mass: float

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, d)."""
        outside = rng.random(n) < self.back / (self.out + self.back)
        size = rng.exponential(size=n)
        along = self.edge + self.sign * np.where(outside, size / self.out, -size / self.back)
        return np.insert(self.others.draw(n, rng), self.k, along, axis=1)

    def log_density(self, t: np.ndarray) -> np.ndarray:
        """Log density at t (n, d)."""
        away = self.sign * (t[:, self.k] - self.edge)
        level = math.log(self.out * self.back / (self.out + self.back))
        along = level - np.where(away > 0, self.out * away, -self.back * away)
        return along + self.others.log_density(np.delete(t, self.k, axis=1))


def boundaries(
    density: Density, mode: np.ndarray, root: np.ndarray, top: float, among: np.ndarray
) -> Iterator[Boundary]:
    """A component for every long tail, on either side, of a coordinate `among` these.

    Parameters
    ----------
    density
        Log density and gradient at t (d,).
    mode, root, top
        The mode, a root of the inverse of minus the Hessian there, and the log density.
    """
    if not 1 < len(mode) <= MANY:
        return
    covariance = root @ root.T
    for k in among:
        for sign in (-1, 1):
            found = _tail(density, mode, covariance, top, int(k), sign)
            if found is not None:
                yield found


def _tail(density: Density, mode: np.ndarray, covariance: np.ndarray, top: float, k: int, sign: int) -> Boundary | None:
    sd = math.sqrt(covariance[k, k])
    if not top - density(mode + sign * FIRST * covariance[k] / sd)[0] < NEGLIGIBLE:
        return None
    rest = np.delete(np.arange(len(mode)), k)
    half = np.linalg.cholesky(np.linalg.inv(np.linalg.inv(covariance)[np.ix_(rest, rest)]))
    looks: list[tuple[np.ndarray, float, float]] = []
    point, distance = mode, FIRST
    for _ in range(LOOKS):
        moved = point.copy()
        moved[k] = mode[k] + sign * distance * sd
        best = _climbed(density, moved, k, rest, half)
        if best is None or top - best[1] > NEGLIGIBLE:
            return None
        point, value, slope = best
        rate = -sign * slope
        steady = bool(looks) and rate > 0 and abs(rate - looks[-1][2]) < STEADY * rate
        looks.append((point, value, rate))
        if steady:
            start, value, _ = next(look for look in looks if look[2] < BEGUN * rate)
            return _component(density, mode, start, value, rate, k, sign, half)
        distance *= STRIDE
    return None


def _climbed(
    density: Density, start: np.ndarray, k: int, rest: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, float, float] | None:
    """The best point over the other coordinates, its log density, and its slope in the one that is held."""

    def at(w: np.ndarray) -> np.ndarray:
        t = start.copy()
        t[rest] += half @ w
        return t

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density(at(w))
        return (-value, -half.T @ gradient[rest]) if np.isfinite(value) else (1e300, np.zeros(len(w)))

    result = minimize(loss, np.zeros(len(rest)), jac=True, method="L-BFGS-B", options={"maxiter": 30, "gtol": 1e-2})
    if result.fun >= 1e299:
        return None
    found = at(result.x)
    value, gradient = density(found)
    return found, value, float(gradient[k])


def _component(
    density: Density,
    mode: np.ndarray,
    point: np.ndarray,
    value: float,
    rate: float,
    k: int,
    sign: int,
    half: np.ndarray,
) -> Boundary | None:
    rest = np.delete(np.arange(len(mode)), k)
    hessian = np.empty((len(rest), len(rest)))
    for j, column in enumerate(half.T):  # a step of the size that each direction had at the mode
        move = np.zeros(len(mode))
        move[rest] = DIFFERENCE * column
        hessian[j] = half.T @ (density(point - move)[1] - density(point + move)[1])[rest] / (2 * DIFFERENCE)
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    if not np.isfinite(values).all() or values[0] <= 0:
        return None
    others = SplitStudent.symmetric(point[rest], half @ (vectors / np.sqrt(values)), DF)
    mass = value - math.log(rate) + np.linalg.slogdet(others.root)[1] + 0.5 * len(rest) * math.log(2 * math.pi)
    back = 2.0 / abs(mode[k] - point[k])  # what lies nearer to the mode is the other proposals'
    return Boundary(k, float(point[k]), sign, HEAVIER * rate, back, others, float(mass))
