r"""Laplace's approximation of the marginal likelihood.

With spherical effects :math:`u = \Lambda b` and :math:`F(b) = \ell(\eta_0 + Z\Lambda b) - \tfrac12 b^T b`,

.. math:: \log p(y) \approx F(\hat b) - \tfrac12 \log|A|, \quad A = \Lambda^T Z^T W Z \Lambda + I,

at the mode :math:`\hat b`, with the *observed* weights :math:`W = -\ell''` (as TMB and glmmTMB; lme4 takes expected
ones for links that are not canonical). The gradient is exact: with :math:`s = \ell'`,
:math:`h = diag(Z\Lambda A^{-1}\Lambda^T Z^T)`, :math:`c = -\tfrac12 h W'` and :math:`v = A^{-1}\Lambda^T Z^T c`, it is
:math:`s + c - W Z\Lambda v` in the predictor, and the other parts follow from the same three vectors (Skaug and
Fournier, 2006, in closed form for this class).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.errors import NumericalError
from pyromix.linalg import selected
from pyromix.linalg.block import Arrays, Layout
from pyromix.linalg.factor import Factor
from pyromix.linalg.newton import DECREMENT, ascend
from pyromix.marginal.base import AbstractMarginal, BoundMarginal, Conditional, as_numpy, blocks_of
from pyromix.marginal.conditional import gaussian_conditional, shift_map
from pyromix.marginal.generic import BoundGeneric
from pyromix.marginal.plan import Plan, data_of, slot_designs
from pyromix.running import Program, Record

if TYPE_CHECKING:
    from pyromix.families.base import AbstractFamily, Derivatives
    from pyromix.marginal.compiled import CompiledModes, Found

log = logging.getLogger(__name__)

AGREEMENT = 1e-8  # of the largest entry: how far compiled code may be from what it replaces
ROWS = 32_768  # below the size from which torch would split an operation over threads


class Laplace(AbstractMarginal):
    """Laplace's approximation, for any family.

    Where the predictor is affine in the random effects (the usual case): any number of nested or crossed effects. Else
    (an effect inside a network): one grouping factor. Exact for Gaussian responses with identity link.
    """

    def bind(self, program: Program, args: tuple[Any, ...], plan: Plan) -> BoundMarginal:
        if not plan.affine:
            return BoundGeneric(program, args, plan)
        from pyromix.marginal.correlated import BoundCorrelated, is_correlated  # it builds on this module

        if is_correlated(program, args, plan):
            return BoundCorrelated(program, args, plan)
        return BoundLaplace(plan)


@dataclass
class Problem:
    """One mode search: predictor without effects, design and factors of the effects, family and response."""

    plan: Plan
    layout: Layout
    eta: np.ndarray
    tril: Arrays
    family: AbstractFamily
    dispersion: Mapping[str, torch.Tensor]

    def at(self, b: Arrays) -> ModePoint:
        """The log joint density and its row derivatives at spherical effects b."""
        effects = [x @ block.T for x, block in zip(b, self.tril, strict=True)]
        eta = torch.from_numpy(self.eta + self.layout.apply(effects))
        return ModePoint(self, b, eta, row_derivatives(self.plan, self.family, self.dispersion, eta))

    def origin(self) -> ModePoint:
        """The point with every effect at zero."""
        return self.at([np.zeros((term.levels, term.q)) for term in self.layout.terms])


class ModePoint:
    """A point of the mode search."""

    def __init__(self, problem: Problem, b: Arrays, eta: torch.Tensor, derivatives: Any) -> None:
        self.problem, self.b, self.eta = problem, b, eta
        self.log_prob, self.score, self.weight, self.slope = (part.numpy() for part in derivatives)
        self.value = float(self.log_prob.sum()) - 0.5 * sum(float((x * x).sum()) for x in b)
        self.gram: Arrays | None = None
        self.factor: Factor | None = None

    def factorise(self) -> Factor:
        """Factor A here; `NumericalError` if the curvature is not that of a maximum."""
        if self.factor is None:
            self.gram = self.problem.layout.gram(self.weight)
            self.factor = Factor(self.problem.layout, self.gram, self.problem.tril)
        return self.factor

    def gradient(self) -> Arrays:
        """Gradient of the log joint density in b."""
        scores = self.problem.layout.transpose(self.score)
        return [s @ block - x for s, block, x in zip(scores, self.problem.tril, self.b, strict=True)]

    def direction(self) -> tuple[Arrays, float]:
        gradient = self.gradient()
        try:
            factor = self.factorise()
        except NumericalError:  # not log-concave here: climb on the curvature's positive part
            gram = self.problem.layout.gram(np.maximum(self.weight, 0.0))
            factor = Factor(self.problem.layout, gram, self.problem.tril)
        step = factor.solve(gradient)
        return step, sum(float((g * d).sum()) for g, d in zip(gradient, step, strict=True))

    def moved(self, direction: Arrays, step: float) -> ModePoint:
        return self.problem.at([x + step * d for x, d in zip(self.b, direction, strict=True)])


def row_derivatives(
    plan: Plan, family: AbstractFamily, dispersion: Mapping[str, torch.Tensor], eta: torch.Tensor
) -> Derivatives:
    """Log density of every row and its derivatives, by frequency weights, without gradients.

    A block of rows at a time, so that the many temporaries stay in the processor's cache.
    """
    with torch.no_grad():
        found = _blockwise(plan, family, dispersion, eta)
        return found if plan.row_weight is None else type(found)(*(plan.row_weight * part for part in found))


def _blockwise(
    plan: Plan, family: AbstractFamily, dispersion: Mapping[str, torch.Tensor], eta: torch.Tensor
) -> Derivatives:
    n = len(eta)
    if n <= 2 * ROWS:
        return family.derivatives(eta, plan.obs, plan.trials, prepared=plan.prepared, **dispersion)
    parts = []
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        trials = None if plan.trials is None else plan.trials[rows]
        prepared = tuple(part[rows] if part.dim() else part for part in plan.prepared)
        given = {name: value[rows] if value.dim() else value for name, value in dispersion.items()}
        parts.append(family.derivatives(eta[rows], plan.obs[rows], trials, prepared=prepared, **given))
    return type(parts[0])(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def dispersion_gradients(
    plan: Plan,
    family: AbstractFamily,
    eta: torch.Tensor,
    leverage: np.ndarray | torch.Tensor,
    z_v: np.ndarray | torch.Tensor,
    values: Mapping[str, torch.Tensor],
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """In the family's dispersion: differentiate ``l - h W / 2 + (Z Lambda v) s`` with h and v held."""
    out: list[torch.Tensor | None] = [None] * len(values)
    if not any(wanted):
        return out
    with torch.enable_grad():
        free = {
            name: value.detach().requires_grad_(need)
            for (name, value), need in zip(values.items(), wanted, strict=True)
        }
        point = eta.detach().requires_grad_(True)
        log_prob = family.log_prob(point, plan.obs, plan.trials, prepared=plan.prepared, **free)
        if plan.row_weight is not None:
            log_prob = plan.row_weight * log_prob
        (score,) = torch.autograd.grad(log_prob.sum(), point, create_graph=True)
        (curvature,) = torch.autograd.grad(score.sum(), point, create_graph=True)
        h, move = torch.as_tensor(leverage), torch.as_tensor(z_v)
        surrogate = (log_prob + 0.5 * h * curvature + move * score).sum()
        grads = iter(torch.autograd.grad(surrogate, [value for value in free.values() if value.requires_grad]))
    return [next(grads) if need else None for need in wanted]


