"""Nested Laplace: a full posterior from the mode of the hyper-parameters' marginal posterior."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tqdm import tqdm

from pyromix.backends import workers
from pyromix.backends.base import AbstractBackend
from pyromix.backends.hyper_posterior import HyperPosterior, Mode, default_marginal
from pyromix.backends.importance import SplitStudent, Weighted, sample, split_scales
from pyromix.backends.posterior import posterior_estimate
from pyromix.backends.quasi_newton import PATIENCE
from pyromix.backends.reinstate import reinstate, share
from pyromix.backends.trained_weights import train_weights
from pyromix.backends.training import Training, evaluating, modules_of
from pyromix.backends.warm_start import WarmStart
from pyromix.errors import ConfigError, NumericalError
from pyromix.marginal import AbstractMarginal
from pyromix.marginal.plan import make_plan
from pyromix.results.diagnostics import importance_findings, posterior_status
from pyromix.results.estimate import Draws, Estimate, HealthRecord
from pyromix.running import Program

ROUNDS = 8  # how many times the first number of draws may be made before the fit is called unreliable


class NestedLaplace(AbstractBackend):
    r"""Posterior draws of hyper-parameters and effects, from nested Laplace approximations.

    .. math:: \pi(\theta \mid y) \propto p(\theta) \int p(y \mid u, \theta) p(u \mid \theta) du

    The integral is the marginaliser's (Laplace, unless it can be had exactly). The mode and the curvature of
    :math:`\pi` on the unconstrained scale give a split Student-t proposal; importance draws from it are reweighted by
    :math:`\pi` itself and Pareto-smoothed. Effects are drawn from their Gaussian given each draw of the
    hyper-parameters. As INLA (Rue, Martino and Chopin, 2009), with importance sampling in place of a grid.

    Parameters
    ----------
    draws
        Equally weighted posterior draws that are returned.
    marginal
        How the effects are integrated out: `pyromix.Laplace`, `pyromix.Exact`, `pyromix.GaussHermite`; by default exact
        for Gaussian responses with identity link, Laplace for everything else.
    correct
        Correct both marginal and conditional for what is not Gaussian in the effects: this many draws of every effect
        are weighted by the exact joint density (importance sampling within groups where they are independent). 0 for
        none. The draws then come from the exact posterior, as far as the effective sizes go.
    evaluations
        Importance draws to begin with, by default as many as `draws`; more are made where they are needed.
    training
        How the weights of a network without a prior are learned before: they are then held.
    cores
        Processes; by default those this process may use.

    Notes
    -----
    The fit reports Pareto's k-hat and the effective number of draws; beyond 0.7 it calls itself unreliable. What it
    cannot see is an error of the marginaliser itself: for binary data with few rows a group compare with
    ``correct=20``, ``GaussHermite`` or `NUTS`.

    Raises
    ------
    ConfigError
        An argument outside its range.
    UnsupportedError
        Sites that are neither hyper-parameters nor Gaussian effects, or effects the marginaliser does not take.
    """

    def __init__(
        self,
        draws: int = 1000,
        *,
        marginal: AbstractMarginal | None = None,
        correct: int = 0,
        evaluations: int | None = None,
        training: Training | None = None,
        cores: int | None = None,
    ) -> None:
        if marginal is not None and not isinstance(marginal, AbstractMarginal):
            raise ConfigError(
                f"NestedLaplace(marginal={marginal!r}): pass an instance of Exact, Laplace or GaussHermite, or None."
            )
        counts = {"draws": (draws, 1), "evaluations": (evaluations, 50), "cores": (cores, 1), "correct": (correct, 0)}
        for name, (value, least) in counts.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"NestedLaplace({name}={value!r}): must be an integer of at least {least}.")
        self.draws, self.marginal, self.correct = draws, marginal, correct
        self.evaluations, self.training, self.cores = evaluations, training, cores

    def estimate(self, program: Program, args: tuple[Any, ...], *, seed: int = 0, progress: bool = True) -> Estimate:
        with evaluating(modules_of(program, args)):
            start = time.perf_counter()
            plan = make_plan(program, args, seed)
            marginal = self.marginal or default_marginal(program, args, plan)
            trained = train_weights(program, args, plan, marginal, self.training, seed, progress)
            posterior = HyperPosterior(marginal, program, args, plan, trained)
            found = _Sampler(self, posterior, seed, progress).run()
            settings = {
                "backend": "NestedLaplace",
                "exact": False,
                "marginal": marginal.config(),
                "correct": self.correct,
                "evaluations": posterior.objective.evaluations + len(found.weighted.t),
                "khat": found.weighted.smoothed.khat,
                "effective_size": found.weighted.smoothed.effective_size,
                "evidence_error": found.weighted.evidence_error,
                "sampling_time": time.perf_counter() - start,
            }
            return posterior_estimate(
                program,
                args,
                found.draws,
                chains=1,
                inference=f"nested Laplace, {marginal.label}",
                settings=settings,
                status=posterior_status(found.health),
                health=found.health,
                log_evidence=found.weighted.log_evidence + posterior.log_volume,
            )


class _Sampler:
    """One run: mode, importance draws, effects."""

    def __init__(self, backend: NestedLaplace, posterior: HyperPosterior, seed: int, progress: bool) -> None:
        self.backend, self.posterior, self.seed, self.progress = backend, posterior, seed, progress
        self.cores = backend.cores or workers.default_cores()
        self.rng = np.random.default_rng([seed, 11])

    def run(self) -> _Found:
        mode = self.posterior.mode(self.progress)
        self.start = WarmStart(self.posterior, mode)
        with tqdm(
            desc="nested Laplace", unit=" evaluations", disable=not self.progress, delay=PATIENCE, leave=False
        ) as bar:
            self.bar = bar
            proposal = self._proposal(mode)
            n = self.backend.evaluations or max(self.backend.draws, 50)
            target = 0.25 * n
            weighted = sample(self._density, proposal, n, target, self.rng, ROUNDS * n)
            bar.set_description("effects")
            chosen = weighted.resample(self.backend.draws, self.rng)
            draws = reinstate(self.posterior, weighted.t[chosen], self.seed, self.cores, self.start, bar.update)
        smoothed = weighted.smoothed
        health = importance_findings(smoothed.khat, smoothed.effective_size, len(weighted.t))
        return _Found(draws, weighted, (*_mode_findings(mode), *health))

    def _proposal(self, mode: Mode) -> SplitStudent:
        if not self.posterior.size:
            return SplitStudent.symmetric(mode.t, mode.root)
        return split_scales(self._density, mode.t, mode.root, mode.value)

    def _density(self, points: np.ndarray) -> np.ndarray:
        """Log density at points (n, d), shared out over the cores."""

        def work(rows: np.ndarray) -> np.ndarray:
            out = np.empty(len(rows))
            for k, t in enumerate(rows):
                self.start(t)
                out[k], _ = self.posterior.log_density(t)
            return out

        return np.concatenate(share(points, work, self.cores, self.bar.update)) if len(points) else np.empty(0)


class _Found:
    def __init__(self, draws: Draws, weighted: Weighted, health: tuple[HealthRecord, ...]) -> None:
        self.draws, self.weighted, self.health = draws, weighted, health


def _mode_findings(mode: Mode) -> tuple[HealthRecord, ...]:
    if not np.isfinite(mode.value):
        raise NumericalError("the posterior density is not finite at its mode; check the data's scale, or give priors.")
    if not mode.flat:
        return ()
    remedy = (
        "The curvature there says nothing of the posterior's width: give those parameters narrower priors, or use NUTS."
    )
    return (HealthRecord("not_a_mode", "warn", float(mode.flat), 0.0, "hyper-parameters", remedy),)
