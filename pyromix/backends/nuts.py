"""Hamiltonian Monte Carlo by the no-U-turn sampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyromix.backends import nutpie_engine, pyro_engine, workers
from pyromix.backends.base import AbstractBackend
from pyromix.backends.checkpoint import Checkpoint, identity
from pyromix.backends.hyper_posterior import default_marginal
from pyromix.backends.nutpie_engine import Chain
from pyromix.backends.posterior import posterior_estimate
from pyromix.backends.quasi_newton import PATIENCE
from pyromix.backends.targets import AbstractTarget, joint_target, marginal_target
from pyromix.backends.trained_weights import held, train_weights
from pyromix.backends.training import Trained, Training, evaluating, modules_of
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.marginal import AbstractMarginal, Exact
from pyromix.marginal.plan import Plan, make_plan
from pyromix.results.declared import dimension_labels
from pyromix.results.diagnostics import posterior_status, sampler_findings
from pyromix.results.estimate import Draws, Estimate
from pyromix.running import Program, run

ENGINES = {"nutpie": nutpie_engine.sample_chain, "pyro": pyro_engine.sample_chain}
PARAMETRISATIONS = ("auto", "centered", "noncentered")
STEPS = 12  # evaluations expected for a draw, by which the way of evaluating is chosen


class NUTS(AbstractBackend):
    r"""Posterior draws by the no-U-turn sampler (Hoffman and Gelman, 2014), exact in the limit.

    Every site that is not observed is sampled, or with `marginal` the hyper-parameters alone: the effects are then
    integrated out of the density and drawn from their conditional afterwards, one draw for each.

    The density is one function, traced and compiled where that pays. Chains walk in coordinates in which the posterior
    is nearly white noise: those of its approximation at the mode (`pyromix.backends.coordinates`), from which they
    also start. What is reported is on the scale of the program's sites.

    Parameters
    ----------
    draws, tune
        Draws kept, and draws of adaptation before them, per chain; by default 400 of these where the coordinates come
        from the mode of the hyper-parameters' posterior, 200 with `marginal`, 500 otherwise.
    chains
        Number of chains, each in a process of its own.
    marginal
        ``None``, or `pyromix.Laplace`, `pyromix.Exact`, `pyromix.GaussHermite`. The posterior is then exact as far as
        the marginaliser is.
    engine
        ``"nutpie"``, or ``"pyro"``: Pyro's sampler, slower, for comparison.
    parametrisation
        Of the random effects: ``"noncentered"`` (:math:`u = \Lambda b`, b sampled), ``"centered"`` (u sampled), or
        ``"auto"``: centered for effects that the data determine well.
    cores
        Processes at a time; by default those this process may use.
    target_accept
        Mean acceptance probability that the step size is adapted to; raise it against divergences.
    max_depth
        Largest depth of a tree; a draw costs at most ``2**max_depth`` gradients.
    training
        How the weights of a network without a prior are learned before; they are then held.
    checkpoint
        A file to which every finished chain is saved, and from which it is taken if the file exists: a killed fit goes
        on with the chains that it lacks, with the result of an uninterrupted one.

    Raises
    ------
    ConfigError
        An argument outside its allowed set.
    UnsupportedError
        A site without a density over real numbers; with `marginal`, a program that it does not take.
    NumericalError
        No start with a finite density, or a chain that failed.
    """

    def __init__(
        self,
        draws: int = 1000,
        tune: int | None = None,
        chains: int = 4,
        marginal: AbstractMarginal | None = None,
        engine: str = "nutpie",
        parametrisation: str = "auto",
        cores: int | None = None,
        *,
        target_accept: float = 0.8,
        max_depth: int = 10,
        training: Training | None = None,
        checkpoint: str | PathLike[str] | None = None,
    ) -> None:
        if marginal is not None and not isinstance(marginal, AbstractMarginal):
            raise ConfigError(
                f"NUTS(marginal={marginal!r}): pass an instance of Exact, Laplace or GaussHermite, or None."
            )
        counts = {"draws": draws, "tune": tune, "chains": chains, "cores": cores, "max_depth": max_depth}
        for name, value in counts.items():
            if name in ("cores", "tune") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"NUTS({name}={value!r}): must be a positive integer.")
        for name, chosen, allowed in (
            ("engine", engine, tuple(ENGINES)),
            ("parametrisation", parametrisation, PARAMETRISATIONS),
        ):
            if chosen not in allowed:
                raise ConfigError(f"NUTS({name}={chosen!r}): choose one of {', '.join(map(repr, allowed))}.")
        if isinstance(target_accept, bool) or not isinstance(target_accept, float) or not 0 < target_accept < 1:
            raise ConfigError(f"NUTS(target_accept={target_accept!r}): must lie between 0 and 1, e.g. 0.9.")
        self.draws, self.tune, self.chains, self.marginal = draws, tune, chains, marginal
        self.engine, self.parametrisation, self.cores = engine, parametrisation, cores
        self.target_accept, self.max_depth = target_accept, max_depth
        self.training, self.checkpoint = training, checkpoint

    def estimate(self, program: Program, args: tuple[Any, ...], *, seed: int = 0, progress: bool = True) -> Estimate:
        modules = modules_of(program, args)
        with evaluating(modules):
            begun = time.perf_counter()
            plan = self._plan(program, args, seed)
            trained = self._train(program, args, plan, seed, progress)
            with held(modules.values()):
                target = self._target(program, args, plan, trained, progress)
                ready = time.perf_counter()
                run = _Run(self, target, seed, progress, self._kept(modules, plan, args, seed))
                chains = run.chains()
                sampled = time.perf_counter()
                draws = run.draws(chains)
            settings = {
                **self._settings(),
                **target.note,
                "exact": self.marginal is None or isinstance(self.marginal, Exact),
                "evaluations": sum(chain.evaluations for chain in chains),
                "setup_time": ready - begun,
                "sampling_time": sampled - ready,
                "tuning_steps": run.tune,
            }
            return self._report(program, args, draws, chains, settings)

    def _report(
        self, program: Program, args: tuple[Any, ...], draws: Draws, chains: list[Chain], settings: dict[str, Any]
    ) -> Estimate:
        stats = {name: np.stack([chain.stats[name] for chain in chains]) for name in chains[0].stats}
        with torch.no_grad():
            labels = dimension_labels(run(program, args, {name: value[0] for name, value in draws.items()}))
        health = sampler_findings(draws, self.chains, stats, labels)
        return posterior_estimate(
            program,
            args,
            draws,
            chains=self.chains,
            inference="NUTS" if self.marginal is None else f"NUTS, {self.marginal.label}",
            settings=settings,
            status=posterior_status(health),
            health=health,
            sample_stats=stats,
        )

    def _kept(self, modules: Any, plan: Plan | None, args: tuple[Any, ...], seed: int) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        return Checkpoint(self.checkpoint, identity({**self._settings(), "seed": seed}, modules, plan, args), 0.0)

    def _plan(self, program: Program, args: tuple[Any, ...], seed: int) -> Plan | None:
        """The program's structure; ``None`` for one that only a sampler of all sites takes."""
        try:
            return make_plan(program, args, seed)
        except UnsupportedError:
            if self.marginal is not None:
                raise
            return None

    def _train(
        self, program: Program, args: tuple[Any, ...], plan: Plan | None, seed: int, progress: bool
    ) -> Trained | None:
        if plan is None or not plan.modules:
            return None
        marginal = self.marginal or default_marginal(program, args, plan)
        return train_weights(program, args, plan, marginal, self.training, seed, progress)

    def _target(
        self, program: Program, args: tuple[Any, ...], plan: Plan | None, trained: Trained | None, progress: bool
    ) -> AbstractTarget:
        cores = min(self.cores or workers.default_cores(), self.chains)
        total = self.chains * (self.draws + (self.tune or AbstractTarget.tune)) * STEPS
        evaluations = max(1, total // cores)
        if self.marginal is not None and plan is not None:
            return marginal_target(self.marginal, program, args, plan, trained, evaluations, progress)
        return joint_target(program, args, plan, self.parametrisation, evaluations, progress)

    def _settings(self) -> dict[str, Any]:
        return {
            "backend": "NUTS",
            "draws": self.draws,
            "tune": self.tune,
            "chains": self.chains,
            "marginal": None if self.marginal is None else self.marginal.config(),
            "engine": self.engine,
            "parametrisation": self.parametrisation,
            "target_accept": self.target_accept,
            "max_depth": self.max_depth,
        }


class _Run:
    """All chains of one fit."""

    def __init__(
        self, backend: NUTS, target: AbstractTarget, seed: int, progress: bool, kept: Checkpoint | None
    ) -> None:
        self.backend, self.target, self.seed, self.progress, self.kept = backend, target, seed, progress, kept
        self.cores = backend.cores or workers.default_cores()
        self.tune = backend.tune or target.tune
        self.done: dict[int, Chain] = self._saved()

    def draws(self, chains: list[Chain]) -> Draws:
        """Values of all sites, chain after chain."""
        w = np.concatenate([chain.draws for chain in chains])
        hidden = not self.progress
        with tqdm(total=len(w), desc="effects", disable=hidden, delay=PATIENCE, leave=False) as bar:
            return self.target.draws(w, self.seed, self.cores, bar.update)

    def chains(self) -> list[Chain]:
        """Every chain, those that were saved among them."""
        missing = [k for k in range(self.backend.chains) if k not in self.done]
        length = self.tune + self.backend.draws
        at, divergences = dict.fromkeys(missing, 0), dict.fromkeys(missing, 0)
        total, hidden = len(missing) * length, not self.progress
        with tqdm(total=total, desc="NUTS", unit=" draws", disable=hidden, delay=PATIENCE, leave=False) as bar:

            def message(task: int, news: tuple[int, int]) -> None:
                k = missing[task]
                bar.update(max(0, news[0] - at[k]))
                at[k], divergences[k] = news
                bar.set_postfix_str(f"{sum(divergences.values())} divergences", refresh=False)

            def result(task: int, chain: Chain) -> None:
                self.done[missing[task]] = chain
                message(task, (length, divergences[missing[task]]))
                self._save()

            if self.backend.engine == "nutpie":
                nutpie_engine.load()
            workers.run_tasks([self._task(k) for k in missing], self.cores, message, result)
        return [self.done[k] for k in range(self.backend.chains)]

    def _task(self, k: int) -> Callable[[Callable[[Any], None]], Chain]:
        backend = self.backend
        rng = np.random.default_rng([self.seed, 21, k])

        def work(send: Callable[[Any], None]) -> Chain:
            return ENGINES[backend.engine](
                self.target.density,
                self.target.start(rng),
                draws=backend.draws,
                tune=self.tune,
                seed=int(rng.integers(2**62)),
                target_accept=backend.target_accept,
                max_depth=backend.max_depth,
                report=send,
                **({"walk": self.target.native()} if backend.engine == "nutpie" else {}),
            )

        return work

    def _saved(self) -> dict[int, Chain]:
        state = None if self.kept is None else self.kept.load()
        if state is None:
            return {}
        return {k: Chain(entry["draws"], entry["stats"], entry["evaluations"]) for k, entry in state["chains"].items()}

    def _save(self) -> None:
        if self.kept is not None:
            state = {"chains": {k: vars(chain) for k, chain in self.done.items()}}
            self.kept.save(lambda: state, force=True)
