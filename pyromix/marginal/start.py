r"""Starting values for linear coefficients: the joint mode of coefficients and random effects.

At given variances, :math:`(\beta, b)` maximise :math:`\ell(\eta_0 + X\beta + Z\Lambda b) - \tfrac12 b^T b` (penalised
likelihood; lme4's ``nAGQ = 0``). The maximum is cheap, close to the marginal one, and its curvature
:math:`X^T W X - X^T W Z\Lambda A^{-1} \Lambda^T Z^T W X` tells how far an optimiser may step.
"""

from __future__ import annotations

import numpy as np
import torch

from pyromix.errors import NumericalError
from pyromix.linalg.block import Arrays
from pyromix.marginal.base import as_numpy
from pyromix.marginal.laplace import ModePoint, Problem
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Record

STEPS = 12
ENOUGH = 1e-6  # decrement; a start need not be a mode
SAMPLE = 2000


def coefficient_start(plan: Plan, problem: Problem, start: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """Joint mode of all linear coefficients and effects.

    Parameters
    ----------
    problem
        The mode search with every coefficient at zero.
    start
        Coefficients to start from; ``None`` for the best constant predictor.

    Returns
    -------
    Coefficients (p,), their covariance (p, p) and the spherical effects.
    """
    x = np.hstack([as_numpy(design) for design in plan.linear.values()])
    q, r = np.linalg.qr(x)
    gamma = q.T @ (constant_start(problem) - problem.eta) if start is None else r @ start
    point, schur = _at(problem, q, gamma, problem.origin().b), None
    for _ in range(STEPS):
        try:
            d_gamma, d_b, decrement, schur = _direction(point, q)
        except (NumericalError, np.linalg.LinAlgError):
            break
        step, trial = 1.0, _moved(problem, q, gamma, point, d_gamma, d_b, 1.0)
        while not trial.value >= point.value and step > 1e-4:
            step *= 0.5
            trial = _moved(problem, q, gamma, point, d_gamma, d_b, step)
        if not trial.value >= point.value:
            break
        gamma, point = gamma + step * d_gamma, trial
        if decrement < ENOUGH:
            break
    back = np.linalg.inv(r)
    inverse = np.linalg.inv(schur) if schur is not None else np.eye(len(gamma))
    return back @ gamma, back @ inverse @ back.T, point.b


def without_effects(plan: Plan, record: Record, start: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """All linear coefficients and their covariance in the program without its effects."""
    role = data_of(record)
    eta = as_numpy(role.eta)
    for name, design in plan.linear.items():
        eta = eta - as_numpy(design @ record.hypers[name].value)
    zeros = [np.zeros((term.q, term.q)) for term in plan.layout.terms]
    fixed = {name: value.detach() for name, value in role.dispersion.items()}
    problem = Problem(plan, plan.layout, eta, zeros, role.family, fixed)
    estimate, covariance, _ = coefficient_start(plan, problem, start)
    return estimate, covariance


def constant_start(problem: Problem) -> float:
    """The constant predictor of highest likelihood on a coarse grid, from at most a few thousand rows."""
    plan = problem.plan
    rows = slice(None, None, max(1, len(plan.obs) // SAMPLE))
    trials = None if plan.trials is None else plan.trials[rows]
    grid = torch.linspace(-30.0, 40.0, 141, dtype=torch.float64)
    offset = torch.from_numpy(problem.eta)[rows]
    with torch.no_grad():
        values = problem.family.log_prob(
            grid[:, None] + offset,
            plan.obs[rows],
            trials,
            **{k: v if v.dim() == 0 else v[rows] for k, v in problem.dispersion.items()},
        ).sum(-1)
    return float(grid[torch.argmax(torch.nan_to_num(values, nan=-torch.inf))])


def _at(problem: Problem, q: np.ndarray, gamma: np.ndarray, b: Arrays) -> ModePoint:
    shifted = Problem(
        problem.plan, problem.layout, problem.eta + q @ gamma, problem.tril, problem.family, problem.dispersion
    )
    return shifted.at(b)


def _moved(
    problem: Problem, q: np.ndarray, gamma: np.ndarray, point: ModePoint, d_gamma: np.ndarray, d_b: Arrays, step: float
) -> ModePoint:
    b = [x + step * d for x, d in zip(point.b, d_b, strict=True)]
    return _at(problem, q, gamma + step * d_gamma, b)


def _direction(point: ModePoint, q: np.ndarray) -> tuple[np.ndarray, Arrays, float, np.ndarray]:
    """Newton direction in (gamma, b), its decrement and the Schur complement of the coefficients."""
    layout, tril = point.problem.layout, point.problem.tril
    weight = np.maximum(point.weight, 1e-12 * max(point.weight.max(), 1e-300))
    g_b, g_gamma = point.gradient(), q.T @ point.score
    if not layout.terms:
        schur = q.T @ (weight[:, None] * q)
        d_gamma = np.linalg.solve(schur, g_gamma)
        return d_gamma, [], float(g_gamma @ d_gamma), schur
    factor = point.factorise()
    cross = [block.T @ m for block, m in zip(tril, layout.transpose(weight[:, None] * q), strict=True)]
    b_x, b_g = factor.solve(cross), factor.solve(g_b)
    schur = q.T @ (weight[:, None] * q) - sum(_dot(c, s) for c, s in zip(cross, b_x, strict=True))
    reduced = g_gamma - sum(_dot(c, s[..., None])[:, 0] for c, s in zip(cross, b_g, strict=True))
    d_gamma = np.linalg.solve(schur, reduced)
    d_b = [g - s @ d_gamma for g, s in zip(b_g, b_x, strict=True)]
    decrement = float(g_gamma @ d_gamma) + sum(float((g * d).sum()) for g, d in zip(g_b, d_b, strict=True))
    return d_gamma, d_b, decrement, schur


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
