r"""The marginal likelihood where levels of a random effect are correlated: in time, in space, by descent.

With :math:`u = (R v) L^T`, v ~ N(0, P^-1) (`pyromix.linalg.correlated`) and
:math:`F(v) = \ell(\eta_0 + ZGv) - \tfrac12 v^T P v`,

.. math:: \log p(y) \approx F(\hat v) + \tfrac12 \log|P| - \tfrac12 \log|H|, \quad H = G^T Z^T W Z G + P,

which is exact for Gaussian responses. The gradient is that of `pyromix.marginal.laplace`, with
:math:`a = H^{-1} G^T Z^T c` in place of v there; it runs to L, R and the entries of P, from where torch takes it to the
hyper-parameters. Coefficients may be integrated over a flat prior beside the effects, which is restricted likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pyromix.errors import NumericalError
from pyromix.linalg.block import Arrays
from pyromix.linalg.correlated import CorrelatedFactor, CorrelatedLayout, Prior
from pyromix.linalg.newton import DECREMENT, ascend
from pyromix.linalg.operators import Separable
from pyromix.marginal.base import BoundMarginal, Conditional, as_numpy, by_site, without_coefficients
from pyromix.marginal.correlated_gradient import CorrelatedFunction
from pyromix.marginal.dense_rows import DenseRows
from pyromix.marginal.laplace import row_derivatives
from pyromix.marginal.plan import Plan, chained, data_of, slot_columns
from pyromix.running import Program, Record, run

LOG_2PI = math.log(2 * math.pi)


def is_correlated(program: Program, args: tuple[Any, ...], plan: Plan) -> bool:
    """Whether levels of an effect, or rows of the response, depend on each other: then this module is needed."""
    record = run(program, args, hypers="moderate", seed=0)
    return chained(record) or any(record.latents[name].fn.operator.block is None for name in plan.latents)


@dataclass
class _Problem:
    """One mode search, at fixed hyper-parameters."""

    plan: Plan
    layout: CorrelatedLayout
    eta: np.ndarray
    priors: list[Prior]
    family: Any
    dispersion: Mapping[str, torch.Tensor]
    designs: list[list[np.ndarray | None]]
    fixed: np.ndarray | None
    linear: Mapping[str, np.ndarray]

    @cached_property
    def entries(self) -> np.ndarray:
        return self.layout.entries(self.priors, self.designs, self.fixed)

    @cached_property
    def z(self) -> Any:
        return self.layout.matrix(self.entries)

    def at(self, v: np.ndarray) -> Point:
        spread = self.layout.spread(self.priors, v)
        eta = torch.from_numpy(self.eta + self.z @ spread)
        return Point(self, v, spread, eta, row_derivatives(self.plan, self.family, self.dispersion, eta))

    def origin(self) -> Point:
        return self.at(np.zeros(self.layout.size))

    def weigh(self, v: np.ndarray) -> np.ndarray:
        """``P v``; zero for coefficients, whose prior is flat."""
        layout, out = self.layout, v.copy()
        out[layout.effects :] = 0.0
        for k, (term, prior) in enumerate(zip(layout.terms, self.priors, strict=True)):
            if prior.precision is None:
                continue
            rows, cols = layout.patterns[k]
            part = slice(layout.starts[k], layout.starts[k + 1])
            x = v[part].reshape(term.levels, term.q)
            below = rows != cols
            product = np.empty_like(x)
            for j in range(term.q):
                down = np.bincount(rows, prior.precision * x[cols, j], term.levels)
                up = np.bincount(cols[below], prior.precision[below] * x[rows[below], j], term.levels)
                product[:, j] = down + up
            out[part] = product.reshape(-1)
        return out


class Point:
    """A point of the mode search (`pyromix.linalg.newton.Point`)."""

    def __init__(self, problem: _Problem, v: np.ndarray, spread: np.ndarray, eta: torch.Tensor, rows: Any) -> None:
        self.problem, self.v, self.spread, self.eta = problem, v, spread, eta
        self.log_prob, self.score, self.weight, self.slope = (part.numpy() for part in rows)
        self.weighed = problem.weigh(v)
        self.value = float(self.log_prob.sum()) - 0.5 * float(v @ self.weighed)
        self._factor: CorrelatedFactor | None = None

    @property
    def factor(self) -> CorrelatedFactor:
        if self._factor is None:
            self._factor = self.problem.layout.factor(self.problem.entries, self.weight, self.problem.priors)
        return self._factor

    def direction(self) -> tuple[np.ndarray, float]:
        problem, layout = self.problem, self.problem.layout
        gradient = layout.gather(problem.priors, problem.z.T @ self.score) - self.weighed
        try:
            factor = self.factor
        except NumericalError:  # not log-concave here: climb on the curvature's positive part
            factor = layout.factor(problem.entries, np.maximum(self.weight, 0.0), problem.priors)
        step = factor.solve(gradient)
        return step, float(gradient @ step)

    def moved(self, direction: np.ndarray, step: float) -> Point:
        found = self.problem.at(self.v + step * direction)
        if np.array_equal(found.weight, self.weight):  # Gaussian rows: one factor serves all points
            found._factor = self._factor
        return found


class BoundCorrelated(BoundMarginal):
    """The marginaliser on one program and data set.

    Parameters
    ----------
    integrate
        Integrate linear coefficients over a flat prior (Gaussian responses).

    Attributes
    ----------
    out
        Names of the coefficient vectors integrated out.
    rows
        The likelihood by the covariance of the rows, where that is cheaper than by the effects'.
    """

    def __init__(self, program: Program, args: tuple[Any, ...], plan: Plan, integrate: bool = False) -> None:
        self.plan = plan
        self.out = tuple(plan.linear) if integrate else ()
        self.x, self.x_root = self._basis()
        record = run(program, args, hypers="moderate", seed=0)
        self.rows = DenseRows.of(plan, record, self.x)
        parts = self._separable(record)
        patterns = [None if p.precision is None else (p.precision.rows, p.precision.cols) for p in parts]
        fixed = self.x if integrate else None
        rooted = [p.root is not None for p in parts]
        self.layout = CorrelatedLayout(plan.layout.terms, patterns, rooted, fixed, len(plan.obs))
        self.warm: np.ndarray | None = None
        self.decrement = DECREMENT

    def _basis(self) -> tuple[np.ndarray, np.ndarray]:
        designs = [as_numpy(self.plan.linear[name]) for name in self.out]
        return np.linalg.qr(np.hstack(designs)) if designs else (np.empty((len(self.plan.obs), 0)), np.empty((0, 0)))

    def _separable(self, record: Record) -> list[Separable]:
        return [record.latents[name].fn.operator.separable() for name in self.plan.latents]

    def _columns(self, record: Record) -> tuple[list[list[torch.Tensor | None]], torch.Tensor | None]:
        """Row designs by term and membership, and the columns integrated over, where hyper-parameters move them."""
        if not self.plan.moving:
            return [[None] * len(term.slots) for term in self.layout.terms], None
        designs = [slot_columns(record.latents[name].role) for name in self.plan.latents]
        if not self.out:
            return designs, None
        x = torch.cat([record.hypers[name].role.design for name in self.out], 1)
        return designs, torch.linalg.solve_triangular(torch.from_numpy(self.x_root), x, upper=True, left=False)

    def _problem(self, record: Record, parts: Sequence[Separable], columns: Any = None) -> _Problem:
        role = data_of(record)
        priors = [
            Prior(
                as_numpy(p.tril),
                None if p.root is None else as_numpy(p.root),
                None if p.precision is None else as_numpy(p.precision.values),
            )
            for p in parts
        ]
        dispersion = {name: value.detach() for name, value in role.dispersion.items()}
        eta, linear, designs, fixed = as_numpy(self._offset(record)), self.plan.linear, self.layout.designs, None
        if self.plan.moving:
            tensors, x = self._columns(record) if columns is None else columns
            designs = [[None if t is None else as_numpy(t) for t in slots] for slots in tensors]
            fixed = None if x is None else as_numpy(x)
            linear = {name: record.hypers[name].role.design for name in linear}
        arrays = {name: as_numpy(design) for name, design in linear.items()}
        return _Problem(self.plan, self.layout, eta, priors, role.family, dispersion, designs, fixed, arrays)

    def _offset(self, record: Record) -> torch.Tensor:
        """The predictor without effects, and without coefficients that are integrated out."""
        return without_coefficients(
            data_of(record).eta, record, {name: record.hypers[name].role.design for name in self.out}
        )

    def _mode(self, problem: _Problem) -> Point:
        start = problem.origin() if self.warm is None else problem.at(self.warm)
        point = ascend(start, problem.origin, self.decrement)
        self.warm = point.v
        return point

    def forget(self) -> None:
        self.warm = None

    # -- what a marginaliser does ------------------------------------------------------------------------------------
    def log_marginal(self, record: Record) -> torch.Tensor:
        if self.rows is None:
            return self._by_effects(record)
        return self.rows.log_marginal(record, self._offset(record)) - self._log_unit()

    def _log_unit(self) -> float:
        """Log determinant of the basis that coefficients are integrated over."""
        return float(np.linalg.slogdet(self.x_root)[1]) if self.layout.width else 0.0

    def _by_effects(self, record: Record) -> torch.Tensor:
        parts = self._separable(record)
        role = data_of(record)
        names = tuple(role.dispersion)
        roots = [p.root for p in parts]
        values = [None if p.precision is None else p.precision.values for p in parts]
        designs, fixed = self._columns(record)
        total = CorrelatedFunction.apply(  # type: ignore[no-untyped-call]
            self,
            self._problem(record, parts, (designs, fixed)),
            names,
            self._offset(record),
            *(p.tril for p in parts),
            *roots,
            *values,
            *(design for slots in designs for design in slots),
            fixed,
            *(role.dispersion[name] for name in names),
        )
        return total + self._beside(parts)

    def _beside(self, parts: Sequence[Separable]) -> Any:
        """What the log marginal has beside ``F - log|H| / 2``: the determinants of precisions and of the basis."""
        total = 0.5 * self.layout.width * LOG_2PI - self._log_unit()
        return total + sum(0.5 * len(p.tril) * p.precision.logdet for p in parts if p.precision is not None)

    def point(self, record: Record) -> Point:
        """The mode of the effects at a run of the program."""
        with torch.no_grad():
            return self._mode(self._problem(record, self._separable(record)))

    def conditional(self, record: Record) -> Conditional:
        return self._conditional_at(self.point(record))

    def evaluate(self, record: Record) -> tuple[float, Conditional]:
        if self.rows is not None:
            with torch.no_grad():
                return float(self.log_marginal(record)), self.conditional(record)
        with torch.no_grad():
            parts = self._separable(record)
            point = self._mode(self._problem(record, parts))
            value = point.value - 0.5 * point.factor.logdet + float(self._beside(parts))
        return value, self._conditional_at(point)

    def coefficients_at(self, record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Estimate and covariance of every coefficient vector integrated out."""
        if not self.out:
            return {}
        point, effects = self.point(record), self.layout.effects
        back = np.linalg.inv(self.x_root)
        estimate, covariance = back @ point.v[effects:], back @ self._integrated(point)[effects:] @ back.T
        return by_site(estimate, covariance, {name: self.plan.linear[name] for name in self.out})

    def _integrated(self, point: Point) -> np.ndarray:
        """Columns of ``H^-1`` that belong to the coefficients integrated over, (size, p)."""
        unit = np.zeros((self.layout.size, self.layout.width))
        unit[self.layout.effects :] = np.eye(self.layout.width)
        return point.factor.solve(unit)

    def _conditional_at(self, point: Point) -> Conditional:
        problem, layout = point.problem, self.layout
        tril = [prior.tril for prior in problem.priors]

        def effects(spread: np.ndarray) -> Arrays:
            return [np.einsum("ab,gb...->ga...", L, x) for L, x in zip(tril, layout.split(spread), strict=True)]

        def blocks() -> dict[str, torch.Tensor]:
            inner = _diagonal_blocks(layout, point.factor.spread_inverse())
            return {n: torch.from_numpy(L @ x @ L.T) for n, L, x in zip(self.plan.latents, tril, inner, strict=True)}

        def sd() -> dict[str, torch.Tensor]:
            return {name: block.diagonal(dim1=1, dim2=2).sqrt() for name, block in blocks().items()}

        def draw(n: int, generator: torch.Generator, shifts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            noise = point.factor.sample(torch.randn((layout.size, n), generator=generator, dtype=torch.float64).numpy())
            v = point.v[:, None] + noise
            for site, delta in shifts.items():
                if site not in self.out:
                    v = v - self._follow(point, site) @ as_numpy(delta).T
            if self.out and set(self.out) <= set(shifts):
                wanted = self.x_root @ np.concatenate([as_numpy(shifts[site]).T for site in self.out])
                columns = self._integrated(point)  # effects given the coefficients of each draw: regression on them
                v = v + columns @ np.linalg.solve(columns[layout.effects :], wanted - noise[layout.effects :])
            found = effects(layout.spread(problem.priors, v))
            return {
                name: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 0)))
                for name, x in zip(self.plan.latents, found, strict=True)
            }

        mode = {n: torch.from_numpy(x) for n, x in zip(self.plan.latents, effects(point.spread), strict=True)}
        return Conditional(mode, sd, draw, blocks)

    def _follow(self, point: Point, site: str) -> np.ndarray:
        """``H^-1 G^T Z^T W X``, (size, p)."""
        x = point.problem.linear[site]
        weighted = point.problem.z.T @ (point.weight[:, None] * x)
        return point.factor.solve(self.layout.gather(point.problem.priors, weighted))


def _diagonal_blocks(layout: CorrelatedLayout, inverse: np.ndarray) -> Arrays:
    """(levels, q, q) per term, from the lower triangle's entries."""
    rows, cols = layout.lower
    out = []
    for term, start in zip(layout.terms, layout.starts, strict=False):
        block = np.zeros((term.levels, term.q, term.q))
        i, j = rows - start, cols - start
        here = (i >= 0) & (i < term.size) & (j >= 0) & (i // term.q == j // term.q)
        level, a, b = i[here] // term.q, i[here] % term.q, j[here] % term.q
        block[level, a, b] = inverse[here]
        block[level, b, a] = inverse[here]
        out.append(block)
    return out
