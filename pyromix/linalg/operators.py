r"""Covariance operators of random-effect arrays.

An operator stands for the covariance :math:`\Sigma` of ``vec(u)``, ``u`` of shape (levels, terms), through a square
root: :math:`\Sigma = \Lambda\Lambda^T`. Working with :math:`\Lambda` keeps singular covariances (a zero SD) ordinary
values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from pyromix.errors import UnsupportedError

DENSE = 2000  # levels up to which the factor of a sparse precision is made, densely, where white noise is asked for


class AbstractOperator(ABC):
    """Zero-mean Gaussian covariance of an array of shape (levels, terms).

    Must define: `shape`, `factor`, `solve_factor`, `logdet_factor`. May override: `dtype`, `block`, `separable`,
    `dense`, `log_prob`.
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

    def separable(self) -> Separable:
        """The covariance as that of the levels times that of the terms; by default all of it is the levels'."""
        levels, terms = self.shape
        eye = torch.eye(levels * terms, dtype=self.dtype).reshape(-1, levels, terms)
        root = self.factor(eye).reshape(levels * terms, -1).T
        return Separable(torch.eye(terms, dtype=self.dtype), root=root)

    def parts(self) -> Parts:
        """What hyper-parameters move in it, and how it is made of that; or `UnsupportedError`."""
        levels, terms = self.shape
        apart = self.separable()
        if apart.precision is not None:
            known = apart.precision

            def sparse(given: Sequence[torch.Tensor]) -> AbstractOperator:
                return PrecisionOperator(replace(known, values=given[1], logdet=given[2]), given[0])

            return Parts((apart.tril, known.values, known.logdet), sparse)
        if apart.root is None:
            return Parts((apart.tril,), lambda given: BlockOperator(given[0], levels))
        if len(apart.root) != levels:
            raise UnsupportedError(f"{type(self).__name__}: levels and terms are correlated as one.")
        return Parts((apart.tril, apart.root), lambda given: RootOperator(given[1], given[0]))

    def dense(self) -> torch.Tensor:
        """The covariance matrix of ``u.reshape(-1)``, (levels * terms, levels * terms)."""
        levels, terms = self.shape
        eye = torch.eye(levels * terms, dtype=self.dtype).reshape(-1, levels, terms)
        root = self.factor(eye).reshape(levels * terms, -1).T
        return root @ root.T

    def sds(self) -> torch.Tensor:
        """SDs of the terms of an average level, (terms,): the root of the mean variance."""
        levels, terms = self.shape
        return self.dense().diagonal().reshape(levels, terms).mean(0).sqrt()

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

    def separable(self) -> Separable:
        return Separable(self._tril)

    def sds(self) -> torch.Tensor:
        return self._tril.square().sum(-1).sqrt()

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return b @ self._tril.mT

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return _solve_terms(self._tril, u)

    def logdet_factor(self) -> torch.Tensor:
        return self._levels * _logdet(self._tril)


class RootOperator(AbstractOperator):
    r"""Correlated levels, by a square root: :math:`\Lambda = R \otimes L`, u = R b L^T.

    Parameters
    ----------
    root
        ``R``, lower-triangular (levels, levels): the levels' correlations are ``R R^T``.
    scale_tril
        ``L``, lower-triangular (q, q): the covariance of one level's effects, where its correlation is one.
    """

    def __init__(self, root: torch.Tensor, scale_tril: torch.Tensor) -> None:
        self._root, self._tril = root, scale_tril

    @property
    def shape(self) -> tuple[int, int]:
        return self._root.shape[-1], self._tril.shape[-1]

    def separable(self) -> Separable:
        return Separable(self._tril, root=self._root)

    def sds(self) -> torch.Tensor:
        return self._tril.square().sum(-1).sqrt() * self._root.square().sum(-1).mean().sqrt()

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return self._root @ b @ self._tril.mT

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(self._root, _solve_terms(self._tril, u), upper=False)

    def logdet_factor(self) -> torch.Tensor:
        levels, terms = self.shape
        return levels * _logdet(self._tril) + terms * _logdet(self._root)


