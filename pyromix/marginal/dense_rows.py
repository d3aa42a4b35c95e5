r"""Gaussian responses by the dense covariance of their rows, where there are about as many levels as rows.

.. math::
    \log p(y) = \log N(y; \eta_0, V), \quad V_{ij} = \sum_k C_k[g_i, g_j]\, z_i^T L_k L_k^T z_j + \sigma_i^2 [i = j]

over the effects k: one Cholesky factor of V for the value, and its inverse for the gradient,
:math:`\partial / \partial V = \tfrac12(\alpha\alpha^T - V^{-1})` with :math:`\alpha = V^{-1}(y - \eta_0)`, from where
torch takes it to the hyper-parameters. With coefficients integrated out over a flat prior, :math:`V^{-1}` is
:math:`P = V^{-1} - V^{-1}X(X^TV^{-1}X)^{-1}X^TV^{-1}` in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pyromix.linalg.block import Term
from pyromix.linalg.covariance_operator import CovarianceOperator
from pyromix.linalg.known import KnownOperator
from pyromix.linalg.sparse import DenseComplement
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Record

LOG_2PI = math.log(2 * math.pi)
MAX_ROWS = 8000  # whose covariance takes 512 MB
BY_COVARIANCE = (CovarianceOperator, KnownOperator)  # which need no root of it here
ADVANTAGE = 2.0  # rows a correlated level up to which this is the cheaper way; the other takes some ten products


class DenseRows:
    """The log marginal likelihood of one program on one data set.

    Parameters
    ----------
    x
        Orthonormal columns whose coefficients are integrated out, (n, p); p may be zero.
    """

    def __init__(self, plan: Plan, x: np.ndarray) -> None:
        self.plan, self.x = plan, x

    @classmethod
    def of(cls, plan: Plan, record: Record, x: np.ndarray) -> DenseRows | None:
        """``None`` where the program is not of this kind, or the effects' own system is the smaller one."""
        role, n = data_of(record), len(plan.obs)
        if role.family.gaussian_sd(**role.dispersion) is None or plan.row_weight is not None:
            return None
        if plan.moving or n > MAX_ROWS:
            return None
        correlated = 0
        for name, term in zip(plan.latents, plan.layout.terms, strict=True):
            operator = record.latents[name].fn.operator
            if len(term.slots) != 1 or not (operator.block is not None or isinstance(operator, BY_COVARIANCE)):
                return None
            correlated += term.size if operator.block is None else 0
        return cls(plan, x) if n <= ADVANTAGE * correlated else None

    def log_marginal(self, record: Record, eta: torch.Tensor) -> torch.Tensor:
        """At a run of the program, whose predictor without effects and such coefficients is ``eta``."""
        return _Density.apply(self._covariance(record), self.plan.obs - eta, self.x)  # type: ignore

    def coefficients(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Generalised least squares of all linear coefficients, which are zero in this run, and their covariance."""
        factor = DenseComplement(self._covariance(record).detach().numpy().copy())
        x = np.hstack([design.detach().numpy() for design in self.plan.linear.values()])
        spread = factor.solve(x)
        covariance = np.linalg.inv(x.T @ spread)
        return covariance @ (spread.T @ (self.plan.obs - data_of(record).eta).detach().numpy()), covariance

    def _covariance(self, record: Record) -> torch.Tensor:
        """V."""
        role = data_of(record)
        sd = role.family.gaussian_sd(**role.dispersion)
        v = torch.diag(sd.square().expand(len(self.plan.obs)))
        for name, term in zip(self.plan.latents, self.plan.layout.terms, strict=True):
            v = v + _part(record.latents[name].fn.operator, term)
        return v


def _part(operator: Any, term: Term) -> torch.Tensor:
    """One effect's part of V."""
    (slot,) = term.slots
    at = torch.from_numpy(slot.index)
    if operator.block is None:
        tril, whole = operator.tril, operator.covariance
        # levels in the order of the rows, the usual case of places: nothing to gather
        same = len(at) == len(whole) and bool((at == torch.arange(len(at))).all())
        between = whole if same else whole[at[:, None], at]
    else:
        tril, between = operator.block, (at[:, None] == at).to(torch.float64)
    if slot.design is None:
        return tril[0, 0].square() * between
    z = torch.from_numpy(slot.design) @ tril
    return between * (z @ z.mT)


class _Density(torch.autograd.Function):
    """Log density of residuals r under N(0, V), coefficients of the columns x integrated out."""

    @staticmethod
    def forward(ctx: Any, v: torch.Tensor, r: torch.Tensor, x: np.ndarray) -> torch.Tensor:
        factor = DenseComplement(v.detach().numpy().copy())
        solved = factor.solve(np.column_stack([r.detach().numpy(), x]))
        n, p = x.shape
        alpha, spread = solved[:, 0], solved[:, 1:]
        value = -0.5 * (n * LOG_2PI + factor.logdet)
        if p:
            inner = x.T @ spread
            alpha = alpha - spread @ np.linalg.solve(inner, x.T @ alpha)
            value += 0.5 * (p * LOG_2PI - float(np.linalg.slogdet(inner)[1]))
            ctx.inner = inner
        ctx.factor, ctx.alpha, ctx.spread = factor, alpha, spread
        return torch.tensor(value - 0.5 * float(r.detach().numpy() @ alpha), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        alpha, d_v = ctx.alpha, None
        if ctx.needs_input_grad[0]:
            inverse = ctx.factor.inverse
            d_v = np.multiply.outer(0.5 * alpha, alpha) - 0.5 * inverse
            if ctx.spread.shape[1]:
                d_v += 0.5 * ctx.spread @ np.linalg.solve(ctx.inner, ctx.spread.T)
            d_v = grad * torch.from_numpy(d_v)
        return d_v, -grad * torch.from_numpy(alpha), None
