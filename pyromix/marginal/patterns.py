"""Where every block of a level pattern is in the factor that `pyromix.native.modes` writes code for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyromix import native
from pyromix.linalg.block import Layout
from pyromix.linalg.block import Pair as LayoutPair
from pyromix.native.modes import Pair, Pattern, Slot, Term

WIDEST = 256  # rows of a dense block; beyond, LAPACK is faster than plain loops
WORK = 20_000_000  # multiplications of one factorisation


def pattern_of(layout: Layout, n: int) -> Pattern:
    """The places of everything in the factor.

    Raises
    ------
    native.Unsupported
        The complement has large blocks, or is sparse.
    """
    blocks = _blocks(layout)
    if blocks and max(map(len, blocks)) > WIDEST:
        raise native.Unsupported(f"a dense block of {max(map(len, blocks))} rows")
    block_of, within = np.zeros(layout.border, dtype=np.int64), np.zeros(layout.border, dtype=np.int64)
    for k, columns in enumerate(blocks):
        block_of[columns], within[columns] = k, np.arange(len(columns))
    sizes = np.array([len(columns) for columns in blocks], dtype=np.int64)
    levels = 0 if layout.lead is None else layout.terms[layout.lead].levels
    q = 1 if layout.lead is None else layout.terms[layout.lead].q
    keys = np.unique(layout.border_rows // q * max(layout.border, 1) + layout.border_cols)
    full = len(blocks) == 1 and levels > 0 and 2 * len(keys) > levels * layout.border
    if full:
        keys = np.arange(levels * layout.border)
    level, column = keys // max(layout.border, 1), keys % max(layout.border, 1)
    counts = np.bincount(level, minlength=levels)
    start = np.concatenate([[0], np.cumsum(counts)])
    if q * float((counts**2).sum()) + float((sizes**3).sum()) / 3 > WORK:
        raise native.Unsupported("a factorisation of many operations")
    level_block = np.zeros(max(levels, 1), dtype=np.int64)
    level_block[level] = block_of[column]
    corner = np.cumsum(sizes**2) - sizes**2
    slots = _Slots(layout, n)

    def pair(found: LayoutPair) -> Pair:
        left, right = slots(found.j, found.slot_j), slots(found.k, found.slot_k)
        common = (found.j, found.k, left, right, slots.table(found.rows), len(found.level_j), found.same)
        if layout.lead not in (found.j, found.k):
            row = layout.offsets[found.j] + found.level_j * layout.terms[found.j].q
            col = layout.offsets[found.k] + found.level_k * layout.terms[found.k].q
            first, width = corner[block_of[row]], sizes[block_of[row]]
            at, mirror = (first + a * width + b for a, b in ((within[row], within[col]), (within[col], within[row])))
            return Pair(*common, "rest", False, _int(at), _int(mirror), _int(width))
        if found.same:
            return Pair(*common, "lead")
        turned = found.k == layout.lead
        own, other, k = (found.level_j, found.level_k, found.k)
        if turned:
            own, other, k = found.level_k, found.level_j, found.j
        col = layout.offsets[k] + other * layout.terms[k].q
        place = np.searchsorted(keys, own * layout.border + col)  # of the first row's first column
        at = start[own] * q + place - start[own]
        return Pair(*common, "border", turned, _int(at), None, _int(counts[own]))

    order = [np.arange(layout.terms[k].size) + _offset(layout, k) for k in layout.offsets]
    scalars = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
    return Pattern(
        rows=n,
        terms=tuple(slots.term(k) for k in range(len(layout.terms))),
        pairs=tuple(pair(found) for found in layout.pairs),
        lead=layout.lead,
        full=full,
        block_size=tuple(int(size) for size in sizes),
        scalars=_int(scalars[np.concatenate(blocks)] if blocks else np.zeros(1, dtype=np.int64)),
        level_block=_int(level_block),
        level_start=_int(start),
        columns=_int(within[column] if len(column) else np.zeros(1, dtype=np.int64)),
    )


def _blocks(layout: Layout) -> list[np.ndarray]:
    """Columns of the complement's dense blocks."""
    if not layout.border:
        return []
    if layout.dense:
        return [np.arange(layout.border)]
    if layout.pattern is None or layout.pattern.blocks is None:
        raise native.Unsupported("a sparse complement")
    return [columns for members in layout.pattern.blocks.members.values() for columns in members]


class _Slots:
    """Slots and tables of the generated code, each made once."""

    def __init__(self, layout: Layout, n: int) -> None:
        self.layout, self.n = layout, n
        self._made: dict[int, tuple[Any, Slot]] = {}
        self._tables: dict[int, tuple[Any, torch.Tensor]] = {}

    def __call__(self, k: int, slot: Any) -> Slot:
        if id(slot) not in self._made:
            design = None
            if slot.design is not None:
                design = torch.from_numpy(np.ascontiguousarray(slot.design, dtype=np.float64).reshape(self.n, -1))
            self._made[id(slot)] = slot, Slot(self.table(slot.index), design)
        return self._made[id(slot)][1]

    def table(self, index: np.ndarray) -> torch.Tensor:
        """Whole numbers for C."""
        if id(index) not in self._tables:
            self._tables[id(index)] = index, _int(index)
        return self._tables[id(index)][1]

    def term(self, k: int) -> Term:
        term = self.layout.terms[k]
        return Term(term.levels, term.q, tuple(self(k, slot) for slot in term.slots))


def _offset(layout: Layout, k: int) -> int:
    return sum(term.size for term in layout.terms[:k])


def _int(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
