"""Runs of a program as a traced graph, or compiled: what a marginaliser reads of it, at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyromix.compile import Compiled, compile_function, tensor_program
from pyromix.distributions import StructuredNormal
from pyromix.errors import UnsupportedError
from pyromix.linalg.operators import Parts
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.plan import data_of
from pyromix.running import Program, Record, run

Values = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class TracedRuns:
    """``t -> (record, log prior)`` by a graph; gradients flow.

    The record holds what the program declared where it was traced, with the values that the graph computes: the
    predictor without effects, the dispersion, the factors of the effects' covariances and the hyper-parameters.
    """

    def __init__(
        self,
        base: Record,
        values: Values,
        graph: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        parts: Mapping[str, Parts],
    ) -> None:
        self.base, self.values, self.graph, self.parts = base, values, graph, parts
        self.data = data_of(base)

    def value_and_gradient(self, t: torch.Tensor, bound: BoundMarginal) -> tuple[float, torch.Tensor] | None:
        """Log posterior density without autograd, where everything is compiled; ``None`` where it is not."""
        if not isinstance(self.graph, _Compiled):
            return None
        *inputs, log_prior = self.graph.forward(t)
        found = bound.value_and_slopes(inputs)
        if found is None:
            return None
        value, slopes = found
        return value + float(log_prior), self.graph.back(t, *slopes, torch.ones_like(log_prior))

    def __call__(self, t: torch.Tensor) -> tuple[Record, torch.Tensor]:
        eta, *rest = self.graph(t)
        latents = {}
        for name, site in self.base.latents.items():
            count = len(self.parts[name].tensors)
            operator = self.parts[name].make(rest[:count])
            latents[name] = replace(site, fn=StructuredNormal(operator, tuple(site.fn.event_shape)))
            rest = rest[count:]
        dispersion = dict(zip(self.data.dispersion, rest, strict=False))
        (response,) = self.base.data.values()
        role = replace(self.data, eta=eta, dispersion=dispersion)
        return (
            Record(
                hypers={name: replace(self.base.hypers[name], value=value) for name, value in self.values(t).items()},
                latents=latents,
                data={response.name: replace(response, role=role)},
            ),
            rest[-1],
        )


def trace_runs(
    program: Program,
    args: tuple[Any, ...],
    values: Values,
    log_jacobian: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    size: int,
    evaluations: int,
    gradients: bool,
) -> TracedRuns | None:
    """Trace a program in coordinates t (size,); ``None`` if it cannot be, and has to be run.

    Row designs are those of the run that is traced: `Plan.moving` must not hold.

    Parameters
    ----------
    values
        Hyper-parameters at t.
    log_jacobian
        Log volume of the coordinates at these values, to be added to the log prior.
    evaluations, gradients
        How often it will be run, about, and whether gradients will be wanted each time.
    """
    example = torch.zeros(size, dtype=torch.float64)
    try:
        front = tensor_program(program, args)
    except UnsupportedError:
        return None

    def outputs(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = values(t)
        *parts, log_prior = front(front.flat(at))
        return (*parts, log_prior + log_jacobian(at))

    traced = compile_function(outputs, [example], mode="traced", evaluations=evaluations)
    if traced.mode == "eager":
        return None
    with torch.no_grad():
        base = run(program, args, values(example))
    plain = all(site.fn.operator.block is not None for site in base.latents.values())
    # other covariances are made by factorisations and large sparse products, which gain nothing
    graph = _compiled(traced, example, evaluations, gradients) if plain else None
    return TracedRuns(base, values, graph or traced, front.parts)


def _compiled(
    traced: Compiled, example: torch.Tensor, evaluations: int, gradients: bool
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None:
    """The graph and its pullback compiled, or ``None`` where that does not pay or cannot be done."""
    forward = compile_function(traced, [example], evaluations=evaluations, differentiable=False)
    if forward.mode != "compiled":
        return None
    if not gradients:
        return forward

    def pullback(t: torch.Tensor, *slopes: torch.Tensor) -> torch.Tensor:
        return torch.func.vjp(traced, t)[1](slopes)[0]

    slopes = [torch.ones_like(part) for part in forward(example)]
    back = compile_function(pullback, [example, *slopes], evaluations=evaluations, differentiable=False)
    return None if back.mode != "compiled" else _Compiled(forward, back)


@dataclass(frozen=True)
class _Compiled:
    """A compiled graph with its compiled pullback; gradients flow."""

    forward: Compiled
    back: Compiled

    def __call__(self, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _WithPullback.apply(t, self.forward, self.back)


class _WithPullback(torch.autograd.Function):
    """A function whose gradient is another function: what is compiled has no graph of its own."""

    @staticmethod
    def forward(ctx: Any, t: torch.Tensor, forward: Compiled, back: Compiled) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(t)
        ctx.back = back
        return tuple(forward(t.detach()))

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (t,) = ctx.saved_tensors
        return ctx.back(t, *slopes), None, None
