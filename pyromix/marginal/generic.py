r"""Laplace's approximation for random effects anywhere in a program, for one grouping factor.

Given the hyper-parameters the groups are independent, so the Hessian of the log joint density in all effects is block
diagonal, and q Hessian-vector products (one per effect in a group) give every block at once. One Newton step attached
to the graph at the mode gives the mode's derivative (implicit function theorem), so the approximation has exact
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyromix.errors import NumericalError, UnsupportedError
from pyromix.linalg.newton import ascend
from pyromix.marginal.base import BoundMarginal, Conditional, blocks_of
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, Record, run


class BoundGeneric(BoundMarginal):
    """`Laplace` on one program and data set where the predictor is not affine in the effects."""

    def __init__(self, program: Program, args: tuple[Any, ...], plan: Plan) -> None:
        levels = {name: term.levels for name, term in zip(plan.latents, plan.layout.terms, strict=True)}
        index = [term.slots[0].index for term in plan.layout.terms]
        one_factor = all(len(term.slots) == 1 for term in plan.layout.terms) and all(
            np.array_equal(index[0], other) for other in index[1:]
        )
        if not one_factor:
            raise UnsupportedError(
                f"Laplace(): the predictor is not affine in {', '.join(plan.latents)}, and they belong to more than "
                "one grouping factor. Sample the program with NUTS, or let the effects enter the predictor additively."
            )
        self.plan, self.program, self.args, self.levels = plan, program, args, levels
        self.widths = [term.q for term in plan.layout.terms]
        self.groups = plan.layout.terms[0].levels
        self.index = torch.from_numpy(index[0])
        self.warm: torch.Tensor | None = None

    # -- the log joint density of spherical effects ------------------------------------------------------------------
    def _joint(self, record: Record, b: torch.Tensor) -> torch.Tensor:
        """Per-row log density plus the prior of b, summed: b (groups, q)."""
        tril = blocks_of(record, self.plan, "Laplace()")
        effects, start = {}, 0
        for name, width, block in zip(self.plan.latents, self.widths, tril, strict=True):
            effects[name] = b[:, start : start + width] @ block.T
            start += width
        values = {name: site.value for name, site in record.hypers.items()}
        role = data_of(run(self.program, self.args, {**values, **effects}))
        log_prob = role.family.log_prob(
            role.eta, self.plan.obs, self.plan.trials, prepared=self.plan.prepared, **role.dispersion
        )
        if self.plan.row_weight is not None:
            log_prob = self.plan.row_weight * log_prob
        return log_prob.sum() - 0.5 * (b * b).sum()

    def gradient(self, record: Record, b: torch.Tensor, graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and gradient (groups, q) at b."""
        value = self._joint(record, b)
        (gradient,) = torch.autograd.grad(value, b, create_graph=graph)
        return value, gradient

    def hessian(self, gradient: torch.Tensor, b: torch.Tensor, graph: bool) -> torch.Tensor:
        """Blocks of minus the Hessian, (groups, q, q), by one product per effect."""
        columns = []
        for k in range(b.shape[1]):
            last = k == b.shape[1] - 1
            (row,) = torch.autograd.grad(gradient[:, k].sum(), b, create_graph=graph, retain_graph=graph or not last)
            columns.append(row)
        return -torch.stack(columns, dim=1)

    def mode(self, record: Record) -> torch.Tensor:
        """The mode of the spherical effects at a run of the program, (groups, q), without graph."""
        origin = torch.zeros(self.groups, sum(self.widths), dtype=torch.float64)
        detached = _detached(record)
        with torch.enable_grad():
            start = _Point(self, detached, origin if self.warm is None else self.warm)
            point = ascend(start, lambda: _Point(self, detached, origin))
        self.warm = point.b
        return point.b

    def forget(self) -> None:
        self.warm = None

    # -- the public pair ---------------------------------------------------------------------------------------------
    def log_marginal(self, record: Record) -> torch.Tensor:
        mode = self.mode(record)
        # Without a graph to return to, derivatives in b are still needed; the result is then cut loose.
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            b = mode.clone().requires_grad_(True)
            _, gradient = self.gradient(record, b, graph=True)
            fixed = self.hessian(gradient, b, graph=wanted)
            step = torch.linalg.solve(fixed.detach(), gradient[..., None])[..., 0]
            attached = mode + step  # equals the mode; its derivative in the hyper-parameters is the mode's
            value, gradient = self.gradient(record, attached, graph=True)
            root = _cholesky(self.hessian(gradient, attached, graph=wanted))
            result = value - root.diagonal(dim1=-2, dim2=-1).log().sum()
        return result if wanted else result.detach()

    def conditional(self, record: Record) -> Conditional:
        tril = [block.detach() for block in blocks_of(record, self.plan, "Laplace()")]
        detached = _detached(record)
        with torch.enable_grad():
            b = self.mode(record).clone().requires_grad_(True)
            _, gradient = self.gradient(detached, b, graph=True)
            root = _cholesky(self.hessian(gradient, b, graph=False)).detach()
        b = b.detach()
        covariance = torch.cholesky_inverse(root)

        def split(effects: torch.Tensor) -> dict[str, torch.Tensor]:
            parts = effects.split(self.widths, dim=-1)
            return {n: part @ block.T for n, part, block in zip(self.plan.latents, parts, tril, strict=True)}

        def draw(n: int, generator: torch.Generator, shifts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            noise = torch.randn((n, *b.shape), generator=generator, dtype=torch.float64)
            return split(b + torch.linalg.solve_triangular(root.mT, noise[..., None], upper=True)[..., 0])

        sd, start = {}, 0
        for name, width, block in zip(self.plan.latents, self.widths, tril, strict=True):
            part = covariance[:, start : start + width, start : start + width]
            sd[name] = torch.einsum("ab,gbc,ac->ga", block, part, block).sqrt()
            start += width
        return Conditional(split(b), lambda: sd, draw)


class _Point:
    """A point of the mode search."""

    def __init__(self, bound: BoundGeneric, record: Record, b: torch.Tensor) -> None:
        self.bound, self.record = bound, record
        self.b = b.detach().clone().requires_grad_(True)
        value, self._gradient = bound.gradient(record, self.b, graph=True)
        self.value = float(value.detach())

    def direction(self) -> tuple[torch.Tensor, float]:
        hessian = self.bound.hessian(self._gradient, self.b, graph=False).detach()
        gradient = self._gradient.detach()
        values, vectors = torch.linalg.eigh(hessian)
        # Where the density is not concave, climb along eigenvectors with the curvature's size (at least the prior's).
        step = (vectors @ ((vectors.mT @ gradient[..., None]) / values.abs().clamp(min=1.0)[..., None]))[..., 0]
        if bool((values > 0).all()):
            step = torch.linalg.solve(hessian, gradient[..., None])[..., 0]
        return step, float((gradient * step).sum())

    def moved(self, direction: torch.Tensor, step: float) -> _Point:
        return _Point(self.bound, self.record, (self.b + step * direction).detach())


def _detached(record: Record) -> Record:
    """The record with hyper-parameter values and effect factors cut from their graphs."""
    from pyromix.running import Site

    hypers = {n: Site(n, s.role, s.fn, s.value.detach()) for n, s in record.hypers.items()}
    return Record(hypers=hypers, latents=record.latents, data=record.data, functions=record.functions)


def _cholesky(hessian: torch.Tensor) -> torch.Tensor:
    root, failure = torch.linalg.cholesky_ex(hessian)
    if bool(failure.any()):
        group = int(failure.nonzero()[0])
        raise NumericalError(
            f"Laplace(): the curvature of group {group} is not that of a maximum (smallest eigenvalue "
            f"{float(torch.linalg.eigvalsh(hessian[group].detach())[0]):.3g})."
        )
    return root
