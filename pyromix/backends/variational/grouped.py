r"""ELBO with the groups' effects integrated out by a Gaussian each: only the hyper-parameters are drawn.

.. math:: E_{q(\theta)}\Big[\log p(\theta) - \log q(\theta) + \sum_n E_{q(u \mid \theta)} \log p(y_n \mid \eta_n)
    - \sum_g KL(q(u_g \mid \theta) \,\|\, p(u_g \mid \theta))\Big]

The predictor is affine in the effects, so under the guide it is Gaussian in every row: the inner expectations are
one-dimensional quadratures and the divergences closed forms. A batch runs the program on its own rows, with effects at
zero, and adds ``Z u`` over the levels those rows hold: the cost of a step is that of its rows, however many groups
there are. Hyper-parameters are drawn in antithetic pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyromix.backends.batches import subset
from pyromix.backends.variational.blocks import Block, BlockRows, find_blocks
from pyromix.backends.variational.coordinates import Coordinates
from pyromix.backends.variational.gaussian import AbstractGaussian
from pyromix.backends.variational.local import AbstractLocal, LocalPosterior, Target
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.backends.variational.rows import NODES, Rows
from pyromix.marginal.plan import Plan, data_of
from pyromix.results.draws import over_draws
from pyromix.results.estimate import Draws
from pyromix.running import Program, Record, run

SWEEPS = 8  # last updates of every group after mini-batches
HELD_OUT_UPDATES = 6
NETWORK_RATE = 0.06  # learning rate of networks' weights, as a part of that of the guide


@dataclass(frozen=True)
class Pass:
    """One run of the program on some rows, at one x.

    Attributes
    ----------
    log_prior
        Log prior density of z.
    eta
        Predictor without the effects.
    rows
        The response.
    parts, factors
        How each block enters the rows, and the factor of its prior.
    slope
        Derivative of eta in the moving coordinates, (n, k).
    by_dispersion
        Dispersion -> its derivative in the moving coordinates, (k,).
    """

    x: torch.Tensor
    log_prior: torch.Tensor
    eta: torch.Tensor
    rows: Rows
    parts: list[BlockRows]
    factors: list[torch.Tensor]
    slope: torch.Tensor
    by_dispersion: dict[str, torch.Tensor]


class Grouped(AbstractObjective):
    """The objective of `group` (and, with free locals and no slopes, of `mean_field`).

    Parameters
    ----------
    beta
        Weight of the divergences from the priors.
    pairs
        Antithetic pairs of draws a step.
    """

    joint = False

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        plan: Plan,
        coordinates: Coordinates,
        guide: AbstractGaussian,
        kind: type[AbstractLocal],
        *,
        beta: float = 1.0,
        pairs: int = 1,
    ) -> None:
        self.program, self.args, self.plan = program, args, plan
        self.coordinates, self.guide, self.beta, self.pairs = coordinates, guide, beta, pairs
        with torch.no_grad():
            record = run(program, args, coordinates.values(torch.zeros(coordinates.size, dtype=torch.float64))[0])
        self.blocks: tuple[Block, ...] = find_blocks(record)
        self.moving = len(coordinates.head)
        self.locals = [kind(block.levels, block.size, self.moving) for block in self.blocks]
        self.modules = list({id(m): m for m in plan.modules.values()}.values())

    # -- the loop's side ---------------------------------------------------------------------------------------------
    def groups(self) -> list[tuple[list[torch.Tensor], float]]:
        weights = [w for module in self.modules for w in module.parameters() if w.requires_grad]
        return [*self.guide.rates(), (weights, NETWORK_RATE)]

    def gauges(self) -> list[torch.Tensor]:
        return [] if self.modules else list(self.guide.parameters.values())

    def step(self, rows: np.ndarray | None, share: float, seed: int) -> float:
        for module in self.modules:
            module.train()
        noise = normal((self.pairs, self.guide.noise_size), seed)
        args, prepared = self._take(rows)
        passes = [self._pass(args, prepared, self.guide.draw(sign * e), seed) for e in noise for sign in (1.0, -1.0)]
        self._update(passes)
        total = torch.zeros((), dtype=torch.float64)
        for at in passes:
            total = total + self._elbo(at, share) / len(passes)
        (-total).backward()
        return float(total.detach())

    def tables(self) -> dict[str, torch.Tensor]:
        found = {f"{k}.{name}": table for k, local in enumerate(self.locals) for name, table in local.tables.items()}
        for k, module in enumerate(self.modules):
            found |= {f"buffer.{k}.{name}": buffer for name, buffer in module.named_buffers()}
        return found

    def entries(self) -> int:
        return self.coordinates.size + sum(block.levels * block.size for block in self.blocks)

    # -- runs --------------------------------------------------------------------------------------------------------
    def _take(self, rows: np.ndarray | None) -> tuple[tuple[Any, ...], Any]:
        """Arguments of some rows, and what the family computed of them."""
        if rows is None:
            return self.args, self.plan.prepared
        at = torch.from_numpy(rows)
        return subset(self.args, at, len(self.plan.obs)), tuple(entry[at] for entry in self.plan.prepared)

    def _pass(self, args: tuple[Any, ...], prepared: Any, x: torch.Tensor, seed: int | None = None) -> Pass:
        values, jacobian = self.coordinates.values(x)
        record = run(self.program, args, values, seed=seed)
        role = data_of(record)
        parts = [BlockRows.of(block, record) for block in self.blocks]
        factors = [block.factor(record) for block in self.blocks]
        by_dispersion = {}
        for name, value in role.dispersion.items():
            if x.requires_grad and value.requires_grad and value.dim() == 0:
                (slope,) = torch.autograd.grad(value, x, retain_graph=True)
                by_dispersion[name] = slope[: self.moving]
        log_prior = record.log_prior() + jacobian
        slope = self._slope(record, len(role.eta))
        return Pass(x, log_prior, role.eta, Rows(role, prepared), parts, factors, slope, by_dispersion)

    def _slope(self, record: Record, n: int) -> torch.Tensor:
        """Derivative of the predictor in x through the coefficients that enter linearly, (n, k)."""
        total = torch.zeros(n, self.moving, dtype=torch.float64)
        for name in self.plan.linear:
            total = total + record.hypers[name].role.design @ self.coordinates.rows(name)
        return total

    # -- the bound ---------------------------------------------------------------------------------------------------
    def _locals(self, at: Pass) -> list[LocalPosterior]:
        x = at.x[: self.moving]
        return [
            local.posterior(part.levels, factor, x)
            for local, part, factor in zip(self.locals, at.parts, at.factors, strict=True)
        ]

    def _predictor(self, at: Pass, posteriors: list[LocalPosterior]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each row's predictor."""
        mean, variance = at.eta, torch.zeros_like(at.eta)
        for part, posterior in zip(at.parts, posteriors, strict=True):
            mean = mean + part.mean(posterior.mean)
            variance = variance + part.variance(posterior.factor)
        return mean, variance

    def _data_part(self, at: Pass) -> torch.Tensor:
        """Expected log-likelihood less the groups' divergences, of the rows at hand."""
        posteriors = self._locals(at)
        value = at.rows.expected(*self._predictor(at, posteriors))
        for posterior in posteriors:
            value = value - self.beta * posterior.divergence.sum()
        return value

    def _elbo(self, at: Pass, share: float) -> torch.Tensor:
        divergence = self.guide.log_density(at.x) - self.coordinates.log_scale - at.log_prior
        return self._data_part(at) / share - self.beta * divergence

    # -- the groups' own updates -------------------------------------------------------------------------------------
    def _update(self, passes: list[Pass]) -> None:
        """Bring the levels at hand up to date, block after block."""
        with torch.no_grad():
            detached = [_detach(at) for at in passes]
            for k, local in enumerate(self.locals):
                targets = [(self._target(at, k), at.x[: self.moving]) for at in detached]
                local.move(passes[0].parts[k].levels, targets)

    def _target(self, at: Pass, k: int) -> Target:
        posteriors = self._locals(at)
        moments = at.rows.moments(*self._predictor(at, posteriors), tuple(at.by_dispersion))
        part, beta = at.parts[k], self.beta
        moved = at.slope
        for j, (other, posterior) in enumerate(zip(at.parts, posteriors, strict=True)):
            if j != k:  # effects of the other factors move with x too
                covariance = posterior.factor @ posterior.factor.mT
                moved = moved + other.columns(covariance @ self.locals[j].tables["slope"][other.levels])
        rows = -moments.weight[:, None] * moved
        for name, derivative in at.by_dispersion.items():
            rows = rows + moments.by_dispersion[name][:, None] * derivative
        gram, score, slope = part.gram(moments.weight), part.gather(moments.score), part.gather(rows)
        return self.locals[k].target(gram / beta, score / beta, slope / beta, posteriors[k], at.factors[k])

    def finish(self, batches: list[np.ndarray] | None, seed: int) -> None:
        """Every group's last updates, at draws of the finished guide; after mini-batches some are out of date."""
        for module in self.modules:
            module.eval()
        if batches is None:
            return
        for local in self.locals:
            local.tables["count"].zero_()
            local.tables["count"] += 1
        for sweep in range(SWEEPS):
            noise = normal((1, self.guide.noise_size), seed + sweep)[0]
            for rows in batches:
                args, prepared = self._take(rows)
                self._update([self._pass(args, prepared, self._at(sign * noise)) for sign in (1.0, -1.0)])

    def effects_at(self, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
        """Mean and SD of every effect after a few updates at x, and how much more the data say of it than its prior."""
        at = self._pass(self.args, self.plan.prepared, x.detach().requires_grad_(True))
        for _ in range(HELD_OUT_UPDATES):
            self._update([at])
        out: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}
        with torch.no_grad():
            for block, local, factor in zip(self.blocks, self.locals, at.factors, strict=True):
                found = local.posterior(torch.arange(block.levels), factor, x[: self.moving])
                sd = block.split(found.factor.square().sum(-1).sqrt())
                spherical = factor.mT @ local.tables["quadratic"] @ factor
                information = block.split(spherical.diagonal(dim1=-2, dim2=-1).mean(0))
                mean = block.split(found.mean)
                out |= {name: (mean[name], sd[name], float(information[name].mean())) for name in block.names}
        return out

    def conditional_means(self, record: Record, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean of every effect at x, of which a run of the program is at hand."""
        out: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for block, local in zip(self.blocks, self.locals, strict=True):
                levels = torch.arange(block.levels)
                out |= block.split(local.posterior(levels, block.factor(record), x[: self.moving]).mean)
        return out

    def _at(self, noise: torch.Tensor) -> torch.Tensor:
        """A draw of the guide that derivatives can be taken in."""
        return self.guide.draw(noise).detach().requires_grad_(True)

    # -- what follows from it ----------------------------------------------------------------------------------------
    def log_weights(self, batches: list[np.ndarray] | None, draws: int, seed: int) -> np.ndarray:
        x = self.guide.draw(normal((draws, self.guide.noise_size), seed)).detach()
        total = torch.zeros(draws, dtype=torch.float64)
        with torch.no_grad():
            for rows in batches or [None]:
                args, prepared = self._take(rows)
                count = len(self.plan.obs) if rows is None else len(rows)
                found = over_draws(lambda at, a=args, p=prepared: self._parts(a, p, at["x"]), {"x": x}, NODES * count)
                total = total + found["data"]
            divergence = torch.stack([self.guide.log_density(row) for row in x])
            divergence = divergence - self.coordinates.log_scale - found["log_prior"]
        return (total - self.beta * divergence).numpy()

    def _parts(self, args: tuple[Any, ...], prepared: Any, x: torch.Tensor) -> Draws:
        """The data's part of the bound and the log prior density, at one x."""
        at = self._pass(args, prepared, x)
        return {"data": self._data_part(at), "log_prior": at.log_prior}

    def held_out(self, rows: np.ndarray) -> float:
        args, prepared = self._take(rows)
        at = self._pass(args, prepared, self.guide.loc.detach().clone().requires_grad_(True))
        kept = [
            {name: table[part.levels] for name, table in local.tables.items()}
            for local, part in zip(self.locals, at.parts, strict=True)
        ]
        for _ in range(HELD_OUT_UPDATES):
            self._update([at])
        with torch.no_grad():
            value = float(self._data_part(at))
        for local, part, tables in zip(self.locals, at.parts, kept, strict=True):
            for name, table in tables.items():
                local.tables[name][part.levels] = table
        return value

    def draws(self, count: int, seed: int) -> Draws:
        x = self.guide.draw(normal((count, self.guide.noise_size), seed)).detach()
        args = self._few_rows()

        def one(at: Draws) -> Draws:
            values, _ = self.coordinates.values(at["x"])
            record = run(self.program, args, values)
            return values | {f"{k}\0": block.factor(record) for k, block in enumerate(self.blocks)}

        with torch.no_grad():
            drawn = over_draws(one, {"x": x}, len(self.plan.obs) if args is self.args else 1)
            for k, (block, local) in enumerate(zip(self.blocks, self.locals, strict=True)):
                factors = drawn.pop(f"{k}\0")
                u = torch.empty(count, block.levels, block.size, dtype=torch.float64)
                generator = torch.Generator().manual_seed((seed + 1 + k) % 2**63)
                for s, (row, factor) in enumerate(zip(x, factors, strict=True)):
                    noise = torch.randn(block.levels, block.size, generator=generator, dtype=torch.float64)
                    u[s] = local.draw(factor, row[: self.moving], noise)
                drawn |= block.split(u)
        return drawn

    def _few_rows(self) -> tuple[Any, ...]:
        """Arguments of a few rows: the priors of the effects do not depend on which."""
        try:
            return self._take(np.arange(min(2, len(self.plan.obs))))[0]
        except NotImplementedError:
            return self.args


def _detach(at: Pass) -> Pass:
    return Pass(
        at.x.detach(),
        at.log_prior,
        at.eta.detach(),
        at.rows,
        at.parts,
        [f.detach() for f in at.factors],
        at.slope.detach(),
        at.by_dispersion,
    )


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normals of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64)
