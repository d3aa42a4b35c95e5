r"""The exact marginal likelihood of Gaussian responses that are affine in their random effects.

With :math:`y = \eta_0 + X\beta + Z\Lambda b + e`, :math:`b \sim N(0, I)`, :math:`e_i \sim N(0, \sigma_i^2)`,
:math:`W = diag(\sigma_i^{-2})` and :math:`A = \Lambda^T Z^T W Z \Lambda + I`,

.. math:: -2 \log p(y) = \sum_i \log(2\pi\sigma_i^2) + \log|A| + \min_b \{ (y-\eta)^T W (y-\eta) + b^T b \}.

Coefficients may be maximised over (``profile``, maximum likelihood in closed form) or integrated over a flat prior
(``integrate``, restricted likelihood), which adds :math:`\log|X^T V^{-1} X| - p \log 2\pi`: Bates, Maechler, Bolker and
Walker (2015), equations 34 and 41. The random effects enter only through cross products, so with one residual SD and a
linear mean an evaluation does not touch the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyromix.errors import ConfigError, UnsupportedError
from pyromix.linalg import selected
from pyromix.linalg.block import Arrays
from pyromix.linalg.factor import Factor
from pyromix.marginal.base import (
    AbstractMarginal,
    BoundMarginal,
    Conditional,
    as_numpy,
    blocks_of,
    by_site,
    without_coefficients,
)
from pyromix.marginal.conditional import gaussian_conditional, shift_map
from pyromix.marginal.correlated import BoundCorrelated, is_correlated
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.plan import Plan, data_of
from pyromix.marginal.rotated import BoundRotated, known_covariance
from pyromix.running import Program, Record, run

LOG_2PI = math.log(2 * math.pi)
NEAR_SINGULAR = 1e-5  # of the residual SD: below this a factor's diagonal is not divided by


class Exact(AbstractMarginal):
    """Exact marginal likelihood for Gaussian responses with identity link, any number of nested or crossed effects.

    Parameters
    ----------
    coefficients
        What happens to linear coefficients: ``"keep"`` them as hyper-parameters, ``"profile"`` them out at their
        generalised least squares estimate, or ``"integrate"`` them over a flat prior (REML).

    Raises
    ------
    UnsupportedError
        On `bind`: the response is not Gaussian with identity link, or the predictor is not affine in the effects.
    """

    def __init__(self, coefficients: str = "keep") -> None:
        allowed = ("keep", "profile", "integrate")
        if coefficients not in allowed:
            raise ConfigError(f"Exact(coefficients={coefficients!r}): choose one of {', '.join(map(repr, allowed))}.")
        self.coefficients = coefficients

    def bind(self, program: Program, args: tuple[Any, ...], plan: Plan) -> BoundMarginal:
        role = data_of(run(program, args, hypers="moderate", seed=0))
        family = type(role.family).__name__
        if role.family.gaussian_sd(**role.dispersion) is None:
            raise UnsupportedError(
                f"Exact() needs a Gaussian response with identity link; {plan.response!r} is {role.family!r}. Use "
                "Laplace() or GaussHermite()."
            )
        if not plan.affine:
            raise UnsupportedError(
                f"Exact(): the predictor of {plan.response!r} ({family}) is not affine in {', '.join(plan.latents)}; "
                "use Laplace(), which takes effects anywhere in the program for one grouping factor."
            )
        if is_correlated(program, args, plan):

            def general() -> BoundMarginal:
                return BoundCorrelated(program, args, plan, integrate=self.coefficients == "integrate")

            known = known_covariance(program, args, plan)
            return general() if known is None else BoundRotated(plan, known, self.coefficients, general)
        if plan.moving and self.coefficients == "integrate":
            return BoundCorrelated(program, args, plan, integrate=True)
        if plan.moving:
            return self._moving(plan)
        return BoundExact(plan, self.coefficients)

    def _moving(self, plan: Plan) -> BoundMarginal:
        """Row designs with weights of their own: cross products cannot be kept, and Laplace is exact here."""
        if self.coefficients == "profile":
            raise UnsupportedError(
                f"Exact(coefficients={self.coefficients!r}): the row design of a random effect depends on "
                "hyper-parameters; keep the coefficients as hyper-parameters."
            )
        return BoundLaplace(plan)


@dataclass
class _Moments:
    """Cross products of rows under fixed relative weights: everything an evaluation needs of the data."""

    gram: Arrays
    z_y: Arrays
    z_x: Arrays
    x_x: np.ndarray
    x_y: np.ndarray
    y_y: float
    ols: np.ndarray


@dataclass
class _Solution:
    """One evaluation.

    ``b`` are the spherical effects, ``b_x`` is ``A^-1 Lambda^T Z^T W X``, ``beta`` the coefficients on the orthonormal
    basis, less their least squares values; ``schur`` is ``X^T V^-1 X`` on that basis; ``scale`` the residual SD that
    the moments leave out; ``scaled`` the factors divided by it.
    """

    value: float
    factor: Factor
    scaled: Arrays
    b: Arrays
    b_x: Arrays
    beta: np.ndarray
    schur: np.ndarray
    quadratic: float
    scale: float
    moments: _Moments


class BoundExact(BoundMarginal):
    """`Exact` on one program and data set."""

    def __init__(self, plan: Plan, coefficients: str) -> None:
        self.plan, self.coefficients = plan, coefficients
        self.out = tuple(plan.linear) if coefficients != "keep" else ()
        self.x, self.x_root, self.widths = self._basis()
        self.counts = None if plan.row_weight is None else as_numpy(plan.row_weight)
        self._cache: tuple[np.ndarray, _Moments] | None = None
        self.solution: _Solution | None = None
        self._last: list[np.ndarray] | None = None

    def _basis(self) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Orthonormal columns spanning the coefficients' designs, and R with ``X = Q R``."""
        designs = [as_numpy(self.plan.linear[name]) for name in self.out]
        widths = {name: design.shape[1] for name, design in zip(self.out, designs, strict=True)}
        if not designs:
            return np.empty((len(self.plan.obs), 0)), np.empty((0, 0)), widths
        q, r = np.linalg.qr(np.hstack(designs))
        return q, r, widths

    # -- the public pair ---------------------------------------------------------------------------------------------
    def log_marginal(self, record: Record) -> torch.Tensor:
        role = data_of(record)
        tril = blocks_of(record, self.plan, "Exact()")
        eta = without_coefficients(role.eta, record, {name: self.plan.linear[name] for name in self.out})
        return _ExactFunction.apply(self, eta, role.family.gaussian_sd(**role.dispersion), *tril)  # type: ignore

    def coefficients_at(self, record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Estimate and covariance ``(X^T V^-1 X)^-1`` of each coefficient vector profiled or integrated out."""
        return by_site(*self.joint_coefficients(record), {name: self.plan.linear[name] for name in self.out})

    def joint_coefficients(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """The same for all of them side by side."""
        with torch.no_grad():
            self.log_marginal(record)
        back = np.linalg.inv(self.x_root)
        estimate = back @ (self.solution.beta + self.solution.moments.ols)
        return estimate, back @ np.linalg.inv(self.solution.schur) @ back.T

    def conditional(self, record: Record) -> Conditional:
        with torch.no_grad():
            self.log_marginal(record)
        solution = self.solution
        tril = [block * solution.scale for block in solution.scaled]
        return gaussian_conditional(
            self.plan, solution.factor, tril, solution.b, lambda: self._shift_map(record, solution)
        )

    def curvature(self, record: Record) -> Factor:
        with torch.no_grad():
            self.log_marginal(record)
        return self.solution.factor

    def _shift_map(self, record: Record, solution: _Solution) -> dict[str, Arrays]:
        """Coefficient site -> ``A^-1 Lambda^T Z^T W X``, arrays (levels, q, p): how the effects follow coefficients."""
        if self.out:
            out, start = {}, 0
            for name, width in self.widths.items():
                columns = self.x_root[:, start : start + width]
                out[name] = [b_x @ columns for b_x in solution.b_x]
                start += width
            return out
        sd = as_numpy(data_of(record).family.gaussian_sd(**data_of(record).dispersion))
        weight = np.broadcast_to(sd**-2, len(self.plan.obs))
        weight = weight if self.counts is None else weight * self.counts
        tril = [block * solution.scale for block in solution.scaled]
        return shift_map(self.plan, solution.factor, tril, weight)

    # -- one evaluation ----------------------------------------------------------------------------------------------
    def solve_once(self, eta: np.ndarray, sd: np.ndarray, tril: Arrays) -> _Solution:
        """`solve`, unless these were the last arguments: reports ask for one point several times."""
        given = [eta, sd, *tril]
        last = self._last
        if last is None or not all(np.array_equal(a, b) for a, b in zip(last, given, strict=True)):
            self.solution = self.solve(eta, sd, tril)
            self._last = [np.array(x) for x in given]
        return self.solution

    def solve(self, eta: np.ndarray, sd: np.ndarray, tril: Arrays) -> _Solution:
        """Evaluate at predictor eta (n,), residual SD (scalar or (n,)) and factors."""
        residual = as_numpy(self.plan.obs) - eta
        if sd.size == 1:
            moments, scale = self._cached_moments(residual), float(sd.reshape(()))
            log_sd = self.plan.n_obs * math.log(scale)
        else:
            weight = sd**-2 if self.counts is None else self.counts * sd**-2
            moments, scale = self._moments(residual, weight), 1.0
            log_sd = float((np.log(sd) if self.counts is None else self.counts * np.log(sd)).sum())
        scaled = [block / scale for block in tril]
        factor = Factor(self.plan.layout, moments.gram, scaled)
        rows = [np.concatenate([y, x], axis=-1) for y, x in zip(moments.z_y, moments.z_x, strict=True)]
        rhs = [block.T @ m / scale for block, m in zip(scaled, rows, strict=True)]
        solved = factor.solve(rhs)
        inner = (
            np.block([[np.atleast_2d(moments.y_y), moments.x_y[None]], [moments.x_y[:, None], moments.x_x]]) / scale**2
        )
        for c, x in zip(rhs, solved, strict=True):
            inner = inner - c.reshape(-1, c.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        schur, x_y = inner[1:, 1:], inner[1:, 0]
        beta = np.linalg.solve(schur, x_y)
        quadratic = float(inner[0, 0] - x_y @ beta)
        b = [x[..., 0] - x[..., 1:] @ beta for x in solved]
        value = -0.5 * (self.plan.n_obs * LOG_2PI + 2 * log_sd + factor.logdet + quadratic)
        if self.coefficients == "integrate":
            value += 0.5 * len(beta) * LOG_2PI - 0.5 * np.linalg.slogdet(schur)[1] - np.linalg.slogdet(self.x_root)[1]
        return _Solution(value, factor, scaled, b, [x[..., 1:] for x in solved], beta, schur, quadratic, scale, moments)

    def _cached_moments(self, residual: np.ndarray) -> _Moments:
        if self._cache is None or not np.array_equal(self._cache[0], residual):
            old = self._cache[1] if self._cache is not None else None
            self._cache = (residual.copy(), self._moments(residual, self.counts, old))
        return self._cache[1]

    def _moments(self, residual: np.ndarray, weight: np.ndarray | None, old: _Moments | None = None) -> _Moments:
        """Cross products; those that do not involve the response are taken over from `old`.

        The response enters as its least squares residual on X: coefficients are equivariant under that shift, and sums
        of squares do not cancel.
        """
        layout, x = self.plan.layout, self.x
        ols = x.T @ residual
        y = residual - x @ ols
        weighted = y if weight is None else weight * y
        w_x = x if weight is None else weight[:, None] * x
        return _Moments(
            gram=layout.gram(weight) if old is None else old.gram,
            z_y=[m[..., None] for m in layout.transpose(weighted)],
            z_x=layout.transpose(w_x) if old is None else old.z_x,
            x_x=x.T @ w_x if old is None else old.x_x,
            x_y=x.T @ weighted,
            y_y=float(y @ weighted),
            ols=ols,
        )

    def fitted(self, s: _Solution) -> np.ndarray:
        """Coefficients' and effects' part of the predictor, (n,)."""
        effects = [b @ block.T * s.scale for b, block in zip(s.b, s.scaled, strict=True)]
        return self.x @ (s.beta + s.moments.ols) + self.plan.layout.apply(effects)

    # -- gradients ---------------------------------------------------------------------------------------------------
    def factor_gradients(self, s: _Solution) -> tuple[Arrays, float]:
        """Gradient in every L, and the trace of the (augmented, for REML) inverse over the effects."""
        layout = self.plan.layout
        effects = [(b @ block.T)[..., None] for b, block in zip(s.b, s.scaled, strict=True)]
        explained = layout.multiply(s.moments.gram, effects)
        sums = selected.diagonal_sums(s.factor)
        inverse = np.linalg.inv(s.schur) if self.coefficients == "integrate" else None
        if inverse is not None:
            sums = [d + _spread(b_x, inverse, b_x) for d, b_x in zip(sums, s.b_x, strict=True)]
        traces: Arrays | None = None
        gradients = []
        for k, term in enumerate(layout.terms):
            if np.abs(np.diag(s.scaled[k])).min() < NEAR_SINGULAR:
                traces = self._pair_traces(s, inverse) if traces is None else traces
                trace = traces[k]
            else:  # (A - I) A^-1 has the same diagonal blocks, up to L
                trace = np.linalg.solve(s.scaled[k].T, term.levels * np.eye(term.q) - sums[k]) / s.scale
            z_y, z_x = s.moments.z_y[k][..., 0], s.moments.z_x[k]
            score = (z_y - z_x @ s.beta) / s.scale**2 - explained[k][..., 0] / s.scale
            gradients.append(score.T @ s.b[k] - trace)
        return gradients, float(sum(np.trace(d) for d in sums))

    def _pair_traces(self, s: _Solution, inverse: np.ndarray | None) -> Arrays:
        """``d log|A| / 2 dL`` from the inverse on the pairs: slower than through the diagonal, and fine at zero SDs."""
        layout = self.plan.layout
        traces = selected.pair_traces(s.factor, s.moments.gram)
        if inverse is not None:
            spread = [block @ b_x for block, b_x in zip(s.scaled, s.b_x, strict=True)]
            explained = layout.multiply(s.moments.gram, spread)
            for k, b_x in enumerate(s.b_x):
                traces[k] = traces[k] + _spread(explained[k] - s.moments.z_x[k] / s.scale, inverse, b_x)
        return [trace / s.scale for trace in traces]

    def sd_gradient(self, s: _Solution, sd: np.ndarray, trace: float, eta: np.ndarray) -> np.ndarray:
        """Gradient in the residual SD, of its shape."""
        if sd.size == 1:
            rss = s.quadratic - sum(float((b * b).sum()) for b in s.b)
            size = sum(term.size for term in self.plan.layout.terms)
            integrated = len(s.beta) if self.coefficients == "integrate" else 0
            return np.reshape((rss - self.plan.n_obs + size + integrated - trace) / float(sd.reshape(())), sd.shape)
        residual = as_numpy(self.plan.obs) - eta - self.fitted(s)
        leverage = selected.leverage(s.factor)
        if self.coefficients == "integrate":
            rows = self.x - np.stack(
                [
                    self.plan.layout.apply([bx[..., k] @ t.T for bx, t in zip(s.b_x, s.scaled, strict=True)])
                    for k in range(len(s.beta))
                ],
                1,
            )
            leverage = leverage + np.einsum("np,pr,nr->n", rows, np.linalg.inv(s.schur), rows, optimize=True)
        gradient = (residual**2 + leverage) / sd**3 - 1 / sd
        return gradient if self.counts is None else self.counts * gradient


class _ExactFunction(torch.autograd.Function):
    """The log marginal likelihood with its analytic gradient."""

    @staticmethod
    def forward(ctx: Any, bound: BoundExact, eta: torch.Tensor, sd: torch.Tensor, *tril: torch.Tensor) -> torch.Tensor:
        solution = bound.solve_once(as_numpy(eta), as_numpy(sd), [as_numpy(block) for block in tril])
        ctx.bound, ctx.solution, ctx.eta, ctx.sd = bound, solution, as_numpy(eta), as_numpy(sd)
        return torch.tensor(solution.value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        bound, s = ctx.bound, ctx.solution
        gradients, trace = bound.factor_gradients(s)
        d_eta = None
        if ctx.needs_input_grad[1]:
            score = (as_numpy(bound.plan.obs) - ctx.eta - bound.fitted(s)) / ctx.sd**2
            d_eta = grad * torch.from_numpy(score if bound.counts is None else bound.counts * score)
        d_sd = None
        if ctx.needs_input_grad[2]:
            d_sd = grad * torch.from_numpy(np.asarray(bound.sd_gradient(s, ctx.sd, trace, ctx.eta)))
        return None, d_eta, d_sd, *(grad * torch.from_numpy(np.tril(g)) for g in gradients)


def _spread(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``sum_g left_g middle right_g^T``: (levels, q, p), (p, p), (levels, q, p) -> (q, q)."""
    return np.einsum("gap,gbp->ab", left @ middle, right, optimize=True)
