"""Triangulations of the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import ConvexHull, Delaunay, QhullError, cKDTree

from pyromix.errors import ConfigError, DataError
from pyromix.linalg.meshes import (
    DIVISIONS,
    EDGE,
    LARGEST,
    AbstractMesh,
    Elements,
    extent_of,
    read_length,
    read_points,
)

GROWTH = 1.3  # of the edges from one ring of the outer boundary to the next
FLAT = 1e-10  # twice a triangle's area in units of its longest edge squared, below which it is none
PAIRS = 4_000_000  # of points and triangles that are looked at together


class Mesh(AbstractMesh):
    r"""A triangulation of the plane.

    On a triangle with corners :math:`x_0, x_1, x_2`, area A and edges :math:`e_i` opposite to them, C gets
    :math:`A/3` at each corner and G gets :math:`e_i \cdot e_j / 4A`.

    Parameters
    ----------
    vertices
        Coordinates, (n, 2).
    triangles
        Numbers of the corners, (m, 3). From meshio: ``Mesh(m.points[:, :2], m.cells_dict["triangle"])``.

    Raises
    ------
    DataError
        Coordinates that are no finite numbers, corners that are no vertices, triangles without an area, vertices in no
        triangle, two vertices at one place.
    """

    def __init__(self, vertices: Any, triangles: Any) -> None:
        self.vertices = read_points(vertices, "Mesh(vertices=...)")
        if self.vertices.shape[1] != 2:
            raise DataError(f"Mesh(vertices=...): shape {self.vertices.shape}; a mesh of triangles is of (n, 2).")
        self.triangles = _read_triangles(triangles, len(self.vertices))
        self.extent = extent_of(self.vertices, "Mesh(vertices=...)")
        _check(self.vertices, self.triangles)

    @classmethod
    def from_points(
        cls, points: Any, edge: float | None = None, padding: float | None = None, cutoff: float | None = None
    ) -> Mesh:
        """A mesh with vertices at given places, filled in between them, and coarser around them.

        Parameters
        ----------
        points
            Places, (n, 2); those of predictions too, if they are to lie inside.
        edge
            Length of an edge between the points; by default a thirtieth of the longest side of the box around them.
            With a tenth of the range of the field, SDs are within 3 % everywhere; see `Grid`.
        padding
            How far the mesh goes beyond the hull of the points, in rings of growing edges; by default a third of that
            side. See `Grid`.
        cutoff
            Points closer to an earlier one than this share its vertex; by default a third of `edge`. Zero merges
            those at one place alone.

        Raises
        ------
        DataError
            Points that are no finite numbers, all at one place or all on a line.
        ConfigError
            Lengths that are negative, an edge of zero, more than five million vertices.
        """
        where = "Mesh.from_points"
        x = read_points(points, where)
        if x.shape[1] != 2:
            raise DataError(f"{where}: points have {x.shape[1]} coordinates, a mesh has two; for others there is Grid.")
        extent = extent_of(x, where)
        length = read_length(edge, extent / DIVISIONS, f"{where}(edge=...)")
        room = read_length(padding, extent / 3, f"{where}(padding=...)", zero=True)
        near = read_length(cutoff, length / 3, f"{where}(cutoff=...)", zero=True)
        if ((extent + 2 * room) / length) ** 2 > LARGEST:
            raise ConfigError(f"{where}(edge={length:g}): some {((extent + 2 * room) / length) ** 2:.0f} vertices.")
        sites = x[_apart(x, near)]
        middle = 0.5 * (x.min(0) + x.max(0))
        scaled = _fill((sites - middle) / length, _hull((x - middle) / length), room / length)
        mesh = cls(*_triangulated(scaled, middle, length))
        mesh.extent = extent
        return mesh

    def __repr__(self) -> str:
        return f"<mesh of {self.size} vertices and {len(self.triangles)} triangles>"

    def config(self) -> list[Any]:
        return ["mesh", self.vertices.tolist(), self.triangles.tolist(), self.extent]

    def elements(self) -> Elements:
        corners = self.vertices[self.triangles]
        edges = np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1)  # opposite to each corner
        area = 0.5 * np.abs(_cross(edges[:, 0], edges[:, 1]))
        mass = np.bincount(self.triangles.ravel(), np.repeat(area / 3, 3), self.size)
        products = np.einsum("tid,tjd->tij", edges, edges) / (4 * area)[:, None, None]
        rows = np.broadcast_to(self.triangles[:, :, None], products.shape)
        cols = np.broadcast_to(self.triangles[:, None, :], products.shape)
        stiffness = sp.coo_array((products.ravel(), (rows.ravel(), cols.ravel())), shape=(self.size, self.size))
        return Elements(mass, sp.csr_array(stiffness))

    def _weights(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        buckets = _Buckets(self.vertices[self.triangles])
        index, weight = np.zeros((len(points), 3), dtype=np.int64), np.zeros((len(points), 3))
        inside = np.zeros(len(points), dtype=bool)
        step = max(1, PAIRS // max(1, buckets.fullest))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            triangle, shares, found = buckets.locate(points[part])
            index[part], weight[part], inside[part] = self.triangles[triangle], shares, found
        return index, weight, inside


# -- checking --------------------------------------------------------------------------------------------------------
def _read_triangles(triangles: Any, count: int) -> np.ndarray:
    given = np.asarray(triangles)
    if given.ndim != 2 or given.shape[1] != 3 or not len(given) or given.dtype.kind not in "iu":
        raise DataError(
            f"Mesh(triangles=...): shape {given.shape} of {given.dtype}; pass integers (m, 3), the corners' numbers."
        )
    out = given.astype(np.int64)
    if out.min() < 0 or out.max() >= count:
        bad = int(np.flatnonzero(((out < 0) | (out >= count)).any(1))[0])
        raise DataError(f"Mesh(triangles=...): triangle {bad} has corners {out[bad].tolist()}, of {count} vertices.")
    return out


def _check(vertices: np.ndarray, triangles: np.ndarray) -> None:
    unused = np.flatnonzero(np.bincount(triangles.ravel(), minlength=len(vertices)) == 0)
    if len(unused):
        raise DataError(f"Mesh: vertex {unused[0]} is in no triangle ({len(unused)} are not); leave them out.")
    corners = vertices[triangles]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    longest = np.maximum(np.maximum((a * a).sum(1), (b * b).sum(1)), ((a - b) ** 2).sum(1))
    flat = np.flatnonzero(np.abs(_cross(a, b)) <= FLAT * longest)
    if len(flat):
        raise DataError(f"Mesh: triangle {flat[0]}, of vertices {triangles[flat[0]].tolist()}, has no area.")
    order = np.lexsort(vertices.T)
    same = np.flatnonzero((np.diff(vertices[order], axis=0) == 0).all(1))
    if len(same):
        i, j = sorted(order[same[0] : same[0] + 2].tolist())
        raise DataError(f"Mesh: vertices {i} and {j} are at one place, which cuts the mesh there; merge them.")


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


# -- building --------------------------------------------------------------------------------------------------------
def _apart(x: np.ndarray, cutoff: float) -> np.ndarray:
    """Points to keep: each unless it is closer than `cutoff` to one kept before it."""
    _, first = np.unique(x, axis=0, return_index=True)
    kept = np.sort(first)
    if cutoff == 0.0:
        return kept
    # one point a cell of that size first, so that crowds do not make a square of pairs
    _, first = np.unique(np.floor((x[kept] - x.min(0)) / cutoff).astype(np.int64), axis=0, return_index=True)
    kept = kept[np.sort(first)]
    pairs = cKDTree(x[kept]).query_pairs(cutoff * (1 - EDGE), output_type="ndarray")
    alive = np.ones(len(kept), dtype=bool)
    for i, j in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if alive[i]:
            alive[j] = False
    return kept[alive]


def _hull(x: np.ndarray) -> np.ndarray:
    """Corners of the convex hull, counterclockwise."""
    try:
        return x[ConvexHull(x).vertices]
    except QhullError as error:
        raise DataError(
            "Mesh.from_points: its points lie on a line, or nearly; use pyromix.Grid, in one dimension, or around them."
        ) from error


def _fill(sites: np.ndarray, hull: np.ndarray, room: float) -> np.ndarray:
    """Sites, a lattice of triangles between them, and rings around them; lengths are in units of an edge."""
    low, high = hull.min(0), hull.max(0)
    rise = np.sqrt(0.75)
    j = np.arange(int(np.ceil((high[1] - low[1]) / rise)) + 1)
    i = np.arange(int(np.ceil(high[0] - low[0])) + 2)
    lattice = np.stack(
        [low[0] + i[None, :] - 0.5 * (j[:, None] % 2), np.broadcast_to(low[1] + rise * j[:, None], (len(j), len(i)))],
        -1,
    )
    lattice = lattice.reshape(-1, 2)
    added = [lattice[_signed_distance(lattice, hull) < -0.5], _ring(hull, 0.0, 1.0)]
    lengths = [np.ones(len(part)) for part in added]
    if room == 0.0:  # nothing else would hold the corners in
        added.append(hull)
        lengths.append(np.zeros(len(hull)))
    step = distance = 0.0
    while distance < room:
        step = GROWTH * step if step else 1.0
        # a last ring that would be close behind is drawn in
        distance = distance + step if distance + 1.5 * step < room else room
        added.append(_ring(hull, distance, step))
        lengths.append(np.full(len(added[-1]), step))
    extra, size = np.concatenate(added), np.concatenate(lengths)
    gap, _ = cKDTree(sites).query(extra)
    return np.concatenate([sites, extra[gap > 0.5 * size]])


def _signed_distance(x: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """The largest over the hull's sides of how far x lies beyond it."""
    along = np.roll(hull, -1, axis=0) - hull
    normal = np.stack([along[:, 1], -along[:, 0]], 1) / np.linalg.norm(along, axis=1)[:, None]
    out = np.full(len(x), -np.inf)
    for n, corner in zip(normal, hull, strict=True):
        np.maximum(out, (x - corner) @ n, out=out)
    return out


