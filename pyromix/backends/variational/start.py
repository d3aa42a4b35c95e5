"""Where variational inference begins: about the mode, in units of about one posterior standard deviation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyromix.backends.batches import independent_units, subset
from pyromix.backends.hyper_posterior import HyperPosterior, default_marginal
from pyromix.backends.maximum_likelihood import MaximumLikelihood, Search
from pyromix.backends.variational.coordinates import Coordinates, Piece
from pyromix.errors import NumericalError
from pyromix.marginal.plan import Plan, make_plan
from pyromix.running import Program, Record, Site, bijection, run

ROWS = 20_000  # of the groups that the start is found from
WIDEST, NARROWEST = 0.5, 1e-3  # SDs of log scales and of correlations, as the number of levels lets expect
WEIGHT_SCALE = 0.1  # starting SD of a weight with a prior, in units of the prior's


def find_start(program: Program, args: tuple[Any, ...], plan: Plan, seed: int) -> Coordinates:
    """Coordinates of all hyper-parameters, from the groups of at most some 20,000 rows.

    With linear means and networks without priors: the mode of Laplace's marginal posterior and its curvature, or where
    that fails or a network is in the way, moments. Weights with a prior start at the module's own.
    """
    part_args, part, share = _part(program, args, plan, seed)
    record = run(program, part_args, hypers="moderate", seed=seed)
    weights = _weights(record)
    found = None
    if not record.functions:
        try:
            found = _at_mode(program, part_args, part)
        except (NumericalError, np.linalg.LinAlgError, torch.linalg.LinAlgError):
            found = None
    if found is None:
        found = _by_moments(program, part_args, part, record, set(weights))
    return _coordinates(record, weights, *found, share)


def _part(program: Program, args: tuple[Any, ...], plan: Plan, seed: int) -> tuple[tuple[Any, ...], Plan, float]:
    """Arguments and plan of some whole groups, and the share of the rows that they hold."""
    n = len(plan.obs)
    units = independent_units(plan)
    chosen = max(1, round(units.count * ROWS / n))
    if n <= ROWS or chosen == units.count or units.count < 50:
        return args, plan, 1.0
    order = np.random.default_rng([seed, 3]).permutation(units.count)
    rows = units.rows(np.sort(order[:chosen]))
    part = subset(args, torch.from_numpy(rows), n)
    return part, make_plan(program, part, seed), len(rows) / n


def _weights(record: Record) -> dict[str, torch.Tensor]:
    """Sites that stand for a module's weights -> the module's own."""
    found = {}
    for name, site in record.functions.items():
        for key, weight in site.role.module.named_parameters():
            if f"{name}.{key}" in record.hypers:
                found[f"{name}.{key}"] = weight.detach().to(torch.float64)
    return found


Start = tuple[dict[str, torch.Tensor], torch.Tensor]


def _at_mode(program: Program, args: tuple[Any, ...], plan: Plan) -> Start:
    """Values at the mode, and a root of the inverse curvature in z."""
    posterior = HyperPosterior(default_marginal(program, args, plan), program, args, plan, None)
    mode = posterior.mode(progress=False)
    record = posterior.record(mode.t)
    pieces = {name: _piece(site) for name, site in record.hypers.items()}

    def unconstrained(t: torch.Tensor) -> torch.Tensor:
        objective = posterior.objective
        flat = torch.from_numpy(objective.origin) + torch.from_numpy(objective.unit) * t
        values = objective.chart.values(flat)
        return torch.cat([pieces[name].transform.inv(values[name]).reshape(-1) for name in pieces])

    slope = torch.autograd.functional.jacobian(unconstrained, torch.from_numpy(mode.t))
    root = slope @ torch.from_numpy(np.ascontiguousarray(mode.root))
    if not bool(torch.isfinite(root).all()) or (len(root) and float(torch.linalg.cond(root)) > 1e12):
        raise NumericalError("the curvature at the mode is singular.")
    return {name: site.value.detach() for name, site in record.hypers.items()}, root


def _by_moments(
    program: Program, args: tuple[Any, ...], plan: Plan, record: Record, weights: set[str]
) -> Start:
    """Moment estimates, with scales that the numbers of rows and levels let expect."""
    marginal = default_marginal(program, args, plan)
    search = Search(MaximumLikelihood(marginal, criterion="map"), marginal, program, args, plan, None)
    starts, rotations = search._starts()
    pieces, blocks = {}, []
    for name, site in record.hypers.items():
        if name in weights:
            continue
        pieces[name] = piece = _piece(site)
        if name in rotations:
            blocks.append(rotations[name])
            continue
        units = max(float(search.scales[name].units), 1.0)
        width = min(max((2 * units) ** -0.5, NARROWEST), WIDEST)
        if piece.transform.codomain is torch.distributions.constraints.real:
            scale = search.scales[name].size.reshape(-1) * width
        else:
            scale = torch.full((piece.size,), width, dtype=torch.float64)
        blocks.append(torch.diag(scale))
    root = torch.block_diag(*blocks) if blocks else torch.empty(0, 0, dtype=torch.float64)
    return {name: starts[name] for name in pieces}, root.to(torch.float64)


def _coordinates(
    record: Record,
    weights: dict[str, torch.Tensor],
    starts: dict[str, torch.Tensor],
    root: torch.Tensor,
    share: float,
) -> Coordinates:
    """Ordinary sites first, in the order of the root; then weights with a prior."""
    pieces = [_piece(record.hypers[name]) for name in (*starts, *weights)]
    values = {**starts, **weights}
    parts = [piece.transform.inv(values[piece.name]).reshape(-1) for piece in pieces]
    origin = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
    tail = [WEIGHT_SCALE * _prior_sd(record.hypers[name]).reshape(-1) for name in weights]
    empty = torch.empty(0, dtype=torch.float64)
    return Coordinates(pieces, origin.detach(), root.detach() * share**0.5, torch.cat([empty, *tail]))


def _piece(site: Site) -> Piece:
    transform = bijection(site.fn)
    return Piece(site.name, torch.Size(transform.inverse_shape(site.value.shape)), transform)


def _prior_sd(site: Site) -> torch.Tensor:
    sd = site.fn.stddev.expand(site.value.shape)
    return torch.where(torch.isfinite(sd) & (sd > 0), sd, torch.ones_like(sd)).to(torch.float64)
