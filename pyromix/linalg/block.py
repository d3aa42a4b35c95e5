r"""Gaussian systems of grouped effects: :math:`A = \Lambda^T Z^T W Z \Lambda + I`.

Effects are spherical (:math:`u = \Lambda b`, :math:`b \sim N(0, I)`), so a zero SD is an ordinary value. Everything that
does not depend on the rows is kept as *pair blocks*: for two terms, one small block per pair of levels that occur
together. The term with the most effects is block diagonal and is eliminated first; what remains is a complement
(`pyromix.linalg.sparse`). A level pattern is analysed once, then factored for any W and any factors L.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from pyromix.linalg import cholesky as small
from pyromix.linalg.sparse import DENSE_LIMIT, AbstractComplement, complement

DENSE_BORDER = 64  # complements up to this size keep the border V as a dense array
PRODUCT_LIMIT = 3_000_000  # products of border entries that are planned ahead, 24 bytes each
CHUNK = 4_000_000  # entries of a temporary (rows of the lead term x complement)

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Slot:
    """One level a row belongs to: index (n,), design (n, q) or ``None`` for ones (q = 1)."""

    index: np.ndarray
    design: np.ndarray | None

    def column(self, k: int) -> np.ndarray | None:
        return None if self.design is None else self.design[:, k]


@dataclass(frozen=True)
class Term:
    """One effect array of shape (levels, q): one slot, or several for multiple membership."""

    levels: int
    q: int
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return self.levels * self.q


@dataclass(frozen=True)
class Pair:
    """Levels of two slots that occur together: row -> pair, and each pair's levels."""

    j: int
    k: int
    slot_j: Slot
    slot_k: Slot
    rows: np.ndarray
    level_j: np.ndarray
    level_k: np.ndarray
    same: bool


