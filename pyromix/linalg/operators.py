r"""Covariance operators of random-effect arrays.

An operator stands for the covariance :math:`\Sigma` of ``vec(u)``, ``u`` of shape (levels, terms), through a square
root: :math:`\Sigma = \Lambda\Lambda^T`. Working with :math:`\Lambda` keeps singular covariances (a zero SD) ordinary
values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch


class AbstractOperator(ABC):
    """Zero-mean Gaussian covariance of an array of shape (levels, terms).

    Must define: `shape`, `factor`, `solve_factor`, `logdet_factor`. May override: `dtype`, `block`, `dense`.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(levels, terms)."""

    @abstractmethod
    def factor(self, b: torch.Tensor) -> torch.Tensor:
        """``Lambda b``: b (*batch, levels, terms) of independent standard normals -> u of the same shape."""

    @abstractmethod
    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        """``Lambda^-1 u``; infinite or NaN where Lambda is singular."""

    @abstractmethod
    def logdet_factor(self) -> torch.Tensor:
        """``log |det Lambda|``, a scalar; -inf where Lambda is singular."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every result; that of the hyper-parameters."""
        return self.logdet_factor().dtype

    @property
    def block(self) -> torch.Tensor | None:
        """Lower-triangular (terms, terms) factor if levels are independent and alike, else ``None``."""
        return None

    def dense(self) -> torch.Tensor:
        """The covariance matrix of ``u.reshape(-1)``, (levels * terms, levels * terms)."""
        levels, terms = self.shape
        eye = torch.eye(levels * terms, dtype=self.dtype).reshape(-1, levels, terms)
        root = self.factor(eye).reshape(levels * terms, -1).T
        return root @ root.T

    def log_prob(self, u: torch.Tensor) -> torch.Tensor:
        r"""Log density of u (*batch, levels, terms) -> (*batch,).

        .. math:: -\tfrac12\|\Lambda^{-1}u\|^2 - \log|\det\Lambda| - \tfrac12 d\log 2\pi

        A singular covariance has no density; it is taken as -inf, so a sampler refuses the point and never sees NaN.
        """
        b = self.solve_factor(u)
        logdet = self.logdet_factor()
        levels, terms = self.shape
        constant = 0.5 * levels * terms * math.log(2 * math.pi)
        value = -0.5 * (b * b).sum((-2, -1)) - logdet - constant
        return torch.where(logdet == -math.inf, -math.inf, value)


class BlockOperator(AbstractOperator):
    r"""Independent, identically distributed levels: :math:`\Lambda = I_{levels} \otimes L`.

    Parameters
    ----------
    scale_tril
        ``L``, lower-triangular (*batch, q, q): the covariance of one level's effects is ``L L^T``.
    levels
        Number of levels.
    """

    def __init__(self, scale_tril: torch.Tensor, levels: int) -> None:
        self._tril = scale_tril
        self._levels = levels

    @property
    def dtype(self) -> torch.dtype:
        return self._tril.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return self._levels, self._tril.shape[-1]

    @property
    def block(self) -> torch.Tensor:
        return self._tril

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return b @ self._tril.mT

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(self._tril, u.mT, upper=False).mT

    def logdet_factor(self) -> torch.Tensor:
        return self._levels * self._tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
