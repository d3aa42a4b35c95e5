"""Symmetric positive definite complements: dense, block by block, or by sparse factorisation.

One interface, three ways to hold the same matrix: `logdet`, `solve`, `inverse_at` (entries of the inverse), `sample`
(a root of the inverse times white noise). `complement` chooses by size and pattern.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu, spsolve_triangular

from pyromix.errors import NumericalError
from pyromix.linalg import cholesky as small

DENSE_LIMIT = 8000  # rows, 512 MB; crossed factors fill in, so a dense factorisation is the faster one up to memory
BLOCK_LIMIT = 64  # rows; connected components up to this size are factored densely, all of a size at once


class AbstractComplement(ABC):
    """A factored symmetric positive definite matrix."""

    logdet: float

    @abstractmethod
    def solve(self, b: np.ndarray) -> np.ndarray:
        """``S^-1 b``: b (M, m)."""

    @abstractmethod
    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Entries of ``S^-1``; cheap where S has an entry, and within a block of S."""

    @abstractmethod
    def sample(self, noise: np.ndarray) -> np.ndarray:
        """``B noise`` with ``B B^T = S^-1``: noise (M, m)."""


def complement(matrix: sp.sparray) -> AbstractComplement:
    """Factor a sparse matrix whose pattern is met once."""
    coo = sp.coo_array(matrix)
    coo.sum_duplicates()
    rows, cols = coo.coords
    return ComplementPlan(rows, cols, matrix.shape[0]).factor(coo.data)


