r"""Sparse precisions of Matern fields on meshes.

With C (diagonal) and G of `pyromix.linalg.meshes` and :math:`K = \kappa^2 C + G`, the solution of
:math:`(\kappa^2 - \Delta)^{\alpha/2} u = W` has the precision (Lindgren, Rue and Lindstroem, 2011)

.. math:: P = C(\kappa^2 + C^{-1}G)^\alpha = \sum_{j=0}^\alpha \binom\alpha j \kappa^{2(\alpha-j)} C(C^{-1}G)^j, \qquad
    \log|P| = \alpha\log|K| - (\alpha-1)\log|C|,

that is K, :math:`KC^{-1}K`, :math:`KC^{-1}KC^{-1}K`. So the determinant needs K alone, which is sparser than P, and its
slope the diagonal of the inverse of K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch

from pyromix.linalg.meshes import Elements
from pyromix.linalg.operators import Parts, Precision, PrecisionOperator
from pyromix.linalg.sparse import ComplementPlan

SPECTRAL = 800  # vertices up to which the determinant comes from the eigenvalues of C^-1 G, found once


class FieldPrecision:
    """P as a function of kappa, on one pattern.

    Parameters
    ----------
    elements
        The mesh's C and G.
    alpha
        Order of the operator, 1 or more.
    """

    def __init__(self, elements: Elements, alpha: int) -> None:
        self.alpha, self.mass = alpha, elements.mass
        self.size = len(elements.mass)
        inverse = sp.diags_array(1.0 / elements.mass)
        power: Any = sp.diags_array(elements.mass)
        powers = [sp.csr_array(power)]
        for _ in range(alpha):
            power = elements.stiffness @ (inverse @ power)
            powers.append(sp.csr_array(power))
        self.rows, self.cols, values = _lower(powers)
        binomial = [math.comb(alpha, j) for j in range(alpha + 1)]
        self.coefficients = torch.from_numpy(values * np.array(binomial, dtype=float)[:, None])
        self.log_mass = float(np.log(elements.mass).sum())
        self._plan_determinant(elements)

    def _plan_determinant(self, elements: Elements) -> None:
        self.spectrum: torch.Tensor | None = None
        if self.size <= SPECTRAL:
            half = 1.0 / np.sqrt(elements.mass)
            found = scipy.linalg.eigvalsh(half[:, None] * elements.stiffness.toarray() * half)
            self.spectrum = torch.from_numpy(np.maximum(found, 0.0))
            return
        self.k_rows, self.k_cols, (self.k_mass, self.k_stiffness) = _lower(
            [sp.csr_array(sp.diags_array(elements.mass)), elements.stiffness]
        )
        self.plan = ComplementPlan(self.k_rows, self.k_cols, self.size)

    def precision(self, kappa: torch.Tensor, scale: torch.Tensor) -> Precision:
        """``scale * P``, scalars both."""
        square = kappa * kappa
        orders = torch.arange(self.alpha, -1, -1, dtype=square.dtype)
        values = scale * (square**orders @ self.coefficients.to(square.dtype))
        logdet = self.size * scale.log() + self.alpha * self._log_k(square) - (self.alpha - 1) * self.log_mass
        return Precision(self.size, self.rows, self.cols, values, logdet)

    def _log_k(self, square: torch.Tensor) -> torch.Tensor:
        """``log |K|``."""
        if self.spectrum is not None:
            return self.log_mass + (square + self.spectrum).log().sum()
        return _LogDeterminant.apply(self, square)


class FieldOperator(PrecisionOperator):
    """Effects on the vertices of a mesh, reported by the covariance of a vertex far from the edge."""

    def parts(self) -> Parts:
        known = self._precision

        def make(given: Sequence[torch.Tensor]) -> FieldOperator:
            return FieldOperator(replace(known, values=given[1], logdet=given[2]), given[0])

        return Parts((self._tril, known.values, known.logdet), make)

    @property
    def mean_block(self) -> torch.Tensor:
        """Covariance of the terms of a vertex, (q, q)."""
        return self._tril @ self._tril.mT


class _LogDeterminant(torch.autograd.Function):
    """``log |K|`` of kappa squared; its slope is the trace of ``K^-1 C``."""

    @staticmethod
    def forward(ctx: Any, field: FieldPrecision, square: torch.Tensor) -> torch.Tensor:
        ctx.field = field
        ctx.held = field.plan.factor(float(square) * field.k_mass + field.k_stiffness)
        return torch.tensor(ctx.held.logdet, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        vertices = np.arange(ctx.field.size)
        return None, grad * float(ctx.field.mass @ ctx.held.inverse_at(vertices, vertices))


def _lower(matrices: list[sp.csr_array]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The common pattern of the lower triangles of symmetric matrices, and the entries of each there."""
    size = matrices[0].shape[0]
    parts = [sp.coo_array(sp.tril(m)) for m in matrices]
    keys = [part.coords[0].astype(np.int64) * size + part.coords[1] for part in parts]
    pattern = np.unique(np.concatenate(keys))
    values = np.zeros((len(matrices), len(pattern)))
    for row, key, part in zip(values, keys, parts, strict=True):
        np.add.at(row, np.searchsorted(pattern, key), part.data)
    return pattern // size, pattern % size, values