class Layout:
    """The level pattern of a set of terms.

    Parameters
    ----------
    terms
        The effect arrays.

    Attributes
    ----------
    lead
        The term eliminated first, ``None`` if every term has several slots.
    offsets
        First position of each other term in the complement, which has `border` rows.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        single = [k for k, term in enumerate(self.terms) if len(term.slots) == 1]
        self.lead = max(single, key=lambda k: self.terms[k].size, default=None)
        self.offsets: dict[int, int] = {}
        self.border = 0
        for k, term in enumerate(self.terms):
            if k != self.lead:
                self.offsets[k] = self.border
                self.border += term.size
        slots = [(k, slot) for k, term in enumerate(self.terms) for slot in term.slots]
        shortcut = self.border <= DENSE_LIMIT
        pairs = [(a, b) for a in range(len(slots)) for b in range(a, len(slots))]
        self.pairs = [_pair(self.terms, *slots[a], *slots[b], shortcut) for a, b in pairs]
        self.products: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._plan_border()
        self._plan_rest()

    def redesigned(self, designs: Sequence[Sequence[np.ndarray | None]]) -> Layout:
        """The same level pattern with other designs: one array per slot of each term."""
        new = copy.copy(self)
        swap: dict[int, Slot] = {}
        terms = []
        for term, columns in zip(self.terms, designs, strict=True):
            slots = tuple(Slot(slot.index, design) for slot, design in zip(term.slots, columns, strict=True))
            swap.update({id(old): slot for old, slot in zip(term.slots, slots, strict=True)})
            terms.append(Term(term.levels, term.q, slots))
        new.terms = tuple(terms)
        new.pairs = [replace(pair, slot_j=swap[id(pair.slot_j)], slot_k=swap[id(pair.slot_k)]) for pair in self.pairs]
        return new

    # -- cross products ----------------------------------------------------------------------------------------------
    def gram(self, weight: np.ndarray | None) -> Arrays:
        """Pair blocks of ``Z^T W Z``: weight (n,), ``None`` for ones -> one array (pairs, q_j, q_k) per pair."""
        return [_pair_gram(self.terms, pair, weight) for pair in self.pairs]

    def transpose(self, rows: np.ndarray) -> Arrays:
        """``Z^T r``: rows (n,) or (n, m) -> one array (levels, q[, m]) per term."""
        columns = rows.reshape(len(rows), -1)
        out = []
        for term in self.terms:
            total = np.zeros((term.levels, term.q, columns.shape[1]))
            for slot in term.slots:
                for a in range(term.q):
                    z = slot.column(a)
                    for m in range(columns.shape[1]):
                        values = columns[:, m] if z is None else columns[:, m] * z
                        total[:, a, m] += np.bincount(slot.index, values, term.levels)
            out.append(total[..., 0] if rows.ndim == 1 else total)
        return out

    def multiply(self, gram: Arrays, effects: Arrays) -> Arrays:
        """``Z^T W Z u`` from pair blocks: arrays (levels, q, m) per term -> the same shapes."""
        out = [np.zeros_like(u) for u in effects]
        for pair, block in zip(self.pairs, gram, strict=True):
            if pair.same:
                out[pair.j] += block @ effects[pair.j]
                continue
            _scatter(out[pair.j], pair.level_j, block @ effects[pair.k][pair.level_k])
            _scatter(out[pair.k], pair.level_k, block.swapaxes(1, 2) @ effects[pair.j][pair.level_j])
        return out

    def apply(self, effects: Arrays) -> np.ndarray:
        """``Z u``: arrays (levels, q) -> (n,)."""
        total: np.ndarray | float = 0.0
        for term, u in zip(self.terms, effects, strict=True):
            for slot in term.slots:
                if slot.design is None:
                    total = total + u[slot.index, 0]
                else:
                    for a in range(term.q):
                        total = total + u[slot.index, a] * slot.design[:, a]
        return np.asarray(total)

    # -- the border between the lead term and the rest ---------------------------------------------------------------
    def _plan_border(self) -> None:
        self.dense_border = self.border <= DENSE_BORDER
        crossing = [(p, pair) for p, pair in enumerate(self.pairs) if (pair.j == self.lead) != (pair.k == self.lead)]
        self.crossing = [p for p, _ in crossing]
        positions = []
        for _, pair in crossing:
            other, own, level = (pair.k, pair.level_j, pair.level_k)
            if pair.k == self.lead:
                other, own, level = (pair.j, pair.level_k, pair.level_j)
            q1, q2 = self.terms[self.lead].q, self.terms[other].q
            rows = own[:, None, None] * q1 + np.arange(q1)[None, :, None]
            cols = self.offsets[other] + level[:, None, None] * q2 + np.arange(q2)[None, None, :]
            shape = (len(own), q1, q2)
            positions.append((np.broadcast_to(rows, shape).ravel(), np.broadcast_to(cols, shape).ravel()))
        if not positions:
            self.border_rows = self.border_cols = np.empty(0, dtype=np.int64)
            return
        self.border_rows = np.concatenate([r for r, _ in positions])
        self.border_cols = np.concatenate([c for _, c in positions])
        if not self.dense_border:
            self._plan_sparse_border()

    def _plan_sparse_border(self) -> None:
        """Compressed rows of V and of its transpose; for a dense complement also the products that make ``V^T V``."""
        lead_size = self.terms[self.lead].size
        self.border_order = np.lexsort((self.border_cols, self.border_rows))
        counts = np.bincount(self.border_rows, minlength=lead_size)
        index_type = np.int32 if len(self.border_rows) < 2**31 - 1 else np.int64
        self.indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index_type)
        self.indices = self.border_cols[self.border_order].astype(index_type)
        single = all(len(term.slots) == 1 for term in self.terms)
        count = int((counts * (counts + 1) // 2).sum())
        if single and self.border <= DENSE_LIMIT and count <= PRODUCT_LIMIT:
            within = np.arange(len(self.indices)) - np.repeat(self.indptr[:-1], counts)
            first = np.repeat(np.arange(len(self.indices)), within + 1)
            start = np.cumsum(within + 1) - (within + 1)
            second = np.arange(count) - start[first] + self.indptr[:-1].repeat(counts)[first]
            flat = self.indices[first].astype(np.int64) * self.border + self.indices[second]
            self.products = (first, second, flat)  # lower triangle: columns ascend within a row
            return
        self.border_order_t = np.lexsort((self.border_rows, self.border_cols))
        counts_t = np.bincount(self.border_cols, minlength=self.border)
        self.indptr_t = np.concatenate([[0], np.cumsum(counts_t)]).astype(index_type)
        self.indices_t = self.border_rows[self.border_order_t].astype(index_type)

    def _plan_rest(self) -> None:
        """Positions of the blocks that the complement starts from, lower triangle and diagonal."""
        rows, cols = [], []
        self.rest_pairs = []
        for p, pair in enumerate(self.pairs):
            if self.lead in (pair.j, pair.k):
                continue
            q_j, q_k = self.terms[pair.j].q, self.terms[pair.k].q
            shape = (len(pair.level_j), q_j, q_k)
            r = self.offsets[pair.j] + pair.level_j[:, None, None] * q_j + np.arange(q_j)[None, :, None]
            c = self.offsets[pair.k] + pair.level_k[:, None, None] * q_k + np.arange(q_k)[None, None, :]
            r, c = np.broadcast_to(r, shape).ravel(), np.broadcast_to(c, shape).ravel()
            for at, to in ((r, c),) if pair.same else ((r, c), (c, r)):
                self.rest_pairs.append(p)
                rows.append(at), cols.append(to)
        diagonal = np.arange(self.border)
        self.rest_rows, self.rest_cols = np.concatenate([*rows, diagonal]), np.concatenate([*cols, diagonal])

    def lead_blocks(self, p: int, block: np.ndarray) -> np.ndarray:
        """A crossing pair's blocks with the lead term first."""
        return block if self.pairs[p].j == self.lead else block.swapaxes(1, 2)

    def lead_levels(self, p: int) -> np.ndarray:
        """The lead level of each block of a crossing pair."""
        pair = self.pairs[p]
        return pair.level_j if pair.j == self.lead else pair.level_k


