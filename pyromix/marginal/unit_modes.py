"""Modes of many independent units at many draws of the hyper-parameters, and what follows from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pyromix.errors import NumericalError
from pyromix.linalg.newton import DECREMENT, FLOOR, MAX_HALVINGS, MAX_STEPS, ROUNDING
from pyromix.linalg.quadrature import gauss_hermite

if TYPE_CHECKING:
    from pyromix.marginal.units import Batch, Bucket

FREEDOM = 4.0  # of the t distribution that candidates are drawn from


class Problem:
    """The mode search of a bucket's units at some draws: everything has shape (S, U, ...)."""

    def __init__(self, bucket: Bucket, batch: Batch) -> None:
        self.bucket, self.batch = bucket, batch
        self.family = bucket.owner.role.family
        flat = bucket.rows.reshape(-1)
        self.eta = batch.eta[:, bucket.rows]
        self.dispersion = {
            name: value[:, flat] if value.dim() == 2 else value[:, None] for name, value in batch.dispersion.items()
        }
        self.z = bucket.design(batch)
        with torch.no_grad():
            self.mode, self.value, self.root = self._climb()

    # -- the log joint density ---------------------------------------------------------------------------------------
    def at(self, b: torch.Tensor) -> torch.Tensor:
        """Log joint density of spherical effects b (S, U, m), less its Gaussian constant, (S, U)."""
        eta = self._predictor(b)
        log_prob = self.family.log_prob(
            eta, self.bucket.obs, self.bucket.trials, prepared=self.bucket.prepared, **self.dispersion
        )
        return self._total(log_prob) - 0.5 * b.square().sum(-1)

    def _predictor(self, b: torch.Tensor) -> torch.Tensor:
        moved = (self.z @ b[..., None])[..., 0] if self.bucket.m > 1 else self.z[..., 0] * b
        return (self.eta + moved).reshape(len(b), -1)

    def _rows(self, part: torch.Tensor) -> torch.Tensor:
        """One number a row, weighted, (S, U, R); padding is zero whatever it holds."""
        part = part.expand(len(self.eta), self.bucket.rows.numel()).reshape(self.eta.shape)
        return torch.where(self.bucket.weight != 0, part * self.bucket.weight, torch.zeros_like(part))

    def _total(self, log_prob: torch.Tensor) -> torch.Tensor:
        return self._rows(log_prob).sum(-1)

    def _derivatives(self, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Value (S, U), gradient (S, U, m) and the rows' weights (S, U, R)."""
        bucket = self.bucket
        found = self.family.derivatives(
            self._predictor(b), bucket.obs, bucket.trials, prepared=bucket.prepared, **self.dispersion
        )
        value = self._total(found.log_prob) - 0.5 * b.square().sum(-1)
        gradient = (self._rows(found.score)[..., None, :] @ self.z)[..., 0, :] - b
        return value, gradient, self._rows(found.weight)

    def _curvature(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower factor of ``Z' W Z + I``, and where there is none."""
        inner = (self.z * weight[..., None]).mT @ self.z
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        root, failure = torch.linalg.cholesky_ex(inner)
        return root, (failure != 0) | ~torch.isfinite(root).all(-1).all(-1)

    # -- the mode ----------------------------------------------------------------------------------------------------
    def _climb(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b = torch.zeros(*self.z.shape[:2], self.bucket.m, dtype=torch.float64)
        last = torch.full(b.shape[:2], torch.inf, dtype=torch.float64)
        done = torch.zeros(b.shape[:2], dtype=torch.bool)
        for _ in range(MAX_STEPS):
            value, gradient, weight = self._derivatives(b)
            root, bad = self._curvature(weight)
            if bool((bad & ~done).any()):  # not log-concave there: climb on the curvature's positive part
                upper, _ = self._curvature(weight.clamp(min=0.0))
                root = torch.where((bad & ~done)[..., None, None], upper, root)
            direction = torch.cholesky_solve(gradient[..., None], root)[..., 0]
            decrement = (gradient * direction).sum(-1)
            size = 1 + value.abs()
            close = decrement <= FLOOR * size
            done = (decrement <= DECREMENT * size.sqrt()) | (close & (decrement >= 0.25 * last))
            if bool(done.all()):
                self._check(bad)
                return b, value, root
            last = decrement
            slack = torch.where(close, ROUNDING * size, -1e-4 * decrement)
            b = self._step(b, direction, value, slack, done)
        raise NumericalError(f"the mode of the random effects was not found in {MAX_STEPS} Newton steps.")

    def _step(
        self, b: torch.Tensor, direction: torch.Tensor, value: torch.Tensor, slack: torch.Tensor, done: torch.Tensor
    ) -> torch.Tensor:
        """The full step where it helps, halved where it does not, none where the mode is reached."""
        step = (~done).to(torch.float64)
        for _ in range(MAX_HALVINGS):
            moved = b + step[..., None] * direction
            worse = ~(self.at(moved) >= value - slack * step) & ~done
            if not bool(worse.any()):
                return moved
            step = torch.where(worse, 0.5 * step, step)
        unit = int(self.bucket.units[int(worse.any(0).nonzero()[0])])
        raise NumericalError(f"no step along the Newton direction of unit {unit} helps; its log density has no mode.")

    def _check(self, bad: torch.Tensor) -> None:
        if bool(bad.any()):
            unit = int(self.bucket.units[int(bad.any(0).nonzero()[0])])
            raise NumericalError(f"the curvature of unit {unit} at its mode is not that of a maximum.")

    # -- what follows from it ----------------------------------------------------------------------------------------
    @property
    def volume(self) -> torch.Tensor:
        """``log |R|``, (S, U)."""
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def laplace(self) -> torch.Tensor:
        """Laplace's approximation, (S, U)."""
        return self.value - self.volume

    def quadrature(self, nodes: int) -> torch.Tensor:
        """Adaptive Gauss-Hermite quadrature (see `pyromix.marginal.quadrature`), (S, U)."""
        m = self.bucket.m
        points, weights = gauss_hermite(nodes, m)
        terms = []
        with torch.no_grad():
            for x, log_weight in zip(torch.from_numpy(points), weights, strict=True):
                at = self.mode + math.sqrt(2.0) * self._back(x.expand(self.mode.shape))
                terms.append(self.at(at) + float(log_weight) + float(x @ x))
        return torch.logsumexp(torch.stack(terms), dim=0) - self.volume - 0.5 * m * math.log(math.pi)

    def draw(self, generator: torch.Generator, candidates: int) -> torch.Tensor:
        """Spherical effects given the rows, (S, U, m)."""
        if candidates == 1:
            return self.mode + self._back(_normal(self.mode.shape, generator))
        best = torch.full(self.value.shape, -torch.inf, dtype=torch.float64)
        chosen = self.mode
        with torch.no_grad():
            for _ in range(candidates):
                noise = _normal(self.mode.shape, generator)
                # chi-squared with four degrees of freedom is twice the sum of two exponentials
                spread = -2 * torch.rand(*self.value.shape, 2, generator=generator, dtype=torch.float64).log().sum(-1)
                x = noise * (FREEDOM / spread).sqrt()[..., None]
                b = self.mode + self._back(x)
                density = -0.5 * (FREEDOM + self.bucket.m) * torch.log1p(x.square().sum(-1) / FREEDOM)
                key = torch.nan_to_num(self.at(b) - density, nan=-torch.inf)
                key = key - torch.rand(key.shape, generator=generator, dtype=torch.float64).log().neg().log()
                better = key > best
                best = torch.where(better, key, best)
                chosen = torch.where(better[..., None], b, chosen)
        return chosen

    def _back(self, x: torch.Tensor) -> torch.Tensor:
        """``R^-T x``."""
        return torch.linalg.solve_triangular(self.root.mT, x[..., None], upper=True)[..., 0]


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
