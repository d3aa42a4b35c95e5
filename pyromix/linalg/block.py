r"""Gaussian systems of grouped effects: :math:`A = \Lambda^T Z^T W Z \Lambda + I`.

Effects are spherical (:math:`u = \Lambda b`, :math:`b \sim N(0, I)`), so a zero SD is an ordinary value. Everything
that does not depend on the rows is kept as *pair blocks*: for two terms, one small block per pair of levels that occur
together. The term with the most effects is block diagonal and is eliminated first; what remains is a complement
(`pyromix.linalg.sparse`). A level pattern is analysed once, then factored for any W and any factors L.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from pyromix.linalg.sparse import BLOCK_LIMIT, DENSE_LIMIT, ComplementPlan

DENSE_BORDER = 64  # complements up to this size keep the border V as a dense array
PRODUCT_LIMIT = 3_000_000  # products of border entries that are planned ahead, 24 bytes each

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


class Products(NamedTuple):
    """Products of two entries of one row of V: the entries, and the position in the complement that they add to."""

    first: np.ndarray
    second: np.ndarray
    flat: np.ndarray


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
        shortcut = self.border <= DENSE_BORDER
        pairs = [(a, b) for a in range(len(slots)) for b in range(a, len(slots))]
        self.pairs = [_pair(self.terms, *slots[a], *slots[b], shortcut) for a, b in pairs]
        self.products: Products | None = None
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
                if term.levels == 1 and slot.design is not None:
                    total[0] += slot.design.T @ columns
                    continue
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
                elif term.levels == 1:
                    total = total + slot.design @ u[0]
                else:
                    for a in range(term.q):
                        total = total + u[slot.index, a] * slot.design[:, a]
        return np.asarray(total)

    # -- the border between the lead term and the rest ---------------------------------------------------------------
    def _plan_border(self) -> None:
        """Positions of the crossing pairs' blocks in the border V, (lead size, border)."""
        self.dense_border = self.border <= DENSE_BORDER
        crossing = [(p, pair) for p, pair in enumerate(self.pairs) if (pair.j == self.lead) != (pair.k == self.lead)]
        self.crossing = [p for p, _ in crossing]
        positions = []
        for _, pair in crossing:
            other, own, level = (pair.k, pair.level_j, pair.level_k)
            if pair.k == self.lead:
                other, own, level = (pair.j, pair.level_k, pair.level_j)
            positions.append(_positions(own, self.terms[self.lead].q, level, self.terms[other].q, self.offsets[other]))
        empty = np.empty(0, dtype=np.int64)
        self.border_rows = np.concatenate([empty, *(rows for rows, _ in positions)])
        self.border_cols = np.concatenate([empty, *(cols for _, cols in positions)])
        if not self.dense_border and self.crossing:
            self._plan_entries()

    def _plan_entries(self) -> None:
        """Compressed rows of V, and the products of entries that make ``V^T V``."""
        lead = self.terms[self.lead]
        self.border_order = np.lexsort((self.border_cols, self.border_rows))
        counts = np.bincount(self.border_rows, minlength=lead.size)
        index_type = np.int32 if len(self.border_rows) < 2**31 - 1 else np.int64
        self.indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index_type)
        self.indices = self.border_cols[self.border_order].astype(index_type)
        single = all(len(term.slots) == 1 for term in self.terms)
        count = int((counts * (counts + 1) // 2).sum())
        if not single or count > PRODUCT_LIMIT:
            return
        within = np.arange(len(self.indices)) - np.repeat(self.indptr[:-1], counts)
        first = np.repeat(np.arange(len(self.indices)), within + 1)
        start = np.cumsum(within + 1) - (within + 1)
        second = np.arange(count) - start[first] + np.repeat(self.indptr[:-1], counts)[first]
        flat = self.indices[first].astype(np.int64) * self.border + self.indices[second]
        self.products = Products(first, second, flat)  # lower triangle: columns ascend within a row
        base = np.flatnonzero(self.border_rows[self.border_order] % lead.q == 0)
        level = self.border_rows[self.border_order][base] // lead.q
        self.aligned = base[:, None] + np.arange(lead.q) * counts[level * lead.q][:, None]
        self.aligned_level = level

    def _plan_rest(self) -> None:
        """Positions of the blocks that the complement starts from, and how to factor it where it is large."""
        rows, cols = [], []
        self.rest_pairs = []
        for p, pair in enumerate(self.pairs):
            if self.lead in (pair.j, pair.k):
                continue
            r, c = _positions(
                pair.level_j, self.terms[pair.j].q, pair.level_k, self.terms[pair.k].q, self.offsets[pair.k]
            )
            r = r + self.offsets[pair.j]
            for at, to in ((r, c),) if pair.same else ((r, c), (c, r)):
                self.rest_pairs.append(p)
                rows.append(at), cols.append(to)
        diagonal = np.arange(self.border)
        self.rest_rows, self.rest_cols = np.concatenate([*rows, diagonal]), np.concatenate([*cols, diagonal])
        self.dense = self.border <= DENSE_BORDER or (self.border <= DENSE_LIMIT and not self._falls_apart())
        self.pattern: ComplementPlan | None = None
        if not self.dense and (self.products is not None or not self.crossing):
            flat = self.products.flat if self.products is not None else np.empty(0, dtype=np.int64)
            keys = np.concatenate([self.rest_rows * self.border + self.rest_cols, flat])
            unique, self.pattern_at = np.unique(keys, return_inverse=True)
            self.pattern = ComplementPlan(unique // self.border, unique % self.border, self.border)

    def _falls_apart(self) -> bool:
        """Whether the complement consists of small independent blocks, as that of nested factors does."""
        lead_size = 0 if self.lead is None else self.terms[self.lead].size
        rows = np.concatenate([self.rest_rows, self.border + self.border_rows])
        cols = np.concatenate([self.rest_cols, self.border_cols])
        size = self.border + lead_size
        graph = sp.coo_array((np.ones(len(rows)), (rows, cols)), shape=(size, size))
        count, labels = connected_components(graph, directed=False)
        return bool(np.bincount(labels[: self.border], minlength=count).max() <= BLOCK_LIMIT)

    def lead_blocks(self, p: int, block: np.ndarray) -> np.ndarray:
        """A crossing pair's blocks with the lead term first."""
        return block if self.pairs[p].j == self.lead else block.swapaxes(1, 2)

    def lead_levels(self, p: int) -> np.ndarray:
        """The lead level of each block of a crossing pair."""
        pair = self.pairs[p]
        return pair.level_j if pair.j == self.lead else pair.level_k


def _positions(
    level: np.ndarray, q: int, other: np.ndarray, q_other: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries of (q, q_other) blocks at pairs of levels, the columns from an offset on."""
    shape = (len(level), q, q_other)
    rows = level[:, None, None] * q + np.arange(q)[None, :, None]
    cols = offset + other[:, None, None] * q_other + np.arange(q_other)[None, None, :]
    return np.broadcast_to(rows, shape).ravel(), np.broadcast_to(cols, shape).ravel()


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
    if count == 1 and pair.slot_j.design is not None and pair.slot_k.design is not None:
        right = pair.slot_k.design if weight is None else weight[:, None] * pair.slot_k.design
        return (pair.slot_j.design.T @ right)[None]
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
