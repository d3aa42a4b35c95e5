"""Known relationships between levels: a matrix with labels, from genotypes or from a pedigree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyromix.covariances.between import semidefinite_root
from pyromix.errors import ConfigError, DataError, JitterWarning, StructureError
from pyromix.linalg.known import KnownCovariance, KnownOperator

NEGATIVE = 1e-8  # eigenvalues above minus this share of the largest are rounding
SAVED = 2000  # ids of a matrix that a saved model may hold: its entries are written as text
KEPT = 8  # parts kept, one for each set of levels


class Relationship:
    """A symmetric, positive semidefinite matrix over ids, and its parts.

    Parameters
    ----------
    values
        The matrix, (n, n).
    ids
        Label of each row and column.
    repair
        ``"nearest"`` sets negative eigenvalues to zero: the nearest positive semidefinite matrix in Frobenius norm.
    where
        What the matrix belongs to, for error messages.

    Raises
    ------
    StructureError
        A matrix that is not square, symmetric or positive semidefinite, or ids that do not label it.
    DataError
        Entries that are missing or infinite.
    """

    def __init__(self, values: Any, ids: Sequence[Any], repair: str | None, where: str) -> None:
        self.ids = _labels(ids, where)
        self.values = _symmetric(_matrix(values, self.ids, where), self.ids, where)
        self.values = _semidefinite(self.values, repair, where)
        self._at = {label: i for i, label in enumerate(self.ids)}
        self._parts: dict[tuple[Any, ...], KnownCovariance] = {}

    def __repr__(self) -> str:
        return f"<{len(self.ids)} x {len(self.ids)}>"

    def part(self, levels: tuple[Any, ...]) -> KnownCovariance:
        """What belongs to ``levels``."""
        if levels not in self._parts:
            check_known(levels, self._at, "Kinship")
            matrix = self.values
            if levels != self.ids:
                at = torch.tensor([self._at[level] for level in levels], dtype=torch.long)
                matrix = matrix[at[:, None], at]
            remember(self._parts, levels, KnownCovariance(matrix, semidefinite_root))
        return self._parts[levels]

    def operator(self, levels: tuple[Any, ...], tril: torch.Tensor) -> KnownOperator:
        """Covariance of the effects of ``levels``; ``tril`` is the root of that of a level."""
        return KnownOperator(self.part(levels), tril)

    def config(self, where: str) -> list[Any]:
        """Rows and ids as plain values."""
        if len(self.ids) > SAVED:
            raise ConfigError(
                f"{where}: a matrix of {len(self.ids)} ids is not written into a saved model (limit {SAVED}); keep "
                "the program, and save the fit of a program that builds this structure from your own file."
            )
        return [self.values.tolist(), plain_labels(self.ids, where)]


def vanraden(markers: Any) -> tuple[np.ndarray, list[Any]]:
    r"""Genomic relationship matrix of VanRaden (2008), his first.

    .. math:: G = \frac{ZZ^T}{2\sum_j p_j(1-p_j)}, \qquad Z_{ij} = m_{ij} - 2p_j, \qquad p_j = \tfrac12 \bar m_j

    A missing genotype takes its marker's mean, so it adds nothing to Z. A marker with one genotype drops out. G is
    singular (its rows sum to zero), and is used so; the average level's variance is near ``sd^2``. Haploid or
    presence-absence markers may be handed over as 0 and 2.

    Parameters
    ----------
    markers
        pandas DataFrame, ids x markers, of allele counts between 0 and 2 (imputed dosages may be fractional); or
        ``(array, ids)``.

    Returns
    -------
    G
        (ids, ids).
    ids
        Their labels.

    Raises
    ------
    DataError
        Counts below 0 or above 2, a marker without any genotype, or no marker with two genotypes.
    """
    values, ids = _frame(markers, "markers")
    if values.ndim != 2 or len(values) != len(ids):
        raise StructureError(f"markers=: got shape {values.shape} for {len(ids)} ids; pass a table of ids x markers.")
    bad = (values < 0) | (values > 2) | np.isinf(values)
    if bad.any():
        row, col = np.argwhere(bad)[0]
        raise DataError(
            f"markers=: {values[row, col]:g} for id {ids[row]!r}, marker {_name(markers, col)!r}: genotypes are "
            "allele counts, 0, 1 or 2 (missing: NaN)."
        )
    missing = np.isnan(values)
    if missing.all(0).any():
        raise DataError(f"markers=: marker {_name(markers, int(missing.all(0).argmax()))!r} has no genotype; drop it.")
    varies = np.nanmax(values, 0) > np.nanmin(values, 0)
    if not varies.any():
        raise DataError("markers=: every marker has one genotype only; there is nothing to tell ids apart by.")
    values, missing = values[:, varies], missing[:, varies]
    mean = np.nanmean(values, 0)
    z = np.where(missing, 0.0, values - mean)
    return z @ z.T / (mean * (1 - 0.5 * mean)).sum(), ids


def known(matrix: Any, repair: str | None) -> Relationship:
    """What the user passed as ``K``: a DataFrame, a pair (array, ids), or a relationship."""
    if isinstance(matrix, Relationship):
        return matrix
    if hasattr(matrix, "columns"):
        return Relationship(*_by_label(matrix), repair, "Kinship(K=...)")
    values, ids = _frame(matrix, "K")
    return Relationship(values, ids, repair, "Kinship(K=...)")


def check_known(levels: Sequence[Any], at: Any, where: str) -> None:
    """Refuse levels that a structure does not have, by name."""
    missing = [level for level in levels if level not in at]
    if not missing:
        return
    shown = ", ".join(repr(level) for level in missing[:5]) + (", ..." if len(missing) > 5 else "")
    kinds = {type(x).__name__ for x in missing}, {type(x).__name__ for x in at}
    texts = {str(x) for x in at}
    advice = "add them to it, or drop their rows"
    if kinds[0] != kinds[1] and all(str(level) in texts for level in missing):
        advice = f"levels are {', '.join(sorted(kinds[0]))}, its ids {', '.join(sorted(kinds[1]))}: convert one of them"
    raise StructureError(f"{where}: {len(missing)} of {len(levels)} levels are not among its ids ({shown}); {advice}.")


def remember(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a result; the oldest goes where there are too many."""
    while len(kept) >= KEPT:
        kept.pop(next(iter(kept)))
    kept[key] = value


