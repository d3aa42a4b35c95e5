r"""Relationships by descent.

The numerator relationship matrix A has twice the probability that alleles of two animals are identical by descent, and
:math:`1 + F_i` on its diagonal, F_i the inbreeding of i. With T the flow of genes,

.. math:: A = TDT^T, \quad (T^{-1})_{ii} = 1, \; (T^{-1})_{i,parent} = -\tfrac12, \quad
    D_{ii} = 1 - \tfrac14 \sum_{\text{known parents } p} (1 + F_p),

so :math:`A^{-1} = T^{-T} D^{-1} T^{-1}` is sparse: Henderson (1976) and, with inbreeding, Quaas (1976). F is traced
through the ancestors of each animal (Meuwissen and Luo 1992).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyromix.covariances.between import semidefinite_root
from pyromix.covariances.known_matrix import check_known, plain_labels, remember
from pyromix.errors import ConfigError, StructureError
from pyromix.linalg.known import KnownCovariance, KnownOperator
from pyromix.linalg.operators import AbstractOperator, Precision, PrecisionOperator

SIRE, DAM = ("sire", "father"), ("dam", "mother")


class Pedigree:
    """Animals with their parents, and what follows for the covariance of any of them.

    Parameters
    ----------
    table
        pandas DataFrame with the columns ``id`` (or ``label``), ``sire`` (or ``father``) and ``dam`` (or ``mother``),
        in any order of rows; or rows (id, sire, dam). An unknown parent is None, NaN, "", or 0 unless an animal is
        called 0. Parents without a row of their own are founders.

    Raises
    ------
    StructureError
        An animal with two rows, or one that is its own ancestor.
    ConfigError
        Columns that are not there.
    """

    def __init__(self, table: Any) -> None:
        rows = _rows(table)
        self.ids, self.parents = _sorted(rows)
        self._at = {label: i for i, label in enumerate(self.ids)}
        self.inbreeding, self.mendelian = _inbreeding(self.parents)
        self._made: dict[tuple[Any, ...], KnownCovariance | Precision] = {}

    def __repr__(self) -> str:
        return f"<pedigree of {len(self.ids)}>"

    def operator(self, levels: tuple[Any, ...], tril: torch.Tensor) -> AbstractOperator:
        """By the sparse inverse where all ancestors of the levels are levels, else by the dense A."""
        if levels not in self._made:
            check_known(levels, self._at, "Kinship(pedigree=...)")
            remember(self._made, levels, self._make(levels))
        made = self._made[levels]
        return PrecisionOperator(made, tril) if isinstance(made, Precision) else KnownOperator(made, tril)

    def relationship(self, levels: Sequence[Any]) -> np.ndarray:
        """A of the levels, dense."""
        flow = np.zeros((len(levels), len(self.ids)))
        for row, level in enumerate(levels):
            for ancestor, share in _flow(self._at[level], self.parents):
                flow[row, ancestor] = share
        return (flow * self.mendelian) @ flow.T

    def config(self, where: str) -> list[Any]:
        """Rows (id, sire, dam) as plain values."""
        ids = plain_labels(self.ids, where)
        return [[ids[i], *(None if p < 0 else ids[p] for p in pair)] for i, pair in enumerate(self.parents)]

    def _make(self, levels: tuple[Any, ...]) -> KnownCovariance | Precision:
        place = {self._at[level]: k for k, level in enumerate(levels)}
        closed = all(p < 0 or p in place for i in place for p in self.parents[i])
        if closed and all(self.mendelian[i] > 0 for i in place):
            return self._precision(place)
        return KnownCovariance(torch.from_numpy(self.relationship(levels)), semidefinite_root)

    def _precision(self, place: dict[int, int]) -> Precision:
        """The lower triangle of A^-1, summed animal by animal."""
        entries: dict[tuple[int, int], float] = {}
        for i, k in place.items():
            row = {k: 1.0}
            for p in self.parents[i]:
                if p >= 0:  # both parents may be the same animal
                    row[place[p]] = row.get(place[p], 0.0) - 0.5
            for a, x in row.items():
                for b, y in row.items():
                    if a >= b:
                        entries[a, b] = entries.get((a, b), 0.0) + x * y / self.mendelian[i]
        rows, cols = (np.array(part, dtype=np.int64) for part in zip(*entries, strict=True))
        logdet = -float(np.log(self.mendelian[list(place)]).sum())
        values = torch.tensor(list(entries.values()), dtype=torch.float64)
        return Precision(len(place), rows, cols, values, torch.tensor(logdet, dtype=torch.float64))


def relationship(pedigree: Any) -> tuple[np.ndarray, list[Any]]:
    """Numerator relationship matrix A of a pedigree, dense, founders unrelated and not inbred.

    Parameters
    ----------
    pedigree
        pandas DataFrame with the columns ``id``, ``sire`` and ``dam``; see `pyromix.covariances.Kinship`.

    Returns
    -------
    A
        (ids, ids).
    ids
        All animals, parents before offspring.
    """
    tree = pedigree if isinstance(pedigree, Pedigree) else Pedigree(pedigree)
    return tree.relationship(tree.ids), list(tree.ids)


# -- reading ---------------------------------------------------------------------------------------------------------
def _rows(table: Any) -> list[tuple[Any, Any, Any]]:
    if hasattr(table, "columns"):
        names = [_column(table, wanted) for wanted in (("id", "label"), SIRE, DAM)]
        return list(zip(*(table[name].tolist() for name in names), strict=True))
    try:
        return [(animal, sire, dam) for animal, sire, dam in table]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Kinship(pedigree=...): got a {type(table).__name__}; pass a pandas DataFrame with columns id, sire, dam."
        ) from error


def _column(table: Any, wanted: tuple[str, ...]) -> Any:
    found = [name for name in table.columns if str(name).lower() in wanted]
    if len(found) != 1:
        raise ConfigError(
            f"Kinship(pedigree=...): {len(found)} of its columns are called {' or '.join(wanted)}; it needs one "
            f"(columns: {', '.join(map(str, table.columns))})."
        )
    return found[0]


def _sorted(rows: Sequence[tuple[Any, Any, Any]]) -> tuple[tuple[Any, ...], list[tuple[int, int]]]:
    """Ids and positions of the parents (-1: unknown), parents first."""
    own: dict[Any, tuple[Any, ...]] = {}
    named = {animal for animal, _, _ in rows}
    for animal, *pair in rows:
        if _unknown(animal, set()) and animal not in (0, "0"):
            raise StructureError(f"Kinship(pedigree=...): the row of parents {pair!r} has no id.")
        if animal in own:
            raise StructureError(f"Kinship(pedigree=...): id {animal!r} has more than one row.")
        own[animal] = tuple(None if _unknown(p, named) else p for p in pair)
    for pair in list(own.values()):
        for parent in pair:
            if parent is not None:
                own.setdefault(parent, (None, None))
    order = _parents_first(own)
    at = {animal: i for i, animal in enumerate(order)}
    parents = [tuple(-1 if p is None else at[p] for p in own[animal]) for animal in order]
    return tuple(order), [(a, b) for a, b in parents]


def _parents_first(own: dict[Any, tuple[Any, ...]]) -> list[Any]:
    """Depth first, without recursion: pedigrees are deeper than Python's stack."""
    order: list[Any] = []
    state: dict[Any, int] = {}  # 1: on the way up to its ancestors; 2: placed
    for start in own:
        stack = [start]
        while stack:
            animal = stack[-1]
            waiting = [p for p in own[animal] if p is not None and state.get(p) != 2]
            if state.get(animal) == 2:
                stack.pop()
            elif not waiting:
                state[animal] = 2
                order.append(stack.pop())
            elif state.get(waiting[0]) == 1 or waiting[0] == animal:
                raise StructureError(f"Kinship(pedigree=...): {waiting[0]!r} is its own ancestor.")
            else:
                state[animal] = 1
                stack.append(waiting[0])
    return order