class ComplementPlan:
    """How to factor a sparse matrix of a given pattern: block by block if it falls apart, else as a whole.

    Parameters
    ----------
    rows, cols
        Positions of the entries; those above the diagonal are ignored.
    size
        Rows of the matrix.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, size: int) -> None:
        self.rows, self.size = rows, size
        self.keep = np.flatnonzero(rows >= cols)
        self.lower_rows, self.lower_cols = rows[self.keep], cols[self.keep]
        graph = sp.coo_array((np.ones(len(self.keep)), (self.lower_rows, self.lower_cols)), shape=(size, size))
        count, labels = connected_components(graph, directed=False)
        sizes = np.bincount(labels, minlength=count)
        self.blocks = _Blocks(self, labels, sizes) if sizes.max() <= BLOCK_LIMIT else None
        if self.blocks is None:
            order = sp.csc_array((np.arange(1.0, len(self.keep) + 1), (self.lower_rows, self.lower_cols)), (size, size))
            full = sp.csc_array(order + sp.tril(order, -1).T)
            self._order = full.data.astype(np.int64) - 1
            self._indices, self._indptr = full.indices, full.indptr

    def factor(self, data: np.ndarray) -> AbstractComplement:
        """Factor the matrix with these entries."""
        lower = data[self.keep]
        if self.blocks is not None:
            return BlockComplement(self.blocks, lower)
        shape = (self.size, self.size)
        return SparseComplement(sp.csc_array((lower[self._order], self._indices, self._indptr), shape=shape))


class _Blocks:
    """Connected components by size, and where every entry of the lower triangle goes."""

    def __init__(self, plan: ComplementPlan, labels: np.ndarray, sizes: np.ndarray) -> None:
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.within = np.empty(len(labels), dtype=np.int64)
        self.within[order] = np.arange(len(labels)) - np.repeat(starts[:-1], sizes)
        rank = np.empty(len(sizes), dtype=np.int64)  # position of a block among those of its size
        self.members: dict[int, np.ndarray] = {}
        self.entries: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.size = sizes[labels]
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            rank[which] = np.arange(len(which))
            self.members[int(size)] = order[starts[which][:, None] + np.arange(size)]
        self.rank = rank[labels]
        for size in self.members:
            here = np.flatnonzero(self.size[plan.lower_rows] == size)
            r, c = plan.lower_rows[here], plan.lower_cols[here]
            self.entries[size] = (here, (self.rank[r] * size + self.within[r]) * size + self.within[c])


class DenseComplement(AbstractComplement):
    """LAPACK Cholesky; only the lower triangle of the matrix is read."""

    def __init__(self, matrix: np.ndarray) -> None:
        try:
            # The transpose of a C-ordered array is what LAPACK wants, so nothing is copied.
            self.root = scipy.linalg.cholesky(matrix.T, lower=False, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise NumericalError(f"a complement of {len(matrix)} rows is not positive definite: {error}.") from error
        self.logdet = 2.0 * float(np.log(np.diag(self.root)).sum())
        self._inverse: np.ndarray | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve((self.root, False), b, check_finite=False)

    @property
    def inverse(self) -> np.ndarray:
        """The whole inverse, (M, M)."""
        if self._inverse is None:
            upper, info = scipy.linalg.lapack.dpotri(self.root, lower=0)
            if info:
                raise NumericalError(f"inverting a complement of {len(self.root)} rows failed (LAPACK info {info}).")
            self._inverse = upper + upper.T  # below the diagonal LAPACK left zeros
            self._inverse[np.diag_indices(len(upper))] *= 0.5
        return self._inverse

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return self.inverse[rows, cols]

    def sample(self, noise: np.ndarray) -> np.ndarray:
        return scipy.linalg.solve_triangular(self.root, noise, lower=False, check_finite=False)


class BlockComplement(AbstractComplement):
    """Many small independent blocks (nested factors), batched by size."""

    def __init__(self, blocks: _Blocks, lower: np.ndarray) -> None:
        self.blocks = blocks
        self.roots: dict[int, np.ndarray] = {}
        self.logdet = 0.0
        for size, members in blocks.members.items():
            here, flat = blocks.entries[size]
            block = np.bincount(flat, lower[here], members.size * size).reshape(len(members), size, size)
            self.roots[size] = small.cholesky(block)
            self.logdet += small.logdet(self.roots[size])
        self._inverses: dict[int, np.ndarray] | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        out = np.empty_like(b, dtype=float)
        for size, members in self.blocks.members.items():
            root = self.roots[size]
            out[members] = small.solve_upper(root, small.solve_lower(root, b[members]))
        return out

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if self._inverses is None:
            self._inverses = {size: small.inverse(root) for size, root in self.roots.items()}
        blocks, out = self.blocks, np.empty(len(rows))
        for size, inverse in self._inverses.items():
            here = slice(None) if len(self._inverses) == 1 else np.flatnonzero(blocks.size[rows] == size)
            r, c = rows[here], cols[here]
            out[here] = inverse[blocks.rank[r], blocks.within[r], blocks.within[c]]
        return out

    def sample(self, noise: np.ndarray) -> np.ndarray:
        out = np.empty_like(noise)
        for size, members in self.blocks.members.items():
            out[members] = small.solve_upper(self.roots[size], noise[members])
        return out


class SparseComplement(AbstractComplement):
    """Sparse Cholesky by SuperLU in its symmetric mode; the inverse on the factor's pattern by Takahashi's rule."""

    def __init__(self, matrix: sp.sparray) -> None:
        symmetric = {"SymmetricMode": True}
        lu = splu(sp.csc_array(matrix), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=symmetric)
        pivots = lu.U.diagonal()
        if not (pivots > 0).all() or not np.array_equal(lu.perm_r, lu.perm_c):
            raise NumericalError(f"a sparse complement of {matrix.shape[0]} rows is not positive definite.")
        self._lu, self._pivots = lu, pivots
        self.logdet = float(np.log(pivots).sum())
        self._selected: tuple[np.ndarray, np.ndarray] | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        return self._lu.solve(np.ascontiguousarray(b))

    def sample(self, noise: np.ndarray) -> np.ndarray:
        scaled = noise / np.sqrt(self._pivots)[:, None]
        x = spsolve_triangular(sp.csr_array(self._lu.L.T), scaled, lower=False, unit_diagonal=True)
        return x[self._lu.perm_c]

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if self._selected is None:
            self._selected = _selected_inverse(sp.csc_array(self._lu.L), self._pivots)
        keys, values = self._selected
        size = len(self._pivots)
        i, j = self._lu.perm_c[rows].astype(np.int64), self._lu.perm_c[cols].astype(np.int64)
        wanted = np.minimum(i, j) * size + np.maximum(i, j)  # column * size + row of the lower triangle
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        out = values[at]
        missing = keys[at] != wanted
        if missing.any():  # a structural zero of S that the factor did not fill
            columns, inverse = np.unique(cols[missing], return_inverse=True)
            unit = np.zeros((size, len(columns)))
            unit[columns, np.arange(len(columns))] = 1.0
            out[missing] = self.solve(unit)[rows[missing], inverse]
        return out


def _selected_inverse(lower: sp.csc_array, pivots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries of ``(L D L^T)^-1`` on the pattern of L, as sorted keys ``column * n + row`` and values.

    Takahashi, Fagan and Chen (1973): for column j with sub-diagonal pattern R, ``Z_Rj = -Z_RR L_Rj`` and
    ``Z_jj = 1/d_j - L_Rj^T Z_Rj``, from the last column to the first; Z_RR lies in columns already done.
    """
    lower.sort_indices()
    size = len(pivots)
    indptr, indices, data = lower.indptr, lower.indices.astype(np.int64), lower.data
    keys = np.repeat(np.arange(size, dtype=np.int64), np.diff(indptr)) * size + indices
    z = np.empty_like(data)
    for j in range(size - 1, -1, -1):
        start, stop = indptr[j], indptr[j + 1]
        below = indices[start + 1 : stop]  # the first entry is the unit diagonal
        column = data[start + 1 : stop]
        if len(below):
            low = np.minimum(below[:, None], below[None, :])
            high = np.maximum(below[:, None], below[None, :])
            block = z[np.searchsorted(keys, low * size + high)]
            z[start + 1 : stop] = -(block @ column)
        z[start] = 1.0 / pivots[j] - column @ z[start + 1 : stop]
    return keys, z
