"""Linear dependence among the columns of a model matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-7  # lme4's; relative to the column's own norm
_ROUNDING = 1e-13  # a column's spread about its mean below this share of its size is rounding, not information
_CLEAR = 1e-6  # smallest share of a column's squared norm left over at which the cheap test is beyond doubt


@dataclass(frozen=True)
class Alias:
    """A column that others span: ``column ~ others``."""

    column: int
    others: tuple[int, ...]


def aliases(x: np.ndarray, intercept: bool) -> list[Alias]:
    """Columns that are linear combinations of columns before them.

    Each column's residual on those before it is compared with its own norm. With an intercept, columns are centred
    first, so a column far from zero (a year, a time stamp) is judged by its spread.

    Parameters
    ----------
    x
        (n, p) matrix, the intercept in column 0 if there is one.
    intercept
        Whether there is one.
    """
    n, p = x.shape
    if p == 0 or (intercept and p == 1):
        return []
    if n >= p and _clearly_independent(x, intercept):
        return []
    start = 1 if intercept else 0
    size = np.sqrt(np.einsum("ij,ij->j", x, x))
    work = x[:, start:] - x[:, start:].mean(axis=0) if intercept else x
    norm = np.sqrt(np.einsum("ij,ij->j", work, work))
    live = norm > _ROUNDING * np.sqrt(n) * size[start:]
    scaled = work / np.where(live, norm, 1.0)
    scaled[:, ~live] = 0.0
    return _eliminate(_triangle(scaled), start)


def _clearly_independent(x: np.ndarray, intercept: bool) -> bool:
    """Cheap test by the Gram matrix; that squares the condition number, so it says yes only when far from doubt."""
    gram = x.T @ x
    size = np.diag(gram).copy()
    if intercept:
        gram = (gram - np.outer(gram[0], gram[0]) / gram[0, 0])[1:, 1:]
        size = size[1:]
    spread = np.diag(gram)
    if not (spread > _CLEAR * size).all():
        return False
    norm = np.sqrt(spread)
    try:
        factor = np.linalg.cholesky(gram / np.outer(norm, norm))
    except np.linalg.LinAlgError:
        return False
    return bool((np.diag(factor) ** 2).min() > _CLEAR)


def _triangle(scaled: np.ndarray) -> np.ndarray:
    """R of a QR factorisation: the same inner products in few rows."""
    return np.asarray(np.linalg.qr(scaled, mode="r"))


def _eliminate(r: np.ndarray, start: int) -> list[Alias]:
    """Gram-Schmidt in column order, orthogonalising twice."""
    basis: list[np.ndarray] = []
    kept: list[int] = []
    out: list[Alias] = []
    for j in range(r.shape[1]):
        v = r[:, j].copy()
        size = float(np.linalg.norm(v))
        for _ in range(2):
            for q in basis:
                v -= np.dot(q, v) * q
        left = float(np.linalg.norm(v))
        if left > TOLERANCE and size > 0:
            basis.append(v / left)
            kept.append(j)
            continue
        others: tuple[int, ...] = ()
        if size > 0 and kept:
            weights = np.linalg.lstsq(r[:, kept], r[:, j], rcond=None)[0]
            others = tuple(kept[i] + start for i in np.flatnonzero(np.abs(weights) > 1e-6))
        out.append(Alias(j + start, others))
    return out
