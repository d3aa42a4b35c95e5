"""From a program and a configuration to an objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pyromix.backends.batches import REMEDY, Subsets
from pyromix.backends.centre import centre_outputs
from pyromix.backends.checkpoint import Checkpoint, identity
from pyromix.backends.hyper_posterior import default_marginal
from pyromix.backends.variational.amortised import Amortised
from pyromix.backends.variational.coordinates import Coordinates
from pyromix.backends.variational.gaussian import AbstractGaussian, DenseGaussian, DiagonalGaussian, LowRankGaussian
from pyromix.backends.variational.grouped import Grouped
from pyromix.backends.variational.joint import Joint
from pyromix.backends.variational.local import Free, Sites
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.backends.variational.own_guide import OwnGuide
from pyromix.backends.variational.schedule import Batches
from pyromix.backends.variational.start import JointStart, find_start, joint_start, plain_start
from pyromix.errors import UnsupportedError
from pyromix.marginal.plan import Plan, make_plan
from pyromix.running import Program, Record, run

if TYPE_CHECKING:
    from pyromix.backends.svi import SVI

GUIDES = ("mean_field", "group", "full", "low_rank", "amortised")
Note = tuple[str, float | str, float | str, str]


@dataclass
class Problem:
    """Everything that one fit needs.

    Attributes
    ----------
    notes
        What was asked for and could not be had: (what, value, threshold, remedy).
    """

    objective: AbstractObjective
    batches: Batches
    plan: Plan | None
    modules: dict[str, torch.nn.Module]
    notes: list[Note] = field(default_factory=list)


def build(backend: SVI, program: Program, args: tuple[Any, ...], seed: int) -> Problem:
    """Analyse the program and choose.

    Raises
    ------
    UnsupportedError
        Batches or an amortised guide for a program whose rows are unknown; sites without a density.
    """
    record = run(program, args, hypers="moderate", seed=seed)
    modules = {n: s.role.module for n, s in record.functions.items() if _learns(n, s.role.module, record)}
    plan = _plan(program, args, record, seed)
    if plan is not None and modules:
        centre_outputs(program, args, plan)
    batches = Batches.of(plan, _rows(record), backend.batch_groups, backend.validation, seed)
    if not isinstance(backend.guide, str):
        objective = _own_guide(backend, program, args, plan, batches, modules, seed)
        return Problem(objective, batches, plan, modules, list(batches.notes))
    if plan is None and (backend.batch_groups is not None or backend.validation):
        raise UnsupportedError(
            "SVI(batch_groups=..., validation=...): which rows belong together is known for programs with one "
            "pyromix.observe(...) and random effects; leave both out here."
        )
    if plan is not None and (batches.per_epoch > 1 or len(batches.held)):
        _check_rows(program, args, plan, batches)
    if plan is None:
        coordinates = plain_start(program, args, seed)
        start = JointStart(coordinates, frozenset(), torch.empty(0, len(coordinates.head), dtype=torch.float64))
        return _joint(backend, program, args, plan, batches, modules, start)
    coordinates = find_start(program, args, plan, seed)
    grouped = plan.affine and all(site.fn.operator.block is not None for site in record.latents.values())
    if grouped and backend.guide in ("group", "mean_field", "amortised"):
        objective = _grouped(backend, program, args, plan, coordinates, seed)
        return Problem(objective, batches, plan, modules, list(batches.notes))
    helper = _grouped_sites(backend, program, args, plan, coordinates) if grouped else None
    start = joint_start(program, args, plan, coordinates, helper)
    return _joint(backend, program, args, plan, batches, modules, start)


def _plan(program: Program, args: tuple[Any, ...], record: Record, seed: int) -> Plan | None:
    """The plan of a program with one response and no sites of Pyro's own; ``None`` for others."""
    if record.plain or record.observed or record.subsampled or len(record.data) != 1:
        return None
    (site,) = record.data.values()
    return make_plan(program, args, seed) if site.role.eta.dim() == 1 else None


def _rows(record: Record) -> int:
    """Rows of the data, as far as they can be told."""
    sizes = [len(site.role.eta) for site in record.data.values()]
    sizes += [site.value.shape[0] if site.value.dim() else 1 for site in record.observed.values()]
    return max(sizes)


def _check_rows(program: Program, args: tuple[Any, ...], plan: Plan, batches: Batches) -> None:
    """A row's predictor must not depend on which other rows are there."""
    rows = batches.held if len(batches.held) else batches.at(0)[0]
    assert rows is not None
    try:
        Subsets(program, args, plan, default_marginal(program, args, plan)).check(rows)
    except UnsupportedError as error:
        here = "SVI(batch_groups=<all groups>, validation=0) fits all rows at once"
        raise UnsupportedError(str(error).replace(REMEDY, here)) from error


