"""Covariances of levels that are known before the fit: a relationship matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import scipy.linalg
import torch

from pyromix.linalg.operators import AbstractOperator, Parts, RootOperator, Separable
from pyromix.threads import threads_for


class KnownCovariance:
    """A fixed covariance over levels; what costs the cube of their number is made when first asked for, and kept.

    Parameters
    ----------
    matrix
        The covariance, symmetric and positive semidefinite, (levels, levels).
    root
        Makes a lower-triangular square root of it.
    """

    def __init__(self, matrix: torch.Tensor, root: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.matrix, self._make_root = matrix, root
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    @cached_property
    def root(self) -> torch.Tensor:
        """Lower-triangular R with ``R R^T`` the matrix."""
        return self._make_root(self.matrix)

    @cached_property
    def inverse_root(self) -> torch.Tensor | None:
        """Pseudo-inverse of R where the matrix is singular; ``None`` where it is not."""
        if bool((self.root.diagonal() > 0).all()):
            return None
        return torch.linalg.pinv(self.root, rtol=1e-10)

    def decomposed(self, present: np.ndarray, root_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, ascending and not below zero, and eigenvectors of ``N^1/2 K N^1/2`` over some levels.

        The last decomposition is kept: traits measured on the same levels share it, and so do the criteria of a fit.
        Levels with as much data each, whatever that is, have the eigenvectors of K.

        Parameters
        ----------
        present
            The levels.
        root_n
            Square root of N for each of them.
        """
        balanced = bool((root_n == root_n[0]).all())
        weight = np.ones(len(present)) if balanced else root_n
        last = self._last
        if last is None or not (np.array_equal(last[0], present) and np.array_equal(last[1], weight)):
            matrix = self.matrix.numpy()
            part = matrix if len(present) == len(matrix) else matrix[np.ix_(present, present)]
            last = self._last = (present, weight, *semidefinite_eigen(part * weight[:, None] * weight))
        _, _, values, vectors = last
        return (root_n[0] ** 2 * values if balanced else values), vectors

    @property
    def mean_variance(self) -> torch.Tensor:
        """Of the levels: the mean of the diagonal."""
        return self.matrix.diagonal().mean()


class KnownOperator(AbstractOperator):
    r"""Correlated levels, by a covariance that is known but for the terms' scales: :math:`\Sigma = K \otimes LL^T`.

    The square root, whose zeros say that K is singular, is made only where it is needed: an exact likelihood of one
    effect rests on the eigenvectors of K instead (`pyromix.marginal.rotated`).

    Parameters
    ----------
    known
        K.
    scale_tril
        ``L``, lower-triangular (q, q).
    """

    def __init__(self, known: KnownCovariance, scale_tril: torch.Tensor) -> None:
        self._known, self._tril = known, scale_tril

    @property
    def known(self) -> KnownCovariance:
        """K."""
        return self._known

    @property
    def covariance(self) -> torch.Tensor:
        """K's matrix."""
        return self._known.matrix

    @property
    def tril(self) -> torch.Tensor:
        """L."""
        return self._tril

    @property
    def mean_block(self) -> torch.Tensor:
        """Covariance of the terms of an average level, (q, q)."""
        return self._known.mean_variance.to(self.dtype) * self._tril @ self._tril.mT

    @property
    def dtype(self) -> torch.dtype:
        return self._tril.dtype

    def parts(self) -> Parts:
        return Parts((self._tril,), lambda given: KnownOperator(self._known, given[0]))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._known.matrix), self._tril.shape[-1]

    @cached_property
    def _rooted(self) -> RootOperator:
        return RootOperator(self._known.root.to(self.dtype), self._tril)

    def separable(self) -> Separable:
        return self._rooted.separable()

    def dense(self) -> torch.Tensor:
        return torch.kron(self._known.matrix.to(self.dtype), self._tril @ self._tril.mT)

    def sds(self) -> torch.Tensor:
        return self._tril.square().sum(-1).sqrt() * self._known.mean_variance.to(self.dtype).sqrt()

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return self._rooted.factor(b)

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        """As of any operator; where K is singular, the shortest b that `factor` takes to u."""
        inverse = self._known.inverse_root
        if inverse is None:
            return self._rooted.solve_factor(u)
        return inverse.to(self.dtype) @ torch.linalg.solve_triangular(self._tril, u.mT, upper=False).mT

    def logdet_factor(self) -> torch.Tensor:
        return self._rooted.logdet_factor()


def semidefinite_eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a positive semidefinite matrix, which is overwritten; negative eigenvalues are rounding, hence zero."""
    with threads_for(len(matrix)):
        values, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False, overwrite_a=True)
    return np.maximum(values, 0.0), vectors
