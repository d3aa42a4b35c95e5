"""What a sampler walks on: a density over white coordinates, starts, and the way back to sites."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyromix.backends.coordinates import (
    RICH,
    Coordinates,
    Density,
    informed,
    nested_coordinates,
    plain_coordinates,
)
from pyromix.backends.hyper_posterior import HyperPosterior, Mode, default_marginal
from pyromix.backends.native_walk import NativeWalk, native_walk
from pyromix.backends.reinstate import reinstate
from pyromix.backends.training import Trained
from pyromix.backends.warm_start import WarmStart
from pyromix.errors import NumericalError, UnsupportedError
from pyromix.marginal import AbstractMarginal
from pyromix.marginal.plan import Plan
from pyromix.potential import Potential
from pyromix.results.draws import over_draws
from pyromix.results.estimate import Draws
from pyromix.running import Program, Record, run

log = logging.getLogger(__name__)
MANY = 100  # hyper-parameters (weights of a network) whose marginal posterior is not searched first
TRIES = 100
ROOM = 5.0  # log density, times ten and the dimension, that a start may lie below the origin


class AbstractTarget(ABC):
    """A density on white coordinates w (size,).

    Attributes
    ----------
    size
        Their number.
    note
        What a user should know of how it is evaluated.
    tune
        Draws of adaptation that are enough: fewer where the coordinates are those of the posterior's approximation at a
        mode, so that little is left to adapt, and fewest where the effects are integrated out besides.
    """

    tune: int = 500
    size: int
    note: dict[str, Any]

    @abstractmethod
    def density(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density up to a constant, and its gradient; -inf where it cannot be computed."""

    def native(self) -> NativeWalk | None:
        """The density in C, if all of it is compiled."""
        return None

    @abstractmethod
    def draws(self, w: np.ndarray, seed: int, cores: int, done: Callable[[int], None]) -> Draws:
        """Site values at points w (n, size)."""

    @abstractmethod
    def explain(self, w: np.ndarray) -> str:
        """Why the density cannot be computed there."""

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """A point from which a chain can start, not too far below the coordinates' origin if there is one.

        Raises
        ------
        NumericalError
            None was found.
        """
        middle, _ = self.density(np.zeros(self.size))
        far: np.ndarray | None = None
        for attempt in range(TRIES):
            w = rng.standard_normal(self.size) * 0.9**attempt
            value, gradient = self.density(w)
            if np.isfinite(value) and np.isfinite(gradient).all():
                if not middle - value > ROOM * (10 + self.size):  # where steps would be tiny for ever
                    return w
                far = w if far is None else far
        if far is not None:
            return far
        raise NumericalError(f"no point with a finite density was found to start a chain from: {self.explain(w)}.")


