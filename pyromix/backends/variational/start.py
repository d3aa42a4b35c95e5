"""Where variational inference begins: about the mode, in units of about one posterior standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch

from pyromix.backends.batches import independent_units, subset
from pyromix.backends.hyper_posterior import HyperPosterior, default_marginal
from pyromix.backends.maximum_likelihood import MaximumLikelihood, Search
from pyromix.backends.variational.coordinates import Coordinates, Piece
from pyromix.backends.variational.grouped import Grouped
from pyromix.errors import NumericalError, UnsupportedError
from pyromix.marginal import Laplace
from pyromix.marginal.plan import Plan, make_plan
from pyromix.potential import log_joint
from pyromix.running import Program, Record, Site, bijection, run

ROWS = 20_000  # of the groups that the start is found from
WIDEST, NARROWEST = 0.5, 1e-3  # SDs of log scales and of correlations, as the number of levels lets expect
PRIOR_SHARE = 0.5  # starting SD of an effect that nothing is known of, in prior SDs
MOST_WHITENED, WHITENED_DRAWS = 2000, 200  # correlated effects whose white noise is looked at, and draws of it
MODE_LIMIT = 300  # sites of a plain program that a mode and a dense curvature are computed for
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


@dataclass(frozen=True)
class JointStart:
    """Where guides of hyper-parameters and effects together begin.

    Attributes
    ----------
    coordinates
        All sites, each effect in units of its SD given the hyper-parameters.
    spherical
        Effects that enter through their factor.
    slopes
        How the effects' means move with the hyper-parameters' coordinates, in those units, (effects, k).
    """

    coordinates: Coordinates
    spherical: frozenset[str]
    slopes: torch.Tensor

    def dense(self) -> Coordinates:
        """Coordinates in which that movement is taken out."""
        own = self.coordinates
        k, weights = len(own.head), len(own.tail) - len(self.slopes)
        root = torch.block_diag(own.head, torch.diag(own.tail))
        root[k + weights :, :k] = own.tail[weights:, None] * self.slopes
        return Coordinates(own.pieces, own.origin, root, torch.empty(0, dtype=torch.float64))


def joint_start(
    program: Program, args: tuple[Any, ...], plan: Plan, coordinates: Coordinates, objective: Grouped | None
) -> JointStart:
    """Effects begin at the groups' Gaussians where the hyper-parameters begin; without such, at their mode there."""
    zero = torch.zeros(coordinates.size, dtype=torch.float64)
    record = run(program, args, coordinates.values(zero)[0])
    if any(site.fn.operator.block is None for site in record.latents.values()):
        whitened = _whitened(program, args, plan, coordinates)
        if whitened is not None:
            return _joined(coordinates, record, frozenset(record.latents), *whitened)
    found = _modes(program, args, plan, record) if objective is None else objective.effects_at(zero)
    spherical = frozenset(
        name
        for name, site in record.latents.items()
        if site.fn.operator.block is None or name not in found or found[name][2] < 1.0
    )
    origin, scale, slopes = [], [], []
    for name, site in record.latents.items():
        if name not in found:
            origin.append(torch.zeros(site.fn.event_shape.numel(), dtype=torch.float64))
            scale.append(torch.full_like(origin[-1], PRIOR_SHARE))
            slopes.append(torch.zeros(len(origin[-1]), len(coordinates.head), dtype=torch.float64))
            continue
        mean, sd, _ = found[name]
        block = site.fn.operator.block
        if name in spherical:
            mean = site.fn.operator.solve_factor(mean)
            sd = sd / block.square().sum(-1).sqrt()
        origin.append(mean.reshape(-1).detach())
        scale.append(sd.reshape(-1).detach())
        moves = torch.zeros(len(origin[-1]), len(coordinates.head), dtype=torch.float64)
        if objective is not None:
            moves = _movement(program, args, coordinates, objective, name, name in spherical)
        slopes.append(moves / scale[-1][:, None])
    return _joined(coordinates, record, spherical, origin, scale, slopes)


Parts = list[torch.Tensor]


def _joined(
    coordinates: Coordinates, record: Record, spherical: frozenset[str], origin: Parts, scale: Parts, slopes: Parts
) -> JointStart:
    joined = Coordinates(
        (*coordinates.pieces, *(_piece(site) for site in record.latents.values())),
        torch.cat([coordinates.origin, *origin]),
        coordinates.head,
        torch.cat([coordinates.tail, *scale]),
    )
    empty = torch.empty(0, len(coordinates.head), dtype=torch.float64)
    return JointStart(joined, spherical, torch.cat([empty, *slopes]))


