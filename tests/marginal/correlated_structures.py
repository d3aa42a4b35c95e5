"""One correlation between levels, :math:`\\rho^{|i-j|}`, written in the three ways an operator can have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances import Coords, Covariance
from pyromix.linalg.operators import AbstractOperator, Precision, PrecisionOperator, RootOperator
from pyromix.parameters import Parameter, parameter


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Decaying(Covariance):
    """SD `sd`; levels apart by k are correlated by ``rho^k``, the terms of a level by 0.4 and more."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        uniform = dist.Uniform(number(-1.0), number(1.0))
        return (
            parameter("sd", None, constraints.nonnegative, dist.HalfNormal(number(1.0))),
            parameter("rho", None, constraints.interval(-1.0, 1.0), uniform),
        )

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        levels, terms = len(coords.levels), len(coords.terms)
        below = torch.tril(torch.ones(terms, terms, dtype=torch.float64), -1)
        tril = theta["sd"] * (torch.eye(terms, dtype=torch.float64) + 0.4 * below)
        if self.kind == "precision":
            return PrecisionOperator(_precision(theta["rho"], levels), tril)
        root = torch.linalg.cholesky(_correlation(theta["rho"], levels))
        return RootOperator(root, tril) if self.kind == "root" else Whole(root, tril)


class Whole(AbstractOperator):
    """No more than an operator must define."""

    def __init__(self, root: torch.Tensor, tril: torch.Tensor) -> None:
        self.levels, self.terms = len(root), len(tril)
        self.matrix = torch.kron(root.contiguous(), tril.contiguous())

    @property
    def shape(self) -> tuple[int, int]:
        return self.levels, self.terms

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return (b.reshape(*b.shape[:-2], -1) @ self.matrix.mT).reshape(b.shape)

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        flat = u.reshape(*u.shape[:-2], -1, 1)
        return torch.linalg.solve_triangular(self.matrix, flat, upper=False).reshape(u.shape)

    def logdet_factor(self) -> torch.Tensor:
        return self.matrix.diagonal().abs().log().sum()


def _correlation(rho: torch.Tensor, levels: int) -> torch.Tensor:
    at = torch.arange(levels, dtype=torch.float64)
    return rho ** (at[:, None] - at).abs()


def _precision(rho: torch.Tensor, levels: int) -> Precision:
    """Tridiagonal: what is left of each level given the one before has variance ``1 - rho^2``."""
    scale = 1 / (1 - rho**2)
    middle = ((1 + rho**2) * scale).expand(levels - 2)
    values = torch.cat([scale[None], middle, scale[None], (-rho * scale).expand(levels - 1)])
    at = np.arange(levels)
    rows, cols = np.concatenate([at, at[1:]]), np.concatenate([at, at[:-1]])
    return Precision(levels, rows, cols, values, -(levels - 1) * torch.log(1 - rho**2))