class MarginalTarget(AbstractTarget):
    """The hyper-parameters, with the effects integrated out."""

    tune = 200

    def __init__(self, posterior: HyperPosterior, mode: Mode, evaluations: int) -> None:
        self.posterior, self.mode, self.size = posterior, mode, posterior.size
        posterior.trace(evaluations, gradients=True)
        self.prepare = WarmStart(posterior, mode)
        self.note: dict[str, Any] = {}

    def _t(self, w: np.ndarray) -> np.ndarray:
        return self.mode.t + self.mode.root @ w

    def density(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        t = self._t(w)
        self.prepare(t)
        value, gradient = self.posterior(t)
        return value, self.mode.root.T @ gradient

    def draws(self, w: np.ndarray, seed: int, cores: int, done: Callable[[int], None]) -> Draws:
        return reinstate(self.posterior, self.mode.t + w @ self.mode.root.T, seed, cores, self.prepare, done)

    def explain(self, w: np.ndarray) -> str:
        return self.posterior.objective.failure or "the marginal likelihood is not finite"


class JointTarget(AbstractTarget):
    """All sites of a program."""

    def __init__(self, potential: Potential, coordinates: Callable[[Density], Coordinates], evaluations: int) -> None:
        self.potential, self.size = potential, potential.size
        self._function = potential.value_and_gradient(evaluations=evaluations)
        self.coordinates = coordinates(self._raw)  # a search for modes may take thousands of evaluations too
        self.note = {"evaluated": self._function.mode, "spherical": sorted(potential.spherical)}
        if self._function.reason:
            self.note["reason"] = self._function.reason
        self._density = self.coordinates.density(self._raw)
        self._native = native_walk(self._function, self.coordinates, self.size)

    def _raw(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            value, gradient = self._function(torch.from_numpy(np.ascontiguousarray(z)))
        except (NumericalError, torch.linalg.LinAlgError) as error:
            self._failure = str(error)
            return -np.inf, np.zeros(self.size)
        return -float(value), -gradient.numpy()

    def density(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        return self._density(w)

    def native(self) -> NativeWalk | None:
        return self._native

    def draws(self, w: np.ndarray, seed: int, cores: int, done: Callable[[int], None]) -> Draws:
        z = np.stack([self.coordinates.z(row) for row in w])
        with torch.no_grad():
            values = over_draws(lambda at: self.potential.values(at["z"]), {"z": torch.from_numpy(z)}, self.size)
        done(len(w))
        return {name: value.detach() for name, value in values.items()}

    def explain(self, w: np.ndarray) -> str:
        return self.potential.first_problem(torch.from_numpy(self.coordinates.z(w)))


def marginal_target(
    marginal: AbstractMarginal,
    program: Program,
    args: tuple[Any, ...],
    plan: Plan,
    trained: Trained | None,
    evaluations: int,
    progress: bool,
) -> MarginalTarget:
    """The posterior of the hyper-parameters under a marginaliser."""
    posterior = HyperPosterior(marginal, program, args, plan, trained)
    return MarginalTarget(posterior, posterior.mode(progress), evaluations)


def joint_target(
    program: Program,
    args: tuple[Any, ...],
    plan: Plan | None,
    parametrisation: str,
    evaluations: int,
    progress: bool,
) -> JointTarget:
    """The posterior of all sites, in coordinates from a quick mode where there is one."""
    record = run(program, args, hypers="moderate", seed=0)
    latents = tuple(record.latents)
    flat = _without_density(record)
    if flat and parametrisation == "centered":
        raise UnsupportedError(
            f"NUTS(parametrisation='centered'): the covariance of {', '.join(flat)} is singular, so its effects have "
            "no density of their own; take 'auto' or 'noncentered'."
        )
    if plan is not None and plan.latents and plan.affine:
        try:
            return _nested(program, args, plan, parametrisation, flat, evaluations, progress)
        except (NumericalError, UnsupportedError) as error:
            log.info("no mode of the marginal posterior to start from: %s", error)
    potential = Potential(program, args, () if parametrisation == "centered" else latents)
    return JointTarget(potential, lambda density: plain_coordinates(potential, density), evaluations)


def _without_density(record: Record) -> frozenset[str]:
    """Effects whose covariance is singular, as of areas that sum to zero: they are sampled through its square root."""
    logdets = {name: site.fn.operator.logdet_factor() for name, site in record.latents.items()}
    return frozenset(name for name, logdet in logdets.items() if bool((logdet == -torch.inf).any()))


def _nested(
    program: Program,
    args: tuple[Any, ...],
    plan: Plan,
    parametrisation: str,
    flat: frozenset[str],
    evaluations: int,
    progress: bool,
) -> JointTarget:
    posterior = HyperPosterior(default_marginal(program, args, plan), program, args, plan, None)
    if posterior.size > MANY:
        raise UnsupportedError(f"{posterior.size} hyper-parameters are too many for a curvature by differences")
    mode = posterior.mode(progress)
    if mode.flat:
        raise NumericalError("the marginal posterior is flat at its mode")
    share = informed(posterior, mode)
    rich = {"auto": RICH, "centered": np.inf, "noncentered": -np.inf}[parametrisation]
    potential = Potential(program, args, [name for name in plan.latents if share[name] >= rich or name in flat])
    coordinates = nested_coordinates(potential, posterior, mode)
    target = JointTarget(potential, lambda density: coordinates, evaluations)
    target.tune = 400
    return target
