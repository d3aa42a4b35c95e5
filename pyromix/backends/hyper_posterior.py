r"""The posterior of the hyper-parameters with the random effects integrated out.

.. math:: \log \pi(t) = \log p(y \mid \theta(t)) + \log p(\theta(t)) + \log |d\theta / dt|

in unconstrained coordinates t: log SDs, transformed correlations, coefficients on columns of unit curvature. Near its
mode it is close to a Gaussian, which is what `NestedLaplace` samples and what `NUTS` starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributions import biject_to, constraints

from pyromix.backends.chart import FactorEntry
from pyromix.backends.maximum_likelihood import MaximumLikelihood, Search
from pyromix.backends.point import loose_coordinates
from pyromix.backends.quasi_newton import FAR, Objective, Optimum
from pyromix.backends.training import Trained
from pyromix.compile import cheapest
from pyromix.errors import NumericalError
from pyromix.marginal import AbstractMarginal, Exact, Laplace
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.correction import corrected
from pyromix.marginal.plan import Plan, data_of
from pyromix.marginal.traced import TracedRuns, trace_runs
from pyromix.running import Program, Record, Site, run

LONG, FALL = 1.5, 3.0  # SDs of logarithms and logits that are checked, and the fall at one SD that is allowed
STEEPEST = 1e6  # posterior SDs: a direction in which the curvature at the mode is less than this is taken as flat


def default_marginal(program: Program, args: tuple[Any, ...], plan: Plan) -> AbstractMarginal:
    """Exact where it can be, else Laplace's approximation."""
    role = data_of(run(program, args, hypers="moderate", seed=0))
    gaussian = role.family.gaussian_sd(**role.dispersion) is not None
    return Exact() if gaussian and plan.affine else Laplace()


