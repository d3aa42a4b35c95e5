r"""ELBO of the joint density of everything, for guides of one vector: any program whose sites are continuous.

Effects enter as :math:`u = \Lambda(\theta) b` with b standard normal where the data say less of a level than its prior
does, and as they are where they say more: the two ends of non-centring. A batch runs the program on its own rows;
their log-likelihood is scaled to all groups, the priors of all levels stay whole, so the cost of a step grows with the
number of levels (`pyromix.backends.variational.grouped` is there for many groups).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyromix.backends.batches import subset
from pyromix.backends.variational.coordinates import Coordinates
from pyromix.backends.variational.gaussian import AbstractGaussian
from pyromix.backends.variational.grouped import NETWORK_RATE
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.results.draws import over_draws
from pyromix.results.estimate import Draws
from pyromix.running import Program, isolated


class _Place(Messenger):
    """Put a piece of a vector at every latent site, and add up the log densities of the pieces."""

    def __init__(self, pieces: Mapping[str, torch.Tensor], coordinates: Coordinates, spherical: frozenset[str]) -> None:
        super().__init__()
        self.pieces, self.spherical = pieces, spherical
        self.transforms = {piece.name: piece.transform for piece in coordinates.pieces}
        self.values: Draws = {}
        self.log_prior = torch.zeros((), dtype=torch.float64)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.pieces:
            return
        z = self.pieces[name]
        if name in self.spherical:
            msg["value"] = msg["fn"].operator.factor(z)
            self.log_prior = (
                self.log_prior + torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(z).sum()
            )
        else:
            transform = self.transforms[name]
            msg["value"] = transform(z)
            self.log_prior = self.log_prior + transform.log_abs_det_jacobian(z, msg["value"]).sum()
        msg["done"] = True
        self.values[name] = msg["value"]


class Joint(AbstractObjective):
    """The objective of `full` and `low_rank`, and of every guide on programs that are not affine.

    Parameters
    ----------
    rows
        Rows of the data, by which the arguments are taken apart.
    spherical
        Random effects that enter through their factor.
    """

    joint = True

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        rows: int,
        coordinates: Coordinates,
        spherical: frozenset[str],
        guide: AbstractGaussian,
        modules: list[torch.nn.Module],
        *,
        beta: float = 1.0,
        pairs: int = 1,
    ) -> None:
        self.program, self.args, self.rows = program, args, rows
        self.coordinates, self.spherical, self.guide = coordinates, spherical, guide
        self.modules, self.beta, self.pairs = modules, beta, pairs

    def groups(self) -> list[tuple[list[torch.Tensor], float]]:
        weights = [w for module in self.modules for w in module.parameters() if w.requires_grad]
        return [*self.guide.rates(), (weights, NETWORK_RATE)]

    def tables(self) -> dict[str, torch.Tensor]:
        return {f"buffer.{k}.{n}": b for k, module in enumerate(self.modules) for n, b in module.named_buffers()}

    def entries(self) -> int:
        return self.coordinates.size

    def step(self, rows: np.ndarray | None, share: float, seed: int) -> float:
        for module in self.modules:
            module.train()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.pairs, self.guide.noise_size, generator=generator, dtype=torch.float64)
        args = self._take(rows)
        total = torch.zeros((), dtype=torch.float64)
        for e in noise:
            for sign in (1.0, -1.0):
                x = self.guide.draw(sign * e)
                log_prior, log_likelihood, _ = self._run(args, x, seed)
                divergence = self.guide.log_density(x) - self.coordinates.log_scale - log_prior
                total = total + (log_likelihood / share - self.beta * divergence) / (2 * len(noise))
        (-total).backward()
        return float(total.detach())

    def _take(self, rows: np.ndarray | None) -> tuple[Any, ...]:
        return self.args if rows is None else subset(self.args, torch.from_numpy(rows), self.rows)

    def _run(
        self, args: tuple[Any, ...], x: torch.Tensor, seed: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, Draws]:
        """Log prior density of z, log-likelihood of the rows, and the sites' values."""
        parts = self.coordinates.vector(x).split(self.coordinates.sizes)
        pieces = {p.name: z.reshape(p.shape) for p, z in zip(self.coordinates.pieces, parts, strict=True)}
        place = _Place(pieces, self.coordinates, self.spherical)
        with isolated(), torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            with poutine.trace() as tracer, place:
                self.program(*args)
            trace = tracer.trace
            trace.compute_log_prob(lambda name, site: name not in self.spherical)
        log_prior, log_likelihood = place.log_prior, torch.zeros((), dtype=torch.float64)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or name in self.spherical or "log_prob_sum" not in site:
                continue
            if name in pieces:
                log_prior = log_prior + site["log_prob_sum"]
            elif site["is_observed"]:
                log_likelihood = log_likelihood + site["log_prob_sum"]
        return log_prior, log_likelihood, place.values

    def finish(self, batches: list[np.ndarray] | None, seed: int) -> None:
        for module in self.modules:
            module.eval()

    def log_weights(self, batches: list[np.ndarray] | None, draws: int, seed: int) -> np.ndarray:
        x = self._draw(draws, seed)
        total = torch.zeros(draws, dtype=torch.float64)
        with torch.no_grad():
            for rows in batches or [None]:
                args = self._take(rows)

                def one(at: Draws, args: tuple[Any, ...] = args) -> Draws:
                    log_prior, log_likelihood, _ = self._run(args, at["x"], seed)
                    return {"log_prior": log_prior, "log_likelihood": log_likelihood}

                found = over_draws(one, {"x": x}, self.rows if rows is None else len(rows))
                total = total + found["log_likelihood"]
            divergence = torch.stack([self.guide.log_density(row) for row in x])
            divergence = divergence - self.coordinates.log_scale - found["log_prior"]
        return (total - self.beta * divergence).numpy()

    def _draw(self, count: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, self.guide.noise_size, generator=generator, dtype=torch.float64)
        return self.guide.draw(noise).detach()

    def draws(self, count: int, seed: int) -> Draws:
        with torch.no_grad():
            return over_draws(
                lambda at: self._run(self.args, at["x"], seed)[2], {"x": self._draw(count, seed)}, self.rows
            )

    def held_out(self, rows: np.ndarray) -> float:
        """Log-likelihood of the rows with everything at the guide's centre."""
        with torch.no_grad():
            return float(self._run(self._take(rows), self.guide.loc.detach(), 0)[1])
