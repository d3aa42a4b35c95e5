"""Covariances over levels whose eigenvectors stay while their eigenvalues move."""

from __future__ import annotations

import torch

from pyromix.linalg.operators import AbstractOperator, Parts, Separable


class SpectralOperator(AbstractOperator):
    r"""Correlated levels, by eigenvectors: :math:`\Sigma = V D^2 V^T \otimes LL^T`.

    Where D has zeros, `solve_factor` gives the shortest b that `factor` takes to u, so that samplers can set out from
    any u that the covariance allows.

    Parameters
    ----------
    vectors
        ``V``, orthonormal columns (levels, levels).
    scales
        Diagonal of ``D``, >= 0, (levels,); gradients flow.
    scale_tril
        ``L``, lower-triangular (q, q).
    """

    def __init__(self, vectors: torch.Tensor, scales: torch.Tensor, scale_tril: torch.Tensor) -> None:
        self._vectors, self._scales, self._tril = vectors, scales, scale_tril

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._vectors), self._tril.shape[-1]

    def separable(self) -> Separable:
        return Separable(self._tril, root=self._vectors * self._scales)

    def parts(self) -> Parts:
        vectors = self._vectors
        return Parts((self._tril, self._scales), lambda given: SpectralOperator(vectors, given[1], given[0]))

    def sds(self) -> torch.Tensor:
        return self._tril.square().sum(-1).sqrt() * self._scales.square().mean().sqrt()

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return self._vectors @ (self._scales[:, None] * b) @ self._tril.mT

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        v = torch.linalg.solve_triangular(self._tril, u.mT, upper=False).mT
        held = self._scales > 0
        inverse = torch.where(held, 1.0 / torch.where(held, self._scales, 1.0), 0.0)
        return inverse[:, None] * (self._vectors.mT @ v)

    def logdet_factor(self) -> torch.Tensor:
        levels, terms = self.shape
        return levels * self._tril.diagonal().abs().log().sum() + terms * self._scales.log().sum()
