"""Means of a Gaussian predictor passed through an inverse link."""

from __future__ import annotations

from collections.abc import Callable

import torch

NODES, MANY_NODES, WIDE = 401, 1601, 6.0  # an SD above 6 gets the finer grid
WIDTH = 9.0  # the standard normal has 2e-19 beyond
CHUNK = 5_000_000


def gaussian_mean(
    mean: Callable[[torch.Tensor], torch.Tensor], eta: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    r"""Expected response under a Gaussian predictor, :math:`E\,h(\eta_n + N(0, s^2_n))`, (n,).

    Exact where h is the identity, :math:`\eta`, and where it is exponential, :math:`e^{\eta + s^2/2}`, both recognised
    by their functional equation. Otherwise the trapezoidal rule on 401 or 1601 nodes over nine SDs, which converges
    geometrically for functions analytic about the real line, also at SDs of ten, where Gauss-Hermite with as many
    nodes does not: with nodes h SDs apart its error is about :math:`e^{-2\pi d/(hs)}`, d the distance of the nearest
    pole from the real line (:math:`\pi` for the logit).

    Parameters
    ----------
    mean
        h, elementwise on (nodes, rows).
    eta, variance
        Predictor and its variance, (n,). Rows of variance zero are not integrated.
    """
    plain = mean(eta)
    if plain.shape != eta.shape or not bool((variance > 0).any()):
        return plain
    # near and far: a logistic curve is exponential in its lower tail alone
    shifts = (torch.full_like(eta, 0.5), WIDTH * variance.sqrt())
    if all(_same(mean(eta + shift), plain + shift) for shift in shifts):
        return plain
    if all(_same(mean(eta + shift), plain * shift.exp()) for shift in shifts):
        return mean(eta + variance / 2)
    return torch.where(variance > 0, _trapezoid(mean, eta, variance.sqrt()), plain)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-11, atol=0.0, equal_nan=True)


def _trapezoid(mean: Callable[[torch.Tensor], torch.Tensor], eta: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    count = NODES if float(sd.max()) <= WIDE else MANY_NODES
    nodes = torch.linspace(-WIDTH, WIDTH, count, dtype=torch.float64)
    weights = torch.exp(-0.5 * nodes.square())
    weights = weights / weights.sum()
    total = torch.zeros_like(eta)
    # dispersion may have one value a row, so blocks are of nodes, never of rows
    for block in torch.arange(count).split(max(1, CHUNK // max(len(eta), 1))):
        points = eta + nodes[block, None] * sd
        total = total + (weights[block, None] * mean(points)).sum(0)
    return total