def plain_labels(ids: Sequence[Any], where: str) -> list[Any]:
    """Labels as JSON values; `ConfigError` for those that JSON does not have."""
    for label in ids:
        if not isinstance(label, (str, int, float)):
            raise ConfigError(f"{where}: id {label!r} is a {type(label).__name__}; only text and numbers can be saved.")
    return list(ids)


# -- reading ---------------------------------------------------------------------------------------------------------
def _labels(ids: Sequence[Any], where: str) -> tuple[Any, ...]:
    labels = tuple(x.item() if isinstance(x, np.generic) else x for x in ids)
    if len(set(labels)) < len(labels):
        seen: set[Any] = set()
        twice = next(x for x in labels if x in seen or seen.add(x))  # type: ignore[func-returns-value]
        raise StructureError(f"{where}: id {twice!r} is there more than once; give every id one row.")
    return labels


def _frame(table: Any, argument: str) -> tuple[np.ndarray, list[Any]]:
    """Values and row labels of a DataFrame or of a pair."""
    if hasattr(table, "columns"):
        return _floats(table.to_numpy(), argument), list(table.index)
    if isinstance(table, (tuple, list)) and len(table) == 2:
        ids = table[1].tolist() if hasattr(table[1], "tolist") else list(table[1])
        return _floats(table[0], argument), ids
    raise ConfigError(
        f"{argument}=: got a {type(table).__name__}; pass a pandas DataFrame with the ids as index, or (array, ids)."
    )