def _whitened(
    program: Program, args: tuple[Any, ...], plan: Plan, coordinates: Coordinates
) -> tuple[Parts, Parts, Parts] | None:
    """Means, SDs and movements of the effects' white noise given the hyper-parameters, where levels are correlated.

    ``None`` where they cannot be had: a singular covariance, whose root has no inverse, or too many levels.
    """
    zero = torch.zeros(coordinates.size, dtype=torch.float64)
    try:
        bound = default_marginal(program, args, plan).bind(program, args, plan)

        def noise(x: torch.Tensor, draws: int = 0) -> dict[str, torch.Tensor]:
            """Of the modes, or of draws about them, (draws, effects)."""
            with torch.no_grad():
                record = run(program, args, coordinates.values(x)[0])
                conditional = bound.conditional(record)
                generator = torch.Generator().manual_seed(0)
                effects = conditional.draw(draws, generator, {}) if draws else conditional.mode
                return {
                    name: site.fn.operator.solve_factor(effects[name]).reshape(max(draws, 1), -1)
                    for name, site in record.latents.items()
                }

        middle = noise(zero)
        if sum(mean.numel() for mean in middle.values()) > MOST_WHITENED:
            return None
        sds = {name: found.std(0) for name, found in noise(zero, WHITENED_DRAWS).items()}
        moves = []
        for k in range(len(coordinates.head)):
            step = torch.zeros_like(zero)
            step[k] = 0.5
            up, down = noise(step), noise(-step)
            moves.append({name: (up[name] - down[name])[0] for name in up})
    except (NumericalError, UnsupportedError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError):
        return None
    origin = [found[0] for found in middle.values()]
    scale = [sds[name].clamp(min=NARROWEST) for name in middle]
    none = [torch.empty(len(mean), 0, dtype=torch.float64) for mean in origin]
    columns = [torch.stack([move[name] for move in moves], -1) for name in middle] if moves else none
    slopes = [column / sd[:, None] for column, sd in zip(columns, scale, strict=True)]
    parts = (origin, scale, slopes)
    return parts if all(bool(torch.isfinite(part).all()) for group in parts for part in group) else None


Effects = dict[str, tuple[torch.Tensor, torch.Tensor, float]]


def _modes(program: Program, args: tuple[Any, ...], plan: Plan, record: Record) -> Effects:
    """Conditional modes and SDs by Laplace's approximation, and how much narrower they are than the priors."""
    if any(site.fn.operator.block is None for site in record.latents.values()):
        return {}
    try:
        with torch.no_grad():
            conditional = Laplace().bind(program, args, plan).conditional(record)
            sds = conditional.sd
    except (NumericalError, UnsupportedError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError):
        return {}
    out = {}
    for name, site in record.latents.items():
        prior = site.fn.operator.block.detach().square().sum(-1)
        out[name] = (conditional.mode[name], sds[name], float((prior / sds[name].square() - 1).mean()))
    return out


def _movement(
    program: Program, args: tuple[Any, ...], coordinates: Coordinates, objective: Any, name: str, spherical: bool
) -> torch.Tensor:
    """Differences of an effect's conditional mean over one SD of each coordinate, (effects, k)."""
    columns = []
    for k in range(len(coordinates.head)):
        sides = []
        for sign in (0.5, -0.5):
            x = torch.zeros(coordinates.size, dtype=torch.float64)
            x[k] = sign
            record = run(program, args, coordinates.values(x)[0])
            mean = objective.conditional_means(record, x)[name]
            sides.append(record.latents[name].fn.operator.solve_factor(mean) if spherical else mean)
        columns.append((sides[0] - sides[1]).reshape(-1))
    size = record.latents[name].fn.event_shape.numel() if columns else 0
    return torch.stack(columns, -1).detach() if columns else torch.empty(size, 0, dtype=torch.float64)


def plain_start(program: Program, args: tuple[Any, ...], seed: int) -> Coordinates:
    """Coordinates of all sites of a program of any kind: the joint mode and its curvature where it has one.

    Raises
    ------
    UnsupportedError
        A site without a density over real numbers.
    """
    record = run(program, args, hypers="moderate", latents="prior", seed=seed)
    sites = {**record.hypers, **record.latents, **record.plain}
    for name, site in sites.items():
        if bijection(site.fn) is None:
            raise UnsupportedError(
                f"SVI: site {name!r} ({type(site.fn).__name__}) has no density over real numbers. If it is discrete, "
                "sum it out in the program, or pass a Pyro guide of your own that draws it."
            )
    pieces = [_piece(site) for site in sites.values()]
    size = sum(piece.size for piece in pieces)
    empty = torch.empty(0, dtype=torch.float64)
    found = _joint_mode(program, args, tuple(sites), size)
    if found is None:
        origin, root = torch.zeros(size, dtype=torch.float64), 0.3 * torch.eye(size, dtype=torch.float64)
        return Coordinates(pieces, origin, root, empty)
    return Coordinates(pieces, *found, empty)


def _joint_mode(
    program: Program, args: tuple[Any, ...], names: tuple[str, ...], size: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mode and root of the inverse curvature of the joint density; ``None`` if there is no ordinary mode."""
    if size > MODE_LIMIT:
        return None
    try:
        potential = log_joint(program, args)
    except UnsupportedError:  # subsampled plates: the density of one run is random
        return None
    if potential.names != names or potential.size != size:
        return None
    evaluate = potential.value_and_gradient(mode="eager", evaluations=1)

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(torch.from_numpy(z))
        good = bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
        return (float(value), gradient.numpy()) if good else (1e100, np.zeros_like(z))

    best = scipy.optimize.minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    if not best.success or np.abs(best.jac).max() > 1e-2 * (1 + abs(best.fun)):
        return None
    at = torch.from_numpy(best.x)
    hessian = torch.autograd.functional.hessian(potential, at)
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    sd = values.clamp(min=1e-300).rsqrt()
    if not bool(((values > 0) & (sd < 1e4) & (sd > 1e-5)).all()):
        return None
    return at, torch.linalg.cholesky((vectors * sd.square()) @ vectors.T)


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


def _by_moments(program: Program, args: tuple[Any, ...], plan: Plan, record: Record, weights: set[str]) -> Start:
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