class PrecisionOperator(AbstractOperator):
    r"""Correlated levels, by a sparse precision: :math:`\Sigma = P^{-1} \otimes LL^T`.

    Densities need P's entries and its determinant alone. The factor, which white noise needs, is :math:`C^{-T} \otimes
    L` with :math:`P = CC^T`, made densely.

    Parameters
    ----------
    precision
        ``P``, over levels.
    scale_tril
        ``L``, lower-triangular (q, q).
    """

    def __init__(self, precision: Precision, scale_tril: torch.Tensor) -> None:
        self._precision, self._tril = precision, scale_tril

    @property
    def shape(self) -> tuple[int, int]:
        return self._precision.size, self._tril.shape[-1]

    def separable(self) -> Separable:
        return Separable(self._tril, precision=self._precision)

    def sds(self) -> torch.Tensor:
        unit = self._tril.square().sum(-1).sqrt()
        if self._precision.size > DENSE:  # structures are scaled to a level's variance of about one
            return unit
        return unit * torch.cholesky_inverse(self._chol()).diagonal().mean().sqrt()

    def dense(self) -> torch.Tensor:
        levels = torch.cholesky_inverse(self._chol())
        return torch.kron(levels.contiguous(), (self._tril @ self._tril.mT).contiguous())

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        side_by_side = b.movedim(-2, 0)  # of a batch as well: torch would copy the factor for each of it
        solved = torch.linalg.solve_triangular(self._chol().mT, side_by_side.reshape(len(side_by_side), -1), upper=True)
        return solved.reshape(side_by_side.shape).movedim(0, -2) @ self._tril.mT

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return self._chol().mT @ _solve_terms(self._tril, u)

    def logdet_factor(self) -> torch.Tensor:
        levels, terms = self.shape
        return levels * _logdet(self._tril) - 0.5 * terms * self._precision.logdet

    def log_prob(self, u: torch.Tensor) -> torch.Tensor:
        v = _solve_terms(self._tril, u)
        levels, terms = self.shape
        logdet = self.logdet_factor()
        value = -0.5 * self._precision.quadratic(v) - logdet - 0.5 * levels * terms * math.log(2 * math.pi)
        return torch.where(logdet == -math.inf, -math.inf, value)

    def _chol(self) -> torch.Tensor:
        if self._precision.size > DENSE:
            raise UnsupportedError(
                f"a dense factor of {self._precision.size} correlated levels would be needed; fit this program with "
                "MaximumLikelihood or NestedLaplace, or sample the effects: NUTS(parametrisation='centered')."
            )
        return torch.linalg.cholesky(self._precision.dense())


@dataclass(frozen=True)
class Precision:
    """A sparse precision matrix.

    Attributes
    ----------
    size
        Rows.
    rows, cols
        Positions in the lower triangle, diagonal included, each once.
    values
        Entries there; gradients flow.
    logdet
        ``log |P|``; gradients flow.
    """

    size: int
    rows: np.ndarray
    cols: np.ndarray
    values: torch.Tensor
    logdet: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The whole matrix."""
        rows, cols = torch.from_numpy(self.rows), torch.from_numpy(self.cols)
        lower = self.values.new_zeros(self.size, self.size).index_put((rows, cols), self.values)
        return lower + lower.tril(-1).mT

    def quadratic(self, v: torch.Tensor) -> torch.Tensor:
        """``v^T P v`` summed over terms: v (*batch, size, terms) -> (*batch,)."""
        rows, cols = torch.from_numpy(self.rows), torch.from_numpy(self.cols)
        twice = torch.from_numpy(np.where(self.rows == self.cols, 1.0, 2.0))
        products = (v[..., rows, :] * v[..., cols, :]).sum(-1)
        return (twice * self.values * products).sum(-1)


@dataclass(frozen=True)
class Separable:
    """A covariance as levels times terms: ``R R^T`` or ``P^-1`` or ``I``, times ``L L^T``.

    Attributes
    ----------
    tril
        L, (q, q).
    root
        R, (levels, levels), or (levels * q, levels * q) over both where L is the identity.
    precision
        P, over levels.
    """

    tril: torch.Tensor
    root: torch.Tensor | None = None
    precision: Precision | None = None


class Parts(NamedTuple):
    """An operator taken apart: tensors that depend on hyper-parameters, and a function that makes it of such."""

    tensors: tuple[torch.Tensor, ...]
    make: Callable[[Sequence[torch.Tensor]], AbstractOperator]


def _solve_terms(tril: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve_triangular(tril, u.mT, upper=False).mT


def _logdet(tril: torch.Tensor) -> torch.Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
