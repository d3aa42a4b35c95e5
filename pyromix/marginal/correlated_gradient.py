r"""The gradient of the marginal likelihood of correlated effects; symbols as in `pyromix.marginal.correlated`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.marginal.laplace import dispersion_gradients

if TYPE_CHECKING:
    from pyromix.marginal.correlated import BoundCorrelated, Point, _Problem


class CorrelatedFunction(torch.autograd.Function):
    """``F - log|H| / 2`` with its analytic gradient."""

    @staticmethod
    def forward(
        ctx: Any, bound: BoundCorrelated, problem: _Problem, names: tuple[str, ...], eta: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        point = bound._mode(problem)
        ctx.point, ctx.names = point, names
        ctx.dispersion = rest[len(rest) - len(names) :]
        return torch.tensor(point.value - 0.5 * point.factor.logdet, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        need, count = ctx.needs_input_grad, len(ctx.point.problem.priors)
        parts = _Gradient(ctx.point)
        wanted = [need[4 + k * count : 4 + (k + 1) * count] for k in range(3)]
        problem = ctx.point.problem
        slots = [(k, j) for k, term in enumerate(problem.layout.terms) for j in range(len(term.slots))]
        start = 4 + 3 * count
        end = start + len(slots)
        found = [
            torch.from_numpy(parts.predictor),
            *(torch.from_numpy(parts.tril(k)) if wanted[0][k] else None for k in range(count)),
            *(torch.from_numpy(parts.root(k)) if wanted[1][k] else None for k in range(count)),
            *(torch.from_numpy(parts.precision(k)) if wanted[2][k] else None for k in range(count)),
            *(torch.from_numpy(parts.design(*at)) if need[start + i] else None for i, at in enumerate(slots)),
            torch.from_numpy(parts.fixed()) if need[end] else None,
            *dispersion_gradients(
                problem.plan,
                problem.family,
                ctx.point.eta,
                parts.leverage,
                parts.z_a,
                dict(zip(ctx.names, ctx.dispersion, strict=True)),
                need[end + 1 :],
            ),
        ]
        return None, None, None, *(None if g is None else grad * g for g in found)


class _Gradient:
    """Gradient at a mode; see the module's docstring and that of `pyromix.marginal.laplace` for the symbols."""

    def __init__(self, point: Point) -> None:
        self.point, self.problem, self.layout = point, point.problem, point.problem.layout
        layout, problem = self.layout, self.problem
        first, second = layout.first, layout.second
        cell = point.factor.spread_inverse()[layout.product_at]
        apart = first != second
        self.across = np.bincount(first, problem.entries[second] * cell, len(layout.rows))
        self.across += np.bincount(second[apart], (problem.entries[first] * cell)[apart], len(layout.rows))
        self.leverage = np.bincount(layout.rows, problem.entries * self.across, layout.n)
        tilt = -0.5 * self.leverage * point.slope
        self.a = point.factor.solve(layout.gather(problem.priors, problem.z.T @ tilt))
        self.spread_a = layout.spread(problem.priors, self.a)
        self.z_a = problem.z @ self.spread_a
        self.predictor = point.score + tilt - point.weight * self.z_a

    @cached_property
    def _entries(self) -> np.ndarray:
        """In every entry of Z, in the order the terms were laid out in."""
        rows, cols, point = self.layout.rows, self.layout.cols, self.point
        sorted_ = (
            self.predictor[rows] * point.spread[cols]
            + point.score[rows] * self.spread_a[cols]
            - point.weight[rows] * self.across
        )
        out = np.empty_like(sorted_)
        out[self.layout.order] = sorted_
        return out

    def _slot(self, k: int, j: int) -> np.ndarray:
        """In the entries of membership j of term k, (n, q)."""
        terms, n = self.layout.terms, self.layout.n
        at = n * (sum(term.q * len(term.slots) for term in terms[:k]) + j * terms[k].q)
        return self._entries[at : at + n * terms[k].q].reshape(n, -1)

    def tril(self, k: int) -> np.ndarray:
        """In L of term k, (q, q)."""
        q = self.layout.terms[k].q
        total = np.zeros((q, q))
        for j, design in enumerate(self.problem.designs[k]):
            here = self._slot(k, j)
            total += here.sum(0)[None] if design is None else design.T @ here
        return np.tril(total)

    def design(self, k: int, j: int) -> np.ndarray:
        """In the row design of membership j of term k, (n, q)."""
        return self._slot(k, j) @ self.problem.priors[k].tril.T

    def fixed(self) -> np.ndarray:
        """In the columns whose coefficients are integrated out, (n, p)."""
        return self._entries[len(self._entries) - self.layout.n * self.layout.width :].reshape(self.layout.n, -1)

    def root(self, k: int) -> np.ndarray:
        """In R of term k."""
        layout, point = self.layout, self.point
        root = self.problem.priors[k].root
        part, m = slice(layout.starts[k], layout.starts[k + 1]), len(root)
        pull_r = (self.problem.z.T @ self.predictor)[part].reshape(m, -1)
        pull_s = (self.problem.z.T @ point.score)[part].reshape(m, -1)
        direct = pull_r @ point.v[part].reshape(m, -1).T + pull_s @ self.a[part].reshape(m, -1).T
        q = layout.terms[k].size // m
        block = self._trace[part, part].reshape(m, q, m, q)
        return direct - np.einsum("aqbq->ab", block)

    @cached_property
    def _trace(self) -> np.ndarray:
        """``Z^T W Z G H^-1``."""
        return self.point.factor.weighted @ self.point.factor.spread_dense

    @cached_property
    def _inverse(self) -> np.ndarray:
        return self.point.factor.inverse()

    def precision(self, k: int) -> np.ndarray:
        """In the entries of the precision of term k."""
        layout, term = self.layout, self.layout.terms[k]
        rows, cols = layout.patterns[k]
        part = slice(layout.starts[k], layout.starts[k + 1])
        v, a = (x[part].reshape(term.levels, term.q) for x in (self.point.v, self.a))
        held = self._inverse[layout.prior_at[k]].reshape(-1, term.q).sum(1)
        moved = (a[rows] * v[cols] + a[cols] * v[rows]).sum(1)
        inner = -0.5 * ((v[rows] * v[cols]).sum(1) + held + moved)
        return np.where(rows == cols, 1.0, 2.0) * inner
