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
    """SD `sd`; levels whose labels are apart by k are correlated by ``rho^k``, the terms of a level by 0.4 and more."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        uniform = dist.Uniform(number(-1.0), number(1.0))
        return (
            parameter("sd", None, constraints.nonnegative, dist.HalfNormal(number(1.0))),
            parameter("rho", None, constraints.interval(-1.0, 1.0), uniform),
        )

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        terms = len(coords.terms)
        at = torch.tensor([float(label) for label in coords.levels], dtype=torch.float64)
        below = torch.tril(torch.ones(terms, terms, dtype=torch.float64), -1)
        tril = theta["sd"] * (torch.eye(terms, dtype=torch.float64) + 0.4 * below)
        if self.kind == "precision":
            return PrecisionOperator(_precision(theta["rho"], at), tril)
        root = torch.linalg.cholesky(_correlation(theta["rho"], at))
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


def _correlation(rho: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return rho ** (at[:, None] - at).abs()


def _precision(rho: torch.Tensor, at: torch.Tensor) -> Precision:
    """Of a Markov chain at ascending levels one apart: tridiagonal; else whatever the inverse is."""
    inverse = torch.linalg.inv(_correlation(rho, at))
    rows, cols = np.tril_indices(len(at))
    if bool((at.diff() == 1).all()):
        near = rows - cols < 2
        rows, cols = rows[near], cols[near]
    return Precision(len(at), rows, cols, inverse[rows, cols], torch.logdet(inverse))
