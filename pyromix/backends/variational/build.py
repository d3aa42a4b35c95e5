"""From a program and a configuration to an objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyromix.backends.checkpoint import Checkpoint, identity
from pyromix.backends.centre import centre_outputs
from pyromix.backends.variational.gaussian import DenseGaussian, DiagonalGaussian
from pyromix.backends.variational.grouped import Grouped
from pyromix.backends.variational.local import Free, Sites
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.backends.variational.schedule import Batches
from pyromix.backends.variational.start import find_start
from pyromix.marginal.plan import Plan, make_plan
from pyromix.running import Program, run

if TYPE_CHECKING:
    from pyromix.backends.svi import SVI

GUIDES = ("mean_field", "group", "full", "low_rank", "amortised")


@dataclass
class Problem:
    """Everything that one fit needs."""

    objective: AbstractObjective
    batches: Batches
    plan: Plan | None
    args: tuple[Any, ...]
    notes: list[tuple[str, float, float, str]] = field(default_factory=list)


def build(backend: SVI, program: Program, args: tuple[Any, ...], seed: int) -> Problem:
    """Analyse the program and choose."""
    plan = make_plan(program, args, seed)
    centre_outputs(program, args, plan)
    coordinates = find_start(program, args, plan, seed)
    rows = len(plan.obs)
    batches = Batches.of(plan, rows, backend.batch_groups, backend.validation, seed)
    if backend.guide == "mean_field":
        coordinates = coordinates.independent()
        guide, kind = DiagonalGaussian(coordinates.size), Free
    else:
        guide, kind = DenseGaussian(coordinates.size), Sites
    objective = Grouped(program, args, plan, coordinates, guide, kind, beta=backend.beta, pairs=backend.particles)
    return Problem(objective, batches, plan, args, list(batches.notes))


def checkpoint_of(backend: SVI, problem: Problem, seed: int) -> Checkpoint | None:
    """The file that the fit saves itself to."""
    if backend.checkpoint is None:
        return None
    settings = {**backend.settings(), "seed": seed}
    belongs = identity(settings, problem.plan.modules, problem.plan, problem.args)
    return Checkpoint(backend.checkpoint, belongs, backend.checkpoint_every)
