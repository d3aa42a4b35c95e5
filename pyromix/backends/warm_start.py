"""Where mode searches start at hyper-parameters near the posterior mode."""

from __future__ import annotations

import numpy as np

from pyromix.backends.hyper_posterior import HyperPosterior, Mode
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.quadrature import BoundQuadrature

Arrays = list[np.ndarray]

STEP = 0.5  # posterior standard deviations
COARSE = 1e-10  # decrement: the log marginal is then right to some 1e-5
MAX_ENTRIES = 20_000_000  # of the slopes


class WarmStart:
    """The mode of the effects as a linear function of the hyper-parameters: one to two Newton steps saved of five.

    Evaluations made through it do not depend on their order, so that work may be shared out.
    """

    def __init__(self, posterior: HyperPosterior, mode: Mode) -> None:
        self.mode = mode
        self.laplace = _laplace(posterior.bound)
        self.inverse = np.linalg.inv(mode.root) if len(mode.root) else mode.root
        self.origin: Arrays = []
        self.slopes: Arrays = []
        if self.laplace is None:
            return
        self.laplace.forget()
        self.origin = _mode(self.laplace, posterior, mode.t) or []
        effects = sum(x.size for x in self.origin)
        if 0 < effects * posterior.size <= MAX_ENTRIES:
            columns = [self._slope(self.laplace, posterior, k) for k in range(posterior.size)]
            self.slopes = [np.stack(parts, axis=-1) for parts in zip(*columns, strict=True)]

    def __call__(self, t: np.ndarray) -> None:
        """Put the next mode search on its way."""
        if self.laplace is None or not self.origin:
            return
        self.laplace.decrement = COARSE
        self.laplace.warm = self.origin
        if self.slopes:
            w = self.inverse @ (t - self.mode.t)
            self.laplace.warm = [x + slope @ w for x, slope in zip(self.origin, self.slopes, strict=True)]

    def _slope(self, laplace: BoundLaplace, posterior: HyperPosterior, k: int) -> Arrays:
        sides = []
        for sign in (1.0, -1.0):
            laplace.warm = self.origin
            sides.append(_mode(laplace, posterior, self.mode.t + sign * STEP * self.mode.root[:, k]))
        up, down = sides
        if up is None or down is None:
            return [np.zeros_like(x) for x in self.origin]
        return [(one - other) / (2 * STEP) for one, other in zip(up, down, strict=True)]


def _mode(laplace: BoundLaplace, posterior: HyperPosterior, t: np.ndarray) -> Arrays | None:
    """The effects' mode at t, as the mode search leaves it; ``None`` where there is no density."""
    value, _ = posterior.log_density(t)
    return laplace.warm if np.isfinite(value) else None


def _laplace(bound: BoundMarginal) -> BoundLaplace | None:
    """The mode search inside a marginaliser, if it has one."""
    if isinstance(bound, BoundQuadrature):
        return bound.laplace
    return bound if isinstance(bound, BoundLaplace) else None
