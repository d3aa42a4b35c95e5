"""Nested dissection: an order of elimination for sparse matrices of fields on meshes and grids.

A set of vertices that separates a graph into two halves is eliminated last, and so on within each half (George, 1973).
For a planar graph of n vertices the factor then has some n log n entries. All parts of one depth are cut at once, so
that the number of array operations grows with the depth of the tree, some log n, and not with the number of parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order, connected_components, maximum_bipartite_matching

LEAF = 48  # vertices of a part that is not cut any further: its block is factored densely
HUB = 10.0  # vertices with more neighbours than this times the root of n are eliminated last
LOPSIDED = 0.2  # share of a part that the smaller side of a cut must have


@dataclass(frozen=True)
class Dissection:
    """A tree of separators.

    Attributes
    ----------
    node
        Tree node of every vertex, (n,).
    parent
        Parent of every tree node; -1 for a root. Neighbours of a vertex lie in its own node, above it or below it.
    """

    node: np.ndarray
    parent: np.ndarray


def dissect(graph: sp.csr_array, leaf: int = LEAF) -> Dissection:
    """Cut a symmetric graph (entries on the diagonal do not matter) until its parts have at most `leaf` vertices."""
    size = graph.shape[0]
    state = _State(size)
    hubs = np.diff(graph.indptr) > max(4.0 * leaf, HUB * np.sqrt(size))
    above = -1
    if hubs.any():
        above = state.add(hubs.nonzero()[0], -1)
    rows = np.repeat(np.arange(size, dtype=np.int32), np.diff(graph.indptr))
    cols = graph.indices
    part = np.where(hubs, -1, 0).astype(np.int64)  # of every vertex that is not placed yet
    parents = np.array([above], dtype=np.int64)  # of every part
    while True:
        inside = (part[rows] == part[cols]) & (part[rows] >= 0) & (rows != cols)
        rows, cols = rows[inside], cols[inside]
        part, parents = _components(rows, cols, part, parents)
        part, parents = _place_small(state, part, parents, leaf)
        if not len(parents):
            return Dissection(state.node, np.array(state.parent, dtype=np.int64))
        inside = part[rows] >= 0
        rows, cols = rows[inside], cols[inside]
        part, parents = _cut(state, rows, cols, part, parents)


class _State:
    """The tree so far."""

    def __init__(self, size: int) -> None:
        self.node = np.full(size, -1, dtype=np.int64)
        self.parent: list[int] = []

    def add(self, vertices: np.ndarray, parent: int) -> int:
        self.node[vertices] = len(self.parent)
        self.parent.append(parent)
        return len(self.parent) - 1


def _adjacency(rows: np.ndarray, cols: np.ndarray, size: int) -> sp.csr_array:
    """Rows are sorted, as they are throughout."""
    indptr = np.searchsorted(rows, np.arange(size + 1)).astype(np.int32)
    return sp.csr_array((np.ones(len(cols)), cols, indptr), shape=(size, size))


def _components(
    rows: np.ndarray, cols: np.ndarray, part: np.ndarray, parents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every connected component becomes a part."""
    _, label = connected_components(_adjacency(rows, cols, len(part)), directed=False)
    alive = part >= 0
    kept, first, new = np.unique(label[alive], return_index=True, return_inverse=True)
    out = np.full(len(part), -1, dtype=np.int64)
    out[alive] = new
    return out, parents[part[alive][first]] if len(kept) else np.empty(0, dtype=np.int64)