def _unknown(parent: Any, named: set[Any]) -> bool:
    if parent is None or type(parent).__name__ in ("NAType", "NaTType") or parent != parent or parent == "":
        return True
    return parent in (0, "0") and parent not in named


# -- gene flow -------------------------------------------------------------------------------------------------------
def _flow(animal: int, parents: Sequence[tuple[int, int]]) -> list[tuple[int, float]]:
    """A row of T: every ancestor, the animal included, with its share of the animal's genes; youngest first."""
    share, waiting, found = {animal: 1.0}, [-animal], []
    while waiting:
        i = -heapq.heappop(waiting)
        part = share.pop(i)
        found.append((i, part))
        for p in parents[i]:
            if p < 0:
                continue
            if p not in share:
                share[p] = 0.0
                heapq.heappush(waiting, -p)
            share[p] += 0.5 * part
    return found


def _inbreeding(parents: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """F and the diagonal of D, parents before offspring; full sibs share them."""
    inbreeding, mendelian = np.zeros(len(parents)), np.ones(len(parents))
    known: dict[tuple[int, int], float] = {}
    for i, pair in enumerate(parents):
        mendelian[i] = 1.0 - sum(0.25 * (1.0 + inbreeding[p]) for p in pair if p >= 0)
        if min(pair) < 0:
            continue
        key = (min(pair), max(pair))
        if key not in known:
            known[key] = sum(part * part * mendelian[j] for j, part in _flow(i, parents)) - 1.0
        inbreeding[i] = known[key]
    return inbreeding, mendelian
