r"""Sites as one vector in which a posterior is about standard normal: :math:`z = o + T x`.

``z`` holds every site on its unconstrained scale, side by side. The optimiser and the guides work on ``x``: there one
learning rate and one starting width serve coefficients of any size, and correlated columns are no longer correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """One site's part of the vector: its name, the shape of its unconstrained value, the transform to its support."""

    name: str
    shape: torch.Size
    transform: Any

    @property
    def size(self) -> int:
        return self.shape.numel()


class Coordinates:
    """The pieces side by side.

    Parameters
    ----------
    origin
        z at ``x = 0``, (size,).
    head, tail
        ``T`` is `head` (k, k) on the first k coordinates and the diagonal `tail` (size - k,) on the rest.
    """

    def __init__(self, pieces: Sequence[Piece], origin: torch.Tensor, head: torch.Tensor, tail: torch.Tensor) -> None:
        self.pieces, self.origin, self.head, self.tail = tuple(pieces), origin, head, tail
        self.names = tuple(piece.name for piece in self.pieces)
        self.sizes = [piece.size for piece in self.pieces]
        self.size = sum(self.sizes)
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self.slices = {piece.name: slice(*ends[k : k + 2]) for k, piece in enumerate(self.pieces)}

    def independent(self) -> Coordinates:
        """The same with T's head replaced by the scales of its rows: one coordinate for each of z."""
        return Coordinates(self.pieces, self.origin, torch.diag(self.head.norm(dim=1)), self.tail)

    def vector(self, x: torch.Tensor) -> torch.Tensor:
        """z at x."""
        k = len(self.head)
        return self.origin + torch.cat([self.head @ x[:k], self.tail * x[k:]])

    def values(self, x: torch.Tensor) -> tuple[Values, torch.Tensor]:
        """Every site's value at x, and the log Jacobian from z to the values; gradients flow.

        The determinant of T is no part of it: densities are of z.
        """
        values: Values = {}
        jacobian = x.new_zeros(())
        parts = self.vector(x).split(self.sizes) if self.pieces else []
        for piece, part in zip(self.pieces, parts, strict=True):
            z = part.reshape(piece.shape)
            values[piece.name] = value = piece.transform(z)
            jacobian = jacobian + piece.transform.log_abs_det_jacobian(z, value).sum()
        return values, jacobian

    @cached_property
    def log_scale(self) -> torch.Tensor:
        """``log |det T|``: what turns a density of x into one of z."""
        return torch.linalg.slogdet(self.head)[1] + self.tail.abs().log().sum()

    def rows(self, name: str) -> torch.Tensor:
        """Rows of T's head that make up a site, (its size, k)."""
        return self.head[self.slices[name]]
