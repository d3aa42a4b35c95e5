"""Matern fields on grids and meshes, by their sparse precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch

from pyromix.covariances.arguments import double, rate_parameter
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels
from pyromix.errors import ConfigError, StructureError
from pyromix.linalg.fields import FieldOperator, FieldPrecision
from pyromix.linalg.meshes import AbstractMesh, read_mesh
from pyromix.linalg.operators import Precision
from pyromix.parameters import Argument, Parameter, encode

HIGHEST = 4  # order of the operator; the precision reaches as many neighbours away
SHARE = 5.0  # the extent over the prior's median range
SPREAD = 1.0  # of the log range: 95 % of the default prior within a factor of 7 either way


class SPDE(BetweenLevels):
    r"""A Matern field on the vertices of a grid or mesh, with a sparse precision.

    The field solves :math:`(\kappa^2 - \Delta)^{\alpha/2}\,u = W` with white noise W (Lindgren, Rue and Lindstroem,
    2011). In d dimensions it is a Matern field of smoothness :math:`\nu = \alpha - d/2`, and

    .. math:: \kappa = \sqrt{8\nu} / range, \qquad
        Cov(u(s), u(t)) = sd^2\,\frac{2^{1-\nu}}{\Gamma(\nu)}(\kappa r)^\nu K_\nu(\kappa r), \quad r = \|s - t\|,

    so `range` is the distance at which the correlation has fallen to about 0.14 (0.13 for :math:`\nu = 1/2`). On the
    mesh, with the finite elements C and G of `pyromix.Grid` and `pyromix.Mesh`,

    .. math:: \Sigma = P^{-1} \otimes T, \quad P = \tau^2 C(\kappa^2 + C^{-1}G)^\alpha, \quad
        \tau^2 = \frac{\Gamma(\nu)}{\Gamma(\alpha)(4\pi)^{d/2}\kappa^{2\nu}}, \quad T = diag(sd^2),

    which is :math:`\tau^2(\kappa^4 C + 2\kappa^2 G + GC^{-1}G)` for :math:`\alpha = 2`. Costs are those of a sparse
    factor of P: in a plane of n vertices some n^1.5 operations, and n log n entries.

    Levels are the vertices. Rows lie anywhere inside, and reach them by weights; new places need no new levels:

    >>> import torch, pyromix as pmx
    >>> places = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> mesh = pmx.Mesh.from_points(places, edge=0.1)
    >>> field = pmx.RandomEffect("field", pmx.SPDE(mesh), levels=mesh.size)
    >>> index, weight = mesh.projector(places)      # in the program: field(index, weight=weight)
    >>> index.shape
    torch.Size([50, 3])

    The SD is that of the field without an edge. Within about a range of the edge of the mesh the SD is larger, up to
    1.4 times at the edge, twice in a corner: give the mesh a padding of that size. Edges should not be longer than a
    tenth of the range where the SD matters to some per cent, or than a fifth for rough work (see `pyromix.Grid`).

    Parameters
    ----------
    mesh
        A `pyromix.Grid` or a `pyromix.Mesh`.
    alpha
        Order, an integer above d / 2, at most 4: in a plane 2 (:math:`\nu = 1`), along a line 1 (:math:`\nu = 1/2`,
        the Ornstein-Uhlenbeck process) or 2, in space 2 (:math:`\nu = 1/2`).
    range
        Distance at which the correlation is about 0.14, > 0, in the unit of the coordinates: a number or a prior. By
        default LogNormal with its median at a fifth of the mesh's extent and SD 1 of its logarithm. The prior of
        Fuglstad et al. (2019), P(range < r) = p, is ``InverseGamma(1, -log(p) * r)`` in a plane.
    sd
        Standard deviation of the field, >= 0, (terms,) or one number for all: numbers fix it, a distribution is its
        prior; by default HalfNormal(scale 10). Theirs, P(sd > s) = p, is ``Exponential(-log(p) / s)``.
    terms
        Structure of the terms of a level (fields that are correlated with each other): ``Unstructured()``.

    Raises
    ------
    ConfigError
        Something that is no mesh, an `alpha` that is no integer or has no field in so many dimensions, a range that is
        not positive, a negative SD.
    StructureError
        Where the effect is used: levels that are not the mesh's vertices.
    """

    def __init__(
        self,
        mesh: AbstractMesh,
        alpha: int = 2,
        range: Argument = None,
        sd: Argument = None,
        *,
        terms: Covariance | None = None,
    ) -> None:
        self.mesh = read_mesh(mesh, "SPDE(mesh=...)")
        self.alpha = _read_alpha(alpha, self.mesh.dimension)
        self.range = range
        self._set_terms(sd, terms)
        self._range()
        self._kept: dict[str, FieldPrecision] = {}

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return (*self._term_parameters(coords.terms), self._range())

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> FieldOperator:
        return FieldOperator(self._precision(theta["range"], coords), self._tril(theta, coords))

    def config(self) -> dict[str, Any]:
        return {
            "class": "SPDE",
            "mesh": self.mesh.config(),
            "alpha": self.alpha,
            "range": encode(self.range, "SPDE(range=...)"),
            "sd": encode(self.sd, "SPDE(sd=...)"),
            "terms": None if self.terms is None else self.terms.config(),
        }

    def __repr__(self) -> str:
        return f"SPDE(mesh={self.mesh!r}, alpha={self.alpha}, range={self.range!r}, sd={self.sd!r})"

    def _range(self) -> Parameter:
        default = dist.LogNormal(double(math.log(self.mesh.extent / SHARE)), double(SPREAD))
        return rate_parameter("range", self.range, "SPDE", default)

    def _precision(self, reach: torch.Tensor, coords: Coords) -> Precision:
        """Of the field with SD one."""
        if "field" not in self._kept:
            self._kept["field"] = FieldPrecision(self.mesh.elements(), self.alpha)
        half = 0.5 * self.mesh.dimension
        nu = self.alpha - half
        kappa = math.sqrt(8 * nu) / reach
        constant = math.gamma(nu) / (math.gamma(self.alpha) * (4 * math.pi) ** half)
        made = self._kept["field"].precision(kappa, constant * kappa ** (-2 * nu))
        place = _places(coords.levels, self.mesh)
        if place is None:
            return made
        rows, cols = place[made.rows], place[made.cols]
        low, high = torch.minimum(rows, cols).numpy(), torch.maximum(rows, cols).numpy()
        return Precision(made.size, high, low, made.values, made.logdet)


def _read_alpha(alpha: Any, dimension: int) -> int:
    if isinstance(alpha, bool) or not isinstance(alpha, int):
        raise ConfigError(
            f"SPDE(alpha={alpha!r}): only integers have a sparse precision; choose 2, or along a line 1 or 2."
        )
    if not 1 <= alpha <= HIGHEST:
        raise ConfigError(f"SPDE(alpha={alpha}): choose an integer from 1 to {HIGHEST}.")
    if alpha <= 0.5 * dimension:
        raise ConfigError(
            f"SPDE(alpha={alpha}): in {dimension} dimensions its variance is infinite (smoothness "
            f"{alpha - 0.5 * dimension:g}); choose 2. alpha=1 is for a line."
        )
    return alpha


def _places(levels: tuple[Any, ...], mesh: AbstractMesh) -> torch.Tensor | None:
    """Position of every vertex among the levels; ``None`` where they are in the mesh's order."""
    if levels == tuple(range(mesh.size)):
        return None
    strange = [level for level in levels if isinstance(level, bool) or not isinstance(level, int)]
    strange += [level for level in levels if level not in range(mesh.size)]
    if strange:
        raise StructureError(
            f"SPDE: level {strange[0]!r} is no vertex of its {mesh!r}; levels are the numbers of vertices, "
            "levels=mesh.size, and places enter by mesh.projector(points)."
        )
    if len(levels) != mesh.size:
        raise StructureError(f"SPDE: {len(levels)} levels for {mesh!r}; pass RandomEffect(levels=mesh.size).")
    place = torch.empty(mesh.size, dtype=torch.long)
    place[torch.tensor(levels)] = torch.arange(mesh.size)
    return place
