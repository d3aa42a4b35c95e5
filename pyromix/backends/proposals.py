r"""What importance draws of the hyper-parameters are drawn from.

The posterior of variance parameters is skewed, and that of the coefficients given them is close to a Gaussian whose
spread follows them: a plain Gaussian at the mode fits neither. So :math:`q(\theta)\, q(\beta \mid \theta)`: a split
Student-t (Geweke, 1989) along the axes of the variance parameters' covariance, and a Student-t of the coefficients
whose centre and log covariance are quadratic along each axis, read off at two points on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.special import gammaln

TAILS = 8.0  # degrees of freedom of the variance parameters
INNER_TAILS = 20.0  # and of the coefficients given them, which are nearer to a Gaussian
WIDEST = 3.0  # largest ratio of a split scale to the curvature's
PROBE = math.sqrt(2.0)  # distance, in standard deviations, of the points that skewness is read off at
REACH = 2.5  # standard deviations beyond which centre and covariance of the coefficients no longer move
DIFFERENCE = 1e-2  # standard deviations
WIDE_SHARE, WIDER, WIDE_TAILS = 0.15, 2.0, 3.0  # of the draws; scales and degrees of freedom of the wide proposal
MANY = 40  # coefficients, beyond which their covariance is taken as constant

Density = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Proposal(Protocol):
    """A distribution over (d,) that can be drawn from."""

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, d)."""

    def log_density(self, t: np.ndarray) -> np.ndarray:
        """Log density at t (n, d)."""


