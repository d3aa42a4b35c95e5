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
MAX_BENDS = 100  # pairs of hyper-parameters whose second derivatives are worth a mode search each


class WarmStart:
    """The mode of the effects as a polynomial in the hyper-parameters: two to three Newton steps saved of five.

    Quadratic for few hyper-parameters, else linear. Evaluations made through it do not depend on their order, so that
    work may be shared out.
    """

    def __init__(self, posterior: HyperPosterior, mode: Mode) -> None:
        self.mode = mode
        self.laplace = _laplace(posterior.bound)
        self.inverse = np.linalg.inv(mode.root) if len(mode.root) else mode.root
        self.origin: Arrays = []
        self.slopes: Arrays = []
        self._rows, self._cols = np.tril_indices(posterior.size)
        if self.laplace is None:
            return
        self.laplace.forget()
        self.origin = _mode(self.laplace, posterior, mode.t) or []
        effects, size = sum(x.size for x in self.origin), posterior.size
        if 0 < effects * size <= MAX_ENTRIES:
            pairs = size * (size + 1) // 2
            bent = pairs <= MAX_BENDS and effects * (size + pairs) <= MAX_ENTRIES
            columns = self._columns(self.laplace, posterior, bent)
            self.slopes = [np.stack(parts, axis=-1) for parts in zip(*columns, strict=True)]

    def __call__(self, t: np.ndarray) -> None:
        """Put the next mode search on its way."""
        if self.laplace is None or not self.origin:
            return
        self.laplace.decrement = COARSE
        self.laplace.warm = self.origin
        if self.slopes:
            w = self.inverse @ (t - self.mode.t)
            powers = np.concatenate([w, w[self._rows] * w[self._cols]])[: self.slopes[0].shape[-1]]
            moves = [
                slope.reshape(-1, len(powers)) @ powers for slope in self.slopes
            ]  # many small products take longer
            self.laplace.warm = [x + move.reshape(x.shape) for x, move in zip(self.origin, moves, strict=True)]

    def _columns(self, laplace: BoundLaplace, posterior: HyperPosterior, bent: bool) -> list[Arrays]:
        """Coefficients of every ``w_k`` and, if `bent`, of every ``w_k w_l`` with k >= l, by differences."""

        def at(*which: int, sign: float = 1.0) -> Arrays | None:
            laplace.warm = self.origin
            return _mode(laplace, posterior, self.mode.t + sign * STEP * self.mode.root[:, list(which)].sum(1))

        nothing = [np.zeros_like(x) for x in self.origin]
        up, down = ([at(k, sign=sign) for k in range(posterior.size)] for sign in (1.0, -1.0))

        def combined(*parts: tuple[float, Arrays | None]) -> Arrays:
            found = [(factor, part) for factor, part in parts if part is not None]
            if len(found) < len(parts):  # no density there
                return nothing
            return [sum(f * x[k] for f, x in found) for k in range(len(self.origin))]  # type: ignore[misc]

        slope, bend = 0.5 / STEP, STEP**-2
        columns = [combined((slope, one), (-slope, other)) for one, other in zip(up, down, strict=True)]
        if not bent:
            return columns
        for k in range(posterior.size):
            for j in range(k):
                both = at(k, j)
                columns.append(combined((bend, both), (-bend, up[k]), (-bend, up[j]), (bend, self.origin)))
            columns.append(combined((0.5 * bend, up[k]), (0.5 * bend, down[k]), (-bend, self.origin)))
        return columns


def _mode(laplace: BoundLaplace, posterior: HyperPosterior, t: np.ndarray) -> Arrays | None:
    """The effects' mode at t, as the mode search leaves it; ``None`` where there is no density."""
    value, _ = posterior.log_density(t)
    return laplace.warm if np.isfinite(value) else None


def _laplace(bound: BoundMarginal) -> BoundLaplace | None:
    """The mode search inside a marginaliser, if it has one."""
    if isinstance(bound, BoundQuadrature):
        return bound.laplace
    return bound if isinstance(bound, BoundLaplace) else None
