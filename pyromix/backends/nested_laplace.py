"""Nested Laplace: a full posterior from the mode of the hyper-parameters' marginal posterior."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyromix.backends import workers
from pyromix.backends.base import AbstractBackend
from pyromix.backends.hyper_posterior import HyperPosterior, Mode, default_marginal
from pyromix.backends.importance import Weighted, sample
from pyromix.backends.mode_proposal import proposal_at
from pyromix.backends.posterior import posterior_estimate
from pyromix.backends.quasi_newton import PATIENCE
from pyromix.backends.reinstate import generator_at, joined, share, stacked
from pyromix.backends.trained_weights import train_weights
from pyromix.backends.training import Training, evaluating, modules_of
from pyromix.backends.warm_start import WarmStart
from pyromix.errors import ConfigError, NumericalError
from pyromix.marginal import AbstractMarginal
from pyromix.marginal.plan import make_plan
from pyromix.results.diagnostics import importance_findings, posterior_status
from pyromix.results.estimate import Draws, Estimate, HealthRecord
from pyromix.running import Program

ROUNDS = 6  # how many times the first number of draws may be made
ENOUGH = 0.25  # effective fraction of the first number of draws, below which more are made
MAX_KEPT = 50_000_000  # entries of effects kept on the way; more are drawn again at the draws chosen


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


@dataclass(frozen=True)
class _Found:
    draws: Draws
    weighted: Weighted
    health: tuple[HealthRecord, ...]


class _Sampler:
    """One run: mode, proposal, importance draws with their effects."""

    def __init__(self, backend: NestedLaplace, posterior: HyperPosterior, seed: int, progress: bool) -> None:
        self.backend, self.posterior, self.seed, self.progress = backend, posterior, seed, progress
        self.cores = backend.cores or workers.default_cores()
        self.rng = np.random.default_rng([seed, 11])
        self.kept: list[dict[str, np.ndarray]] = []
        effects = sum(term.size for term in posterior.bound.plan.layout.terms)
        self.keep = effects * ROUNDS * self.first <= MAX_KEPT

    @property
    def first(self) -> int:
        """Importance draws to begin with."""
        return self.backend.evaluations or max(self.backend.draws, 50)

    def run(self) -> _Found:
        mode = self.posterior.mode(self.progress)
        proposal = proposal_at(self.posterior, mode.t, mode.root, mode.value, self.posterior.linear)
        self.posterior.trace(max(1, self.first // self.cores), gradients=False)
        self.prepare = WarmStart(self.posterior, mode)
        hidden = not self.progress
        with tqdm(desc="nested Laplace", unit=" draws", disable=hidden, delay=PATIENCE, leave=False) as bar:
            self.bar = bar
            n, most = self.first, ROUNDS * self.first
            weighted = sample(self._density, proposal, mode.root, n, ENOUGH * n, self.rng, most)
            draws = self._chosen(weighted)
        smoothed = weighted.smoothed
        health = importance_findings(smoothed.khat, smoothed.effective_size, len(weighted.t))
        return _Found(draws, weighted, (*_mode_findings(mode), *health))

    def _density(self, points: np.ndarray) -> np.ndarray:
        """Log density at points (n, d), shared out over the cores; the effects drawn there are kept."""
        if not len(points):
            return np.empty(0)
        parts = share(points, self._work, self.cores, self.bar.update)
        self.kept += [draws for _, draws in parts if draws]
        return np.concatenate([values for values, _ in parts])

    def _work(self, points: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        values, draws = np.full(len(points), -np.inf), []
        for k, t in enumerate(points):
            try:
                values[k], draw = self._one(t)
            except NumericalError as error:  # a draw that the target excludes; its weight is zero
                self.posterior.objective.failure = str(error)
                draw = self._nothing(t)
            if self.keep:
                draws.append(draw)
        return np.where(np.isfinite(values), values, -np.inf), stacked(draws)

    def _one(self, t: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
        self.prepare(t)
        return self.posterior.draw(t, generator_at(self.seed, t), self.backend.correct)

    def _nothing(self, t: np.ndarray) -> dict[str, torch.Tensor]:
        """A stand-in of the right shapes where there is no density."""
        record = self.posterior.record(t)
        return {name: site.value for name, site in {**record.hypers, **record.latents}.items()}

    def _chosen(self, weighted: Weighted) -> Draws:
        """Equally weighted draws."""
        chosen = weighted.resample(self.backend.draws, self.rng)
        if self.keep:
            return {name: value[torch.from_numpy(chosen)] for name, value in joined(self.kept).items()}
        points = weighted.t[chosen]
        parts = share(points, lambda part: stacked([self._one(t)[1] for t in part]), self.cores, self.bar.update)
        return joined(parts)


def _mode_findings(mode: Mode) -> tuple[HealthRecord, ...]:
    if not np.isfinite(mode.value):
        raise NumericalError("the posterior density is not finite at its mode; check the data's scale, or give priors.")
    if not mode.flat:
        return ()
    remedy = (
        "The curvature there says nothing of the posterior's width: give those parameters narrower priors, or use NUTS."
    )
    return (HealthRecord("not_a_mode", "warn", float(mode.flat), 0.0, "hyper-parameters", remedy),)
