"""Narrow bands: chains by LAPACK's tridiagonal factor, wider ones by SuperLU in an order of cyclic reduction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.linalg.lapack import dpttrf, dpttrs
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import splu, spsolve_triangular

from pyromix.errors import NumericalError
from pyromix.linalg.complement import BATCH, AbstractComplement, solved_at

WIDEST = 8  # of a band that is not factored in dense fronts


class Band:
    """A pattern that is a narrow band in some order of its rows.

    Parameters
    ----------
    rows, cols
        Places of the entries of the lower triangle.
    place
        Position of every row in that order.
    width
        Largest distance of two rows that share an entry.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, place: np.ndarray, width: int) -> None:
        self.chain = width <= 1
        self.place = place if self.chain else _reduction(place, width)
        self._plan(self.place[rows], self.place[cols])

    @classmethod
    def of(cls, graph: sp.coo_array) -> Band | None:
        """From the lower triangle; ``None`` if the pattern is not of this kind."""
        symmetric = sp.csr_array(graph + graph.T)
        place = _inverse(np.asarray(reverse_cuthill_mckee(symmetric, symmetric_mode=True), dtype=np.int64))
        rows, cols = graph.coords
        width = int(np.abs(place[rows] - place[cols]).max(initial=0))
        return cls(rows, cols, place, width) if width <= WIDEST else None

    def _plan(self, r: np.ndarray, c: np.ndarray) -> None:
        """Where the entries go."""
        size, low, high = len(self.place), np.minimum(r, c), np.maximum(r, c)
        if self.chain:
            self._at = low + size * (high - low)  # the diagonal, then what lies below it
            return
        order = sp.csc_array((np.arange(1.0, len(r) + 1), (high, low)), (size, size))
        full = sp.csc_array(order + sp.tril(order, -1).T)
        self._order = full.data.astype(np.int64) - 1
        self._indices, self._indptr = full.indices, full.indptr

    def factor(self, lower: np.ndarray) -> AbstractComplement:
        """Factor the matrix with these entries."""
        size = len(self.place)
        if self.chain:
            entries = np.bincount(self._at, lower, 2 * size)
            return ChainComplement(entries[:size], entries[size:-1], self.place)
        matrix = sp.csc_array((lower[self._order], self._indices, self._indptr), shape=(size, size))
        return BandComplement(matrix, self.place)


def _reduction(place: np.ndarray, width: int) -> np.ndarray:
    """Position of every row in an order of cyclic reduction, given that along the band.

    The band is cut into blocks, every other one of which is eliminated first, then every other one of the rest. The
    tree of eliminations is then some log n deep, where minimum degree goes along a chain from its ends.
    """
    size = len(place)
    block = np.arange(size) // width + 1
    level = np.log2(block & -block).astype(np.int64)
    return _inverse(_inverse(place)[np.lexsort((np.arange(size), level))])


def _inverse(order: np.ndarray) -> np.ndarray:
    """Of a permutation."""
    found = np.empty_like(order)
    found[order] = np.arange(len(order))
    return found


class ChainComplement(AbstractComplement):
    r"""Chains: :math:`S = L D L^T` with L bidiagonal.

    With :math:`d` the pivots from the first row on and :math:`d'` those from the last row back,
    :math:`(S^{-1})_{ii} = 1 / (d_i + d'_i - s_{ii})` and :math:`(S^{-1})_{i+1,i} = -l_i (S^{-1})_{i+1,i+1}`.

    Parameters
    ----------
    diagonal, below
        The matrix along the chain, (n,) and (n - 1,).
    place
        Position of every row along the chain.
    """

    def __init__(self, diagonal: np.ndarray, below: np.ndarray, place: np.ndarray) -> None:
        self._diagonal, self._below, self._place = diagonal, below, place
        self._pivots, self._lower, info = dpttrf(diagonal, below)
        if info or not np.isfinite(self._pivots[-1]):
            raise NumericalError(f"a sparse complement of {len(diagonal)} rows is not positive definite.")
        self.logdet = float(np.log(self._pivots).sum())
        self._selected: tuple[np.ndarray, np.ndarray] | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        ordered = np.empty(b.shape)
        ordered[self._place] = b
        return dpttrs(self._pivots, self._lower, ordered, overwrite_b=1)[0][self._place]

    def sample(self, noise: np.ndarray) -> np.ndarray:
        upper = np.ones((2, len(self._pivots)))
        upper[0, 1:] = self._lower
        return scipy.linalg.solve_banded((0, 1), upper, noise / np.sqrt(self._pivots)[:, None])[self._place]

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if self._selected is None:
            back = dpttrf(self._diagonal[::-1], self._below[::-1])[0][::-1]
            on = 1.0 / (self._pivots + back - self._diagonal)
            self._selected = on, -self._lower * on[1:]
        i, j = self._place[rows], self._place[cols]
        low, apart = np.minimum(i, j), np.abs(i - j)
        on, beside = self._selected
        out = on[low]
        near, far = apart == 1, apart > 1
        out[near] = beside[low[near]]
        if far.any():
            out[far] = solved_at(self, len(on), rows[far], cols[far])
        return out