@dataclass(frozen=True)
class SplitStudent:
    """A Student-t with its own scale on either side of zero in each direction of the root.

    Parameters
    ----------
    centre, root
        (d,) and (d, d); ``t = centre + root w``.
    below, above
        Scales of w, (d,) each.
    df
        Degrees of freedom.
    """

    centre: np.ndarray
    root: np.ndarray
    below: np.ndarray
    above: np.ndarray
    df: float = TAILS

    @classmethod
    def symmetric(cls, centre: np.ndarray, root: np.ndarray, df: float = TAILS) -> SplitStudent:
        """One without skewness."""
        return cls(centre, root, np.ones(len(centre)), np.ones(len(centre)), df)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self.centre + self.white(n, rng) @ self.root.T

    def white(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of w, (n, d)."""
        size = len(self.centre)
        z = np.abs(rng.standard_normal((n, size))) / np.sqrt(rng.chisquare(self.df, (n, 1)) / self.df)
        up = rng.random((n, size)) < self.above / (self.above + self.below)
        return np.where(up, self.above * z, -self.below * z)

    def coordinates(self, t: np.ndarray) -> np.ndarray:
        """w at t, (n, d)."""
        return np.linalg.solve(self.root, (t - self.centre).T).T

    def log_density(self, t: np.ndarray) -> np.ndarray:
        size = len(self.centre)
        if not size:
            return np.zeros(len(t))
        w = self.coordinates(t)
        z = np.where(w > 0, w / self.above, w / self.below)
        constant = _student_constant(size, self.df) - np.linalg.slogdet(self.root)[1]
        constant += size * math.log(2.0) - np.log(self.above + self.below).sum()
        return constant - 0.5 * (self.df + size) * np.log1p((z**2).sum(1) / self.df)


@dataclass(frozen=True)
class Conditional:
    """Variance parameters, then coefficients given them.

    Attributes
    ----------
    outer, inner
        Positions in t of the variance parameters (h,) and of the coefficients (p,).
    marginal
        Proposal of the variance parameters, with white coordinates z.
    centre, slope, bend
        Centre of the coefficients at z: ``centre + slope z + bend z^2 / 2``; (p,), (p, h), (p, h).
    root
        Root of their covariance at z = 0, (p, p).
    log_slope, log_bend
        Of the matrix logarithm of their covariance relative to that, (h, p, p) each.
    """

    outer: np.ndarray
    inner: np.ndarray
    marginal: SplitStudent
    centre: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    root: np.ndarray
    log_slope: np.ndarray
    log_bend: np.ndarray

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        out = np.empty((n, len(self.outer) + len(self.inner)))
        out[:, self.outer] = outer = self.marginal.draw(n, rng)
        centre, values, vectors = self._at(outer)
        size = len(self.inner)
        noise = rng.standard_normal((n, size)) / np.sqrt(rng.chisquare(INNER_TAILS, (n, 1)) / INNER_TAILS)
        spread = np.einsum("nab,nb->na", vectors, np.exp(0.5 * values) * noise)
        out[:, self.inner] = centre + spread @ self.root.T
        return out

    def log_density(self, t: np.ndarray) -> np.ndarray:
        outer, size = t[:, self.outer], len(self.inner)
        centre, values, vectors = self._at(outer)
        white = np.linalg.solve(self.root, (t[:, self.inner] - centre).T).T
        z = np.einsum("nab,na->nb", vectors, white) * np.exp(-0.5 * values)
        constant = _student_constant(size, INNER_TAILS) - np.linalg.slogdet(self.root)[1] - 0.5 * values.sum(1)
        inner = constant - 0.5 * (INNER_TAILS + size) * np.log1p((z**2).sum(1) / INNER_TAILS)
        return self.marginal.log_density(outer) + inner

    def _at(self, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres (n, p), and eigenvalues and vectors of the log covariances, at variance parameters (n, h)."""
        z = np.clip(self.marginal.coordinates(outer), -REACH, REACH)
        centre = self.centre + z @ self.slope.T + 0.5 * z**2 @ self.bend.T
        log = np.einsum("nh,hab->nab", z, self.log_slope) + 0.5 * np.einsum("nh,hab->nab", z**2, self.log_bend)
        return centre, *np.linalg.eigh(log)


@dataclass(frozen=True)
class _Slice:
    """The coefficients at fixed variance parameters: centre, covariance, log of the density integrated over them."""

    centre: np.ndarray
    covariance: np.ndarray
    log_marginal: float


@dataclass(frozen=True)
class Defensive:
    """Mostly one proposal, and a share of a wider one, so that no tail is left without draws."""

    base: Proposal
    wide: Proposal

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        count = round(WIDE_SHARE * n)
        return np.concatenate([self.base.draw(n - count, rng), self.wide.draw(count, rng)])

    def log_density(self, t: np.ndarray) -> np.ndarray:
        base, wide = self.base.log_density(t), self.wide.log_density(t)
        return np.logaddexp(math.log(1 - WIDE_SHARE) + base, math.log(WIDE_SHARE) + wide)


def proposal_at(density: Density, mode: np.ndarray, root: np.ndarray, top: float, inner: np.ndarray) -> Proposal:
    """The proposal at a mode, and a share of the same with wide and heavy tails in the variance parameters.

    The data may leave a variance of zero possible: on the scale of its logarithm that is a tail that falls off as the
    prior's volume, over many times the width of the mode.
    """
    base = _at_mode(density, mode, root, top, inner)
    if isinstance(base, Conditional):
        return Defensive(base, replace(base, marginal=_widened(base.marginal)))
    return Defensive(base, _widened(base))


def _widened(proposal: SplitStudent) -> SplitStudent:
    return replace(proposal, below=WIDER * proposal.below, above=WIDER * proposal.above, df=WIDE_TAILS)


def _at_mode(
    density: Density, mode: np.ndarray, root: np.ndarray, top: float, inner: np.ndarray
) -> Conditional | SplitStudent:
    """The proposal at a mode.

    Parameters
    ----------
    density
        Log density and gradient at t (d,).
    mode, root, top
        The mode, a root of the inverse of minus the Hessian there, and the log density.
    inner
        Positions of the coefficients in t.
    """
    outer = np.setdiff1d(np.arange(len(mode)), inner)
    if not len(inner) or len(inner) > MANY or not len(outer):
        return _split(lambda t: density(t)[0], mode, root, top)
    covariance = root @ root.T
    hessian = np.linalg.inv(covariance)
    follow = -np.linalg.solve(hessian[np.ix_(inner, inner)], hessian[np.ix_(inner, outer)])
    start = np.linalg.inv(hessian[np.ix_(inner, inner)])
    values, vectors = np.linalg.eigh(covariance[np.ix_(outer, outer)])
    axes = vectors * np.sqrt(values)

    def cut(z: np.ndarray) -> _Slice | None:
        t = mode.copy()
        t[outer] += axes @ z
        t[inner] += follow @ (axes @ z)
        return _slice(density, t, inner, start)

    middle = cut(np.zeros(len(outer)))
    steps = PROBE * np.eye(len(outer))
    sides = [(cut(step), cut(-step)) for step in steps]
    if middle is None or any(side is None for pair in sides for side in pair):
        return _split(lambda t: density(t)[0], mode, root, top)
    return _assemble(mode, outer, inner, axes, middle, sides)


def _assemble(mode, outer, inner, axes, middle, sides) -> Conditional:  # type: ignore[no-untyped-def]
    root = np.linalg.cholesky(middle.covariance)
    logs = [[_relative_log(root, side.covariance) for side in pair] for pair in sides]
    centres = [[side.centre - middle.centre for side in pair] for pair in sides]
    falls = np.array([[middle.log_marginal - side.log_marginal for side in pair] for pair in sides])
    scales = _scales(falls)
    marginal = SplitStudent(mode[outer], axes, below=scales[:, 1], above=scales[:, 0])
    return Conditional(
        outer,
        inner,
        marginal,
        middle.centre,
        slope=np.stack([(up - down) / (2 * PROBE) for up, down in centres], axis=1),
        bend=np.stack([(up + down) / PROBE**2 for up, down in centres], axis=1),
        root=root,
        log_slope=np.stack([(up - down) / (2 * PROBE) for up, down in logs]),
        log_bend=np.stack([(up + down) / PROBE**2 for up, down in logs]),
    )


def _slice(density: Density, t: np.ndarray, inner: np.ndarray, start: np.ndarray) -> _Slice | None:
    """Newton's step and the curvature of the coefficients at t, by differences of the gradient."""
    value, gradient = density(t)
    if not np.isfinite(value):
        return None
    hessian = np.empty((len(inner), len(inner)))
    for k, at in enumerate(inner):
        step = DIFFERENCE * math.sqrt(start[k, k])
        moved = t.copy()
        moved[at] += step
        hessian[k] = (gradient[inner] - density(moved)[1][inner]) / step
    hessian = 0.5 * (hessian + hessian.T)
    if not np.isfinite(hessian).all() or np.linalg.eigvalsh(hessian)[0] <= 0:
        return None
    covariance = np.linalg.inv(hessian)
    step = covariance @ gradient[inner]
    log_marginal = value + 0.5 * float(gradient[inner] @ step) + 0.5 * np.linalg.slogdet(covariance)[1]
    return _Slice(t[inner] + step, covariance, log_marginal)


def _split(density: Callable[[np.ndarray], float], mode: np.ndarray, root: np.ndarray, top: float) -> SplitStudent:
    """Scales by which the log density falls on either side of the mode."""
    falls = np.array([[top - density(mode + sign * PROBE * column) for sign in (1, -1)] for column in root.T])
    scales = _scales(falls.reshape(len(mode), 2))
    return SplitStudent(mode, root, below=scales[:, 1], above=scales[:, 0])


def _scales(falls: np.ndarray) -> np.ndarray:
    """Scales of a Gaussian that falls by so much at `PROBE`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = PROBE / np.sqrt(2 * falls)
    return np.clip(np.where(falls > 0, scale, WIDEST), 1 / WIDEST, WIDEST)


def _relative_log(root: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Logarithm of ``R^-1 V R^-T``."""
    half = np.linalg.solve(root, covariance)
    values, vectors = np.linalg.eigh(np.linalg.solve(root, half.T))
    return (vectors * np.log(values)) @ vectors.T


def _student_constant(size: int, df: float) -> float:
    return float(gammaln(0.5 * (df + size)) - gammaln(0.5 * df) - 0.5 * size * math.log(df * math.pi))
