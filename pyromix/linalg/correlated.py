r"""Gaussian systems of effects whose levels are correlated: :math:`H = G^T Z^T W Z G + P`.

Effects are :math:`u = (R v) L^T` with v ~ N(0, P^-1): for independent levels R and P are the identity, for a covariance
given by its root P is, for one given by its precision R is. So every SD may be zero. Rows enter through
:math:`Z = ` design times L, entries of which are kept row by row; what a pattern of rows and precisions implies is
analysed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from pyromix.linalg.block import Arrays, Term
from pyromix.linalg.sparse import AbstractComplement, ComplementPlan, DenseComplement

DENSE = 200  # effects up to which the system is factored densely whatever its pattern
FEW = 8  # entries of a product are computed one by one where they are fewer than a share 1 / FEW of all
CHUNK = 4_000_000  # entries of a temporary
Pattern = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Prior:
    """The numbers of one term's prior: L (q, q); its root R, or the entries of its precision on the pattern, if any."""

    tril: np.ndarray
    root: np.ndarray | None = None
    precision: np.ndarray | None = None


class CorrelatedLayout:
    """The pattern of rows, levels and precisions.

    Parameters
    ----------
    terms
        The effect arrays.
    patterns
        Of each term's precision: rows and columns of the lower triangle over its levels; ``None`` without one.
    rooted
        Whether each term has a root.
    fixed
        Columns (n, p) whose coefficients are integrated over a flat prior beside the effects; ``None`` for none.
    rows
        Number of rows, where there are no terms to tell.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        patterns: Sequence[Pattern | None],
        rooted: Sequence[bool],
        fixed: np.ndarray | None = None,
        rows: int | None = None,
    ) -> None:
        self.n = len(terms[0].slots[0].index) if rows is None else rows
        self.terms, self.patterns, self.fixed = tuple(terms), tuple(patterns), fixed
        sizes = [term.size for term in terms]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.effects = int(self.starts[-1])
        self.width = 0 if fixed is None else fixed.shape[1]
        self.size = self.effects + self.width
        self.any_root = any(rooted)
        self._plan_entries()
        self._plan_system()

    # -- analysis ----------------------------------------------------------------------------------------------------
    def _plan_entries(self) -> None:
        """Entries of Z, sorted by row: which row and column, and where in the sorted order each term's entries go."""
        rows, cols = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        n = self.n
        for term, start in zip(self.terms, self.starts, strict=False):
            for slot in term.slots:
                cells = start + slot.index[:, None] * term.q + np.arange(term.q)
                rows.append(np.repeat(np.arange(n), term.q))
                cols.append(cells.reshape(-1))
        if self.width:
            rows.append(np.repeat(np.arange(n), self.width))
            cols.append(np.tile(self.effects + np.arange(self.width), n))
        self.rows, self.cols = np.concatenate(rows), np.concatenate(cols)
        self.order = np.argsort(self.rows, kind="stable")
        self.rows, self.cols = self.rows[self.order], self.cols[self.order]
        self.counts = np.bincount(self.rows, minlength=n)
        self.indptr = np.concatenate([[0], np.cumsum(self.counts)])

    def _plan_system(self) -> None:
        """Products of two entries of a row, and the lower triangle of the system that they and the priors add to."""
        within = np.arange(len(self.rows)) - self.indptr[self.rows]
        self.first = np.repeat(np.arange(len(self.rows)), within + 1)
        before = np.cumsum(within + 1) - (within + 1)
        self.second = np.arange(len(self.first)) - before[self.first] + self.indptr[self.rows[self.first]]
        a, b = self.cols[self.first], self.cols[self.second]
        low, high = np.minimum(a, b), np.maximum(a, b)
        # a level twice in one row (multiple membership): both orders of the product count
        self.twice = np.where((a == b) & (self.first != self.second), 2.0, 1.0)
        keys = [high * self.size + low]
        spans = [len(low)]
        for k, term in enumerate(self.terms):
            at, to = self._prior_cells(k, term)
            keys.append(at * self.size + to)
            spans.append(len(at))
        unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        parts = np.split(inverse, np.cumsum(spans)[:-1])
        self.product_at, self.prior_at = parts[0], parts[1:]
        self.lower: Pattern = (unique // self.size, unique % self.size)
        self.diagonal = self.lower[0] == self.lower[1]
        self.dense = self.any_root or self.size <= DENSE
        self.plan = None if self.dense else ComplementPlan(*self.lower, self.size)

    def _prior_cells(self, k: int, term: Term) -> Pattern:
        pattern, start = self.patterns[k], self.starts[k]
        if pattern is None:
            at = start + np.arange(term.size)
            return at, at
        q = np.arange(term.q)
        rows, cols = (start + (levels[:, None] * term.q + q).reshape(-1) for levels in pattern)
        return np.maximum(rows, cols), np.minimum(rows, cols)

    # -- at values ---------------------------------------------------------------------------------------------------
    def entries(
        self,
        priors: Sequence[Prior],
        designs: Sequence[Sequence[np.ndarray | None]] | None = None,
        fixed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Entries of Z (design times L), by row; with other designs and columns of the same shape where given."""
        designs = self.designs if designs is None else designs
        fixed = self.fixed if fixed is None else fixed
        parts = [np.empty(0)]
        for columns, prior in zip(designs, priors, strict=True):
            for column in columns:
                design = np.ones((self.n, 1)) if column is None else column
                parts.append((design @ prior.tril).reshape(-1))
        if fixed is not None:
            parts.append(fixed.reshape(-1))
        return np.concatenate(parts)[self.order]

    @property
    def designs(self) -> list[list[np.ndarray | None]]:
        """Row designs, by term and membership."""
        return [[slot.design for slot in term.slots] for term in self.terms]

    def matrix(self, entries: np.ndarray) -> sp.csr_array:
        """Z (n, size)."""
        return sp.csr_array((entries, self.cols, self.indptr), shape=(self.n, self.size))

    def factor(self, entries: np.ndarray, weight: np.ndarray, priors: Sequence[Prior]) -> CorrelatedFactor:
        """Factor H; `NumericalError` if it is not positive definite."""
        products = self.twice * weight[self.rows[self.first]] * entries[self.first] * entries[self.second]
        gram = np.bincount(self.product_at, products, len(self.diagonal))
        prior = np.zeros(len(self.diagonal))
        for at, term, given in zip(self.prior_at, self.terms, priors, strict=True):
            prior[at] += 1.0 if given.precision is None else np.repeat(given.precision, term.q)
        return CorrelatedFactor(self, gram, prior, priors)

    def spread(self, priors: Sequence[Prior], v: np.ndarray) -> np.ndarray:
        """``G v``: (size[, m]) -> the same shape."""
        return self._rooted(priors, v, transpose=False)

    def gather(self, priors: Sequence[Prior], x: np.ndarray) -> np.ndarray:
        """``G^T x``."""
        return self._rooted(priors, x, transpose=True)

    def _rooted(self, priors: Sequence[Prior], x: np.ndarray, transpose: bool) -> np.ndarray:
        if not self.any_root:
            return x
        out = x.copy()
        for k, prior in enumerate(priors):
            if prior.root is None:
                continue
            part = slice(self.starts[k], self.starts[k + 1])
            root = prior.root.T if transpose else prior.root
            rows = len(root)  # over levels, or over levels and terms
            out[part] = (root @ x[part].reshape(rows, -1)).reshape(x[part].shape)
        return out

    def spreader(self, priors: Sequence[Prior]) -> np.ndarray:
        """All of G, (size, size)."""
        out = np.eye(self.size)
        for k, prior in enumerate(priors):
            if prior.root is not None:
                part = slice(self.starts[k], self.starts[k + 1])
                repeats = self.terms[k].size // len(prior.root)
                out[part, part] = prior.root if repeats == 1 else np.kron(prior.root, np.eye(repeats))
        return out

    def split(self, x: np.ndarray) -> Arrays:
        """(effects, *m) -> (levels, q, *m) per term."""
        return [
            x[start : start + term.size].reshape(term.levels, term.q, *x.shape[1:])
            for start, term in zip(self.starts, self.terms, strict=False)
        ]


class CorrelatedFactor:
    """Factored H.

    Attributes
    ----------
    logdet
        ``log |H|``.
    gram
        Entries of ``Z^T W Z`` on the layout's lower triangle.
    """

    def __init__(self, layout: CorrelatedLayout, gram: np.ndarray, prior: np.ndarray, priors: Sequence[Prior]) -> None:
        self.layout, self.gram, self.priors = layout, gram, priors
        self.held: AbstractComplement
        if layout.plan is not None:
            self._diagonal = (gram + prior)[layout.diagonal]
            self.held = layout.plan.factor(gram + prior)
        else:
            rows, cols = layout.lower
            if layout.any_root:
                self.spreader = layout.spreader(priors)
                matrix = self.spreader.T @ (self.weighted @ self.spreader)
            else:
                matrix = np.zeros((layout.size, layout.size))
                matrix[rows, cols] = gram
                matrix[cols, rows] = gram
            matrix[rows, cols] += prior
            self._diagonal = matrix.diagonal().copy()
            self.held = DenseComplement(np.ascontiguousarray(matrix))
        self.logdet = self.held.logdet

    @cached_property
    def weighted(self) -> sp.csr_array:
        """``Z^T W Z``."""
        (rows, cols), size = self.layout.lower, self.layout.size
        lower = sp.csr_array((self.gram, (rows, cols)), shape=(size, size))
        return sp.csr_array(lower + sp.tril(lower, -1).T)

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``H^-1 b``: (size,) or (size, m)."""
        return self.held.solve(b[:, None])[:, 0] if b.ndim == 1 else self.held.solve(b)

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """Draws from N(0, H^-1): noise (size, m)."""
        return self.held.sample(noise)

    def inverse(self) -> np.ndarray:
        """Entries of ``H^-1`` on the layout's lower triangle."""
        if not self.layout.size:
            return np.empty(0)
        return self.held.inverse_at(*self.layout.lower)

    @property
    def rounding(self) -> float:
        """Size of the error of `logdet` by the rounding of H: each entry is known to one part in 1e16."""
        inverse = self.inverse()[self.layout.diagonal]
        return float(np.finfo(float).eps * (self._diagonal @ inverse))

    def spread_inverse(self) -> np.ndarray:
        """Entries of ``G H^-1 G^T`` there: the covariance of ``G v``."""
        layout = self.layout
        if not layout.any_root:
            return self.inverse()
        (rows, cols), size = layout.lower, layout.size
        if len(rows) * FEW > size**2:
            return (self.spread_dense @ self.spreader.T)[rows, cols]
        step = max(1, CHUNK // size)
        parts = [slice(start, start + step) for start in range(0, len(rows), step)]
        return np.concatenate(
            [np.einsum("ij,ij->i", self.spread_dense[rows[at]], self.spreader[cols[at]]) for at in parts]
        )

    @cached_property
    def spread_dense(self) -> np.ndarray:
        """All of ``G H^-1``."""
        return self.spreader @ self.dense_inverse

    @property
    def dense_inverse(self) -> np.ndarray:
        """All of ``H^-1``; dense systems only."""
        assert isinstance(self.held, DenseComplement)
        return self.held.inverse