class HyperPosterior:
    """The log posterior density of all hyper-parameters, and its mode.

    Attributes
    ----------
    size
        Number of coordinates.
    bound
        The marginaliser on this program and data.
    """

    def __init__(
        self, marginal: AbstractMarginal, program: Program, args: tuple[Any, ...], plan: Plan, trained: Trained | None
    ) -> None:
        backend = MaximumLikelihood(marginal, criterion="map")
        self._search = _PosteriorSearch(backend, marginal, program, args, plan, trained)
        self.objective: Objective = self._search.objective
        self.bound: BoundMarginal = self._search.bound
        self.size = self.objective.chart.size

        self._traced: TracedRuns | None = None

    def trace(self, evaluations: int, gradients: bool) -> None:
        """From now on run a traced graph in place of the program, if it can be traced.

        Parameters
        ----------
        evaluations, gradients
            How many there will be, about, and whether with gradients: compiling has to pay.
        """
        search = self._search
        if search.plan.affine and cheapest(evaluations) == "compiled":
            self.bound.compile(self.record(np.zeros(self.size)))
        if self._traced is None and search.plan.affine and not search.plan.moving:
            self._traced = trace_runs(
                search.program, search.args, self._values, search.log_jacobian, self.size, evaluations, gradients
            )

    def __call__(self, t: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and gradient; -inf with a zero gradient where it cannot be computed."""
        point = torch.from_numpy(np.array(t))
        quick = None if self._traced is None else self._traced.value_and_gradient(point, self.bound)
        if quick is not None:
            value, slope = quick[0], quick[1].numpy()
            return (value, slope) if np.isfinite(value) and np.isfinite(slope).all() else (-np.inf, np.zeros(self.size))
        point.requires_grad_(True)
        try:
            with torch.enable_grad():
                record, log_prior = self._run(point)
                value = self.bound.log_marginal(record) + log_prior
                (gradient,) = torch.autograd.grad(value, point)
        except NumericalError as error:
            self.objective.failure = str(error)
            return -np.inf, np.zeros(self.size)
        slope = gradient.numpy()
        good = bool(torch.isfinite(value)) and bool(np.isfinite(slope).all())
        return (float(value.detach()), slope) if good else (-np.inf, np.zeros(self.size))

    def _values(self, t: torch.Tensor) -> dict[str, torch.Tensor]:
        objective = self.objective
        return objective.chart.values(torch.from_numpy(objective.origin) + torch.from_numpy(objective.unit) * t)

    def _run(self, t: torch.Tensor) -> tuple[Record, torch.Tensor]:
        """A run with the effects at zero, and the log prior density of the coordinates."""
        if self._traced is not None:
            return self._traced(t)
        record = run(self._search.program, self._search.args, self._values(t))
        return record, self._search.log_prior(record)

    @property
    def log_volume(self) -> float:
        """What the density lacks: ``log |dz/dt|`` of the linear map from t to the natural unconstrained scale."""
        chart, units = self.objective.chart, self.objective.unit
        total = float(np.log(np.abs(units)).sum())
        for entry in chart.entries:
            if entry.kind in ("linear", "real"):
                zero = torch.zeros(entry.size, dtype=torch.float64)
                slope = torch.autograd.functional.jacobian(lambda x, e=entry: e.forward(x).reshape(-1), zero)
                total += float(torch.linalg.slogdet(slope)[1])
        return total

    def values(self, t: np.ndarray) -> dict[str, torch.Tensor]:
        """Site values at coordinates t."""
        return self.objective.chart.values(self.objective.flat(t))

    def record(self, t: np.ndarray) -> Record:
        """A run of the program there, with the effects at zero."""
        with torch.no_grad():
            return self._run(torch.from_numpy(np.array(t)))[0]

    def log_density(self, t: np.ndarray) -> tuple[float, Record | None]:
        """Log density without its gradient, and the run of the program it was computed from."""
        try:
            with torch.no_grad():
                record, log_prior = self._run(torch.from_numpy(np.array(t)))
                value = self.bound.log_marginal(record) + log_prior
        except NumericalError as error:
            self.objective.failure = str(error)
            return -np.inf, None
        return (float(value), record) if bool(torch.isfinite(value)) else (-np.inf, None)

    def draw(
        self, t: np.ndarray, generator: torch.Generator, correct: int = 0
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Log density, and values of all sites with the effects drawn from their conditional.

        Parameters
        ----------
        correct
            Draws of every effect by whose weights both are corrected (`pyromix.marginal.correction`); 0 for none.

        Raises
        ------
        NumericalError
            The density cannot be computed there.
        """
        with torch.no_grad():
            record, log_prior = self._run(torch.from_numpy(np.array(t)))
            if correct:
                found = corrected(self.bound, record, correct, generator)
                value, effects = found.log_marginal, found.effects
            else:
                value, conditional = self.bound.evaluate(record)
                effects = {name: x[0] for name, x in conditional.draw(1, generator, {}).items()}
            value += float(log_prior)
        return value, {**{name: site.value for name, site in record.hypers.items()}, **effects}

    @property
    def linear(self) -> np.ndarray:
        """Positions of linear coefficients among the coordinates."""
        chart = self.objective.chart
        parts = [np.arange(self.size)[chart.slices[e.name]] for e in chart.entries if e.kind == "linear"]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def mode(self, progress: bool) -> Mode:
        """Climb to the mode and take its curvature.

        Raises
        ------
        NumericalError
            The density could not be computed at the start.
        """
        optimum = self._search.climb(progress)
        hessian = optimum.hessian
        if hessian is None:
            hessian = self.objective.hessian(optimum.t, optimum.gradient)
        root, flat = _inverse_root(hessian)
        return Mode(optimum.t, -optimum.loss, self._within_reach(optimum, root), optimum.decrement, flat)

    def _within_reach(self, optimum: Optimum, root: np.ndarray) -> np.ndarray:
        """The root with its long columns cut back to where the density still is.

        On a plateau, such as that of an SD between where its effect vanishes and where the prior ends, the curvature
        at the top says nothing of its width.
        """
        loose = sorted(loose_coordinates(self.objective))
        root, unit = root.copy(), self.objective.unit[loose]
        for k in range(root.shape[1]):
            while loose and np.abs(root[loose, k] * unit).max() > LONG:
                ends = [self(optimum.t + sign * root[:, k])[0] for sign in (1.0, -1.0)]
                if -optimum.loss - min(ends) < FALL:
                    break
                root[:, k] *= 0.5
        return root


@dataclass(frozen=True)
class Mode:
    """A mode with its curvature.

    Attributes
    ----------
    t, value
        Coordinates, and the log density there.
    root
        R with ``R R^T`` the inverse of minus the Hessian.
    decrement
        Twice the log density still to be gained, by the quadratic model.
    flat
        Directions in which the density does not fall: no maximum was reached, or a parameter is not identified.
    """

    t: np.ndarray
    value: float
    root: np.ndarray
    decrement: float
    flat: int


class _PosteriorSearch(Search):
    """The search of maximum likelihood on the posterior's density over unconstrained coordinates."""

    def climb(self, progress: bool) -> Optimum:
        optimum = self._climb(self.backend.tolerance, progress, None)
        if not np.isfinite(optimum.loss) or optimum.loss >= FAR / 2:
            raise NumericalError(
                f"the posterior density could not be computed at the start ({self.objective.failure}); check the "
                "data's scale, or give priors."
            )
        return optimum

    @property
    def newton(self) -> bool:
        return True

    def _support(self, site: Site) -> constraints.Constraint:
        support = site.fn.support
        if support is constraints.nonnegative or support is constraints.positive:
            return constraints.positive
        if isinstance(support, constraints.independent):
            inner = support.base_constraint
            return constraints.positive if inner in (constraints.nonnegative, constraints.positive) else inner
        return support

    def _factors(self, free: set[str]) -> list[FactorEntry]:
        return []  # their chart folds at zero, where a density has no gradient

    def _penalty(self) -> Callable[[Record], torch.Tensor]:
        return self.log_prior

    def log_prior(self, record: Record) -> torch.Tensor:
        """Log prior density of the unconstrained coordinates, up to the constant of linear ones."""
        return record.log_prior() + self.log_jacobian({name: record.hypers[name].value for name in self.sites})

    def log_jacobian(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``log |d theta / dz|`` of the natural unconstrained scale."""
        total = torch.zeros((), dtype=torch.float64)
        for name, value in values.items():
            where = self._support(self.sites[name])
            if where is constraints.positive:
                total = total + value.log().sum()
            elif where is not constraints.real:
                transform = biject_to(where)
                total = total + transform.log_abs_det_jacobian(transform.inv(value), value).sum()
        return total


def _inverse_root(hessian: np.ndarray) -> tuple[np.ndarray, int]:
    """R with ``R R^T = H^-1``, and how many directions had to be bounded because H is not positive there."""
    if not len(hessian):
        return hessian, 0
    values, vectors = np.linalg.eigh(hessian)
    floor = STEEPEST**-2 * max(values.max(), 1.0)
    flat = int((values <= floor).sum())
    return vectors / np.sqrt(np.where(values <= floor, 1.0, values)), flat