class BoundLaplace(BoundMarginal):
    """`Laplace` on one program and data set, affine case.

    Attributes
    ----------
    warm
        Where the next mode search starts.
    decrement
        Where it ends; values without gradients can do with less.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.warm: Arrays | None = None
        self.decrement = DECREMENT
        self._compiled: CompiledModes | None = None
        self._started: tuple[CompiledModes, Record] | None = None

    @property
    def compiled(self) -> CompiledModes | None:
        """The same search in C, after `compile`, if it could be had and agrees with the search here."""
        if self._started is not None:
            (made, record), self._started = self._started, None
            start = self.warm
            self._compiled = self._tried(lambda: made if not self._disagreement(made, record) else None)
            self.warm = start
        return self._compiled

    def compile(self, record: Record) -> None:
        """Search modes in C from now on; the compiler works beside what comes next."""
        from pyromix.marginal.compiled import CompiledModes  # it builds on this module

        if self._compiled is not None or self.plan.moving or not self.plan.layout.terms:
            return
        role = data_of(record)
        made = self._tried(lambda: CompiledModes(self.plan, role.family, role.dispersion))
        self._started = None if made is None else (made, record)

    def _tried(self, make: Callable[[], CompiledModes | None]) -> CompiledModes | None:
        try:
            return make()
        except Exception as error:  # tracers and compilers fail in any class; the way without always works
            log.info("mode search not compiled: %s: %s", type(error).__name__, " ".join(str(error).split())[:300])
            return None

    def _disagreement(self, made: CompiledModes, record: Record) -> bool:
        """Compare value and gradient at a mode, from zero."""
        inputs = [part.detach().clone().requires_grad_(True) for part in self._inputs(record)]
        problem, tril, moving = self.problem(record)
        names, last = tuple(data_of(record).dispersion), 1 + len(tril)
        with torch.enable_grad():
            value = _LaplaceFunction.apply(self, problem, names, *inputs[:last], *moving, *inputs[last:])  # type: ignore
            slopes = torch.autograd.grad(value, inputs, allow_unused=True)
        found = made.search(inputs, self.warm, self.decrement, gradient=True)
        if found is None:
            log.info("compiled mode search not used: it failed where the other did not")
            return True
        pairs = [(torch.full_like(value, found.log_marginal), value.detach())]
        pairs += [(got, want) for got, want in zip(found.slopes, slopes, strict=True) if want is not None]
        far = any(not bool((got - want).abs().max() <= AGREEMENT * (1 + want.abs().max())) for got, want in pairs)
        if far:
            log.info("compiled mode search not used: its results differ")
        return far

    def _inputs(self, record: Record) -> list[torch.Tensor]:
        """What the log marginal depends on: predictor, factors L, dispersion."""
        role = data_of(record)
        return [role.eta, *blocks_of(record, self.plan, "Laplace()"), *role.dispersion.values()]

    def value_and_slopes(self, inputs: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]] | None:
        found = self._search(inputs, gradient=True)
        return None if found is None else (found.log_marginal, found.slopes)

    def _search(self, inputs: Sequence[torch.Tensor], gradient: bool = False, keep: bool = False) -> Found | None:
        """By compiled code, from the last mode; ``None`` where there is none, or where it fails."""
        compiled = self.compiled
        if compiled is None:
            return None
        found = compiled.search(inputs, self.warm, self.decrement, gradient, keep)
        if found is not None:
            self.warm = compiled.split(found.b)
        return found

    def problem(self, record: Record) -> tuple[Problem, list[torch.Tensor], list[Any]]:
        """The mode search at a run of the program, its factors, and the row designs that carry gradients."""
        role = data_of(record)
        tril = blocks_of(record, self.plan, "Laplace()")
        moving = [record.latents[name].role.rows.design for name in self.plan.latents]
        moving = [design if design is not None and design.requires_grad else None for design in moving]
        layout = self.plan.layout
        if self.plan.moving:
            layout = layout.redesigned([slot_designs(record.latents[name].role) for name in self.plan.latents])
        arrays = [as_numpy(block) for block in tril]
        fixed = {name: value.detach() for name, value in role.dispersion.items()}
        return Problem(self.plan, layout, as_numpy(role.eta), arrays, role.family, fixed), tril, moving

    def mode(self, problem: Problem) -> ModePoint:
        """Climb from the last mode, or from zero where that fails."""
        if self.compiled is not None:
            inputs = [problem.eta, *problem.tril, *problem.dispersion.values()]
            self._search([torch.as_tensor(part) for part in inputs])
        start = problem.origin() if self.warm is None else problem.at(self.warm)
        point = ascend(start, problem.origin, self.decrement)
        point.factorise()
        self.warm = point.b
        return point

    def forget(self) -> None:
        self.warm = None

    def log_marginal(self, record: Record) -> torch.Tensor:
        if self.compiled is not None:
            inputs = self._inputs(record)
            gradient = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
            found = self._search(inputs, gradient)
            if found is not None:
                return self.compiled.attached(found, inputs)
        problem, tril, moving = self.problem(record)
        role = data_of(record)
        names = tuple(role.dispersion)
        dispersion = [role.dispersion[name] for name in names]
        return _LaplaceFunction.apply(self, problem, names, role.eta, *tril, *moving, *dispersion)  # type: ignore

    def conditional(self, record: Record) -> Conditional:
        with torch.no_grad():
            problem, _, _ = self.problem(record)
            point = self.mode(problem)
        return self._conditional_at(point)

    def evaluate(self, record: Record) -> tuple[float, Conditional]:
        with torch.no_grad():
            problem, _, _ = self.problem(record)
            found = self._search(self._inputs(record), keep=True)
            if found is not None and self.compiled is not None:
                b = self.compiled.split(found.b)
                whole = cache(lambda: self._conditional_at(problem.at(b)))
                return found.log_marginal, self.compiled.conditional(found, problem.tril, whole)
            point = self.mode(problem)
        return point.value - 0.5 * point.factor.logdet, self._conditional_at(point)

    def curvature(self, record: Record) -> Factor:
        with torch.no_grad():
            problem, _, _ = self.problem(record)
            return self.mode(problem).factorise()

    def _conditional_at(self, point: ModePoint) -> Conditional:
        tril = point.problem.tril
        factor = point.factorise()
        follow = partial(shift_map, self.plan, factor, tril, point.weight)
        return gaussian_conditional(self.plan, factor, tril, point.b, follow)


class _LaplaceFunction(torch.autograd.Function):
    """Laplace's log marginal with its analytic gradient."""

    @staticmethod
    def forward(
        ctx: Any, bound: BoundLaplace, problem: Problem, names: tuple[str, ...], eta: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        point = bound.mode(problem)
        terms = len(problem.layout.terms)
        ctx.point, ctx.names, ctx.dispersion = point, names, rest[2 * terms :]
        return torch.tensor(point.value - 0.5 * point.factor.logdet, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        need = ctx.needs_input_grad
        point, layout = ctx.point, ctx.point.problem.layout
        terms = len(layout.terms)
        parts = _Gradient(point)
        d_tril = [torch.from_numpy(np.tril(g)) for g in parts.factors()]
        d_design = [torch.from_numpy(parts.design(k)) if need[4 + terms + k] else None for k in range(terms)]
        d_dispersion = parts.dispersion(ctx.names, ctx.dispersion, need[4 + 2 * terms :])
        out = [torch.from_numpy(parts.predictor), *d_tril, *d_design, *d_dispersion]
        return None, None, None, *(None if g is None else grad * g for g in out)


class _Gradient:
    """Gradient of the Laplace approximation at a mode; see the module's docstring for the symbols."""

    def __init__(self, point: ModePoint) -> None:
        self.point, self.problem, self.layout = point, point.problem, point.problem.layout
        self.inverse = selected.pair_blocks(point.factor)
        self.leverage = selected.leverage(point.factor, self.inverse)
        tilt = -0.5 * self.leverage * point.slope
        z_c = self.layout.transpose(tilt)
        self.v = point.factor.solve([c @ block for c, block in zip(z_c, self.problem.tril, strict=True)])
        self.z_v = self.layout.apply([v @ block.T for v, block in zip(self.v, self.problem.tril, strict=True)])
        self.predictor = point.score + tilt - point.weight * self.z_v

    def factors(self) -> Arrays:
        """In every L, (q, q) per term."""
        z_r, z_s = self.layout.transpose(self.predictor), self.layout.transpose(self.point.score)
        traces = selected.pair_traces(self.point.factor, self.point.gram, self.inverse)
        return [
            r.T @ b + s.T @ v - trace for r, s, b, v, trace in zip(z_r, z_s, self.point.b, self.v, traces, strict=True)
        ]

    def design(self, k: int) -> np.ndarray:
        """In the row design of one single-membership term, (n, q)."""
        (slot,) = self.layout.terms[k].slots
        inner = (
            self.predictor[:, None] * self.point.b[k][slot.index] + self.point.score[:, None] * self.v[k][slot.index]
        )
        inner = inner - self.point.weight[:, None] * self._cross(k)
        return inner @ self.problem.tril[k].T

    def _cross(self, k: int) -> np.ndarray:
        """Term k's part of ``A^-1 Lambda^T z_n`` for every row, (n, q)."""
        out = np.zeros((len(self.predictor), self.layout.terms[k].q))
        for pair, block in zip(self.layout.pairs, self.inverse, strict=True):
            if pair.k == k:
                out += _spread_rows(block.swapaxes(1, 2), pair.rows, pair.slot_j, self.problem.tril[pair.j])
            if pair.j == k and not pair.same:
                out += _spread_rows(block, pair.rows, pair.slot_k, self.problem.tril[pair.k])
        return out

    def dispersion(
        self, names: tuple[str, ...], values: tuple[torch.Tensor, ...], need: tuple[bool, ...]
    ) -> list[torch.Tensor | None]:
        """In the family's dispersion."""
        given = dict(zip(names, values, strict=True))
        problem = self.problem
        return dispersion_gradients(problem.plan, problem.family, self.point.eta, self.leverage, self.z_v, given, need)


def _spread_rows(blocks: np.ndarray, rows: np.ndarray, slot: Any, tril: np.ndarray) -> np.ndarray:
    design = np.ones((len(rows), 1)) if slot.design is None else slot.design
    if len(blocks) == 1:
        return (design @ tril) @ blocks[0].T
    return np.einsum("nab,nb->na", blocks[rows], design @ tril)