def _place_small(state: _State, part: np.ndarray, parents: np.ndarray, leaf: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts of at most `leaf` vertices become tree nodes, those under one parent together up to that size."""
    sizes = np.bincount(part[part >= 0], minlength=len(parents))
    small = np.flatnonzero(sizes <= leaf)
    if len(small):
        order = small[np.argsort(parents[small], kind="stable")]
        members = np.argsort(part, kind="stable")
        starts = np.searchsorted(part[members], np.arange(len(parents) + 1))
        bundle: list[np.ndarray] = []
        held = 0
        for at, p in enumerate(order):
            bundle.append(members[starts[p] : starts[p + 1]])
            held += int(sizes[p])
            last = at + 1 == len(order) or parents[order[at + 1]] != parents[p]
            if last or held + int(sizes[order[at + 1]]) > leaf:
                state.add(np.concatenate(bundle), int(parents[p]))
                bundle, held = [], 0
    large = np.flatnonzero(sizes > leaf)
    renumber = np.full(len(parents) + 1, -1, dtype=np.int64)
    renumber[large] = np.arange(len(large))
    return renumber[part], parents[large]


def _cut(
    state: _State, rows: np.ndarray, cols: np.ndarray, part: np.ndarray, parents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Separate every part; the two sides of part p are parts 2p and 2p + 1, under its separator."""
    side = _sides(rows, cols, part, len(parents))
    across = (side[rows] == 0) & (side[cols] == 1)
    separator = _cover(rows[across], cols[across], len(part))
    made = np.empty(2 * len(parents), dtype=np.int64)
    members = np.flatnonzero(separator)
    members = members[np.argsort(part[members], kind="stable")]
    bounds = np.searchsorted(part[members], np.arange(len(parents) + 1))
    for p in range(len(parents)):
        made[2 * p : 2 * p + 2] = state.add(members[bounds[p] : bounds[p + 1]], int(parents[p]))
    out = np.where(part >= 0, 2 * part + side, -1)
    out[separator] = -1
    return out, made


def _sides(rows: np.ndarray, cols: np.ndarray, part: np.ndarray, count: int) -> np.ndarray:
    """A half of its part for every vertex, 0 or 1: which of two ends of the part is the nearer one.

    The ends are the farthest vertices of two searches in breadth, as in the rule for a pseudo-diameter. Where the
    difference of distances has few values, vertices are halved by their rank in it.
    """
    size = len(part)
    first = np.full(count, -1, dtype=np.int64)
    alive = np.flatnonzero(part >= 0)
    first[part[alive]] = alive
    search = _Search(rows, cols, size)
    _, end = search(first, part)
    near, other = search(end, part)
    far, _ = search(other, part)
    lead = (near - far)[alive].astype(float)
    order = np.lexsort((near[alive], lead, part[alive]))
    sizes = np.bincount(part[alive], minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    middle = lead[order][starts + sizes // 2]
    below = np.bincount(part[alive], lead < middle[part[alive]], count)
    upto = np.bincount(part[alive], lead <= middle[part[alive]], count)
    # the value at the middle goes to the side that is the smaller without it
    strict = np.abs(below - sizes / 2) <= np.abs(upto - sizes / 2)
    share = np.where(strict, below, upto) / sizes
    by_value = np.where(strict[part[alive]], lead >= middle[part[alive]], lead > middle[part[alive]])
    rank = np.empty(len(alive), dtype=np.int64)
    rank[order] = np.arange(len(alive)) - np.repeat(starts, sizes)
    by_rank = rank >= (sizes // 2)[part[alive]]
    even = (share >= LOPSIDED) & (share <= 1 - LOPSIDED)
    side = np.zeros(size, dtype=np.int64)
    side[alive] = np.where(even[part[alive]], by_value, by_rank)
    return side


class _Search:
    """Distances in steps within all parts at once: a vertex beside the graph is joined to the start of every part."""

    def __init__(self, rows: np.ndarray, cols: np.ndarray, size: int) -> None:
        self.size = size
        self.indptr = np.searchsorted(rows, np.arange(size + 1)).astype(np.int32)
        self.cols = cols.astype(np.int32)

    def __call__(self, sources: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance of every vertex from the source of its part, and the farthest vertex of every part."""
        indices = np.concatenate([self.cols, sources.astype(np.int32)])
        indptr = np.append(self.indptr, np.int32(len(indices)))
        graph = sp.csr_array((np.ones(len(indices)), indices, indptr), shape=(self.size + 1, self.size + 1))
        order, before = breadth_first_order(graph, self.size, directed=True)
        place = np.empty(self.size + 1, dtype=np.int64)
        place[order] = np.arange(len(order))
        came = place[before[order[1:]]]  # non-decreasing
        starts = [0, 1]  # of the vertices of every distance
        while starts[-1] < len(order):
            starts.append(1 + int(np.searchsorted(came, starts[-1])))
        distance = np.zeros(self.size, dtype=np.int64)
        distance[order[1:]] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[1:]
        farthest = np.empty(len(sources), dtype=np.int64)
        farthest[part[order[1:]]] = order[1:]  # the last one stays
        return distance, farthest


def _cover(left: np.ndarray, right: np.ndarray, size: int) -> np.ndarray:
    """The fewest vertices that touch every edge between two sides (Koenig's theorem), as a mask."""
    cover = np.zeros(size, dtype=bool)
    if not len(left):
        return cover
    lefts, a = np.unique(left, return_inverse=True)
    rights, b = np.unique(right, return_inverse=True)
    graph = sp.csr_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(len(lefts), len(rights)))
    mate = maximum_bipartite_matching(graph, perm_type="column")  # of every left vertex
    matched = np.flatnonzero(mate >= 0)
    # alternating paths from unmatched left vertices: edges to the right, matches back to the left
    start = len(lefts) + len(rights)
    free = np.flatnonzero(mate < 0)
    heads = np.concatenate([a, len(lefts) + mate[matched], np.full(len(free), start)])
    tails = np.concatenate([len(lefts) + b, matched, free])
    paths = sp.csr_array((np.ones(len(heads)), (heads, tails)), shape=(start + 1, start + 1))
    reached = np.zeros(start + 1, dtype=bool)
    reached[breadth_first_order(paths, start, directed=True, return_predecessors=False)] = True
    cover[lefts[~reached[: len(lefts)]]] = True
    cover[rights[reached[len(lefts) : start]]] = True
    return cover
