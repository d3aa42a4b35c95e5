r"""Variance components by moments, to start from: MINQUE(0).

With residuals r, weights w and random columns :math:`z_k`,
:math:`E\|Z_k^T w r\|^2 = \sigma^2 tr(Z_k^T w Z_k) + \sum_l \tau_l^2 \|Z_k^T w Z_l\|_F^2`, a small linear system in
the variances (Rao, 1971). For responses that are not Gaussian, r and w are the score and weight of the fit without
random effects, on whose scale :math:`\sigma = 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from pyromix.linalg.block import Arrays
from pyromix.marginal.base import BoundMarginal, as_numpy
from pyromix.marginal.laplace import BoundLaplace, ModePoint
from pyromix.marginal.plan import Plan, data_of
from pyromix.marginal.quadrature import BoundQuadrature
from pyromix.marginal.start import coefficient_start
from pyromix.running import Record


@dataclass(frozen=True)
class Moments:
    """Starting SDs per term (q,) and of the noise, the sizes they are measured in, the coefficients found."""

    effects: Arrays
    noise: float
    size: float
    size_of_noise: float
    coefficients: np.ndarray | None = None


def variance_moments(plan: Plan, record: Record, bound: BoundMarginal) -> Moments:
    """Moment estimates for the program at a run with the random effects at zero."""
    role = data_of(record)
    sd = role.family.gaussian_sd(**role.dispersion)
    if sd is not None:
        return _gaussian(plan, record, as_numpy(sd))
    noise = max(float(plan.obs.std()), 1e-12)
    affine = bound.laplace if isinstance(bound, BoundQuadrature) else bound
    fallback = Moments([np.full(term.q, 0.6) for term in plan.layout.terms], 0.8 * noise, 1.0, noise)
    if not isinstance(affine, BoundLaplace) or not plan.layout.terms or not plan.linear:
        return fallback
    point, estimate = _without_effects(plan, record, affine)
    weight = np.maximum(point.weight, 0.0)
    if not np.isfinite(point.score).all() or not np.isfinite(weight).all():
        return fallback
    variances = _solve(plan, point.score, weight, None)
    return Moments(_split(plan, variances), 0.8 * noise, 1.0, noise, estimate)


def _without_effects(plan: Plan, record: Record, bound: BoundLaplace) -> tuple[ModePoint, np.ndarray]:
    """The fit of the linear part alone."""
    problem, _, _ = bound.problem(record)
    for name, design in plan.linear.items():
        problem.eta = problem.eta - as_numpy(design @ record.hypers[name].value)
    problem.tril = [np.zeros_like(block) for block in problem.tril]
    estimate, _, _ = coefficient_start(plan, problem, None)
    x = np.hstack([as_numpy(design) for design in plan.linear.values()])
    problem.eta = problem.eta + x @ estimate
    return problem.origin(), estimate


def _gaussian(plan: Plan, record: Record, sd: np.ndarray) -> Moments:
    role = data_of(record)
    residual = as_numpy(plan.obs - role.eta)
    if plan.linear:
        x = np.hstack([as_numpy(design) for design in plan.linear.values()])
        q, _ = np.linalg.qr(x)
        residual = residual + x @ np.concatenate([as_numpy(record.hypers[name].value) for name in plan.linear])
        residual = residual - q @ (q.T @ residual)
    size = float(residual.std())
    size = size if size > 0 else 1e-8 * max(1.0, float(plan.obs.abs().max()))
    weight = np.ones_like(residual) if sd.size == 1 else (sd / sd.mean()) ** -2
    if plan.row_weight is not None:
        weight = weight * as_numpy(plan.row_weight)
    if not plan.layout.terms:
        return Moments([], size, size, size)
    variances = _solve(plan, weight * residual, weight, float(weight @ residual**2))
    noise = max(float(np.sqrt(variances[-1])), 0.1 * size)
    return Moments(_split(plan, variances), noise, size, size)


def _solve(plan: Plan, score: np.ndarray, weight: np.ndarray, total: float | None) -> np.ndarray:
    """Variances of every random column, then of the noise if it is not known to be one (`total` given)."""
    layout = plan.layout
    starts = np.concatenate([[0], np.cumsum([term.q for term in layout.terms])])
    count = starts[-1]
    system, noise = np.zeros((count, count)), np.zeros(count)
    for pair, block in zip(layout.pairs, layout.gram(weight), strict=True):
        at_j, at_k = slice(starts[pair.j], starts[pair.j + 1]), slice(starts[pair.k], starts[pair.k + 1])
        squares = (block**2).sum(0)
        system[at_j, at_k] += squares
        if pair.same:
            noise[at_j] += np.einsum("gaa->a", block)
        else:
            system[at_k, at_j] += squares.T
    moments = np.concatenate([(z**2).sum(0) for z in layout.transpose(score)])
    if total is None:
        moments = moments - noise
    else:
        system = np.block([[system, noise[:, None]], [noise[None], np.atleast_2d(weight.sum())]])
        moments = np.append(moments, total)
    scale = np.sqrt(np.maximum(np.diag(system), 1e-300))
    solution, _ = nnls(system / scale[:, None] / scale, moments / scale)
    return solution / scale


def _split(plan: Plan, variances: np.ndarray) -> Arrays:
    ends = np.cumsum([term.q for term in plan.layout.terms])
    return [np.sqrt(part) for part in np.split(variances[: ends[-1]], ends[:-1])]