def _pair(terms: Sequence[Term], j: int, slot_j: Slot, k: int, slot_k: Slot, shortcut: bool) -> Pair:
    if slot_j is slot_k:
        levels = np.arange(terms[j].levels)
        return Pair(j, k, slot_j, slot_k, slot_j.index, levels, levels, True)
    count_j, count_k = terms[j].levels, terms[k].levels
    key = slot_j.index.astype(np.int64) * count_k + slot_k.index
    if shortcut and count_j * count_k <= 2 * len(key):  # nearly every pair occurs: no need to search for those that do
        levels = np.arange(count_j * count_k)
        return Pair(j, k, slot_j, slot_k, key, levels // count_k, levels % count_k, False)
    unique, rows = np.unique(key, return_inverse=True)
    return Pair(j, k, slot_j, slot_k, rows, unique // count_k, unique % count_k, False)


def _pair_gram(terms: Sequence[Term], pair: Pair, weight: np.ndarray | None) -> np.ndarray:
    q_j, q_k, count = terms[pair.j].q, terms[pair.k].q, len(pair.level_j)
    out = np.empty((count, q_j, q_k))
    for a in range(q_j):
        left = _product(weight, pair.slot_j.column(a))
        for b in range(a if pair.same else 0, q_k):
            out[:, a, b] = np.bincount(pair.rows, _product(left, pair.slot_k.column(b)), count)
            if pair.same:
                out[:, b, a] = out[:, a, b]
    return out


def _scatter(out: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    """``out[index] += values`` with repeated indices."""
    flat = values.reshape(len(values), -1)
    total = out.reshape(len(out), -1)
    for column in range(flat.shape[1]):
        total[:, column] += np.bincount(index, flat[:, column], len(out))


def _product(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    if left is None or right is None:
        return right if left is None else left
    return left * right


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
        ordered = data[layout.border_order]
        if layout.products is None:
            self._data_t = data[layout.border_order_t]
        return sp.csr_array((ordered, layout.indices, layout.indptr), shape=shape)

    def _border_product(self) -> np.ndarray | sp.csr_array:
        """``V^T V``; where the layout planned its products, the lower triangle alone."""
        layout = self.layout
        if layout.dense_border:
            return self.v.T @ self.v
        if layout.products is not None:
            first, second, flat = layout.products
            products = self.v.data[first] * self.v.data[second]
            return np.bincount(flat, products, layout.border**2).reshape(layout.border, -1)
        shape = (layout.border, layout.terms[layout.lead].size)
        product = sp.csr_array((self._data_t, layout.indices_t, layout.indptr_t), shape=shape) @ self.v
        return product.toarray() if layout.border <= DENSE_LIMIT else product

    def _complement(self, blocks: Arrays) -> AbstractComplement:
        layout = self.layout
        values = np.concatenate([*(blocks[p].ravel() for p in layout.rest_pairs), np.ones(layout.border)])
        shape = (layout.border, layout.border)
        if layout.border <= DENSE_LIMIT:
            flat = layout.rest_rows * layout.border + layout.rest_cols
            s: np.ndarray | sp.sparray = np.bincount(flat, values, layout.border**2).reshape(shape)
        else:
            s = sp.csr_array((values, (layout.rest_rows, layout.rest_cols)), shape=shape)
        if self.v is not None:
            s = s - self._border_product()
        return complement(s)

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
