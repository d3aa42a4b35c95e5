r"""Independent units of a program's rows at many hyper-parameter values at once.

Rows that share no random effect, not even through other rows, are independent given the hyper-parameters: levels of one
grouping factor, or of the outer one where factors are nested. The random effects of each unit then have their own
small integral, :math:`p(y_g \mid \theta) = \int p(y_g \mid b)\, N(b; 0, I)\, db`, and thousands of units at thousands
of draws of :math:`\theta` are solved as one batch: Newton's method for every mode, the curvature :math:`A = R R^T`
there, and from these Laplace's approximation :math:`F(\hat b) - \log|R|`, adaptive Gauss-Hermite quadrature, or draws.
For Gaussian responses with identity link all three are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components

from pyromix.marginal.unit_modes import Problem
from pyromix.sites import Data, RowMap

ENTRIES = 2_000_000  # of one array (draws, units, rows, effects)


@dataclass(frozen=True)
class Batch:
    """What a program gives at S draws of its hyper-parameters, with the units' effects at zero.

    Attributes
    ----------
    eta
        Predictors, (S, n).
    dispersion
        By name, (S,) or (S, n).
    tril
        Effect -> lower-triangular factor of one level's covariance, (S, q, q).
    design
        Effect -> row design (S, n, q), where it depends on the hyper-parameters.
    """

    eta: torch.Tensor
    dispersion: Mapping[str, torch.Tensor]
    tril: Mapping[str, torch.Tensor]
    design: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.eta)

    def part(self, draws: slice) -> Batch:
        """Some of the draws."""
        rest = (_cut(tensors, draws) for tensors in (self.dispersion, self.tril, self.design))
        return Batch(self.eta[draws], *rest)


class Units:
    """The units of a program's rows.

    Parameters
    ----------
    maps
        Effect -> row map. A negative level stands for no effect in that row; every row has at least one level, and
        every level from zero to the largest has a row.
    role
        The response.

    Attributes
    ----------
    label
        Unit of every row, (n,), numbered from zero.
    level_unit
        Effect -> unit of every level.
    designs
        Effect -> its row design.
    """

    def __init__(self, maps: Mapping[str, RowMap], role: Data) -> None:
        self.role = role
        self.members = [member for name, rows in maps.items() for member in _memberships(name, rows)]
        self.sizes = {name: int(rows.index.max()) + 1 for name, rows in maps.items()}
        self.designs = {name: rows.design for name, rows in maps.items()}
        self.widths = {name: 1 if rows.design is None else rows.design.shape[1] for name, rows in maps.items()}
        self.label, self.level_unit = self._components()
        self.count = int(self.label.max()) + 1 if len(self.label) else 0
        self.start, self.effects = self._positions()
        self.row_weight = _row_weight(role)
        self.prepared = role.family.prepare(role.obs, role.trials)

    # -- the pattern -------------------------------------------------------------------------------------------------
    def _components(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Connected components of levels that occur in one row."""
        offset = dict(zip(self.sizes, np.cumsum([0, *self.sizes.values()]), strict=False))
        nodes = np.stack([np.where(m.level >= 0, m.level + offset[m.name], -1) for m in self.members])
        anchor, total = nodes.max(0), sum(self.sizes.values())
        rows = np.nonzero(nodes >= 0)
        edges = sp.coo_array((np.ones(len(rows[0])), (anchor[rows[1]], nodes[rows])), shape=(total, total))
        _, component = connected_components(edges, directed=False)
        # numbered by their first level, so that units of one factor are its levels
        _, first, component = np.unique(component, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        component = rank[component]
        levels = {name: component[offset[name] : offset[name] + size] for name, size in self.sizes.items()}
        return component[anchor], levels

    def _positions(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Where each level's effects start among those of its unit, and how many effects a unit has."""
        unit = np.concatenate(list(self.level_unit.values()))
        width = np.concatenate([np.full(size, self.widths[name]) for name, size in self.sizes.items()])
        order = np.argsort(unit, kind="stable")
        total = np.cumsum(width[order]) - width[order]
        effects = np.bincount(unit, width, minlength=self.count).astype(np.int64)
        start = np.empty(len(unit), dtype=np.int64)
        start[order] = total - (np.cumsum(effects) - effects)[unit[order]]
        pieces = np.split(start, np.cumsum(list(self.sizes.values()))[:-1])
        return dict(zip(self.sizes, pieces, strict=True)), effects

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Units of about one size together, so that padding costs at most a factor of a few."""
        rows = np.bincount(self.label, minlength=self.count)
        sizes = np.stack([np.where(self.effects <= 4, self.effects, _ceiling(self.effects)), _ceiling(rows)])
        _, kind = np.unique(sizes, axis=1, return_inverse=True)
        return [Bucket(self, np.flatnonzero(kind == k)) for k in range(int(kind.max()) + 1)]

    # -- results -----------------------------------------------------------------------------------------------------
    def log_marginal(self, batch: Batch, nodes: int = 1) -> torch.Tensor:
        """``log p(y_g | theta_s)`` of every unit at every draw, (S, units).

        Parameters
        ----------
        nodes
            Of adaptive Gauss-Hermite quadrature in each dimension; one is Laplace's approximation.
        """
        out = torch.empty(len(batch), self.count, dtype=torch.float64)
        for bucket, draws in self._parts(len(batch)):
            problem = Problem(bucket, batch.part(draws))
            out[draws, bucket.units] = problem.quadrature(nodes) if nodes > 1 else problem.laplace()
        return out

    def modes(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Conditional modes of the effects, (S, levels, q) by effect."""
        return self._effects(batch, lambda problem: problem.mode)

    def draw(self, batch: Batch, generator: torch.Generator, candidates: int = 1) -> dict[str, torch.Tensor]:
        """One draw of the effects given their rows at every draw of the hyper-parameters, (S, levels, q) by effect.

        Parameters
        ----------
        candidates
            With one, the draw is from the Gaussian at the mode. With more, it is chosen in each unit among that many
            draws of a t distribution there, with probability proportional to their importance weights: its
            distribution tends to the exact one.
        """
        return self._effects(batch, lambda problem: problem.draw(generator, candidates))

    def _parts(self, draws: int) -> Iterator[tuple[Bucket, slice]]:
        for bucket in self.buckets:
            step = max(1, ENTRIES // max(1, bucket.rows.numel() * bucket.m))
            for start in range(0, draws, step):
                yield bucket, slice(start, min(draws, start + step))

    def _effects(self, batch: Batch, spherical: Any) -> dict[str, torch.Tensor]:
        out = {
            name: torch.empty(len(batch), size, self.widths[name], dtype=torch.float64)
            for name, size in self.sizes.items()
        }
        for bucket, draws in self._parts(len(batch)):
            problem = Problem(bucket, batch.part(draws))
            b = spherical(problem)
            for name, (level, unit, at) in bucket.levels.items():
                own = b[:, unit[:, None], at]  # (S, levels here, q)
                out[name][draws, level] = own @ problem.batch.tril[name].mT
        return out


@dataclass(frozen=True)
class Member:
    """One membership of the rows in an effect: level (n,), negative for none; design (n, q); weight (n, 1) or none."""

    name: str
    level: np.ndarray
    design: torch.Tensor
    weight: torch.Tensor | None


def _memberships(name: str, rows: RowMap) -> list[Member]:
    n = len(rows.index)
    index = rows.index.reshape(n, -1)
    design = torch.ones(n, 1, dtype=torch.float64) if rows.design is None else rows.design
    weight = None if rows.weight is None else rows.weight.reshape(n, -1)
    return [
        Member(name, index[:, k].numpy().astype(np.int64), design, None if weight is None else weight[:, k : k + 1])
        for k in range(index.shape[1])
    ]


def _row_weight(role: Data) -> torch.Tensor | None:
    if role.mask is None:
        return role.weights
    mask = role.mask.to(torch.float64)
    return mask if role.weights is None else role.weights * mask


def _ceiling(sizes: np.ndarray) -> np.ndarray:
    """The next power of two."""
    return 2 ** np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)


def _cut(tensors: Mapping[str, torch.Tensor], draws: slice) -> dict[str, torch.Tensor]:
    return {name: tensor[draws] for name, tensor in tensors.items()}


class Bucket:
    """Some units with their rows and effects padded to common sizes.

    Attributes
    ----------
    units
        Their numbers, (U,).
    rows, real
        Rows of each unit, (U, R), and which of them are there.
    m
        Effects of a unit.
    levels
        Effect -> level, its unit's position here, and the positions of its effects, (levels, q).
    """

    def __init__(self, owner: Units, units: np.ndarray) -> None:
        self.owner, self.units, self.m = owner, torch.from_numpy(units), int(owner.effects[units].max())
        place = np.full(owner.count, -1)
        place[units] = np.arange(len(units))
        mine = np.flatnonzero(place[owner.label] >= 0)
        mine = mine[np.argsort(place[owner.label[mine]], kind="stable")]
        counts = np.bincount(place[owner.label[mine]], minlength=len(units))
        column = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.zeros((len(units), int(counts.max())), dtype=np.int64)
        real = np.zeros(rows.shape, dtype=bool)
        at = (place[owner.label[mine]], column)
        rows[at], real[at] = mine, True
        self.rows, self.real = torch.from_numpy(rows), torch.from_numpy(real)
        self.levels = {}
        for name, unit in owner.level_unit.items():
            level = np.flatnonzero(place[unit] >= 0)
            if len(level):
                start = owner.start[name][level][:, None] + np.arange(owner.widths[name])
                self.levels[name] = tuple(map(torch.from_numpy, (level, place[unit[level]], start)))
        flat = self.rows.reshape(-1)
        role = owner.role
        self.obs = role.obs[flat]
        self.trials = None if role.trials is None else role.trials[flat]
        self.prepared = tuple(part[flat] if part.dim() else part for part in owner.prepared)
        weight = self.real.to(torch.float64)
        self.weight = weight if owner.row_weight is None else weight * owner.row_weight[self.rows]

    def design(self, batch: Batch) -> torch.Tensor:
        """Rows of ``Z Lambda``, (S, U, R, m)."""
        out = torch.zeros(len(batch), *self.rows.shape, self.m, dtype=torch.float64)
        for member in self.owner.members:
            q = member.design.shape[1]
            level = torch.from_numpy(member.level)[self.rows]
            there = self.real & (level >= 0)
            start = torch.from_numpy(self.owner.start[member.name])[level.clamp(min=0)]
            design = batch.design.get(member.name, member.design)[..., self.rows, :] * there[..., None]
            design = design if member.weight is None else design * member.weight[self.rows]
            position = torch.where(there, start, 0)[..., None] + torch.arange(q)
            values = design @ batch.tril[member.name][:, None]
            out.scatter_add_(-1, position.expand(len(batch), *position.shape), values)
        return out
