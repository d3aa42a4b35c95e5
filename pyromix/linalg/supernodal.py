r"""Sparse Cholesky and the inverse on its pattern, front by front, over a nested dissection.

A front is a tree node of the dissection: its k own vertices, and the b vertices above it that its elimination touches.
With the lower triangle of a front as :math:`\begin{pmatrix} A_{11} & \\ A_{21} & A_{22} \end{pmatrix}`,

.. math:: A_{11} = L_{11}L_{11}^T, \quad L_{21} = A_{21}L_{11}^{-T}, \quad A_{22} \to A_{22} - L_{21}L_{21}^T,

where the last is added into the front above (the multifrontal method: Duff and Reid, 1983). The inverse Z on the same
pattern goes from the top down (Takahashi's rule by blocks), with :math:`Y = L_{21}L_{11}^{-1}`:

.. math:: Z_{21} = -Z_{22}Y, \quad Z_{11} = (L_{11}L_{11}^T)^{-1} - Y^T Z_{21},

:math:`Z_{22}` being part of the inverse of the front above. All work is products of dense matrices: for a field on a
plane mesh of n vertices some n^1.5 operations, on n log n entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf, dpotri

from pyromix.errors import NumericalError
from pyromix.linalg.dissection import LEAF, Dissection, dissect


@dataclass(frozen=True)
class Front:
    """One tree node.

    Attributes
    ----------
    start, k
        Its own vertices: places start ... start + k - 1 of the order of elimination.
    border
        Places of the vertices above that it touches, (b,), ascending.
    offset
        Where its panel ((k + b, k), row by row: A11 over A21) begins in the array of all panels.
    parent
        Its parent; -1 for none.
    own
        How many of its border are the parent's own vertices.
    inner, outer
        Positions of the border in the parent: among its own vertices (own, 1), in its border (b - own, 1). Columns,
        so that they and their transposes index blocks.
    """

    start: int
    k: int
    border: np.ndarray
    offset: int
    parent: int
    own: int
    inner: np.ndarray
    outer: np.ndarray


class Fronts:
    """The symbolic factorisation of a pattern.

    Parameters
    ----------
    rows, cols
        Positions of the lower triangle, diagonal included, each once.
    size
        Rows of the matrix.

    Attributes
    ----------
    rank
        Place of every row in the order of elimination.
    fronts
        In the order of elimination: children before parents.
    entries
        Numbers in all panels.
    at
        Where each entry of the lower triangle lies in them.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, size: int, leaf: int = LEAF) -> None:
        self.rows, self.cols, self.size = rows, cols, size
        lower = sp.coo_array((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=(size, size))
        graph = sp.csr_array(lower + lower.T)
        tree = dissect(graph, leaf)
        nodes, parent = _postorder(tree, graph)
        counts = np.bincount(nodes, minlength=len(parent))
        order = np.argsort(nodes, kind="stable")
        self.rank = np.empty(size, dtype=np.int64)
        self.rank[order] = np.arange(size)
        self._node = nodes[order]  # of every place
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        borders = self._borders(parent)
        self._plan(parent, borders)
        self.at = self.locate(rows, cols)

    def _borders(self, parent: np.ndarray) -> list[np.ndarray]:
        """Places above each front that its elimination touches."""
        a, b = self.rank[self.rows], self.rank[self.cols]
        early, late = np.minimum(a, b), np.maximum(a, b)
        node = self._node[early]
        above = late >= self._starts[node + 1]
        pairs = np.unique(node[above] * self.size + late[above])
        cuts = np.searchsorted(pairs, np.arange(len(parent) + 1) * self.size)
        direct = pairs % self.size
        passed: list[list[np.ndarray]] = [[] for _ in parent]
        borders = []
        for s, up in enumerate(parent):
            mine = direct[cuts[s] : cuts[s + 1]]
            if passed[s]:
                mine = np.unique(np.concatenate([mine, *passed[s]]))
            borders.append(mine)
            if len(mine):
                passed[up].append(mine[np.searchsorted(mine, self._starts[up + 1]) :])
        return borders

    def _plan(self, parent: np.ndarray, borders: list[np.ndarray]) -> None:
        self.fronts: list[Front] = []
        offset, none = 0, np.empty((0, 1), dtype=np.int64)
        for s, border in enumerate(borders):
            start, k, up = int(self._starts[s]), int(self._starts[s + 1] - self._starts[s]), int(parent[s])
            own, inner, outer = 0, none, none
            if len(border):
                own = int(np.searchsorted(border, self._starts[up + 1]))
                inner = border[:own, None] - self._starts[up]
                outer = np.searchsorted(borders[up], border[own:])[:, None]
            else:
                up = -1
            self.fronts.append(Front(start, k, border, offset, up, own, inner, outer))
            offset += (k + len(border)) * k
        self.entries = offset
        self._offsets = np.array([f.offset for f in self.fronts], dtype=np.int64)
        self._lengths = np.array([len(border) for border in borders], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._lengths)])
        self._keys = np.repeat(np.arange(len(borders)), self._lengths) * self.size + np.concatenate(borders)

    def locate(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Where entries of the (symmetric) matrix lie in the panels; -1 for those that the factor does not have."""
        a, b = self.rank[rows], self.rank[cols]
        early, late = np.minimum(a, b), np.maximum(a, b)
        node = self._node[early]
        start, stop = self._starts[node], self._starts[node + 1]
        wanted = node * self.size + late
        at = np.searchsorted(self._keys, wanted)
        row = np.where(late < stop, late - start, stop - start + at - self._first[node])
        found = self._offsets[node] + row * (stop - start) + early - start
        if len(self._keys):
            missing = (late >= stop) & (self._keys[np.minimum(at, len(self._keys) - 1)] != wanted)
            found[missing] = -1
        return found


def _postorder(tree: Dissection, graph: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Nodes renumbered so that children come before their parents and subtrees are contiguous; empty ones left out."""
    count = len(tree.parent)
    filled = np.bincount(tree.node, minlength=count) > 0
    parent = tree.parent.copy()
    for s in range(count):  # parents have smaller numbers
        if parent[s] >= 0 and not filled[parent[s]]:
            parent[s] = parent[parent[s]]
    children: list[list[int]] = [[] for _ in range(count)]
    roots: list[int] = []
    for s in np.flatnonzero(filled).tolist():
        (roots if parent[s] < 0 else children[parent[s]]).append(s)
    number = np.full(count + 1, -1, dtype=np.int64)
    stack, visited = roots, []
    while stack:  # parents before children, each subtree contiguous: its reverse is a postorder
        s = stack.pop()
        visited.append(s)
        stack.extend(children[s])
    number[visited] = np.arange(len(visited))[::-1]
    renumbered = np.empty(len(visited), dtype=np.int64)
    renumbered[number[visited]] = number[parent[visited]]  # parent -1 reads the last entry, -1
    return number[tree.node], renumbered


class Panels:
    """The factor of a matrix with a given symbolic factorisation.

    Parameters
    ----------
    fronts
        The pattern.
    lower
        Entries on ``fronts.rows, fronts.cols``.

    Raises
    ------
    NumericalError
        The matrix is not positive definite, or not finite.
    """

    def __init__(self, fronts: Fronts, lower: np.ndarray) -> None:
        self.fronts = fronts
        self.data = np.zeros(fronts.entries)
        self.data[fronts.at] = lower
        waiting: dict[int, np.ndarray] = {}  # sums of what children pass on, by parent
        half = 0.0
        for s, front in enumerate(fronts.fronts):
            a11, a21 = _panel(self.data, front)
            root, info = dpotrf(a11.T, lower=0, overwrite_a=1)
            if info:
                raise NumericalError(f"a sparse complement of {fronts.size} rows is not positive definite.")
            half += float(np.log(root.diagonal()).sum())
            rest = waiting.pop(s, None)
            if not len(a21):
                continue
            dtrsm(1.0, root, a21.T, lower=0, trans_a=1, overwrite_b=1)
            product = a21 @ a21.T
            if rest is None:
                rest = np.negative(product, out=product)
            else:
                rest -= product
            self._pass_up(front, rest, waiting)
        if not math.isfinite(half):  # LAPACK lets NaN pass
            raise NumericalError(f"a sparse complement of {fronts.size} rows has entries that are not finite.")
        self.logdet = 2.0 * half

    def _pass_up(self, front: Front, rest: np.ndarray, waiting: dict[int, np.ndarray]) -> None:
        parent, own = self.fronts.fronts[front.parent], front.own
        a11, a21 = _panel(self.data, parent)
        a11[front.inner, front.inner.T] += rest[:own, :own]
        if own == len(rest):
            return
        a21[front.outer, front.inner.T] += rest[own:, :own]
        held = waiting.get(front.parent)
        if held is None:
            b = len(parent.border)
            held = waiting[front.parent] = np.zeros((b, b))
        held[front.outer, front.outer.T] += rest[own:, own:]

    def inverse(self) -> np.ndarray:
        """Entries of the inverse, laid out as the panels are."""
        out = np.empty_like(self.data)
        fronts, kept = self.fronts.fronts, dict[int, np.ndarray]()
        left = np.bincount([f.parent for f in fronts if f.parent >= 0], minlength=len(fronts))
        for s in range(len(fronts) - 1, -1, -1):
            front = fronts[s]
            l11, l21 = _panel(self.data, front)
            z11, z21 = _panel(out, front)
            upper, info = dpotri(l11.T, lower=0)
            if info:
                raise NumericalError(f"inverting a sparse complement of {self.fronts.size} rows failed.")
            inverse = np.triu(upper)
            inverse += np.triu(upper, 1).T
            if len(l21):
                z22 = self._above(front, out, kept, left)
                y = dtrsm(1.0, l11.T, l21.T, lower=0).T  # (b, k)
                np.matmul(z22, y, out=z21)
                inverse += y.T @ z21
                np.negative(z21, out=z21)
                if left[s]:
                    kept[s] = z22
            z11[:] = inverse
        return out

    def _above(self, front: Front, out: np.ndarray, kept: dict[int, np.ndarray], left: np.ndarray) -> np.ndarray:
        """The inverse over the border of a front, from its parent's."""
        parent, own, b = self.fronts.fronts[front.parent], front.own, len(front.border)
        p11, p21 = _panel(out, parent)
        z = np.empty((b, b))
        z[:own, :own] = p11[front.inner, front.inner.T]
        if own < b:
            z[own:, :own] = p21[front.outer, front.inner.T]
            z[:own, own:] = z[own:, :own].T
            z[own:, own:] = kept[front.parent][front.outer, front.outer.T]
        left[front.parent] -= 1
        if not left[front.parent]:
            kept.pop(front.parent, None)
        return z

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``A^-1 b``: b (n, m)."""
        x = np.empty(b.shape)
        x[self.fronts.rank] = b
        for front in self.fronts.fronts:
            l11, l21 = _panel(self.data, front)
            part = x[front.start : front.start + front.k]
            dtrsm(1.0, l11.T, part.T, side=1, lower=0, overwrite_b=1)
            if len(l21):
                x[front.border] -= l21 @ part
        return self._backward(x)

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """``L^-T noise``: noise (n, m)."""
        return self._backward(np.array(noise, dtype=float, order="C"))

    def _backward(self, x: np.ndarray) -> np.ndarray:
        for front in reversed(self.fronts.fronts):
            l11, l21 = _panel(self.data, front)
            part = x[front.start : front.start + front.k]
            if len(l21):
                part -= l21.T @ x[front.border]
            dtrsm(1.0, l11.T, part.T, side=1, lower=0, trans_a=1, overwrite_b=1)
        return x[self.fronts.rank]


def _panel(data: np.ndarray, front: Front) -> tuple[np.ndarray, np.ndarray]:
    """Views of A11 (k, k) and A21 (b, k)."""
    k, stop = front.k, front.offset + (front.k + len(front.border)) * front.k
    panel = data[front.offset : stop].reshape(-1, k)
    return panel[:k], panel[k:]
