"""Random walks of first and second order, with a proper start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np
import torch

from pyromix.covariances.arguments import sd_parameter
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.chains import Chains, markov, read_chains
from pyromix.errors import ConfigError, StructureError
from pyromix.linalg.operators import PrecisionOperator
from pyromix.parameters import Argument, Parameter

EQUAL = 1e-9  # steps that differ by less, relative to the first, are equal: times such as 0.1, 0.2, 0.3


class RandomWalk(Covariance):
    r"""Random walk over time: independent increments (order 1), or independent changes of slope (order 2).

    Order 1, d_i the time since the level before (any times; `sd` is that of an increment over one unit of time):

    .. math:: u_i - u_{i-1} \sim N(0, sd^2 d_i), \qquad u_1 \sim N(0, (start\,sd)^2)

    Order 2, at equally spaced times (`sd` is that of a second difference at that spacing):

    .. math:: u_i - 2u_{i-1} + u_{i-2} \sim N(0, sd^2), \qquad u_2 - u_1 \sim N(0, (slope\,sd)^2), \qquad
        u_1 \sim N(0, (start\,sd)^2)

    :math:`\Sigma = sd^2 P^{-1}`, where P is banded (one or two bands below the diagonal), positive definite, and a
    constant; its determinant is the product of these variances. Costs are linear in the number of levels.

    A level is a time, or a pair (series, time); each series is a walk of its own. Times are the ``coords`` of the
    effect, one per level, or, where there are none, the labels of its levels, in any order. Terms of a level are
    independent, with the same SD.

    INLA's ``rw1`` and ``rw2`` and mgcv's penalties are intrinsic: they leave the level (and the slope) free, and
    constrain the sum to zero against the intercept. This one is proper, so that it can be drawn from and compared.
    ``start=1`` lets the walk set out from zero one unit before its first level; the model's intercept then is the
    value there. Under restricted likelihood with an intercept, estimates do not depend on `start`; for order 2 with a
    linear predictor of time as well, they depend neither on `start` nor on `slope`. ``slope=1000`` leaves the slope
    of order 2 practically free; where time is a linear predictor too, take ``slope=1``.

    The prior of a level later than the last is the walk going on, so it can be forecast. A level before the first
    one has none: it would move the start, and is refused.

    Parameters
    ----------
    order
        1 or 2.
    sd
        Standard deviation of an increment, or of a change of slope, >= 0: a number fixes it, a distribution is its
        prior; by default HalfNormal(scale 10). It is not the SD of an effect, which grows with time.
    start
        SD of the first level, in units of `sd`.
    slope
        SD of the first step, in units of `sd`; order 2 only.

    Raises
    ------
    ConfigError
        Another `order`, a negative SD, a `start` or `slope` that is no positive number.
    StructureError
        Where the effect is used: levels that are no times, two levels at one time of a series, unequal steps with
        order 2; where it is predicted, a level before the start of a walk.
    """

    def __init__(self, order: int = 1, sd: Argument = None, start: float = 1.0, slope: float = 1000.0) -> None:
        if isinstance(order, bool) or order not in (1, 2):
            raise ConfigError(f"RandomWalk(order={order!r}): choose 1 or 2.")
        for name, value in (("start", start), ("slope", slope)):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
                raise ConfigError(f"RandomWalk({name}={value!r}): pass a positive number, in units of sd.")
        self.order = order
        self.sd = sd
        self.start = start
        self.slope = slope
        self.parameters(Coords((), ("Intercept",)))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return (sd_parameter(self.sd, "RandomWalk"),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> PrecisionOperator:
        sd, chains = theta["sd"], read_chains(coords, "RandomWalk")
        _refuse_earlier(chains, coords)
        place = chains.position
        variance = np.where(place == 0, float(self.start) ** 2, chains.gap if self.order == 1 else 1.0)
        coefs = [np.where(place > 0, 1.0, 0.0)]
        if self.order == 2:
            _require_equal(chains, coords)
            variance = np.where(place == 1, float(self.slope) ** 2, variance)
            coefs = [np.where(place > 1, 2.0, coefs[0]), np.where(place > 1, -1.0, 0.0)]
        precision = markov(chains, [torch.from_numpy(c) for c in coefs], torch.from_numpy(variance))
        return PrecisionOperator(precision, sd * torch.eye(len(coords.terms), dtype=sd.dtype))


def _refuse_earlier(chains: Chains, coords: Coords) -> None:
    """A level to be predicted that lies before the start of a walk that was fitted."""
    if coords.known is None or coords.known == len(coords.levels):
        return
    fresh = chains.order >= coords.known
    followed = np.isin(chains.series, chains.series[~fresh])
    bad = np.flatnonzero((chains.position == 0) & fresh & followed)
    if len(bad):
        at = int(bad[0])
        start = at + int(np.flatnonzero(~fresh[at:])[0])
        a, b = (coords.levels[chains.order[k]] for k in (at, start))
        raise StructureError(
            f"RandomWalk: level {a!r} lies before {b!r}, where the walk starts: it has no prior. "
            "Predict later levels, fit with a level there (RandomEffect(levels=...)), or use new_groups='zero'."
        )


def _require_equal(chains: Chains, coords: Coords) -> None:
    steps = np.flatnonzero(chains.linked)
    if not len(steps):
        return
    first = chains.gap[steps[0]]
    bad = steps[abs(chains.gap[steps] - first) > EQUAL * max(first, abs(chains.time).max())]
    if len(bad):
        at = int(bad[0])
        a, b = (coords.levels[chains.order[k]] for k in (at - 1, at))
        raise StructureError(
            f"RandomWalk(order=2): levels {a!r} and {b!r} are {chains.gap[at]:g} apart, others {first:g}; it needs "
            "equal steps. "
            + (
                "Give the effect a level for every step (levels=...), with or without rows, or use order=1."
                if coords.known is None
                else "Predict the steps between as well."
            )
        )
