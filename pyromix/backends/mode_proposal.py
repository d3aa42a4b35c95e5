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

import numpy as np

from pyromix.backends.boundary import Boundary, boundaries
from pyromix.backends.proposals import DIFFERENCE, MANY, Density, Mixture, SplitStudent, student_constant

INNER_TAILS = 20.0  # degrees of freedom of the coefficients given the rest, which are near to a Gaussian
WIDEST = 3.0  # largest ratio of a split scale to the curvature's
PROBE = math.sqrt(2.0)  # distance, in standard deviations, of the points that skewness is read off at
REACH = 2.5  # standard deviations beyond which centre and covariance of the coefficients no longer move
WIDE_SHARE, WIDER, WIDE_TAILS = 0.15, 2.0, 3.0  # of the draws; scales and degrees of freedom of the wide proposal
EDGE_SHARES = 0.05, 0.3  # least and most of the draws for a component at a variance of zero


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
        constant = student_constant(size, INNER_TAILS) - np.linalg.slogdet(self.root)[1] - 0.5 * values.sum(1)
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


def proposal_at(density: Density, mode: np.ndarray, root: np.ndarray, top: float, inner: np.ndarray) -> Mixture:
    """The proposal at a mode, a share of the same with wide and heavy tails in the variance parameters, and a share for
    every long tail of one of them (`pyromix.backends.boundary`).

    Parameters
    ----------
    density
        Log density and gradient at t (d,).
    mode, root, top
        The mode, a root of the inverse of minus the Hessian there, and the log density.
    inner
        Positions of the coefficients in t.
    """
    base = _at_mode(density, mode, root, top, inner)
    wide = replace(base, marginal=_widened(base.marginal)) if isinstance(base, Conditional) else _widened(base)
    outer = np.setdiff1d(np.arange(len(mode)), inner)
    edges = list(boundaries(density, mode, root, top, outer))
    shares = _edge_shares(edges, top, root)
    rest = 1.0 - sum(shares)
    return Mixture((base, wide, *edges), (rest * (1 - WIDE_SHARE), rest * WIDE_SHARE, *shares))


def _edge_shares(edges: list[Boundary], top: float, root: np.ndarray) -> list[float]:
    """Shares of the draws after the masses of the tails and of the Gaussian at the mode."""
    middle = top + np.linalg.slogdet(root)[1] + 0.5 * len(root) * math.log(2 * math.pi)
    least, most = EDGE_SHARES
    shares = [min(max(math.exp(edge.log_mass - middle), least), most) for edge in edges]
    excess = max(1.0, 2 * sum(shares))  # together no more than half
    return [share / excess for share in shares]


def _widened(proposal: SplitStudent) -> SplitStudent:
    return replace(proposal, below=WIDER * proposal.below, above=WIDER * proposal.above, df=WIDE_TAILS)


def _at_mode(
    density: Density, mode: np.ndarray, root: np.ndarray, top: float, inner: np.ndarray
) -> Conditional | SplitStudent:
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
