r"""A network that turns a group's rows into its Gaussian, for groups of the fit and for those to come.

The encoder makes two updates of the group's stand-in from its rows alone, beginning at the prior (the equations of
`pyromix.backends.variational.local`), and a network corrects what they arrive at: it reads, for each row, score, weight
and predictor without effects, sums a learned function of them over the group, and adds the group's size and the
state of the updates. It starts as no correction, and is trained with the guide. Nothing is stored for a group, so one
that the fit has never seen costs one evaluation. Fixed point: the predictor's and the updates' movement with the
hyper-parameters carries no gradient of its own; at the best stand-in that gradient is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyromix.backends.variational.blocks import BlockRows
from pyromix.backends.variational.grouped import NETWORK_RATE, Grouped, Pass, normal
from pyromix.backends.variational.local import LocalPosterior, site_posterior
from pyromix.backends.variational.rows import Rows
from pyromix.errors import UnsupportedError
from pyromix.marginal.plan import data_of
from pyromix.results.draws import over_draws
from pyromix.results.estimate import Draws
from pyromix.running import run

UPDATES = 2
WIDTH = 16
POOLED = 8
LARGEST = 2.0  # of a correction, in logarithms of a precision or in spherical SDs


class Encoder(torch.nn.Module):
    """Correction of one group's stand-in: factors of its precision and shifts of its mean, a term each."""

    def __init__(self, terms: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.row = torch.nn.Sequential(
                torch.nn.Linear(3 + terms, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, POOLED)
            ).double()
            self.group = torch.nn.Sequential(
                torch.nn.Linear(POOLED + 1 + 2 * terms, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 2 * terms)
            ).double()
        torch.nn.init.zeros_(self.group[-1].weight)
        torch.nn.init.zeros_(self.group[-1].bias)

    def forward(
        self, rows: torch.Tensor, index: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Row features (n, 3 + terms), their groups (n,), states (g, 2 terms) -> log factors and shifts, (g, terms)."""
        pooled = rows.new_zeros(len(state), POOLED).index_add_(0, index, self.row(rows))
        size = rows.new_zeros(len(state)).index_add_(0, index, torch.ones_like(rows[:, 0]))
        features = torch.cat([pooled / size.clamp(min=1.0)[:, None], size.log1p()[:, None], state], 1)
        out = LARGEST * torch.tanh(self.group(features) / LARGEST)
        factors, shifts = out.chunk(2, dim=1)
        return factors, shifts


class Amortised(Grouped):
    """The objective of `amortised`.

    Raises
    ------
    UnsupportedError
        More than one grouping factor, or rows that belong to several groups.
    """

    def __init__(self, *arguments: Any, seed: int = 0, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if len(self.blocks) != 1 or self._members() > 1:
            raise UnsupportedError(
                f"SVI(guide='amortised'): an encoder reads the rows of one group, the program has {len(self.blocks)} "
                "grouping factors, or rows in several groups; use guide='group'."
            )
        self.encoder = Encoder(self.blocks[0].size, seed)

    def _members(self) -> int:
        return max(len(slots.slots) for slots in self.plan.layout.terms)

    def groups(self) -> list[tuple[list[torch.Tensor], float]]:
        return [*super().groups(), (list(self.encoder.parameters()), NETWORK_RATE)]

    def gauges(self) -> list[torch.Tensor]:
        return []  # the encoder learns on

    def tables(self) -> dict[str, torch.Tensor]:
        return {name: table for name, table in super().tables().items() if name.startswith("buffer.")}

    def finish(self, batches: list[np.ndarray] | None, seed: int) -> None:
        for module in self.modules:
            module.eval()

    def state(self) -> dict[str, torch.Tensor]:
        return {f"encoder.{name}": value.detach() for name, value in self.encoder.state_dict().items()}

    def _update(self, passes: list[Pass]) -> None:
        """Nothing is stored."""

    def _locals(self, at: Pass) -> list[LocalPosterior]:
        return [self.encode(at)]

    def encode(self, at: Pass) -> LocalPosterior:
        """The groups' Gaussians from their rows."""
        part, factor = at.parts[0], at.factors[0]
        fixed, eta = factor.detach(), at.eta.detach()
        size = fixed.shape[-1]
        quadratic = fixed.new_zeros(part.count, size, size)
        linear = fixed.new_zeros(part.count, size)
        with torch.no_grad():
            first = None
            for _ in range(UPDATES):
                posterior = site_posterior(quadratic, linear, fixed)
                found = at.rows.moments(eta + part.mean(posterior.mean), part.variance(posterior.factor), ())
                first = found if first is None else first
                quadratic = part.gram(found.weight)
                linear = part.gather(found.score) + torch.einsum("gqr,gr->gq", quadratic, posterior.mean)
            posterior = site_posterior(quadratic, linear, fixed)
            spherical = fixed.mT @ quadratic @ fixed
            diagonal = spherical.diagonal(dim1=-2, dim2=-1)
            b = torch.linalg.solve_triangular(fixed, posterior.mean.mT, upper=False).mT
            state = torch.cat([diagonal.log1p(), b], 1)
            rows = torch.stack([_tame(first.score), first.weight.log1p(), _tame(eta)], 1)
            rows = torch.cat([rows, _tame(part.design[:, 0] @ fixed)], 1)
        factors, shifts = self.encoder(rows, part.index[:, 0], state / self.beta)
        scale = (0.5 * factors).exp()
        corrected = scale[:, :, None] * quadratic * scale[:, None, :] / self.beta
        # the shift acts through the precision of the rows alone, so that a group without rows keeps its prior
        moved = torch.einsum("gqr,gr->gq", corrected, shifts @ fixed.mT)
        return site_posterior(corrected, linear / self.beta + moved, factor)

    def draws(self, count: int, seed: int) -> Draws:
        x = self.guide.draw(normal((count, self.guide.noise_size), seed)).detach()
        generator = torch.Generator().manual_seed((seed + 1) % 2**63)
        levels = self.blocks[0].levels
        with torch.no_grad():
            values = over_draws(lambda at: self.coordinates.values(at["x"])[0], {"x": x}, 1)
            passes = (self._pass(self.args, self.plan.prepared, row) for row in x)
            effects = [self._effects(at, levels, generator) for at in passes]
        return values | {name: torch.stack([u[name] for u in effects]) for name in self.blocks[0].names}

    def _effects(self, at: Pass, levels: int, generator: torch.Generator) -> Draws:
        """One draw of the effects of all levels; those without rows from their prior."""
        posterior = self.encode(at)
        noise = torch.randn(levels, self.blocks[0].size, generator=generator, dtype=torch.float64)
        u = noise @ at.factors[0].mT
        own = at.parts[0].levels % levels if levels else at.parts[0].levels
        u[own] = posterior.mean + torch.einsum("gqr,gr->gq", posterior.factor, noise[own])
        return self.blocks[0].split(u)

    def condition(self) -> Any:
        return self.condition_on

    def condition_on(self, args: tuple[Any, ...], values: Draws, seed: int) -> Draws:
        """Effects of new groups given rows of theirs: `Estimate.condition`."""
        generator = torch.Generator().manual_seed(seed)
        block = self.blocks[0]
        drawn: list[Draws] = []
        draws = len(next(iter(values.values())))
        with torch.no_grad():
            new = self._new_levels(args, {name: value[0] for name, value in values.items()})
            for s in range(draws):
                fixed = {name: value[s] for name, value in values.items() if name not in block.names}
                at = self._at_rows(args, fixed, new)
                drawn.append(self._effects(at, new, generator))
        return {name: torch.stack([one[name] for one in drawn]) for name in block.names}

    def _new_levels(self, args: tuple[Any, ...], values: Draws) -> int:
        """How many new levels the rows hold: as many as it takes for the program to accept their numbers."""
        tries = 1
        while True:
            try:
                return self._count_new(args, values, tries)
            except ValueError:
                if tries > 2**40:
                    raise
                tries *= 2

    def _count_new(self, args: tuple[Any, ...], values: Draws, room: int) -> int:
        fixed = {name: value for name, value in values.items() if name not in self.blocks[0].names}
        record = run(self.program, args, fixed | self._zeros(room))
        return -int(record.latents[self.blocks[0].names[0]].role.rows.index.min())

    def _zeros(self, new: int) -> Draws:
        block = self.blocks[0]
        zero = torch.zeros((), dtype=torch.float64)
        return {n: zero.expand(block.levels + new, w) for n, w in zip(block.names, block.widths, strict=True)}

    def _at_rows(self, args: tuple[Any, ...], fixed: Draws, new: int) -> Pass:
        record = run(self.program, args, fixed | self._zeros(new))
        role = data_of(record)
        block = self.blocks[0]
        part = BlockRows.of(block, record)
        rows = Rows(role, role.family.prepare(role.obs, role.trials))
        empty = torch.zeros(0, dtype=torch.float64)
        return Pass(empty, empty, role.eta, rows, [part], [block.factor(record)], empty, {})


def _tame(x: torch.Tensor) -> torch.Tensor:
    """Features of any size as numbers of ordinary size, signs kept."""
    return x.sign() * x.abs().log1p()
