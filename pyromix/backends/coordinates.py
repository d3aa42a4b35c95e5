r"""Coordinates in which a posterior is easy to sample: :math:`z = c + Lw`, where w is near white noise.

For programs with Gaussian effects the centre and the root come from the mode of the hyper-parameters' marginal
posterior: its curvature, the effects' Gaussian given it, and how that Gaussian's centre moves along. Linear
coefficients are thereby sampled on columns of unit posterior curvature. For other programs they come from the mode and
the Hessian of the joint density, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from pyromix.backends.hyper_posterior import HyperPosterior, Mode
from pyromix.errors import UnsupportedError
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.roots import AbstractRoot, DenseRoot, DiagonalRoot, root_of_correlated, root_of_inverse
from pyromix.marginal.rotated import BoundRotated
from pyromix.potential import Potential
from pyromix.running import Record, run

Density = Callable[[np.ndarray], tuple[float, np.ndarray]]
STEP = 0.5  # posterior SDs of the hyper-parameters, over which the effects' movement is measured
RICH = 0.3  # conditional over prior variance, below which an effect is sampled centred
MAX_DENSE = 400  # unknowns of a program whose joint Hessian is taken
FAR = 50.0  # from the start, on the unconstrained scale: a mode out there is none
STARTS = 4  # random starts, besides the origin, from which a mode is searched
NEGLIGIBLE = 10.0  # difference in log probability beyond which a mode does not count beside another
TRIALS = 64  # points at which the Gaussian at a mode is compared with the density
POLISH, ON_TOP = 10, 1e-4  # Newton's steps to a mode at most, and twice the log density that may be left to gain
FLATTEST = 1e-8  # smallest eigenvalue of a Hessian, relative to the largest, that is used


@dataclass(frozen=True)
class Coordinates:
    """An affine map between white w and unconstrained z, (d,) both."""

    centre: np.ndarray
    root: AbstractRoot

    def z(self, w: np.ndarray) -> np.ndarray:
        """``c + L w``."""
        return self.centre + self.root.times(w)

    def density(self, density: Density) -> Density:
        """The density of z as one of w, up to a constant."""

        def call(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = density(self.z(w))
            return value, self.root.transposed(gradient)

        return call


@dataclass(frozen=True)
class NestedRoot(AbstractRoot):
    """Root of a posterior of hyper-parameters and effects.

    Attributes
    ----------
    hypers, effects
        Positions of both in z; w holds the hyper-parameters' coordinates first.
    hyper
        Root of the hyper-parameters' covariance, (h, h).
    follow
        How the effects move with the hyper-parameters' white coordinates, (effects, h).
    inner
        Root of the spherical effects' covariance given the hyper-parameters.
    scale
        What takes spherical effects to those that are sampled: (slice, L) for every effect sampled centred.
    """

    hypers: np.ndarray
    effects: np.ndarray
    hyper: np.ndarray
    follow: np.ndarray
    inner: AbstractRoot
    scale: tuple[tuple[slice, np.ndarray], ...]

    def times(self, w: np.ndarray) -> np.ndarray:
        h = len(self.hypers)
        out = np.empty_like(w)
        out[self.hypers] = self.hyper @ w[:h]
        x = self.inner.times(w[h:])
        for part, tril in self.scale:
            x[part] = (x[part].reshape(-1, len(tril)) @ tril.T).reshape(-1)
        out[self.effects] = x + self.follow @ w[:h]
        return out

    def transposed(self, g: np.ndarray) -> np.ndarray:
        x = g[self.effects]
        head = self.hyper.T @ g[self.hypers] + self.follow.T @ x
        for part, tril in self.scale:
            x[part] = (x[part].reshape(-1, len(tril)) @ tril).reshape(-1)
        return np.concatenate([head, self.inner.transposed(x)])


# -- from the marginal posterior of the hyper-parameters --------------------------------------------------------------
def informed(posterior: HyperPosterior, mode: Mode) -> dict[str, float]:
    """Effect -> mean of conditional over prior variance at the mode: near zero where data determine the effects."""
    record = posterior.record(mode.t)
    conditional = posterior.bound.conditional(record)
    out = {}
    for name, site in record.latents.items():
        out[name] = float((conditional.sd[name] / site.fn.operator.sds()).square().mean())
    return out


def nested_coordinates(potential: Potential, posterior: HyperPosterior, mode: Mode) -> Coordinates:
    """Coordinates from the mode of the marginal posterior."""
    record = posterior.record(mode.t)
    names = [name for name in potential.names if name not in record.latents]
    hypers = _positions(potential, names)
    effects = _positions(potential, record.latents)
    middle = _hyper_z(potential, posterior, mode.t, hypers)
    steps = [_hyper_z(potential, posterior, mode.t + column, hypers) - middle for column in mode.root.T]
    centre = np.empty(potential.size)
    centre[hypers], centre[effects] = middle, _effect_modes(potential, posterior, mode.t)
    inner, scale = _inner_root(potential, posterior, record)
    follow = _follow(potential, posterior, mode)
    return Coordinates(centre, NestedRoot(hypers, effects, np.stack(steps, axis=1), follow, inner, scale))


def _inner_root(
    potential: Potential, posterior: HyperPosterior, record: Record
) -> tuple[AbstractRoot, tuple[tuple[slice, np.ndarray], ...]]:
    """Root of the effects' covariance, and what takes spherical effects to those sampled centred."""
    bound = posterior.bound.general() if isinstance(posterior.bound, BoundRotated) else posterior.bound
    if isinstance(bound, BoundCorrelated):
        root = root_of_correlated(bound, record, potential.spherical)
        if root is None:
            raise UnsupportedError("the correlated effects are too many for a dense root of their covariance")
        return root, ()
    sd = [site.numpy() for site in _spherical_sd(posterior, record)]
    return root_of_inverse(bound.curvature(record), sd), _centred_scales(potential, record)


