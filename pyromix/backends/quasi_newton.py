"""Maximise a marginal likelihood over a few hyper-parameters by a quasi-Newton method with exact gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch.distributions import constraints
from tqdm import tqdm

from pyromix.backends.chart import Chart, Entry, FactorEntry, optimiser_entry
from pyromix.backends.journal import Journal
from pyromix.backends.scales import Scale
from pyromix.errors import NumericalError
from pyromix.marginal.base import BoundMarginal
from pyromix.running import Program, Record, Site, run

DIFFERENCE = 5e-3  # of a standard error: the step of the differences that give the Hessian
LARGE = 100_000  # observations
FAR = 1e10  # added to the objective where it cannot be computed
PATIENCE = 0.5  # seconds before a progress bar appears


@dataclass
class Objective:
    """Minus the log marginal likelihood (plus log prior, for MAP) as a function of scaled coordinates.

    ``t`` is measured in approximate standard errors from ``origin`` on the chart.
    """

    program: Program
    args: tuple[Any, ...]
    bound: BoundMarginal
    chart: Chart
    origin: np.ndarray
    unit: np.ndarray
    fixed: Mapping[str, torch.Tensor]
    penalty: Callable[[Record], torch.Tensor] | None = None
    evaluations: int = 0
    failure: str = ""
    on_evaluation: Callable[[float], None] | None = None
    best: float = field(default=float("inf"))
    journal: Journal | None = None

    def flat(self, t: np.ndarray) -> torch.Tensor:
        """Chart coordinates of a scaled vector."""
        flat = self.origin + self.unit * t
        flat[np.abs(flat) < 1e-14 * np.abs(self.origin)] = 0.0  # a variance put at zero, up to rounding
        return torch.from_numpy(flat)

    def record(self, flat: torch.Tensor) -> Record:
        """A run of the program there."""
        return run(self.program, self.args, {**self.fixed, **self.chart.values(flat)})

    @torch.enable_grad()  # standard errors may be asked for where the caller has switched gradients off
    def __call__(self, t: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        answer = None if self.journal is None else self.journal.known(t)
        if answer is None:
            answer = self._evaluate(t)
            if self.journal is not None:
                self.journal.add(t, *answer)
        loss, slope = answer
        self.best = min(self.best, loss)
        if self.on_evaluation is not None and loss < FAR:
            self.on_evaluation(loss)
        return loss, slope

    @torch.enable_grad()
    def _evaluate(self, t: np.ndarray) -> tuple[float, np.ndarray]:
        flat = self.flat(t).requires_grad_(True)
        try:
            record = self.record(flat)
            value = -self.bound.log_marginal(record)
            if self.penalty is not None:
                value = value - self.penalty(record)
            gradient = torch.autograd.grad(value, flat)[0] if flat.numel() else torch.zeros_like(flat)
            loss, slope = float(value.detach()), gradient.numpy() * self.unit
            if not np.isfinite(loss) or not np.isfinite(slope).all():
                raise NumericalError("the marginal likelihood or its gradient is not finite")
        except NumericalError as error:
            self.failure = str(error)
            return min(self.best, FAR) + FAR, np.zeros(self.chart.size)
        return loss, slope

    def hessian(self, t: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Second derivatives at t, where the gradient is given, by differences of the gradient, symmetrised.

        Central differences; from `LARGE` observations on one-sided ones, whose error is a skewness that has vanished.
        """
        size = len(t)
        large = self.bound.plan.n_obs >= LARGE
        rows = np.empty((size, size))
        for k in range(size):
            step = np.zeros(size)
            step[k] = DIFFERENCE
            if large:
                rows[k] = (self(t + step)[1] - gradient) / DIFFERENCE
            else:
                rows[k] = (self(t + step)[1] - self(t - step)[1]) / (2 * DIFFERENCE)
        return 0.5 * (rows + rows.T)


