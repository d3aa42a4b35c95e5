r"""The exact marginal likelihood of one effect whose levels are correlated by a known matrix, on its eigenvectors.

With :math:`u \sim N(0, s^2 K)`, each row on one level and one residual variance, rows that share a level enter through
their mean. With C the frequency weights, :math:`N = Z^T C Z` (diagonal) and :math:`N^{1/2} K N^{1/2} = U D U^T` over
the levels that have rows, the rotated data :math:`\rho = U^T N^{-1/2} Z^T C (y - \eta_0)` have the diagonal covariance

.. math:: \Lambda = s^2 D + \sigma^2 I,

and what rows differ from the mean of their level has :math:`\sigma^2 I` on the other dimensions. So the decomposition,
made once, leaves an evaluation the cost of its levels: Kang et al. (2008), Lippert et al. (2011), Zhou and Stephens
(2012), who have one row a level. Effects given the data are :math:`\hat u = s^2 K_{\cdot o} N^{1/2} U \Lambda^{-1} e`
with :math:`e = \rho - T\beta`, :math:`T` the rotated design; over the levels with rows that is
:math:`N^{-1/2} U s^2 D \Lambda^{-1} e`, with variances :math:`s^2 D \sigma^2 \Lambda^{-1}` along U, where nothing
cancels when the residual is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyromix.errors import NumericalError
from pyromix.linalg.known import KnownCovariance, KnownOperator
from pyromix.linalg.operators import AbstractOperator
from pyromix.linalg.rotation import Rotation
from pyromix.marginal.base import BoundMarginal, Conditional, as_numpy, by_site, without_coefficients
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, Record, run

LOG_2PI = math.log(2 * math.pi)
DENSE = 1200  # levels up to which a sparse precision is inverted, to be decomposed


def known_covariance(program: Program, args: tuple[Any, ...], plan: Plan) -> KnownCovariance | None:
    """The covariance of a program's levels, if the program is one that this module takes; else ``None``.

    It takes one effect of one term, one level a row, one residual SD, and a covariance between levels that no
    hyper-parameter touches but by scaling it.
    """
    terms = plan.layout.terms
    if plan.moving or len(terms) != 1 or terms[0].q != 1 or len(terms[0].slots) != 1:
        return None
    found = []
    for seed in (0, 3):
        record = run(program, args, hypers="moderate", seed=seed)
        values = {name: site.value.detach().clone().requires_grad_(True) for name, site in record.hypers.items()}
        record = run(program, args, values)
        sd = data_of(record).family.gaussian_sd(**data_of(record).dispersion)
        site = record.latents[plan.latents[0]]
        if sd is None or sd.numel() != 1 or site.role.spread is not None:
            return None
        covariance = _covariance(site.fn.operator)
        if covariance is None:
            return None
        found.append(covariance)
    first, second = found
    return first if first is second or torch.equal(first.matrix, second.matrix) else None


def _covariance(operator: AbstractOperator) -> KnownCovariance | None:
    """That of levels alone, where its values carry no graph and writing it out is no loss."""
    if isinstance(operator, KnownOperator):
        return operator.known
    parts = operator.separable()
    if parts.root is not None and not parts.root.requires_grad and len(parts.tril) == 1:
        root = parts.root
        return KnownCovariance(root @ root.mT, lambda _: root)
    if parts.precision is None or parts.precision.values.requires_grad or parts.precision.size > DENSE:
        return None
    chol, failure = torch.linalg.cholesky_ex(parts.precision.dense())
    if int(failure):
        return None
    # P = C C^T, so K = P^-1 has the root C^-T, which is upper triangular: any root serves here
    matrix = torch.cholesky_inverse(chol)
    return KnownCovariance(0.5 * (matrix + matrix.mT), torch.linalg.cholesky)


@dataclass(frozen=True)
class _Rotated:
    """Columns of the rows: their rotated level means, and what is left of them within levels."""

    between: np.ndarray
    within: np.ndarray


@dataclass
class _Solution:
    """One evaluation: `e` is the rotated residual, `within` its sum of squares within levels, `beta` the coefficients
    on the orthonormal basis less their least squares values, `schur` ``X^T V^-1 X`` on that basis."""

    scale: float
    sd: float
    variance: np.ndarray
    e: np.ndarray
    within: float
    quadratic: float
    beta: np.ndarray
    ols: np.ndarray
    schur: np.ndarray
    value: float


class BoundRotated(BoundMarginal):
    """`pyromix.Exact` on a program with one effect whose levels are correlated by a known matrix.

    Parameters
    ----------
    known
        The covariance of the levels (`known_covariance`).
    coefficients
        ``"keep"``, ``"profile"`` or ``"integrate"``, as of `pyromix.Exact`.
    general
        Makes the marginaliser that does without the rotation, for what needs the factor of a dense system.

    Attributes
    ----------
    out
        Names of the coefficient vectors profiled or integrated out.
    """

    def __init__(
        self, plan: Plan, known: KnownCovariance, coefficients: str, general: Callable[[], BoundMarginal]
    ) -> None:
        self.plan, self.coefficients, self.general = plan, coefficients, general
        self.out = tuple(plan.linear) if coefficients != "keep" else ()
        self._integrated = {name: plan.linear[name] for name in self.out}
        designs = [as_numpy(plan.linear[name]) for name in self.out]
        empty = np.empty((len(plan.obs), 0)), np.empty((0, 0))
        self.x, self.x_root = np.linalg.qr(np.hstack(designs)) if designs else empty
        counts = None if plan.row_weight is None else as_numpy(plan.row_weight)
        slot = plan.layout.terms[0].slots[0]
        self.rotation = Rotation(known, slot.index, slot.design, counts)
        self._design = self._columns(self.x)
        self._cache: tuple[np.ndarray, _Rotated, np.ndarray] | None = None

    # -- what a marginaliser does ------------------------------------------------------------------------------------
    def log_marginal(self, record: Record) -> torch.Tensor:
        eta, sd, scale = self._inputs(record)
        return _RotatedFunction.apply(self, eta, sd, scale)  # type: ignore[no-untyped-call, no-any-return]

    def conditional(self, record: Record) -> Conditional:
        return _Effects(self, self._solution(record)).conditional()

    def coefficients_at(self, record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Estimate and covariance ``(X^T V^-1 X)^-1`` of each coefficient vector profiled or integrated out."""
        if not self.out:
            return {}
        s, back = self._solution(record), np.linalg.inv(self.x_root)
        estimate, covariance = back @ (s.beta + s.ols), back @ np.linalg.inv(s.schur) @ back.T
        return by_site(estimate, covariance, self._integrated)

    def profiled(self, record: Record, share: float, unit: float) -> float:
        """Log marginal likelihood where the effects have this share of the variance, maximised over all of that.

        Parameters
        ----------
        unit
            The variance of the effects at an SD of one.
        """
        eta, _, _ = self._inputs(record)
        try:
            s = self.solve(as_numpy(eta), np.sqrt(1.0 - np.float64(share)), np.sqrt(np.float64(share / unit)))
        except NumericalError:  # no residual, and a singular K or rows that share a level
            return -math.inf
        count = self.plan.n_obs - (len(s.beta) if self.coefficients == "integrate" else 0)
        return s.value - 0.5 * (count * math.log(s.quadratic / count) + count - s.quadratic)

    # -- one evaluation ----------------------------------------------------------------------------------------------
    def _inputs(self, record: Record) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The predictor without coefficients that are out, the residual SD, and that of the effects."""
        role = data_of(record)
        eta = without_coefficients(role.eta, record, self._integrated)
        operator = record.latents[self.plan.latents[0]].fn.operator
        tril = operator.tril if isinstance(operator, KnownOperator) else operator.separable().tril
        return eta, role.family.gaussian_sd(**role.dispersion), tril

    def _solution(self, record: Record) -> _Solution:
        with torch.no_grad():
            return self.solve(*(as_numpy(part) for part in self._inputs(record)))

    def _columns(self, x: np.ndarray) -> _Rotated:
        means = self.rotation.means(x)
        return _Rotated(self.rotation.rotate(means), self.rotation.within(x, means))

    def _response(self, residual: np.ndarray) -> tuple[_Rotated, np.ndarray]:
        """The response's least squares residual on X and its coefficients there; made once for a mean that stays."""
        if self._cache is None or not np.array_equal(self._cache[0], residual):
            ols = self.x.T @ residual
            self._cache = (residual.copy(), self._columns((residual - self.x @ ols)[:, None]), ols)
        return self._cache[1], self._cache[2]

    def solve(self, eta: np.ndarray, sd: np.ndarray, scale: np.ndarray) -> _Solution:
        """Evaluate at predictor eta (n,), residual SD and the effects' SD."""
        sigma, tau = float(sd.reshape(())), float(scale.reshape(()))
        y, ols = self._response(as_numpy(self.plan.obs) - eta)
        variance = tau**2 * self.rotation.values + sigma**2
        if not (np.isfinite(variance).all() and variance.min() > 0 and sigma > 0):
            raise NumericalError(f"the covariance of {self.plan.response!r} is not positive definite (sigma {sigma:g})")
        rho, t = y.between[:, 0], self._design.between
        weighted, counted = t / variance[:, None], self.rotation.counts[:, None] * self._design.within / sigma**2
        schur = weighted.T @ t + counted.T @ self._design.within
        beta = np.linalg.solve(schur, weighted.T @ rho + counted.T @ y.within[:, 0])
        e, inner = rho - t @ beta, y.within[:, 0] - self._design.within @ beta
        within = float(self.rotation.counts @ inner**2)
        others = self.plan.n_obs - len(rho)
        logdet = float(np.log(variance).sum()) + 2 * others * math.log(sigma)
        quadratic = float((e * e / variance).sum()) + within / sigma**2
        value = -0.5 * (self.plan.n_obs * LOG_2PI + logdet + quadratic)
        if self.coefficients == "integrate":
            value += 0.5 * len(beta) * LOG_2PI - 0.5 * np.linalg.slogdet(schur)[1] - np.linalg.slogdet(self.x_root)[1]
        return _Solution(tau, sigma, variance, e, within, quadratic, beta, ols, schur, float(value))

    # -- gradients ---------------------------------------------------------------------------------------------------
    def variance_gradient(self, s: _Solution) -> tuple[float, float]:
        """Derivatives in the residual SD and in that of the effects."""
        squares, within = s.e**2, s.within
        if self.coefficients == "integrate" and len(s.beta):
            t, inverse = self._design.between, np.linalg.inv(s.schur)
            squares = squares + np.einsum("ip,pr,ir->i", t, inverse, t, optimize=True)
            inner = self._design.within
            within += float((inverse * (inner.T @ (self.rotation.counts[:, None] * inner))).sum())
        slope = 0.5 * (squares / s.variance - 1.0) / s.variance
        others = self.plan.n_obs - len(s.e)
        residual = 2 * s.sd * float(slope.sum()) + (within / s.sd**2 - others) / s.sd
        return residual, 2 * s.scale * float(slope @ self.rotation.values)

    def predictor_gradient(self, s: _Solution, eta: np.ndarray) -> np.ndarray:
        """``V^-1`` times the residual, (n,)."""
        residual = (as_numpy(self.plan.obs) - eta - self.x @ (s.beta + s.ols))[:, None]
        inner = self.rotation.within(residual, self.rotation.means(residual))[:, 0]
        return self.rotation.counts * inner / s.sd**2 + self.rotation.to_rows(s.e / s.variance)


