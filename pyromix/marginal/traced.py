"""Runs of a program as a traced graph: what a marginaliser reads of it, at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pyromix.compile import Compiled, compile_function, tensor_program
from pyromix.distributions import StructuredNormal
from pyromix.errors import UnsupportedError
from pyromix.linalg.operators import BlockOperator
from pyromix.marginal.plan import data_of
from pyromix.running import Program, Record, Site, run

MANY = 1000  # evaluations: the graph is worth its trace
Values = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class TracedRuns:
    """``t -> (record, log prior)`` by a graph; gradients flow.

    The record holds what the program declared where it was traced, with the values that the graph computes: the
    predictor without effects, the dispersion, the factors of the effects' covariances and the hyper-parameters.
    """

    def __init__(self, base: Record, values: Values, graph: Compiled) -> None:
        self.base, self.values, self.graph = base, values, graph
        self.data = data_of(base)

    def __call__(self, t: torch.Tensor) -> tuple[Record, torch.Tensor]:
        eta, *rest = self.graph(t)
        tril, rest = rest[: len(self.base.latents)], rest[len(self.base.latents) :]
        dispersion = dict(zip(self.data.dispersion, rest, strict=False))
        (response,) = self.base.data.values()
        role = replace(self.data, eta=eta, dispersion=dispersion)
        return (
            Record(
                hypers={name: replace(self.base.hypers[name], value=value) for name, value in self.values(t).items()},
                latents={
                    name: _with_factor(site, block)
                    for (name, site), block in zip(self.base.latents.items(), tril, strict=True)
                },
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
) -> TracedRuns | None:
    """Trace a program in coordinates t (size,); ``None`` if it cannot be, and has to be run.

    Parameters
    ----------
    values
        Hyper-parameters at t.
    log_jacobian
        Log volume of the coordinates at these values, to be added to the log prior.
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

    graph = compile_function(outputs, [example], mode="traced", evaluations=MANY)
    if graph.mode == "eager":
        return None
    with torch.no_grad():
        base = run(program, args, values(example))
    return TracedRuns(base, values, graph)


def _with_factor(site: Site, block: torch.Tensor) -> Site:
    levels = site.fn.event_shape[0]
    return replace(site, fn=StructuredNormal(BlockOperator(block, levels)))
