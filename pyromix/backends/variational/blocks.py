"""Random effects as blocks: for each grouping factor, one vector of all its terms for every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pyromix.errors import UnsupportedError
from pyromix.running import Record, Site


@dataclass(frozen=True)
class Block:
    """Effects of one grouping factor, taken together.

    Attributes
    ----------
    names, widths
        The sites and how many terms each has.
    levels
        Number of levels.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    levels: int

    @property
    def size(self) -> int:
        """Terms of one level."""
        return sum(self.widths)

    def split(self, u: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arrays (..., levels, size) by site."""
        return dict(zip(self.names, u.split(self.widths, -1), strict=True))

    def factor(self, record: Record) -> torch.Tensor:
        """Lower triangular factor of one level's prior covariance, (size, size)."""
        blocks = [record.latents[name].fn.operator.block for name in self.names]
        return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)


def find_blocks(record: Record) -> tuple[Block, ...]:
    """Effects with the same grouping factor, levels and row index go together.

    Raises
    ------
    UnsupportedError
        The levels of an effect depend on each other.
    """
    found: list[list[Site]] = []
    for site in record.latents.values():
        if site.fn.operator.block is None:
            raise UnsupportedError(
                f"SVI(guide='group'): the levels of {site.name!r} depend on each other, so its groups have no Gaussian "
                "of their own; use guide='full', 'low_rank' or 'mean_field'."
            )
        for group in found:
            if _together(group[0], site):
                group.append(site)
                break
        else:
            found.append([site])
    return tuple(
        Block(tuple(s.name for s in group), tuple(s.fn.event_shape[1] for s in group), group[0].fn.event_shape[0])
        for group in found
    )


def _together(a: Site, b: Site) -> bool:
    same = a.role.group == b.role.group and a.role.levels == b.role.levels
    rows, others = a.role.rows, b.role.rows
    return same and rows.index.dim() == 1 and torch.equal(rows.index, others.index) and others.weight is None


@dataclass(frozen=True)
class BlockRows:
    """How a block enters some rows, with only the levels that they hold.

    Attributes
    ----------
    levels
        The block's levels in these rows, (g,), sorted.
    index
        Position in `levels` of each row, (n, m).
    design
        What multiplies the effects, membership weights included, (n, m, size).
    """

    levels: torch.Tensor
    index: torch.Tensor
    design: torch.Tensor

    @classmethod
    def of(cls, block: Block, record: Record) -> BlockRows:
        """Read from a run of the program on these rows; the cost is that of the rows."""
        role = record.latents[block.names[0]].role
        index = role.rows.index if role.rows.index.dim() == 2 else role.rows.index[:, None]
        levels, compact = torch.unique(index, return_inverse=True)
        return cls(levels, compact, torch.cat([_design(record.latents[name]) for name in block.names], -1))

    @property
    def count(self) -> int:
        return len(self.levels)

    def mean(self, u: torch.Tensor) -> torch.Tensor:
        """``Z u`` of effects at `levels`, (g, size) -> (n,)."""
        return (self.design * u[self.index]).sum((-2, -1))

    def variance(self, factor: torch.Tensor) -> torch.Tensor:
        """Variance of ``Z u`` where level g has covariance ``F_g F_g'``, (g, size, size) -> (n,)."""
        spread = (self.design[..., None] * factor[self.index]).sum(-2)  # (n, m, size)
        if self.index.shape[1] == 1:
            return spread.square().sum((-2, -1))
        same = (self.index[:, :, None] == self.index[:, None, :]).to(spread.dtype)
        return torch.einsum("nak,nbk,nab->n", spread, spread, same)

    def columns(self, slope: torch.Tensor) -> torch.Tensor:
        """``Z K``: (g, size, k) -> (n, k)."""
        return torch.einsum("nms,nmsk->nk", self.design, slope[self.index])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """``Z' r``: (n,) or (n, k) -> (g, size) or (g, size, k)."""
        weighted = self.design[..., None] * rows.reshape(len(rows), 1, 1, -1)
        flat = weighted.flatten(0, 1)
        out = rows.new_zeros(self.count, *flat.shape[1:]).index_add_(0, self.index.flatten(), flat)
        return out[..., 0] if rows.dim() == 1 else out

    def gram(self, weight: torch.Tensor) -> torch.Tensor:
        """Each level's own block of ``Z' W Z``: (n,) -> (g, size, size)."""
        size = self.design.shape[-1]
        if self.index.shape[1] == 1:
            z = self.design[:, 0]
            products = (weight[:, None] * z)[:, :, None] * z[:, None, :]
            return weight.new_zeros(self.count, size, size).index_add_(0, self.index[:, 0], products)
        same = (self.index[:, :, None] == self.index[:, None, :]).to(weight.dtype)
        products = torch.einsum("n,nas,nbt,nab->nast", weight, self.design, self.design, same)
        return weight.new_zeros(self.count, size, size).index_add_(0, self.index.flatten(), products.flatten(0, 1))


def _design(site: Site) -> torch.Tensor:
    """(n, m, q)."""
    rows = site.role.rows
    m = 1 if rows.index.dim() == 1 else rows.index.shape[1]
    weight = None if rows.weight is None else rows.weight.reshape(len(rows.index), m, 1)
    if rows.design is None:
        ones = torch.ones(len(rows.index), m, 1, dtype=torch.float64)
        return ones if weight is None else weight
    design = rows.design[:, None, :].expand(-1, m, -1)
    return design if weight is None else design * weight


def stack(blocks: Sequence[Block], arrays: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Arrays of several blocks by site."""
    out: dict[str, torch.Tensor] = {}
    for block, array in zip(blocks, arrays, strict=True):
        out |= block.split(array)
    return out
