r"""Importance sampling of random effects around their Gaussian conditional.

With M draws :math:`b^m` of the spherical effects of a unit (all effects that share data) from
:math:`q = N(\hat b, A^{-1})` and weights :math:`w^m = p(y \mid b^m)\, p(b^m) / q(b^m)`,

.. math:: \hat p(y) = \prod_{units} \frac1M \sum_m w^m

is an unbiased estimate of the likelihood (Pinheiro and Bates, 1995, section 2.3), and a draw chosen with probability
proportional to its weight is one of the exact conditional, as M grows. With one grouping factor the units are its
groups; crossed and nested factors are one unit, for which M draws are seldom enough: the weights say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp

from pyromix.errors import UnsupportedError
from pyromix.linalg.block import Arrays
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.laplace import BoundLaplace, ModePoint
from pyromix.marginal.quadrature import BoundQuadrature
from pyromix.running import Record


@dataclass(frozen=True)
class Corrected:
    """A log marginal likelihood and one draw of every random effect, both corrected."""

    log_marginal: float
    effects: dict[str, torch.Tensor]


def corrected(bound: BoundMarginal, record: Record, draws: int, generator: torch.Generator) -> Corrected:
    """Correct a marginaliser at one run of the program.

    Parameters
    ----------
    draws
        M, draws of the effects of every unit.

    Raises
    ------
    UnsupportedError
        The marginaliser has no mode search for effects that enter the predictor linearly.
    """
    laplace = bound.laplace if isinstance(bound, BoundQuadrature) else bound
    if not isinstance(laplace, BoundLaplace):
        raise UnsupportedError(
            f"correct=: {type(bound).__name__} has no Gaussian around the effects' mode to correct; use Laplace() or "
            "GaussHermite() on effects that enter the predictor linearly, or NUTS."
        )
    with torch.no_grad():
        problem, _, _ = laplace.problem(record)
        point = laplace.mode(problem)
        log_weight, b = _weighted_draws(point, draws, generator)
        value = point.value - 0.5 * point.factorise().logdet
        if isinstance(bound, BoundQuadrature):
            value = float(bound.log_marginal(record))
        else:
            value += float((logsumexp(log_weight, axis=1) - np.log(draws)).sum())
    chosen = _choose(log_weight, generator)
    effects = {}
    for name, x, tril in zip(laplace.plan.latents, b, problem.tril, strict=True):
        at = chosen if len(chosen) == len(x) else np.broadcast_to(chosen, len(x))
        effects[name] = torch.from_numpy(x[np.arange(len(x)), :, at] @ tril.T)
    return Corrected(value, effects)


def _weighted_draws(point: ModePoint, draws: int, generator: torch.Generator) -> tuple[np.ndarray, Arrays]:
    """Log weights (units, M), relative to the Laplace approximation, and the draws (levels, q, M) of every term."""
    problem, layout = point.problem, point.problem.layout
    noise = [torch.randn((*x.shape, draws), generator=generator, dtype=torch.float64).numpy() for x in point.b]
    b = [x[..., None] + e for x, e in zip(point.b, point.factorise().sample(noise), strict=True)]
    shift = [np.einsum("ab,gbm->gam", tril, x) for tril, x in zip(problem.tril, b, strict=True)]
    eta = torch.from_numpy(problem.eta + np.stack([layout.apply([x[..., m] for x in shift]) for m in range(draws)]))
    plan = problem.plan
    rows = problem.family.log_prob(eta, plan.obs, plan.trials, prepared=plan.prepared, **problem.dispersion)
    if plan.row_weight is not None:
        rows = plan.row_weight * rows
    gained = rows.numpy() - point.log_prob
    prior = [0.5 * (x**2).sum(1)[:, None] - 0.5 * (y**2).sum(1) for x, y in zip(point.b, b, strict=True)]
    proposal = [0.5 * (e**2).sum(1) for e in noise]
    unit = _units(point)
    if unit is None:
        inner = sum((p + q).sum(0) for p, q in zip(prior, proposal, strict=True))
        return (gained.sum(1) + inner)[None], b
    by_unit = np.stack([np.bincount(unit, row, minlength=len(point.b[0])) for row in gained], axis=1)
    return by_unit + sum(p + q for p, q in zip(prior, proposal, strict=True)), b


def _units(point: ModePoint) -> np.ndarray | None:
    """The group of every row where one factor ties rows together, else ``None``."""
    terms = point.problem.layout.terms
    first = terms[0].slots[0].index
    same = all(len(term.slots) == 1 and np.array_equal(term.slots[0].index, first) for term in terms)
    return first if same and len({term.levels for term in terms}) == 1 else None


def _choose(log_weight: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """One of M for every unit, with probability proportional to its weight."""
    weights = torch.from_numpy(np.exp(log_weight - log_weight.max(axis=1, keepdims=True)))
    return torch.multinomial(weights, 1, generator=generator)[:, 0].numpy()