def _grouped(
    backend: SVI, program: Program, args: tuple[Any, ...], plan: Plan, coordinates: Coordinates, seed: int
) -> AbstractObjective:
    if backend.guide == "mean_field":
        apart = coordinates.independent()
        guide = DiagonalGaussian(apart.size)
        return Grouped(program, args, plan, apart, guide, Free, beta=backend.beta, pairs=backend.particles)
    if backend.guide == "amortised":
        guide = DenseGaussian(coordinates.size)
        settings = {"beta": backend.beta, "pairs": backend.particles}
        return Amortised(program, args, plan, coordinates, guide, Sites, seed=seed, **settings)
    return _grouped_sites(backend, program, args, plan, coordinates)


def _grouped_sites(
    backend: SVI, program: Program, args: tuple[Any, ...], plan: Plan, coordinates: Coordinates
) -> Grouped:
    guide = DenseGaussian(coordinates.size)
    return Grouped(program, args, plan, coordinates, guide, Sites, beta=backend.beta, pairs=backend.particles)


def _joint(
    backend: SVI,
    program: Program,
    args: tuple[Any, ...],
    plan: Plan | None,
    batches: Batches,
    modules: dict[str, torch.nn.Module],
    start: JointStart,
) -> Problem:
    """The joint objective, under a guide for all sites at once."""
    notes: list[Note] = list(batches.notes)
    coordinates = start.coordinates
    name = backend.guide
    if name == "amortised":
        raise UnsupportedError(
            "SVI(guide='amortised'): needs random effects that enter one predictor linearly, with levels independent "
            "of each other; use guide='full' or 'mean_field', or NUTS."
        )
    if name == "group":
        name = "full" if coordinates.size <= 1000 else "low_rank"
        what = "No random effects with levels independent of each other enter linearly, so a guide of everything took "
        notes.append(("guide", "group", name, what + f"the place of 'group': {name!r}."))
    guide: AbstractGaussian
    if name == "mean_field":
        coordinates = coordinates.independent()
        guide = DiagonalGaussian(coordinates.size)
    elif name == "low_rank":
        shared = torch.zeros(coordinates.size, start.slopes.shape[1], dtype=torch.float64)
        shared[coordinates.size - len(start.slopes) :] = start.slopes
        shared[: len(coordinates.head)] = torch.eye(len(coordinates.head), dtype=torch.float64)
        guide = LowRankGaussian(coordinates.size, backend.rank, shared)
    else:
        coordinates = start.dense()
        guide = DenseGaussian(coordinates.size, coordinates.size)
    learned = list({id(m): m for m in modules.values()}.values())
    objective = Joint(
        program,
        args,
        batches.rows,
        coordinates,
        start.spherical,
        guide,
        learned,
        beta=backend.beta,
        pairs=backend.particles,
    )
    return Problem(objective, batches, plan, modules, notes)


def _own_guide(
    backend: SVI,
    program: Program,
    args: tuple[Any, ...],
    plan: Plan | None,
    batches: Batches,
    modules: dict[str, torch.nn.Module],
    seed: int,
) -> AbstractObjective:
    learned = list({id(m): m for m in modules.values()}.values())
    start = {}
    if plan is not None and plan.affine and not modules:  # a class that takes a start gets one
        coordinates = find_start(program, args, plan, seed)
        zero = torch.zeros(coordinates.size, dtype=torch.float64)
        start = {name: value.detach() for name, value in coordinates.values(zero)[0].items()}
    settings = {"start": start, "beta": backend.beta, "pairs": backend.particles}
    return OwnGuide(program, args, batches.rows, backend.guide, learned, **settings)


def _learns(name: str, module: torch.nn.Module, record: Record) -> bool:
    """Whether some weight of a network is to be estimated: it has no prior, and is not frozen."""
    return any(w.requires_grad and f"{name}.{key}" not in record.hypers for key, w in module.named_parameters())


def checkpoint_of(backend: SVI, problem: Problem, args: tuple[Any, ...], seed: int) -> Checkpoint | None:
    """The file that the fit saves itself to."""
    if backend.checkpoint is None:
        return None
    settings = {**backend.settings(), "seed": seed}
    belongs = identity(settings, problem.modules, problem.plan, args)
    return Checkpoint(backend.checkpoint, belongs, backend.checkpoint_every)
