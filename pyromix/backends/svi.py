"""Stochastic variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

from pyromix.backends.base import AbstractBackend
from pyromix.backends.posterior import posterior_estimate
from pyromix.backends.training import evaluating, modules_of
from pyromix.backends.variational.build import GUIDES, build, checkpoint_of
from pyromix.backends.variational.findings import Evidence, Slope, findings, warn
from pyromix.backends.variational.loop import Loop, seed_of
from pyromix.backends.variational.schedule import Settings
from pyromix.errors import ConfigError, Status
from pyromix.results.estimate import Estimate, HealthRecord
from pyromix.running import Program

OPTIMIZERS = ("adam", "adamw", "sgd")
RATIO_ROWS = 5_000_000  # rows times draws that the importance ratios may cost
RATIOS, FEWEST_RATIOS = 500, 10
ENTRIES = 40_000_000  # numbers in all draws together
FEWEST_DRAWS = 100


class SVI(AbstractBackend):
    r"""Stochastic variational inference: the guide :math:`q` that maximises the evidence lower bound.

    .. math:: ELBO = E_q[\log p(y \mid u, \theta)] - \beta\, KL(q(u, \theta) \,\|\, p(u, \theta)) \le \log p(y)

    Parameters
    ----------
    guide
        ``"group"``: a full Gaussian over all hyper-parameters and coefficients on the unconstrained scale; for every
        group one over all its terms, its prior at those hyper-parameters times a Gaussian stand-in for its likelihood,
        so mean and covariance move with the hyper-parameters. With crossed or nested factors, the levels of each
        factor are independent of those of the others given the hyper-parameters.
        ``"amortised"``: the same, but a network computes each group's stand-in from its rows, so that new groups have
        a posterior without refitting.
        ``"mean_field"``: independent normals. ``"full"``: one dense Gaussian of everything. ``"low_rank"``: independent
        normals plus shared directions.
        Or any Pyro guide, called with the program's arguments; a class such as ``AutoNormal`` is built on the program.
    steps
        Most steps of the schedule. The learning rate is constant until the guide stands still, and for half of the
        steps at most; then it falls for as long again, and the second half of those iterates is averaged.
    batch_groups
        Groups in a batch; by default all rows where they are at most 20,000, else groups of some 10,000 rows.
    optimizer
        ``"adam"``, ``"adamw"`` or ``"sgd"``.
    lr
        Learning rate of the guide, in posterior standard deviations; networks learn at 0.06 of it.
    draws
        Draws of the finished guide that make up the posterior; fewer, and a note, where they would not fit in memory.
    particles
        Antithetic pairs of draws in a step.
    beta
        Weight of the divergence from the prior. Anything but 1 gives no posterior.
    validation
        Fraction of the groups held out to decide when to stop, in [0, 1).
    patience
        Steps without improvement of the held-out bound after which the fit stops; by default a fifth of the steps.
    tolerance
        Nats by which the ELBO may still rise at the end without a finding.
    max_time
        Seconds after which the fit stops where it is.
    checkpoint
        A file to save the state to, and to resume from; the result is that of an uninterrupted fit.
    checkpoint_every
        Seconds between two saves.
    rank
        Shared directions of ``"low_rank"``.

    Raises
    ------
    ConfigError
        A value outside its allowed set.

    Notes
    -----
    The posterior is an approximation. `Fit.health` says whether the ELBO had settled (``svi_not_converged``) and how
    far the guide is from the posterior (``khat``); ``log_evidence`` is the ELBO. For ``group`` and ``amortised`` the
    ratios behind both are those of the hyper-parameters, with the groups integrated out by their own lower bounds.

    References
    ----------
    Kucukelbir et al. (2017), Automatic differentiation variational inference. Opper & Archambeau (2009), The
    variational Gaussian approximation revisited. Roeder, Wu & Duvenaud (2017), Sticking the landing. Khan & Lin (2017),
    Conjugate-computation variational inference.
    """

    def __init__(
        self,
        guide: str | Callable[..., Any] = "group",
        steps: int = 1000,
        batch_groups: int | None = None,
        optimizer: str = "adam",
        lr: float = 0.05,
        *,
        draws: int = 1000,
        particles: int = 1,
        beta: float = 1.0,
        validation: float = 0.0,
        patience: int | None = None,
        tolerance: float = 0.1,
        max_time: float | None = None,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: float = 10.0,
        rank: int = 10,
    ) -> None:
        if isinstance(guide, str) and guide not in GUIDES:
            allowed = ", ".join(map(repr, GUIDES))
            raise ConfigError(f"SVI(guide={guide!r}): choose one of {allowed}, or pass a Pyro guide.")
        if not isinstance(guide, str) and not callable(guide):
            raise ConfigError(f"SVI(guide={guide!r}): pass a name, or a Pyro guide (something callable).")
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"SVI(optimizer={optimizer!r}): choose one of {', '.join(map(repr, OPTIMIZERS))}.")
        for name, value, least in (
            ("steps", steps, 1),
            ("batch_groups", batch_groups, 1),
            ("draws", draws, 2),
            ("particles", particles, 1),
            ("patience", patience, 1),
            ("rank", rank, 1),
        ):
            optional = name in ("batch_groups", "patience")
            if (value is None and optional) or (type(value) is int and value >= least):
                continue
            raise ConfigError(f"SVI({name}={value!r}): must be an integer >= {least}{', or None' if optional else ''}.")
        for name, number, zero in (
            ("lr", lr, False),
            ("beta", beta, False),
            ("tolerance", tolerance, True),
            ("max_time", max_time, False),
            ("checkpoint_every", checkpoint_every, True),
        ):
            if number is None and name == "max_time":
                continue
            good = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            if not good or number < 0 or (number == 0 and not zero):
                raise ConfigError(f"SVI({name}={number!r}): must be a finite number {'>= 0' if zero else '> 0'}.")
        if isinstance(validation, bool) or not isinstance(validation, int | float) or not 0 <= validation < 1:
            raise ConfigError(f"SVI(validation={validation!r}): must lie in [0, 1).")
        if patience is not None and validation == 0:
            raise ConfigError(
                f"SVI(patience={patience}, validation=0): nothing is held out that could stop improving; set "
                "validation=0.15 or patience=None."
            )
        self.guide, self.steps, self.batch_groups = guide, steps, batch_groups
        self.optimizer, self.lr, self.draws, self.particles = optimizer, lr, draws, particles
        self.beta, self.validation, self.patience = beta, validation, patience
        self.tolerance, self.max_time, self.rank = tolerance, max_time, rank
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every

    def estimate(self, program: Program, args: tuple[Any, ...], *, seed: int = 0, progress: bool = True) -> Estimate:
        with evaluating(modules_of(program, args)):
            return self._estimate(program, args, seed, progress)

    def _estimate(self, program: Program, args: tuple[Any, ...], seed: int, progress: bool) -> Estimate:
        problem = build(self, program, args, seed)
        loop = Loop(problem.objective, problem.batches, self.loop_settings(), seed)
        now = loop.run(checkpoint_of(self, problem, args, seed), progress)
        chunks = problem.batches.chunks()
        objective = problem.objective
        objective.finish(chunks, seed_of(seed, 4))
        ratios = min(
            RATIOS, max(FEWEST_RATIOS * 10, self.draws), max(FEWEST_RATIOS, RATIO_ROWS // max(problem.batches.rows, 1))
        )
        evidence = Evidence.of(objective.log_weights(chunks, ratios, seed_of(seed, 5)))
        slope = Slope.of(now.elbo)
        found = findings(now, slope, evidence, self.loop_settings(), self.beta, problem.batches.per_epoch)
        found += [
            HealthRecord("svi", "info", value, limit, what, remedy) for what, value, limit, remedy in problem.notes
        ]
        count = min(self.draws, max(FEWEST_DRAWS, ENTRIES // max(objective.entries(), 1)))
        if count < self.draws:
            remedy = f"{objective.entries()} unknowns a draw: fewer draws were made to keep them in memory."
            found.append(HealthRecord("draws", "info", count, self.draws, "draws", remedy))
        warn(found)
        status = Status[now.status]
        if any(record.code == "svi_not_converged" for record in found):
            status = Status.ITERATION_LIMIT
        estimate = posterior_estimate(
            program,
            args,
            objective.draws(count, seed_of(seed, 6)),
            chains=1,
            inference=f"SVI, {self.label}",
            settings={
                **self.settings(),
                "exact": False,
                "steps_done": now.step,
                "elbo": evidence.elbo,
                "elbo_error": evidence.error,
                "importance_bound": evidence.bound,
                "khat": evidence.smoothed.khat,
                "ratios": evidence.draws,
                "batches": problem.batches.per_epoch,
            },
            status=status,
            health=tuple(found),
            log_evidence=evidence.elbo,
            state=objective.state(),
        )
        return replace(estimate, condition=objective.condition())

    @property
    def label(self) -> str:
        """The guide's name."""
        if isinstance(self.guide, str):
            return self.guide
        return getattr(self.guide, "__name__", type(self.guide).__name__)

    def loop_settings(self) -> Settings:
        """What the loop has to know."""
        patience = self.patience
        if patience is None and self.validation:
            patience = max(1, self.steps // 5)
        return Settings(self.steps, self.lr, self.optimizer, patience, self.max_time, self.tolerance)

    def settings(self) -> dict[str, Any]:
        """This configuration as plain values."""
        plain = ("steps", "batch_groups", "optimizer", "lr", "draws", "particles", "beta", "validation", "patience")
        return {
            "backend": "SVI",
            "guide": self.label,
            **{name: getattr(self, name) for name in plain},
            "rank": self.rank,
        }

    def __repr__(self) -> str:
        return f"SVI(guide={self.label!r}, steps={self.steps})"