@dataclass
class Optimum:
    """Where the search ended, in scaled coordinates."""

    t: np.ndarray
    loss: float
    gradient: np.ndarray
    inverse: np.ndarray
    evaluations: int
    message: str
    hessian: np.ndarray | None = None

    @property
    def decrement(self) -> float:
        """``g^T H^-1 g``: twice the log-likelihood still to be gained, by the quadratic model."""
        return float(self.gradient @ self.inverse @ self.gradient)


def make_chart(
    sites: Mapping[str, Site],
    scales: Mapping[str, Scale],
    rotations: Mapping[str, torch.Tensor],
    supports: Mapping[str, constraints.Constraint],
    factors: Sequence[FactorEntry],
) -> tuple[Chart, np.ndarray]:
    """The optimiser's chart of the given sites, and the approximate standard error of every coordinate."""
    entries: list[Entry | FactorEntry] = []
    units = []
    paired = {name: entry for entry in factors for name in (entry.sd, entry.corr)}
    for name, site in sites.items():
        count = max(scales[name].units, 1.0)
        if name in paired:
            entry = paired[name]
            if entry not in entries:
                entries.append(entry)
                row, col = entry.rows.numpy()
                units.append(np.where(row == col, 1 / np.sqrt(2 * count), 1 / np.sqrt(count)))
            continue
        entry = optimiser_entry(site, supports[name], scales[name].size, rotations.get(name))
        entries.append(entry)
        size = {"linear": 1.0, "boundary": 1 / np.sqrt(2 * count), "positive": 1 / np.sqrt(2 * count)}
        units.append(np.full(entry.size, size.get(entry.kind, 1 / np.sqrt(count))))
    return Chart(entries), np.concatenate(units) if units else np.empty(0)


def maximise(
    objective: Objective, *, max_evaluations: int, tolerance: float, progress: bool, start: np.ndarray | None = None
) -> Optimum:
    """BFGS from the origin, or `start`, until the gradient, in standard errors, is below `tolerance`."""
    size = objective.chart.size
    start = np.zeros(size) if start is None else start
    if size == 0:
        loss, gradient = objective(start)
        return Optimum(start, loss, gradient, np.eye(0), 1, "nothing to maximise", np.eye(0))
    with tqdm(desc="maximum likelihood", unit=" evaluations", disable=not progress, delay=PATIENCE, leave=False) as bar:
        objective.on_evaluation = lambda loss: (
            bar.set_postfix_str(f"log-likelihood {-loss:.3f}", refresh=False),
            bar.update(),
        )
        result = minimize(
            objective, start, jac=True, method="BFGS", options={"gtol": tolerance, "maxiter": max_evaluations}
        )
        objective.on_evaluation = None
    optimum = Optimum(
        result.x, float(result.fun), result.jac, result.hess_inv, objective.evaluations, str(result.message)
    )
    return _last_step(objective, optimum)


def _last_step(objective: Objective, optimum: Optimum) -> Optimum:
    """One more step by BFGS's own model of the curvature: an evaluation for about a digit."""
    t = optimum.t - optimum.inverse @ optimum.gradient
    loss, gradient = objective(t)
    if not loss <= optimum.loss or np.abs(gradient).max() > np.abs(optimum.gradient).max():
        return optimum
    return Optimum(t, loss, gradient, optimum.inverse, objective.evaluations, optimum.message)


def polish(objective: Objective, optimum: Optimum, steps: int = 3) -> Optimum:
    """Newton steps on the differenced Hessian, which is kept; a few are enough after BFGS."""
    for _ in range(steps):
        hessian = objective.hessian(optimum.t, optimum.gradient)
        optimum.hessian = hessian
        try:
            np.linalg.cholesky(hessian)
        except np.linalg.LinAlgError:
            return optimum
        optimum.inverse = np.linalg.inv(hessian)
        if optimum.decrement < 1e-9:
            return optimum
        t = optimum.t - optimum.inverse @ optimum.gradient
        loss, gradient = objective(t)
        if not loss <= optimum.loss:
            return optimum
        optimum = Optimum(t, loss, gradient, optimum.inverse, objective.evaluations, optimum.message, hessian)
        if optimum.decrement < 1e-9:
            return optimum
    return optimum
