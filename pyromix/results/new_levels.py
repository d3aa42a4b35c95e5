r"""The distribution of levels that a fit has not seen, where levels are correlated.

Under ``marginal`` it is their prior, :math:`N(0, \Sigma_{nn})`. Under ``conditional`` it is their distribution given
the known levels, with :math:`B = \Sigma_{no}\Sigma_{oo}^{-1}`:

.. math:: u_n \mid u_o \sim N(B u_o,\; \Sigma_{nn} - B \Sigma_{on}),

which is kriging in space, Henderson's prediction of relatives, forecasting in time. Where the structure has a sparse
precision Q over all levels, :math:`B = -Q_{nn}^{-1} Q_{no}` and the covariance is :math:`Q_{nn}^{-1}`. Several new
levels are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from pyromix.errors import UnsupportedError
from pyromix.linalg.known import KnownOperator
from pyromix.linalg.operators import AbstractOperator, Precision
from pyromix.sites import Latent, RowMap, Spread

MAX_DENSE = 6000  # effects of known and new levels together whose covariance is written out
NEGLIGIBLE = 1e-12  # relative eigenvalue of a covariance that counts as zero


def law(
    name: str, role: Latent, policy: str, labels: Sequence[Any], u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (m, q) and a root of the covariance (m * q, m * q) of the new levels.

    Parameters
    ----------
    policy
        ``"marginal"`` or ``"conditional"``.
    labels
        Of the new levels, by which the structure knows where they are.
    u
        Effects of the known levels, (levels, q).

    Raises
    ------
    UnsupportedError
        The levels have no labels, or are too many.
    """
    if role.extend is None or not labels:
        raise _without_place(name, policy)
    with torch.no_grad():
        joint = role.extend(tuple(labels))
        known, terms = u.shape
        sizes = (known * terms, len(labels) * terms)
        parts = None if isinstance(joint, KnownOperator) else joint.separable()  # a known one needs no root here
        if policy == "conditional" and parts is not None and parts.precision is not None:
            return _by_precision(parts.precision, parts.tril, u)
        if sum(sizes) > MAX_DENSE:
            raise UnsupportedError(
                f"new_groups={policy!r}: {name!r} has {known} known and {len(labels)} new levels, whose covariance is "
                f"too large to write out; predict fewer new levels at a time, or use new_groups='zero'."
            )
        return _by_covariance(joint, policy, u, sizes)


def law_of_functions(
    name: str, spread: Spread, coefficients: torch.Tensor, policy: str, labels: Sequence[Any], root: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`law` of an effect that is a sum of functions, whose coefficients are known and have this prior root."""
    if spread.further is None or not labels:
        raise _without_place(name, policy)
    with torch.no_grad():
        f = spread.further(tuple(labels))
        mean = spread.apply(coefficients, f)
        if policy == "conditional":  # the coefficients say all
            return mean, torch.zeros(mean.numel(), mean.numel(), dtype=mean.dtype)
        rows = torch.kron(f, torch.eye(mean.shape[1], dtype=f.dtype)) @ root
        return torch.zeros_like(mean), _root(rows @ rows.mT)


def _without_place(name: str, policy: str) -> UnsupportedError:
    return UnsupportedError(
        f"new_groups={policy!r}: the levels of {name!r} depend on each other, and the new ones have no labels to "
        "place them by; declare them beforehand in RandomEffect(levels=...), or use new_groups='zero'."
    )


def _by_covariance(
    joint: AbstractOperator, policy: str, u: torch.Tensor, sizes: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    old, new = sizes
    covariance = joint.dense()
    inner = covariance[old:, old:]
    if policy == "marginal":
        return torch.zeros(new // u.shape[1], u.shape[1], dtype=u.dtype), _root(inner)
    across = covariance[old:, :old]
    gain = _gain(across, covariance[:old, :old])
    return (gain @ u.reshape(-1)).reshape(-1, u.shape[1]), _root(inner - gain @ across.mT)


def _gain(across: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """``across known^-1``, through the pseudo-inverse where `known` is singular to working precision."""
    root, info = torch.linalg.cholesky_ex(known)
    pivots = root.diagonal().square()
    if not int(info) and float(pivots.min()) > NEGLIGIBLE * float(pivots.max()):
        return torch.cholesky_solve(across.mT, root).mT
    return across @ torch.linalg.pinv(known, hermitian=True, rtol=NEGLIGIBLE)


def _by_precision(precision: Precision, tril: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    known, size = len(u), precision.size
    values, rows, cols = precision.values.numpy(), precision.rows, precision.cols
    lower = sp.csc_array((values, (rows, cols)), shape=(size, size))
    whole = sp.csc_array(lower + sp.tril(lower, -1).T)
    inner, across = sp.csc_array(whole[known:, known:]), whole[known:, :known]
    solved = splu(inner)
    mean = solved.solve(-(across @ u.numpy()))
    covariance = torch.from_numpy(solved.solve(np.eye(size - known)))
    return torch.from_numpy(mean), torch.kron(_root(covariance).contiguous(), tril.contiguous())


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """R with ``R R^T`` the covariance, which may be singular: a new level can be known from the others."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
    return vectors * values.clamp(min=0.0).sqrt()


def row_variance(rows: RowMap, root: torch.Tensor, terms: int, is_open: torch.Tensor) -> torch.Tensor:
    """Variance that new levels with this root give to each row, (n,); levels that are not open add nothing."""
    count = len(root) // terms
    index = rows.index if rows.index.dim() == 2 else rows.index[:, None]
    weight = torch.ones_like(index, dtype=root.dtype) if rows.weight is None else rows.weight.reshape(index.shape)
    design = torch.ones(len(index), 1, dtype=root.dtype) if rows.design is None else rows.design
    place = torch.zeros(len(index), count, terms, dtype=root.dtype)
    for m in range(index.shape[1]):
        here = (index[:, m] < 0).nonzero()[:, 0]
        at = count + index[here, m]
        used = weight[here, m] * is_open[at].to(root.dtype)
        place[here, at] += used[:, None] * design[here]
    return (place.reshape(len(index), -1) @ root).square().sum(-1)
