"""Expected log-likelihoods of rows whose predictor is Gaussian, and what they move with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from pyromix.linalg.quadrature import gauss_hermite
from pyromix.sites import Data

NODES = 9
GAUSSIAN_NODES = 2  # a log density that is quadratic in the predictor needs no more
TINY = 1e-30  # added to a variance: the square root of zero has no derivative


@lru_cache
def _rule(nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights (nodes, 1) for the expectation under a standard normal."""
    x, log_weight = gauss_hermite(nodes)
    return torch.from_numpy(math.sqrt(2) * x), torch.from_numpy(log_weight).exp()[:, None] / math.sqrt(math.pi)


class RowMoments(NamedTuple):
    """Expected score and weight of each row, (n,), and the score's derivative in each dispersion, by name."""

    score: torch.Tensor
    weight: torch.Tensor
    by_dispersion: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """The response at some rows: log density at a Gaussian predictor, integrated over it by quadrature.

    Attributes
    ----------
    role
        The observation at one run of the program.
    prepared
        What the family computed of these rows' responses.
    """

    role: Data
    prepared: Any

    @property
    def count(self) -> torch.Tensor | None:
        """How often each row counts, (n,); ``None`` for once."""
        weight, mask = self.role.weights, self.role.mask
        if mask is None:
            return weight
        return mask.to(torch.float64) if weight is None else weight * mask

    def _nodes(self) -> tuple[torch.Tensor, torch.Tensor]:
        gaussian = self.role.family.gaussian_sd(**self.role.dispersion) is not None
        return _rule(GAUSSIAN_NODES if gaussian else NODES)

    def expected(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``E[log p(y_n | eta_n)]`` with ``eta_n ~ N(mean, variance)``, summed over rows; differentiable."""
        x, weight = self._nodes()
        eta = mean + x * (variance + TINY).sqrt()
        role = self.role
        value = role.family.log_prob(eta, role.obs, role.trials, prepared=self.prepared, **role.dispersion)
        rows = (weight * value).sum(0)
        return self._counted(rows).sum()

    def moments(self, mean: torch.Tensor, variance: torch.Tensor, moving: tuple[str, ...]) -> RowMoments:
        """Expected derivatives; `moving` names the dispersions whose effect on the score is wanted."""
        x, weight = self._nodes()
        eta = mean + x * (variance + TINY).sqrt()
        dispersion = {name: value.detach() for name, value in self.role.dispersion.items()}
        by_dispersion: dict[str, torch.Tensor] = {}
        with torch.enable_grad():
            for name in moving:
                dispersion[name] = dispersion[name].expand(len(mean)).clone().requires_grad_(True)
            role = self.role
            found = role.family.derivatives(eta, role.obs, role.trials, prepared=self.prepared, **dispersion)
            score = (weight * found.score).sum(0)
            for name in moving:
                (slope,) = torch.autograd.grad(score.sum(), dispersion[name], retain_graph=True, allow_unused=True)
                by_dispersion[name] = self._counted(torch.zeros_like(mean) if slope is None else slope)
        # a response that is not log-concave may curve the other way in places; the Gaussians stay proper
        curvature = (weight * found.weight.detach()).sum(0).clamp(min=0.0)
        return RowMoments(self._counted(score.detach()), self._counted(curvature), by_dispersion)

    def _counted(self, rows: torch.Tensor) -> torch.Tensor:
        count = self.count
        if count is None:
            return rows
        return torch.where(count != 0, rows * count, torch.zeros_like(rows))  # what does not count may be NaN
