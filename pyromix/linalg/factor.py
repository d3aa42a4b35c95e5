r"""Factored Gaussian systems of grouped effects: :math:`A = \Lambda^T Z^T W Z \Lambda + I`.

Effects are spherical (:math:`u = \Lambda b`, :math:`b \sim N(0, I)`), so a zero SD is an ordinary value.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from pyromix.linalg import cholesky as small
from pyromix.linalg.block import Arrays, Layout
from pyromix.linalg.sparse import AbstractComplement, DenseComplement, complement


class Factor:
    """Factored ``A = Lambda^T M Lambda + I`` for pair blocks M (from `Layout.gram`) and factors L.

    Parameters
    ----------
    layout
        The level pattern.
    gram
        Pair blocks of ``Z^T W Z``.
    tril
        One (q, q) factor L per term; ``Lambda`` is block diagonal with L at every level.
    """

    def __init__(self, layout: Layout, gram: Arrays, tril: Arrays) -> None:
        self.layout, self.tril = layout, tril
        pairs = layout.pairs
        blocks = [_sandwich(tril[pair.j], m, tril[pair.k]) for pair, m in zip(pairs, gram, strict=True)]
        self.root: np.ndarray | None = None
        if layout.lead is not None:
            own = next(b for b, pair in zip(blocks, pairs, strict=True) if pair.same and pair.j == layout.lead)
            self.root = small.cholesky(own + np.eye(own.shape[-1]))
        self.v = self._border(blocks)
        self.rest: AbstractComplement | None = self._complement(blocks) if layout.border else None
        self.logdet = (small.logdet(self.root) if self.root is not None else 0.0) + (
            self.rest.logdet if self.rest is not None else 0.0
        )

    # -- assembly ----------------------------------------------------------------------------------------------------
    def _border(self, blocks: Arrays) -> np.ndarray | sp.csr_array | None:
        """``V = R^-1 A_1r``, lead size x border, so that ``S = A_rr - V^T V``."""
        layout = self.layout
        if not layout.crossing or self.root is None:
            return None
        values = []
        for p in layout.crossing:
            block = layout.lead_blocks(p, blocks[p])
            values.append(small.solve_lower(self.root[layout.lead_levels(p)], block).ravel())
        data = np.concatenate(values)
        shape = (layout.terms[layout.lead].size, layout.border)
        if layout.dense_border:
            flat = layout.border_rows * layout.border + layout.border_cols  # several slots may share a position
            return np.bincount(flat, data, shape[0] * shape[1]).reshape(shape)
        return sp.csr_array((data[layout.border_order], layout.indices, layout.indptr), shape=shape)

    def _complement(self, blocks: Arrays) -> AbstractComplement:
        layout, size = self.layout, self.layout.border
        values = np.concatenate([*(blocks[p].ravel() for p in layout.rest_pairs), np.ones(size)])
        if layout.pattern is not None:
            both = np.concatenate([values, -self._entry_products()])
            return layout.pattern.factor(np.bincount(layout.pattern_at, both, len(layout.pattern.rows)))
        if not layout.dense:
            s = sp.csr_array((values, (layout.rest_rows, layout.rest_cols)), shape=(size, size))
            return complement(s if self.v is None else s - self.v.T @ self.v)
        s = np.bincount(layout.rest_rows * size + layout.rest_cols, values, size**2).reshape(size, size)
        if layout.products is not None:
            s -= np.bincount(layout.products.flat, self._entry_products(), size**2).reshape(size, size)
        elif self.v is not None:
            product = self.v.T @ self.v
            s -= product if isinstance(product, np.ndarray) else product.toarray()
        return DenseComplement(s)

    def _entry_products(self) -> np.ndarray:
        """The planned products of entries of V: the lower triangle of ``V^T V``, still to be summed."""
        products = self.layout.products
        if products is None or self.v is None:
            return np.empty(0)
        return self.v.data[products.first] * self.v.data[products.second]

    # -- solving -----------------------------------------------------------------------------------------------------
    def solve(self, b: Arrays) -> Arrays:
        """``A^-1 b``: one array (levels, q) or (levels, q, m) per term."""
        if not b:
            return []
        vector = b[0].ndim == 2
        rhs = [x[..., None] if vector else x for x in b]
        layout, lead = self.layout, self.layout.lead
        half = None
        if lead is not None:
            half = small.solve_lower(self.root, rhs[lead])
        out: Arrays = [np.empty(0)] * len(rhs)
        if layout.border:
            m = rhs[0].shape[-1]
            tail = np.concatenate([rhs[k].reshape(-1, m) for k in layout.offsets])
            if self.v is not None:
                tail = tail - self.v.T @ half.reshape(-1, m)
            tail = self.rest.solve(tail)
            if self.v is not None:
                half = half - (self.v @ tail).reshape(half.shape)
            self._split(tail, out)
        if lead is not None:
            out[lead] = small.solve_upper(self.root, half)
        return [x[..., 0] for x in out] if vector else out

    def sample(self, noise: Arrays) -> Arrays:
        """Draws from ``N(0, A^-1)``: noise arrays (levels, q, m) of standard normals -> arrays of the same shapes."""
        if not noise:
            return []
        layout, lead = self.layout, self.layout.lead
        out: Arrays = [np.empty(0)] * len(noise)
        m = noise[0].shape[-1]
        half = noise[lead] if lead is not None else None
        if layout.border:
            tail = self.rest.sample(np.concatenate([noise[k].reshape(-1, m) for k in layout.offsets]))
            if self.v is not None:
                half = half - (self.v @ tail).reshape(half.shape)
            self._split(tail, out)
        if lead is not None:
            out[lead] = small.solve_upper(self.root, half)
        return out

    def _split(self, tail: np.ndarray, out: Arrays) -> None:
        for k, start in self.layout.offsets.items():
            term = self.layout.terms[k]
            out[k] = tail[start : start + term.size].reshape(term.levels, term.q, -1)


def _sandwich(left: np.ndarray, blocks: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``L_j^T M L_k`` for every block."""
    if blocks.shape[1:] == (1, 1):
        return blocks * (left[0, 0] * right[0, 0])
    return left.T @ blocks @ right
