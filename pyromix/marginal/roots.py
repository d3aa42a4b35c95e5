r"""Roots of covariances as maps: white noise to a draw, and gradients back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from pyromix.linalg import cholesky as small
from pyromix.linalg.block import Arrays
from pyromix.linalg.factor import Factor
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.running import Record

MAX_BORDER = 1500
MAX_COUPLING = 4_000_000  # entries


class AbstractRoot(ABC):
    """A square matrix L, by its products."""

    @abstractmethod
    def times(self, w: np.ndarray) -> np.ndarray:
        """``L w``, (d,)."""

    @abstractmethod
    def transposed(self, g: np.ndarray) -> np.ndarray:
        """``L^T g``, (d,)."""


@dataclass(frozen=True)
class DiagonalRoot(AbstractRoot):
    """A diagonal matrix."""

    scale: np.ndarray

    def times(self, w: np.ndarray) -> np.ndarray:
        return self.scale * w

    def transposed(self, g: np.ndarray) -> np.ndarray:
        return self.scale * g


@dataclass(frozen=True)
class DenseRoot(AbstractRoot):
    """Any matrix (d, d)."""

    matrix: np.ndarray

    def times(self, w: np.ndarray) -> np.ndarray:
        return self.matrix @ w

    def transposed(self, g: np.ndarray) -> np.ndarray:
        return self.matrix.T @ g


@dataclass(frozen=True)
class BorderedRoot(AbstractRoot):
    r"""The root of :math:`A^{-1}` for a factored `Factor`: one small block per lead level, and a dense border.

    .. math:: x_2 = T w_2, \qquad x_1 = R^{-T} (w_1 - V x_2)

    Attributes
    ----------
    lead, border
        Positions of both parts in x.
    blocks
        ``R^-T`` of every lead level, (levels, q, q).
    coupling
        V, (levels * q, M), or ``None`` where the parts are independent.
    corner
        T, (M, M).
    """

    lead: np.ndarray
    border: np.ndarray
    blocks: np.ndarray
    coupling: np.ndarray | None
    corner: np.ndarray

    @classmethod
    def of(cls, factor: Factor) -> BorderedRoot | None:
        """The root of the inverse of a factored matrix; ``None`` if its border is too large to be held densely."""
        layout, sizes = factor.layout, [term.size for term in factor.layout.terms]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        lead_size = 0 if layout.lead is None else sizes[layout.lead]
        if layout.border > MAX_BORDER or (factor.v is not None and lead_size * layout.border > MAX_COUPLING):
            return None
        border = np.empty(layout.border, dtype=np.int64)
        for k, at in layout.offsets.items():
            border[at : at + sizes[k]] = starts[k] + np.arange(sizes[k])
        lead, blocks = np.empty(0, dtype=np.int64), np.empty((0, 1, 1))
        if layout.lead is not None:
            lead = starts[layout.lead] + np.arange(lead_size)
            q = layout.terms[layout.lead].q
            eye = np.broadcast_to(np.eye(q), (len(factor.root), q, q)).copy()
            blocks = small.solve_upper(factor.root, eye)
        v = factor.v.toarray() if sp.issparse(factor.v) else factor.v
        corner = factor.rest.sample(np.eye(layout.border)) if factor.rest is not None else np.empty((0, 0))
        return cls(lead, border, blocks, v, corner)

    def times(self, w: np.ndarray) -> np.ndarray:
        out = np.empty_like(w)
        out[self.border] = tail = self.corner @ w[self.border]
        head = w[self.lead]
        if self.coupling is not None:
            head = head - self.coupling @ tail
        out[self.lead] = self._blockwise("gab,gb->ga", head)
        return out

    def transposed(self, g: np.ndarray) -> np.ndarray:
        out = np.empty_like(g)
        out[self.lead] = head = self._blockwise("gab,ga->gb", g[self.lead])
        tail = g[self.border]
        if self.coupling is not None:
            tail = tail - self.coupling.T @ head
        out[self.border] = self.corner.T @ tail
        return out

    def _blockwise(self, product: str, x: np.ndarray) -> np.ndarray:
        levels, q, _ = self.blocks.shape
        if q == 1:
            return self.blocks[:, 0, 0] * x
        return np.einsum(product, self.blocks, x.reshape(levels, q)).reshape(-1)


def root_of_correlated(bound: BoundCorrelated, record: Record, spherical: Collection[str]) -> AbstractRoot | None:
    """A root of the effects' covariance given the data, those in `spherical` as white noise; ``None`` if too large."""
    layout, point = bound.layout, bound.point(record)
    if layout.size > MAX_BORDER:
        return None
    noise = point.factor.sample(np.eye(layout.size))
    spread = layout.spread(point.problem.priors, noise)
    rows = []
    both = zip(bound.plan.latents, point.problem.priors, layout.split(spread), layout.split(noise), strict=True)
    for name, prior, x, v in both:
        operator = record.latents[name].fn.operator
        if name in spherical and bool(operator.logdet_factor() == -torch.inf):
            # its white noise is v itself, of which u does not show the part that the covariance leaves out
            rows.append(v.reshape(-1, layout.size))
            continue
        u = torch.from_numpy(np.einsum("ab,gbm->mga", prior.tril, x))
        at = operator.solve_factor(u) if name in spherical else u
        rows.append(at.reshape(layout.size, -1).T.numpy())
    return DenseRoot(np.concatenate(rows))


def root_of_inverse(factor: Factor, sd: Arrays) -> AbstractRoot:
    """A root of ``A^-1``, or where that would be too large to hold the diagonal of its SDs."""
    found = BorderedRoot.of(factor)
    return DiagonalRoot(np.concatenate([x.reshape(-1) for x in sd])) if found is None else found