@dataclass(frozen=True)
class _Effects:
    """The effects given the data, at one evaluation."""

    bound: BoundRotated
    s: _Solution

    def conditional(self) -> Conditional:
        (name,) = self.bound.plan.latents
        mode = self.project(self.s.e[:, None])
        return Conditional(
            {name: torch.from_numpy(mode)},
            lambda: {name: torch.from_numpy(np.sqrt(self.variance())[:, None])},
            lambda n, generator, shifts: {name: torch.from_numpy(self.draw(mode, n, generator, shifts))},
        )

    def project(self, x: np.ndarray) -> np.ndarray:
        """``s^2 K_o N^1/2 U Lambda^-1 x``, (levels, m)."""
        return self.s.scale**2 * self.bound.rotation.to_levels(x / self.s.variance[:, None])

    def variance(self) -> np.ndarray:
        """Given the coefficients that are kept or profiled; those that are integrated out add theirs, (levels,)."""
        s, rotation = self.s, self.bound.rotation
        along = s.scale**2 * rotation.values * s.sd**2 / s.variance
        out = np.empty(len(rotation.place))
        out[rotation.present] = rotation.vectors**2 @ along / rotation.root_n**2
        if not rotation.complete:
            absent = np.flatnonzero(rotation.place < 0)
            matrix = rotation.known.matrix.numpy()
            across = matrix[np.ix_(absent, rotation.present)] * rotation.root_n @ rotation.vectors
            known = s.scale**4 * (across**2 @ (1 / s.variance))
            out[absent] = np.maximum(s.scale**2 * matrix.diagonal()[absent] - known, 0.0)
        if self.bound.coefficients == "integrate" and len(s.beta):
            follow = self.project(self.bound._design.between)
            out += np.einsum("gp,pr,gr->g", follow, np.linalg.inv(s.schur), follow, optimize=True)
        return out

    def draw(
        self, mode: np.ndarray, n: int, generator: torch.Generator, shifts: Mapping[str, torch.Tensor]
    ) -> np.ndarray:
        """(n, levels, 1), given the coefficients of each draw."""
        s, rotation = self.s, self.bound.rotation

        def noise(size: int) -> np.ndarray:
            return torch.randn((size, n), generator=generator, dtype=torch.float64).numpy()

        if rotation.complete:
            along = s.scale * np.sqrt(rotation.values / s.variance) * s.sd
            out = mode + rotation.vectors @ (along[:, None] * noise(len(along))) / rotation.root_n[:, None]
        else:  # a draw from the prior, corrected by what data drawn with it would say
            prior = s.scale * (rotation.known.root.numpy() @ noise(len(rotation.place)))
            data = rotation.root_n[:, None] * prior[rotation.present] + s.sd * noise(len(rotation.present))
            out = mode + prior - self.project(rotation.rotate(data))
        for site, delta in shifts.items():
            x = as_numpy(self.bound.plan.linear[site])
            out = out - self.project(rotation.rotate(rotation.means(x))) @ as_numpy(delta).T
        return np.ascontiguousarray(out.T[..., None])


class _RotatedFunction(torch.autograd.Function):
    """The log marginal likelihood with its analytic gradient."""

    @staticmethod
    def forward(
        ctx: Any, bound: BoundRotated, eta: torch.Tensor, sd: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        ctx.bound, ctx.inputs = bound, [as_numpy(part) for part in (eta, sd, scale)]
        ctx.solution = bound.solve(*ctx.inputs)
        return torch.tensor(ctx.solution.value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        bound, s, (eta, sd, scale) = ctx.bound, ctx.solution, ctx.inputs
        residual, effects = bound.variance_gradient(s)
        slope = torch.from_numpy(bound.predictor_gradient(s, eta)) if ctx.needs_input_grad[1] else None
        return (
            None,
            None if slope is None else grad * slope,
            grad * torch.full(sd.shape, residual, dtype=torch.float64),
            grad * torch.full(scale.shape, effects, dtype=torch.float64),
        )
