"""Cholesky factors of many small matrices at once.

LAPACK pays a call per matrix; for blocks of a few effects it is an order of magnitude cheaper to run the recurrence
over columns with every level in one vector. All arrays are float64 of shape (levels, q, q).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from pyromix.errors import NumericalError

SMALL = 6  # above this block size LAPACK's own batching wins


def cholesky(a: np.ndarray) -> np.ndarray:
    """Lower factors R with ``a = R R^T``.

    Raises
    ------
    NumericalError
        A block is not positive definite; the message names the first one and its smallest pivot.
    """
    q = a.shape[-1]
    if q == 1:
        _check(a[:, 0, 0])
        return np.sqrt(a)
    if q > SMALL:
        try:
            return np.linalg.cholesky(a)
        except np.linalg.LinAlgError:
            pivots = np.linalg.eigvalsh(a)[:, 0]
            _check(pivots)
            raise
    r = np.zeros_like(a)
    for j in range(q):
        pivot = a[:, j, j] - (r[:, j, :j] ** 2).sum(-1)
        _check(pivot)
        r[:, j, j] = np.sqrt(pivot)
        for i in range(j + 1, q):
            r[:, i, j] = (a[:, i, j] - (r[:, i, :j] * r[:, j, :j]).sum(-1)) / r[:, j, j]
    return r


def solve_lower(r: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``R^-1 b``: r (levels, q, q), b (levels, q, m)."""
    q = r.shape[-1]
    if q == 1:
        return b / r
    if q > SMALL and len(r) == 1:
        return solve_triangular(r[0], b[0], lower=True, check_finite=False)[None]
    x = np.empty(np.broadcast_shapes(b.shape, (len(r), q, b.shape[-1])))
    for i in range(q):
        x[:, i] = (b[:, i] - np.einsum("gk,gkm->gm", r[:, i, :i], x[:, :i])) / r[:, i, i, None]
    return x


def solve_upper(r: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``R^-T b``: r (levels, q, q) lower, b (levels, q, m)."""
    q = r.shape[-1]
    if q == 1:
        return b / r
    if q > SMALL and len(r) == 1:
        return solve_triangular(r[0], b[0], lower=True, trans="T", check_finite=False)[None]
    x = np.empty(np.broadcast_shapes(b.shape, (len(r), q, b.shape[-1])))
    for i in range(q - 1, -1, -1):
        x[:, i] = (b[:, i] - np.einsum("gk,gkm->gm", r[:, i + 1 :, i], x[:, i + 1 :])) / r[:, i, i, None]
    return x


def inverse(r: np.ndarray) -> np.ndarray:
    """``(R R^T)^-1`` from the lower factors, (levels, q, q)."""
    if r.shape[-1] == 1:
        return 1.0 / r**2
    root = solve_lower(r, np.broadcast_to(np.eye(r.shape[-1]), r.shape))
    return root.swapaxes(1, 2) @ root if r.shape[-1] > SMALL else np.einsum("gki,gkj->gij", root, root)


def logdet(r: np.ndarray) -> float:
    """Summed ``log det(R R^T)``."""
    return 2.0 * float(np.log(np.einsum("gii->gi", r)).sum())


def _check(pivots: np.ndarray) -> None:
    bad = ~(pivots > 0)
    if bad.any():
        level = int(np.argmax(bad))
        raise NumericalError(
            f"block {level} of {len(pivots)} is not positive definite (smallest pivot {pivots[level]:.3g}): the "
            "curvature there is not that of a maximum."
        )
