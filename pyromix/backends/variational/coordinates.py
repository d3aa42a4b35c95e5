r"""Hyper-parameters as one vector in which a posterior is about standard normal: :math:`z = o + T x`.

``z`` holds every site on its unconstrained scale, side by side. The optimiser and the guides work on ``x``: there one
learning rate and one starting width serve coefficients of any size, and correlated columns are no longer correlated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """One site's part of the vector.

    Attributes
    ----------
    name, shape
        The site, and the shape of its unconstrained value.
    transform
        From unconstrained values to the site's support.
    origin
        Unconstrained value at ``x = 0``, (size,).
    root
        ``T``: a factor per coordinate (size,), or a matrix (size, size).
    """

    name: str
    shape: torch.Size
    transform: Any
    origin: torch.Tensor
    root: torch.Tensor

    @property
    def size(self) -> int:
        return self.origin.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Unconstrained value at x."""
        step = self.root * x if self.root.dim() == 1 else self.root @ x
        return (self.origin + step).reshape(self.shape)


class Coordinates:
    """The pieces side by side."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.names = tuple(piece.name for piece in self.pieces)
        self.sizes = [piece.size for piece in self.pieces]
        self.size = sum(self.sizes)
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self.slices = {piece.name: slice(*ends[k : k + 2]) for k, piece in enumerate(self.pieces)}

    def unconstrained(self, x: torch.Tensor) -> Values:
        """Every site's unconstrained value at x (size,)."""
        parts = x.split(self.sizes) if self.pieces else []
        return {piece.name: piece.forward(part) for piece, part in zip(self.pieces, parts, strict=True)}

    def values(self, x: torch.Tensor) -> tuple[Values, torch.Tensor]:
        """Every site's value at x, and the log Jacobian from z to the values; gradients flow.

        The determinant of T is no part of it: densities are of z.
        """
        values: Values = {}
        jacobian = x.new_zeros(())
        for piece, z in zip(self.pieces, self.unconstrained(x).values(), strict=True):
            value = piece.transform(z)
            values[piece.name] = value
            jacobian = jacobian + piece.transform.log_abs_det_jacobian(z, value).sum()
        return values, jacobian

    def log_scale(self) -> torch.Tensor:
        """``log |det T|``: what turns a density of x into one of z."""
        total = torch.zeros((), dtype=torch.float64)
        for piece in self.pieces:
            total = total + (piece.root.abs().log().sum() if piece.root.dim() == 1 else piece.root.slogdet()[1])
        return total

    def constrained_draws(self, x: torch.Tensor) -> Values:
        """Values at draws x (draws, size), stacked by site."""
        rows = [self.values(row)[0] for row in x]
        return {name: torch.stack([row[name] for row in rows]) for name in self.names}

    def describe(self) -> Mapping[str, Any]:
        """Origins and roots, for checkpoints and saved states."""
        return {piece.name: [piece.origin, piece.root] for piece in self.pieces}
