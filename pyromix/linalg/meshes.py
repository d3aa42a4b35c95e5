r"""Grids and triangulations that carry a field, and their finite elements.

With piecewise linear basis functions :math:`\psi_i`, one at every vertex, a field is
:math:`u(s) = \sum_i u_i\psi_i(s)`. A mesh gives

.. math:: C_{ii} = \int \psi_i, \qquad G_{ij} = \int \nabla\psi_i \cdot \nabla\psi_j,

C lumped (diagonal), and the weights :math:`\psi_i(s)` at any places s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from pyromix.errors import ConfigError, DataError

LARGEST = 5_000_000  # vertices
DIVISIONS = 30  # of the extent, by default
EDGE = 1e-9  # share of a cell that a place may lie outside by, for rounding


@dataclass(frozen=True)
class Elements:
    """Finite elements of a mesh.

    Attributes
    ----------
    mass
        Diagonal of C, (n,).
    stiffness
        G, symmetric.
    """

    mass: np.ndarray
    stiffness: sp.csr_array


class AbstractMesh(ABC):
    """Vertices that carry a field.

    Attributes
    ----------
    vertices
        Their places, (size, dimension).
    extent
        Longest side of the box around the places that the mesh was made for.
    """

    vertices: np.ndarray
    extent: float

    @property
    def size(self) -> int:
        """Number of vertices: the levels of an effect on this mesh."""
        return len(self.vertices)

    @property
    def dimension(self) -> int:
        """1, 2 or 3."""
        return self.vertices.shape[1]

    @abstractmethod
    def elements(self) -> Elements:
        """C and G."""

    @abstractmethod
    def config(self) -> list[Any]:
        """Plain values that `read_mesh` turns into the same mesh."""

    @abstractmethod
    def _weights(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vertices (n, m), weights (n, m) and whether a point lies inside (n,)."""

    def projector(self, points: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices and weights that carry the field to places.

        Parameters
        ----------
        points
            Coordinates (n, dimension), or (n,) in one dimension.

        Returns
        -------
        index
            Vertices of the cell around each place, integers (n, m).
        weight
            Their weights, (n, m); they sum to one.

        Raises
        ------
        DataError
            Places that are no finite numbers, of another dimension, or outside the mesh.
        """
        where = f"{type(self).__name__}.projector"
        x = read_points(points, where)
        if x.shape[1] != self.dimension:
            raise DataError(f"{where}: points have {x.shape[1]} coordinates, the mesh has {self.dimension}.")
        index, weight, inside = self._weights(x)
        if not inside.all():
            bad = np.flatnonzero(~inside)
            low, high = self.vertices.min(0), self.vertices.max(0)
            raise DataError(
                f"{where}: {len(bad)} of {len(x)} points lie outside the mesh, the first at row {bad[0]}, "
                f"{_place(x[bad[0]])}; the mesh lies between {_place(low)} and {_place(high)}. Make it of all places, "
                "those of predictions too, or with more padding."
            )
        return torch.from_numpy(index), torch.from_numpy(weight)


def read_points(points: Any, where: str) -> np.ndarray:
    """Coordinates as a float64 array (n, dimension); a list of numbers is one dimension."""
    if hasattr(points, "to_numpy"):
        points = points.to_numpy()
    try:
        x = np.array(points.detach().numpy() if isinstance(points, torch.Tensor) else points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        if "Timestamp" in str(error) or "datetime" in str(error):
            error = TypeError("dates; make numbers of them, such as (date - date.min()).dt.days")
        raise DataError(f"{where}: points are not numbers ({error}); pass an array (n, dimension).") from error
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] not in (1, 2, 3):
        raise DataError(f"{where}: points have shape {x.shape}; pass (n, dimension), dimension 1, 2 or 3.")
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise DataError(f"{where}: point {bad[0]} is at {_place(x[bad[0]])}; give it finite coordinates or drop it.")
    return x


def read_length(value: Any, default: float, where: str, zero: bool = False) -> float:
    """A positive length in the unit of the coordinates."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise ConfigError(f"{where}: {value!r} is no length; pass a number in the unit of the coordinates.")
    if value < 0 or (value == 0 and not zero):
        raise ConfigError(f"{where}: {value!r} is not allowed; it must be {'zero or ' if zero else ''}positive.")
    return float(value)


def extent_of(points: np.ndarray, where: str) -> float:
    """The longest side of the box around places."""
    if not len(points):
        raise DataError(f"{where}: no points.")
    extent = float(np.ptp(points, axis=0).max())
    if extent == 0.0:
        raise DataError(f"{where}: all points are at {_place(points[0])}; a field needs places that differ.")
    return extent


def _place(x: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in x) + ")"


class Grid(AbstractMesh):
    r"""A regular grid in one, two or three dimensions around given places.

    C and G are products of those of the axes: along one axis, with step h, :math:`C = h` (half at the ends) and G has
    rows :math:`(-1, 2, -1)/h`. In a plane this is the mesh of right triangles. Between vertices the field is
    interpolated linearly along each axis.

    Parameters
    ----------
    points
        The places to cover, (n, dimension) or (n,).
    spacing
        Step between vertices, a number or one per dimension; by default a thirtieth of the longest side of the box
        around the points. With a tenth of the range of the field, SDs are within 3 % everywhere; with a fifth, 5 %
        too large at vertices and 8 % too small between them.
    padding
        How far the grid goes beyond the points; by default a third of that side. The field is free at the edge of the
        grid, where its variance is about twice that inside; a range away from the edge it is not changed.

    Raises
    ------
    DataError
        Points that are no finite numbers, or all at one place.
    ConfigError
        A spacing that is not positive, a negative padding, more than five million vertices.
    """

    def __init__(self, points: Any, spacing: Any = None, padding: float | None = None) -> None:
        x = read_points(points, "Grid")
        extent = extent_of(x, "Grid")
        step = _steps(spacing, extent / DIVISIONS, x.shape[1])
        room = read_length(padding, extent / 3, "Grid(padding=...)", zero=True)
        low, high = x.min(0) - room, x.max(0) + room
        cells = np.maximum(np.ceil((high - low) / step * (1 - EDGE)), 1.0)
        shape = [int(c) + 1 for c in cells] if cells.max() < LARGEST else [LARGEST + 1] * len(cells)
        # what the last step goes beyond the points is shared by both sides
        self._lay(0.5 * (low + high) - 0.5 * step * cells, step, shape, extent)

    def _lay(self, origin: np.ndarray, step: np.ndarray, shape: list[int], extent: float) -> None:
        self.origin, self.spacing, self.shape, self.extent = origin, step, tuple(shape), extent
        if np.prod(np.array(shape, dtype=float)) > LARGEST:
            raise ConfigError(
                f"Grid(spacing={step.tolist()}): {' x '.join(map(str, shape))} vertices are more than {LARGEST:,}; "
                "take a larger spacing."
            )
        axes = [o + h * np.arange(m) for o, h, m in zip(origin, step, shape, strict=True)]
        self.vertices = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)

    def __repr__(self) -> str:
        return f"<grid of {' x '.join(map(str, self.shape))} vertices>"

    def config(self) -> list[Any]:
        return ["grid", self.origin.tolist(), self.spacing.tolist(), list(self.shape), self.extent]

    def elements(self) -> Elements:
        masses, stiffnesses = [], []
        for h, m in zip(self.spacing, self.shape, strict=True):
            masses.append(h * np.where((np.arange(m) == 0) | (np.arange(m) == m - 1), 0.5, 1.0))
            middle = np.where((np.arange(m) == 0) | (np.arange(m) == m - 1), 1.0, 2.0)
            side = -np.ones(m - 1)
            stiffnesses.append(sp.diags_array([side, middle, side], offsets=[-1, 0, 1]) / h)
        mass = masses[0]
        for other in masses[1:]:
            mass = np.kron(mass, other)
        total = sp.csr_array((self.size, self.size))
        for axis in range(self.dimension):
            product: Any = sp.eye_array(1)
            for k, along in enumerate(masses):
                product = sp.kron(product, stiffnesses[k] if k == axis else sp.diags_array(along))
            total = total + product
        return Elements(mass, sp.csr_array(total))

    def _weights(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last = np.array(self.shape) - 1
        at = (points - self.origin) / self.spacing
        inside = ((at >= -EDGE) & (at <= last + EDGE)).all(1)
        at = np.clip(at, 0.0, last)
        cell = np.minimum(at.astype(np.int64), last - 1)
        share = at - cell
        index, weight = np.zeros((len(points), 1), dtype=np.int64), np.ones((len(points), 1))
        for k, m in enumerate(self.shape):
            corner = cell[:, k, None] + np.arange(2)
            part = np.stack([1.0 - share[:, k], share[:, k]], axis=1)
            index = (index[:, :, None] * m + corner[:, None, :]).reshape(len(points), -1)
            weight = (weight[:, :, None] * part[:, None, :]).reshape(len(points), -1)
        return index, weight, inside


def _steps(spacing: Any, default: float, dimension: int) -> np.ndarray:
    given = list(spacing) if isinstance(spacing, (list, tuple, np.ndarray)) else [spacing] * dimension
    if len(given) != dimension:
        raise ConfigError(f"Grid(spacing={spacing!r}): {len(given)} steps for {dimension} dimensions.")
    return np.array([read_length(step, default, "Grid(spacing=...)") for step in given])


def read_mesh(mesh: Any, where: str) -> AbstractMesh:
    """A mesh, or what its ``config()`` wrote.

    Raises
    ------
    ConfigError
        Something else.
    """
    from pyromix.linalg.triangulation import Mesh  # it builds on this module

    if isinstance(mesh, AbstractMesh):
        return mesh
    if isinstance(mesh, (list, tuple)) and mesh and mesh[0] == "grid":
        grid = Grid.__new__(Grid)
        _, origin, spacing, shape, extent = mesh
        grid._lay(np.array(origin, dtype=float), np.array(spacing, dtype=float), [int(m) for m in shape], float(extent))
        return grid
    if isinstance(mesh, (list, tuple)) and mesh and mesh[0] == "mesh":
        _, vertices, triangles, extent = mesh
        made = Mesh(vertices, triangles)
        made.extent = float(extent)
        return made
    raise ConfigError(f"{where}: got a {type(mesh).__name__}; pass a pyromix.Grid or a pyromix.Mesh.")
