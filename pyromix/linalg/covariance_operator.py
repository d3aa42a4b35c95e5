"""Correlated levels by their covariance matrix, whose root is taken only where one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from pyromix.linalg.operators import AbstractOperator, Parts, RootOperator, Separable


class CovarianceOperator(AbstractOperator):
    r"""Correlated levels, by their covariance: :math:`\Sigma = C \otimes LL^T`.

    A Gaussian likelihood needs C alone. The factor is :math:`R \otimes L` with :math:`C = RR^T`.

    Parameters
    ----------
    covariance
        ``C`` over levels, (*batch, levels, levels).
    scale_tril
        ``L``, lower-triangular (*batch, q, q).
    root
        Computes ``R``, lower-triangular.
    """

    def __init__(
        self, covariance: torch.Tensor, scale_tril: torch.Tensor, root: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.covariance, self.tril = covariance, scale_tril
        self._take_root = root

    @cached_property
    def _rooted(self) -> RootOperator:
        return RootOperator(self._take_root(self.covariance), self.tril)

    @property
    def dtype(self) -> torch.dtype:
        return self.covariance.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return self.covariance.shape[-1], self.tril.shape[-1]

    def separable(self) -> Separable:
        return self._rooted.separable()

    def parts(self) -> Parts:
        root = self._take_root
        return Parts((self.tril, self.covariance), lambda given: CovarianceOperator(given[1], given[0], root))

    def sds(self) -> torch.Tensor:
        return self.tril.square().sum(-1).sqrt() * self.covariance.diagonal(dim1=-2, dim2=-1).mean().sqrt()

    def dense(self) -> torch.Tensor:
        return torch.kron(self.covariance.contiguous(), (self.tril @ self.tril.mT).contiguous())

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return self._rooted.factor(b)

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return self._rooted.solve_factor(u)

    def logdet_factor(self) -> torch.Tensor:
        return self._rooted.logdet_factor()