def _floats(values: Any, argument: str) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{argument}=: its entries are not all numbers ({error}).") from error


def _by_label(frame: Any) -> tuple[np.ndarray, list[Any]]:
    """A labelled square matrix, its columns in the order of its rows."""
    rows, columns = list(frame.index), list(frame.columns)
    if len(rows) != len(columns):
        raise StructureError(f"Kinship(K=...): shape {frame.shape} is not square.")
    strange = [label for label in columns if label not in set(rows)]
    if strange:
        raise StructureError(
            f"Kinship(K=...): column {strange[0]!r} is no row; the ids must label its index and its columns."
        )
    values = _floats(frame.to_numpy(), "K")
    at = {label: i for i, label in enumerate(columns)}
    return values[:, [at[label] for label in rows]], rows


def _name(markers: Any, column: int) -> Any:
    return list(markers.columns)[column] if hasattr(markers, "columns") else column


# -- checking --------------------------------------------------------------------------------------------------------
def _matrix(values: Any, ids: Sequence[Any], where: str) -> torch.Tensor:
    matrix = torch.tensor(np.asarray(values, dtype=np.float64))
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) != len(ids):
        raise StructureError(f"{where}: shape {tuple(matrix.shape)} for {len(ids)} ids is not (ids, ids).")
    if not len(ids):
        raise StructureError(f"{where}: no ids.")
    broken = (~torch.isfinite(matrix)).nonzero()
    if len(broken):
        i, j = broken[0].tolist()
        raise DataError(
            f"{where}: entry {float(matrix[i, j])} for ids {ids[i]!r} and {ids[j]!r}; fill it or drop them."
        )
    return matrix


def _symmetric(matrix: torch.Tensor, ids: Sequence[Any], where: str) -> torch.Tensor:
    apart = (matrix - matrix.T).abs()
    if float(apart.max()) > 1e-8 * float(matrix.abs().max()):
        i, j = divmod(int(apart.argmax()), len(ids))
        raise StructureError(
            f"{where}: not symmetric, ids {ids[i]!r} and {ids[j]!r} have {float(matrix[i, j]):g} and "
            f"{float(matrix[j, i]):g} (largest difference {float(apart.max()):.3g})."
        )
    return 0.5 * (matrix + matrix.T)


def _semidefinite(matrix: torch.Tensor, repair: str | None, where: str) -> torch.Tensor:
    if repair not in (None, "nearest"):
        raise ConfigError(f'Kinship(repair={repair!r}): choose None or "nearest".')
    rounding = 10 * len(matrix) * torch.finfo(matrix.dtype).eps
    size = float(matrix.diagonal().max())  # not above the largest eigenvalue
    for shift in (0.0, rounding * size):  # of a centred matrix an eigenvalue is zero, up to rounding
        if not int(torch.linalg.cholesky_ex(_shifted(matrix, shift)).info):
            return matrix
    values, vectors = torch.linalg.eigh(matrix)
    smallest, largest = float(values[0]), float(values.abs().max())
    if smallest >= -rounding * largest:
        return matrix
    if repair is None and smallest < -NEGATIVE * largest:
        raise StructureError(
            f"{where}: not a covariance, its smallest eigenvalue is {smallest:.6g} (the largest {largest:.6g}); "
            'repair="nearest" sets negative eigenvalues to zero.'
        )
    mended = (vectors * values.clamp(min=0)) @ vectors.T
    amount = float((mended - matrix).abs().max())
    warnings.warn(
        f"{where}: smallest eigenvalue {smallest:.3g}; negative eigenvalues were set to zero, which changed entries by "
        f"{amount:.3g} at most.",
        JitterWarning,
        stacklevel=5,
    )
    return 0.5 * (mended + mended.T)


def _shifted(matrix: torch.Tensor, shift: float) -> torch.Tensor:
    """``matrix + shift I``."""
    if shift <= 0:
        return matrix
    out = matrix.clone()
    out.diagonal().add_(shift)
    return out
