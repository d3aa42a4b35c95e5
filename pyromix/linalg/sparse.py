"""Symmetric positive definite complements: dense, block by block, banded, or front by front.

One interface, four ways to hold the same matrix: `logdet`, `solve`, `inverse_at` (entries of the inverse), `sample`
(a root of the inverse times white noise). `ComplementPlan` chooses by size and pattern.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee
from scipy.sparse.linalg import splu, spsolve_triangular

from pyromix.errors import NumericalError
from pyromix.linalg import cholesky as small
from pyromix.linalg.supernodal import Fronts, Panels
from pyromix.threads import threads_for

DENSE_LIMIT = 8000  # rows, 512 MB; crossed factors fill in, so a dense factorisation is the faster one up to memory
WIDEST = 8  # of a band that is ordered by cyclic reduction
BATCH = 4_000_000  # entries of a temporary in the selected inverse
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

    A narrow band goes to SuperLU, whose scalar loops suit it. All else is factored in dense fronts: on 40,000 vertices
    of a grid and their next neighbours' neighbours (one core) the inverse on the pattern takes 0.3 s, and 29 s column
    by column; the factor 0.2 s, 0.5 s by SuperLU.

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
        whole = len(self.keep) == len(rows)  # the same arrays: entries of the inverse there need no search
        self.lower_rows, self.lower_cols = (rows, cols) if whole else (rows[self.keep], cols[self.keep])
        graph = sp.coo_array((np.ones(len(self.keep)), (self.lower_rows, self.lower_cols)), shape=(size, size))
        count, labels = connected_components(graph, directed=False)
        sizes = np.bincount(labels, minlength=count)
        self.blocks = _Blocks(self, labels, sizes) if sizes.max() <= BLOCK_LIMIT else None
        self.rank = _banded_rank(graph) if self.blocks is None else None
        self.fronts: Fronts | None = None
        if self.rank is not None:
            self._plan_band(self.rank)
        elif self.blocks is None:
            self.fronts = Fronts(self.lower_rows, self.lower_cols, size)

    def _plan_band(self, rank: np.ndarray) -> None:
        size, r, c = self.size, rank[self.lower_rows], rank[self.lower_cols]
        at = (np.maximum(r, c), np.minimum(r, c))
        order = sp.csc_array((np.arange(1.0, len(self.keep) + 1), at), (size, size))
        full = sp.csc_array(order + sp.tril(order, -1).T)
        self._order = full.data.astype(np.int64) - 1
        self._indices, self._indptr = full.indices, full.indptr

    def factor(self, data: np.ndarray) -> AbstractComplement:
        """Factor the matrix with these entries."""
        lower = data[self.keep]
        if self.blocks is not None:
            return BlockComplement(self.blocks, lower)
        if self.fronts is not None:
            return FrontalComplement(self.fronts, lower)
        assert self.rank is not None
        shape = (self.size, self.size)
        return BandComplement(sp.csc_array((lower[self._order], self._indices, self._indptr), shape=shape), self.rank)


def _banded_rank(graph: sp.coo_array) -> np.ndarray | None:
    """Position of every row in an ordering for matrices that are banded in some order; ``None`` for others.

    Cyclic reduction: the band is cut into blocks, every other one of which is eliminated first, then every other one of
    the rest. The tree of eliminations is then some log n deep, where minimum degree goes along a chain from its ends.
    """
    size = graph.shape[0]
    symmetric = sp.csr_array(graph + graph.T)
    along = np.asarray(reverse_cuthill_mckee(symmetric, symmetric_mode=True), dtype=np.int64)
    place = np.empty(size, dtype=np.int64)
    place[along] = np.arange(size)
    rows, cols = graph.coords
    width = int(np.abs(place[rows] - place[cols]).max(initial=0))
    if width > WIDEST:
        return None
    block = np.arange(size) // max(width, 1) + 1
    level = np.log2(block & -block).astype(np.int64)
    order = along[np.lexsort((np.arange(size), level))]
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    return rank


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
            with threads_for(len(matrix)):
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
            with threads_for(len(self.root)):
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


class FrontalComplement(AbstractComplement):
    """Sparse Cholesky over a nested dissection (`pyromix.linalg.supernodal`).

    Parameters
    ----------
    fronts
        The symbolic factorisation.
    lower
        Entries of the lower triangle, in the order of ``fronts.rows, fronts.cols``.
    """

    def __init__(self, fronts: Fronts, lower: np.ndarray) -> None:
        self.fronts, self.panels = fronts, Panels(fronts, lower)
        self.logdet = self.panels.logdet
        self._inverse: np.ndarray | None = None

    def solve(self, b: np.ndarray) -> np.ndarray:
        return self.panels.solve(b)

    def sample(self, noise: np.ndarray) -> np.ndarray:
        return self.panels.sample(noise)

    def inverse_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if self._inverse is None:
            self._inverse = self.panels.inverse()
        planned = rows is self.fronts.rows and cols is self.fronts.cols
        at = self.fronts.at if planned else self.fronts.locate(rows, cols)
        out = self._inverse[at]
        missing = at < 0
        if missing.any():
            out[missing] = _solved_at(self, self.fronts.size, rows[missing], cols[missing])
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
            out[missing] = _solved_at(self, size, rows[missing], cols[missing])
        return out


def _solved_at(held: AbstractComplement, size: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Entries of the inverse where the factor has none, by solving for its columns, some at a time."""
    out = np.empty(len(rows))
    columns, which = np.unique(cols, return_inverse=True)
    step = max(1, BATCH // size)
    for start in range(0, len(columns), step):
        part = columns[start : start + step]
        unit = np.zeros((size, len(part)))
        unit[part, np.arange(len(part))] = 1.0
        here = (which >= start) & (which < start + step)
        out[here] = held.solve(unit)[rows[here], which[here] - start]
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