class BandComplement(AbstractComplement):
    """A narrow band in an order of cyclic reduction, by SuperLU; the inverse on its pattern by Takahashi's rule.

    Parameters
    ----------
    matrix
        The matrix, rows and columns in the order of `rank`.
    rank
        Position of every row in that order.
    """

    def __init__(self, matrix: sp.sparray, rank: np.ndarray) -> None:
        symmetric = {"SymmetricMode": True}
        lu = splu(sp.csc_array(matrix), permc_spec="NATURAL", diag_pivot_thresh=0.0, options=symmetric)
        pivots = lu.U.diagonal()
        if not (pivots > 0).all() or not np.array_equal(lu.perm_r, lu.perm_c):
            raise NumericalError(f"a sparse complement of {matrix.shape[0]} rows is not positive definite.")
        self._lu, self._pivots, self._rank = lu, pivots, rank
        self.logdet = float(np.log(pivots).sum())
        self._selected: tuple[np.ndarray, np.ndarray] | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        ordered = np.empty_like(b)
        ordered[self._rank] = b
        return self._lu.solve(ordered)[self._rank]

    def sample(self, noise: np.ndarray) -> np.ndarray:
        scaled = noise / np.sqrt(self._pivots)[:, None]
        x = spsolve_triangular(sp.csr_array(self._lu.L.T), scaled, lower=False, unit_diagonal=True)
        return x[self._lu.perm_c][self._rank]

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if self._selected is None:
            self._selected = _selected_inverse(sp.csc_array(self._lu.L), self._pivots)
        keys, values = self._selected
        size = len(self._pivots)
        i, j = (self._lu.perm_c[self._rank[at]].astype(np.int64) for at in (rows, cols))
        wanted = np.minimum(i, j) * size + np.maximum(i, j)  # column * size + row of the lower triangle
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        out = values[at]
        missing = keys[at] != wanted
        if missing.any():
            out[missing] = solved_at(self, size, rows[missing], cols[missing])
        return out


def _selected_inverse(lower: sp.csc_array, pivots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries of ``(L D L^T)^-1`` on the pattern of L, as sorted keys ``column * n + row`` and values.

    Takahashi, Fagan and Chen (1973): for column j with sub-diagonal pattern R, ``Z_Rj = -Z_RR L_Rj`` and
    ``Z_jj = 1/d_j - L_Rj^T Z_Rj``, from the last column to the first; Z_RR lies in columns already done.
    """
    lower.sort_indices()
    size = len(pivots)
    indptr, indices, data = lower.indptr.astype(np.int64), lower.indices.astype(np.int64), lower.data
    keys = np.repeat(np.arange(size, dtype=np.int64), np.diff(indptr)) * size + indices
    z = np.empty_like(data)
    for columns, count in _independent_columns(indptr, indices):
        at = indptr[columns][:, None] + 1 + np.arange(count)  # the first entry is the unit diagonal
        below, values = indices[at], data[at]
        low = np.minimum(below[:, :, None], below[:, None, :])
        high = np.maximum(below[:, :, None], below[:, None, :])
        block = z[np.searchsorted(keys, low * size + high)]
        z[at] = -np.einsum("mab,mb->ma", block, values)
        z[indptr[columns]] = 1.0 / pivots[columns] - (values * z[at]).sum(1)
    return keys, z


def _independent_columns(indptr: np.ndarray, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Columns whose inverse entries can be computed together, and the entries each has below the diagonal.

    Columns of one depth of the elimination tree do not depend on each other, and each depends on columns nearer to the
    root alone. An ordering that keeps fill low makes the tree flat: a chain of n has a depth of some log n.
    """
    size = len(indptr) - 1
    counts = np.diff(indptr) - 1
    parent = np.full(size, size, dtype=np.int64)
    below = counts > 0
    parent[below] = indices[indptr[:-1][below] + 1]
    depth = np.zeros(size + 1, dtype=np.int64)
    depth[size] = -1
    for j in range(size - 1, -1, -1):
        depth[j] = depth[parent[j]] + 1
    order = np.lexsort((counts, depth[:size]))
    kind = np.stack([depth[order], counts[order]], axis=1)
    starts = np.concatenate([[0], np.flatnonzero((np.diff(kind, axis=0) != 0).any(1)) + 1, [size]])
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        count = int(counts[order[start]])
        step = max(1, BATCH // max(1, count * count))
        for first in range(start, stop, step):
            yield order[first : min(first + step, stop)], count