def _ring(hull: np.ndarray, distance: float, step: float) -> np.ndarray:
    """Points some `step` apart along the curve at a distance from the hull."""
    along = np.roll(hull, -1, axis=0) - hull
    angle = np.arctan2(-along[:, 0], along[:, 1])  # of each side's outer normal
    before = np.roll(angle, 1)
    turn = np.mod(angle - before, 2 * np.pi)
    share = np.linspace(0.0, 1.0, 25)
    angles = before[:, None] + turn[:, None] * share
    arcs = hull[:, None] + distance * np.stack([np.cos(angles), np.sin(angles)], -1)
    curve = arcs.reshape(-1, 2)
    curve = np.concatenate([curve, curve[:1]])
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    count = max(3, round(walked[-1] / step))
    at = walked[-1] * np.arange(count) / count
    return np.stack([np.interp(at, walked, curve[:, k]) for k in range(2)], 1)


def _triangulated(x: np.ndarray, middle: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in the user's coordinates, and Delaunay's triangles."""
    triangles = Delaunay(x).simplices.astype(np.int64)
    corners = x[triangles]
    twice = np.abs(_cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    triangles = triangles[twice > 1e-6]  # along the outer ring three points may lie on a line but for rounding
    used, renumbered = np.unique(triangles, return_inverse=True)
    return middle + length * x[used], renumbered.reshape(-1, 3)


# -- finding points --------------------------------------------------------------------------------------------------
class _Buckets:
    """Triangles by the square cells that their boxes touch."""

    def __init__(self, corners: np.ndarray) -> None:
        self.corners = corners
        self.low, high = corners.min((0, 1)), corners.max((0, 1))
        self.cells = max(1, int(np.sqrt(len(corners))))
        self.side = np.maximum((high - self.low) / self.cells, np.finfo(float).tiny)
        first, last = self._cell(corners.min(1) - EDGE * self.side), self._cell(corners.max(1) + EDGE * self.side)
        wide = last - first + 1
        count = wide.prod(1)
        triangle = np.repeat(np.arange(len(corners)), count)
        within = np.arange(len(triangle)) - np.repeat(np.cumsum(count) - count, count)
        x = first[triangle, 0] + within // wide[triangle, 1]
        y = first[triangle, 1] + within % wide[triangle, 1]
        cell = x * self.cells + y
        self.triangle = triangle[np.argsort(cell, kind="stable")]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=self.cells**2))])
        self.fullest = int(np.diff(self.starts).max())
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        self.a, self.b, self.twice = a, b, _cross(a, b)

    def _cell(self, x: np.ndarray) -> np.ndarray:
        return np.clip(((x - self.low) / self.side).astype(np.int64), 0, self.cells - 1)

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Triangle of each point, its barycentric weights (n, 3), and whether it is inside one."""
        cell = self._cell(points) @ np.array([self.cells, 1])
        count = self.starts[cell + 1] - self.starts[cell]
        point = np.repeat(np.arange(len(points)), count)
        within = np.arange(len(point)) - np.repeat(np.cumsum(count) - count, count)
        triangle = self.triangle[np.repeat(self.starts[cell], count) + within]
        off = points[point] - self.corners[triangle, 0]
        second = _cross(off, self.b[triangle]) / self.twice[triangle]
        third = _cross(self.a[triangle], off) / self.twice[triangle]
        weight = np.stack([1.0 - second - third, second, third], 1)
        least = weight.min(1)
        order = np.lexsort((-least, point))  # the triangle that it lies deepest in
        best = np.full(len(points), -1, dtype=np.int64)
        best[point[order][::-1]] = order[::-1]
        found = best >= 0
        best = np.maximum(best, 0)
        if not len(point):
            return np.zeros(len(points), dtype=np.int64), np.zeros((len(points), 3)), found
        found &= least[best] >= -EDGE
        shares = np.clip(weight[best], 0.0, None)
        return triangle[best], shares / shares.sum(1, keepdims=True), found