def _positions(potential: Potential, names: Collection[str]) -> np.ndarray:
    parts = [np.arange(potential.slices[name].start, potential.slices[name].stop) for name in names]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _hyper_z(potential: Potential, posterior: HyperPosterior, t: np.ndarray, hypers: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return potential.flat(posterior.values(t)).numpy()[hypers]


def _effect_modes(potential: Potential, posterior: HyperPosterior, t: np.ndarray) -> np.ndarray:
    """Conditional modes of all effects, on the scale they are sampled on."""
    record = posterior.record(t)
    modes = posterior.bound.evaluate(record)[1].mode
    parts = []
    for name, site in record.latents.items():
        u = modes[name]
        parts.append((site.fn.operator.solve_factor(u) if name in potential.spherical else u).reshape(-1))
    return torch.cat(parts).numpy()


def _follow(potential: Potential, posterior: HyperPosterior, mode: Mode) -> np.ndarray:
    columns = []
    for column in mode.root.T:
        up, down = (_effect_modes(potential, posterior, mode.t + sign * STEP * column) for sign in (1.0, -1.0))
        columns.append((up - down) / (2 * STEP))
    return np.stack(columns, axis=1)


def _spherical_sd(posterior: HyperPosterior, record: Record) -> list[torch.Tensor]:
    conditional = posterior.bound.conditional(record)
    return [conditional.sd[name] / site.fn.operator.sds() for name, site in record.latents.items()]


def _centred_scales(potential: Potential, record: Record) -> tuple[tuple[slice, np.ndarray], ...]:
    out, start = [], 0
    for name, site in record.latents.items():
        size = site.fn.event_shape.numel()
        if name not in potential.spherical:
            out.append((slice(start, start + size), site.fn.operator.block.detach().numpy()))
        start += size
    return tuple(out)


# -- from the joint density -------------------------------------------------------------------------------------------
def plain_coordinates(potential: Potential, density: Density) -> Coordinates:
    """Coordinates from designs of linear coefficients, then from the mode of the joint density if there is a fair one.

    The joint mode of a hierarchical program is a spike at zero variance, or far from where the probability is; a chain
    that starts there stays there. So the Gaussian at a mode is tried before it is used. Of several modes the one with
    the most probability is taken; with more than one of weight none is, for chains from one mode would hide the other.
    """
    first = Coordinates(np.zeros(potential.size), _design_root(potential))
    if potential.size > MAX_DENSE:
        return first
    modes = _modes(first.density(density), potential.size)
    if not modes or any(_rivals(modes[0], other) for other in modes[1:]):
        return first
    columns = np.stack([first.root.times(column) for column in modes[0].root.T], axis=1)
    return Coordinates(first.z(modes[0].at), DenseRoot(columns))


@dataclass(frozen=True)
class _JointMode:
    """A mode, a root of the inverse of minus its Hessian, and the log of the probability of the Gaussian there."""

    at: np.ndarray
    root: np.ndarray
    weight: float


def _modes(density: Density, size: int) -> list[_JointMode]:
    """Modes whose Gaussians describe their surroundings, by falling weight; found from several starts."""
    rng = np.random.default_rng(0)
    found = []
    for start in [np.zeros(size), *rng.standard_normal((STARTS, size))]:
        at = _climb(density, start)
        top = None if at is None else _top(density, at)
        if top is not None and _nearly_white(Coordinates(top[0], DenseRoot(top[1])).density(density), size):
            at, root = top
            found.append(_JointMode(at, root, density(at)[0] + np.linalg.slogdet(root)[1]))
    return sorted(found, key=lambda mode: -mode.weight)


def _rivals(best: _JointMode, other: _JointMode) -> bool:
    """Whether two modes are different and neither is negligible."""
    apart = np.linalg.norm(np.linalg.solve(best.root, other.at - best.at)) > 1.0
    return bool(apart and best.weight - other.weight < NEGLIGIBLE)


def _nearly_white(density: Density, size: int) -> bool:
    """Whether the log density differs little from that of white noise where white noise is."""
    trials = np.random.default_rng(0).standard_normal((TRIALS, size))
    difference = np.array([density(w)[0] + 0.5 * w @ w for w in trials])
    return bool(np.isfinite(difference).all()) and difference.std() < 1 + np.sqrt(size)


def _design_root(potential: Potential) -> AbstractRoot:
    """Coefficients on orthonormal columns of their design, times the root of the number of rows."""
    record = run(potential.program, potential.args, hypers="moderate", seed=0)
    blocks: Mapping[str, np.ndarray] = {
        name: _coefficient_root(site.role.design.detach().numpy())
        for name, site in record.hypers.items()
        if site.role.design is not None
    }
    if not blocks or potential.size > 10 * MAX_DENSE:
        return DiagonalRoot(np.ones(potential.size))
    matrix = np.eye(potential.size)
    for name, block in blocks.items():
        at = potential.slices[name]
        if at.stop - at.start == len(block):
            matrix[at, at] = block
    return DenseRoot(matrix)


def _coefficient_root(design: np.ndarray) -> np.ndarray:
    scale = np.sqrt((design**2).mean(0))
    scale[scale == 0] = 1.0
    if len(design) < design.shape[1]:
        return np.diag(1 / scale)
    upper = np.linalg.qr(design / scale / np.sqrt(len(design)), mode="r")
    if np.abs(np.diag(upper)).min() < 1e-7:
        return np.diag(1 / scale)
    return np.linalg.inv(upper) / scale[:, None]


def _climb(density: Density, start: np.ndarray) -> np.ndarray | None:
    """A mode of the joint density; ``None`` where it runs away."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density(w)
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            return 1e300, np.zeros(len(w))
        return -value, -gradient

    result = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "maxfun": 2000})
    good = np.isfinite(result.fun) and result.fun < 1e299
    return result.x if good and result.success else None


def _top(density: Density, at: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The mode that a climb came near, by Newton's steps, and a root of the inverse of minus the Hessian there.

    Along the ridge that columns far from zero make, a climb stops long before its top.
    """
    for _ in range(POLISH):
        root = _hessian_root(density, at)
        if root is None:
            return None
        value, gradient = density(at)
        white = root.T @ gradient
        if white @ white < ON_TOP:
            return at, root
        trial = at + root @ white
        if not density(trial)[0] >= value:
            return None
        at = trial
    return None


def _hessian_root(density: Density, w: np.ndarray) -> np.ndarray | None:
    """R with ``R R^T`` the inverse of minus the Hessian; ``None`` where that is not a covariance."""
    size, step = len(w), 1e-4
    rows = np.empty((size, size))
    for k in range(size):
        move = np.zeros(size)
        move[k] = step * max(1.0, abs(w[k]))
        rows[k] = (density(w - move)[1] - density(w + move)[1]) / (2 * move[k])
    hessian = 0.5 * (rows + rows.T)
    if not np.isfinite(hessian).all():
        return None
    scale = np.sqrt(np.abs(np.diag(hessian)))
    if not (scale > 0).all():
        return None
    values, vectors = np.linalg.eigh(hessian / scale[:, None] / scale)
    if values.min() < FLATTEST * values.max():
        return None
    return (vectors / np.sqrt(values)) / scale[:, None]
