"""Gaussian guides of one vector: dense, low-rank or independent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

DENSE_LIMIT = 1000  # coordinates that share a dense covariance; further ones are independent
WIDE = 8.0  # coordinates from which on entries of the factor learn more slowly
START = 1.0  # starting SD: the coordinates are about standard normal


class AbstractGaussian(ABC):
    """A Gaussian over a vector (size,), as a function of standard normals.

    Attributes
    ----------
    parameters
        Leaf tensors by name; the optimiser changes them where they stand.
    noise_size
        Standard normals that one draw takes.
    """

    parameters: dict[str, torch.Tensor]
    noise_size: int

    @abstractmethod
    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """x (size,) of noise (noise_size,); or (draws, size) of (draws, noise_size)."""

    @abstractmethod
    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Log density at x (size,), its parameters held fixed: only the path through x carries gradients.

        This is the estimator whose noise vanishes where the guide is the posterior (Roeder, Wu & Duvenaud 2017).
        """

    def rates(self) -> list[tuple[list[torch.Tensor], float]]:
        """Parameters with the factors of their learning rates.

        A draw feels the sum of all entries of a row of the covariance's factor: the more there are, the less each may
        move in a step.
        """
        shared = [value for value in self.parameters.values() if value.dim() == 2]
        own = [value for value in self.parameters.values() if value.dim() == 1]
        return [(own, 1.0), (shared, min(1.0, WIDE / max(self.parameters["loc"].numel(), 1)))]

    @property
    def loc(self) -> torch.Tensor:
        """The mean, (size,)."""
        return self.parameters["loc"]


def _leaf(value: torch.Tensor) -> torch.Tensor:
    return value.clone().requires_grad_(True)


class DenseGaussian(AbstractGaussian):
    """A full covariance of the first `dense` coordinates, independent ones beyond: ``x = m + L e``."""

    def __init__(self, size: int, dense: int | None = None, scale: torch.Tensor | None = None) -> None:
        self.size = self.noise_size = size
        self.dense = min(size, DENSE_LIMIT) if dense is None else dense
        scale = torch.full((size,), START, dtype=torch.float64) if scale is None else scale
        self.parameters = {
            "loc": _leaf(torch.zeros(size, dtype=torch.float64)),
            "log_diagonal": _leaf(scale.log()),
            "below": _leaf(torch.zeros(self.dense, self.dense, dtype=torch.float64)),
        }

    def factor(self) -> torch.Tensor:
        """L of the dense part."""
        diagonal = self.parameters["log_diagonal"][: self.dense].exp()
        # the rows share the scale of their diagonal, so that one learning rate serves wide and narrow coordinates
        return diagonal[:, None] * (self.parameters["below"].tril(-1) + torch.eye(self.dense, dtype=torch.float64))

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        head = noise[..., : self.dense] @ self.factor().mT
        tail = noise[..., self.dense :] * self.parameters["log_diagonal"][self.dense :].exp()
        return self.loc + torch.cat([head, tail], -1)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        factor, diagonal = self.factor().detach(), self.parameters["log_diagonal"].detach()
        step = x - self.loc.detach()
        head = torch.linalg.solve_triangular(factor, step[: self.dense, None], upper=False)
        tail = step[self.dense :] / diagonal[self.dense :].exp()
        square = head.square().sum() + tail.square().sum()
        return -0.5 * square - diagonal.sum() - 0.5 * self.size * math.log(2 * math.pi)


class DiagonalGaussian(DenseGaussian):
    """Independent coordinates."""

    def __init__(self, size: int, scale: torch.Tensor | None = None) -> None:
        super().__init__(size, 0, scale)


class LowRankGaussian(AbstractGaussian):
    """``x = m + s e + F f``: independent noise and `rank` shared directions."""

    def __init__(self, size: int, rank: int, directions: torch.Tensor | None = None) -> None:
        self.size, self.rank = size, min(rank, size)
        self.noise_size = size + self.rank
        # columns that start at zero would have no gradient to tell them apart
        generator = torch.Generator().manual_seed(0)
        spread = torch.randn(size, self.rank, generator=generator, dtype=torch.float64)
        start = 0.1 * spread / math.sqrt(max(size, 1))
        if directions is not None:
            known = min(self.rank, directions.shape[1])
            start[:, :known] = directions[:, :known]
        self.parameters = {
            "loc": _leaf(torch.zeros(size, dtype=torch.float64)),
            "log_diagonal": _leaf(torch.zeros(size, dtype=torch.float64)),
            "directions": _leaf(start),
        }

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        scale = self.parameters["log_diagonal"].exp()
        own, shared = noise[..., : self.size], noise[..., self.size :]
        return self.loc + scale * (own + shared @ self.parameters["directions"].mT)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        log_scale, directions = (self.parameters[k].detach() for k in ("log_diagonal", "directions"))
        step = (x - self.loc.detach()) / log_scale.exp()
        inner = torch.eye(self.rank, dtype=x.dtype) + directions.mT @ directions
        root = torch.linalg.cholesky(inner)
        shared = torch.linalg.solve_triangular(root, (directions.mT @ step)[:, None], upper=False)
        square = step.square().sum() - shared.square().sum()
        logdet = log_scale.sum() + root.diagonal().log().sum()
        return -0.5 * square - logdet - 0.5 * self.size * math.log(2 * math.pi)
