"""What structures with correlated levels share: the terms of a level, and square roots of known matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyromix.covariances.base import Coords, Covariance, terms_of
from pyromix.errors import ConfigError, NumericalError
from pyromix.parameters import Argument, Parameter, parameter


class BetweenLevels(Covariance):
    r"""A covariance of levels times one of the terms of a level, :math:`\Sigma = K \otimes T`.

    T is ``diag(sd^2)``, or that of another structure with independent levels: ``terms=Unstructured()`` correlates the
    intercept and the slopes of a level. The SDs of that structure are those of this one.
    """

    sd: Argument
    terms: Covariance | None

    def _set_terms(self, sd: Argument, terms: Covariance | None) -> None:
        """Keep the arguments of T; refuse bad ones where the user wrote them."""
        name = type(self).__name__
        if terms is not None:
            sd, terms = _without_sd(name, sd, terms)
        self.sd, self.terms = sd, terms
        self._term_parameters(terms_of(sd, f"{name}(sd=...)"))

    def _term_parameters(self, terms: tuple[str, ...]) -> tuple[Parameter, ...]:
        if self.terms is not None:
            return _with_sd(self.terms, self.sd).parameters(Coords((), terms))
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return (parameter("sd", self.sd, constraints.nonnegative, default, (len(terms),), type(self).__name__),)

    def _tril(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        """Lower-triangular root of T, (*batch, terms, terms)."""
        if self.terms is None:
            return torch.diag_embed(theta["sd"])
        block = self.terms.operator(theta, coords).block
        if block is None:
            raise ConfigError(
                f"{type(self).__name__}(terms={self.terms!r}): its levels are not independent; pass a structure of "
                "the terms of one level, e.g. Unstructured()."
            )
        return block

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {} if self.terms is None else self.terms.describe(theta)


def _without_sd(name: str, sd: Argument, terms: Any) -> tuple[Argument, Covariance]:
    """The SDs of both, and the structure of the terms without its own."""
    if not isinstance(terms, Covariance) or not hasattr(terms, "sd"):
        raise ConfigError(f"{name}(terms={terms!r}): pass a structure of the terms of one level, e.g. Unstructured().")
    if terms.sd is None:
        return sd, terms
    if sd is not None:
        raise ConfigError(f"{name}(sd={sd!r}, terms={terms!r}): the SDs are given twice; give one of them.")
    return terms.sd, _with_sd(terms, None)


def _with_sd(terms: Any, sd: Argument) -> Covariance:
    given = {key: value for key, value in vars(terms).items() if not key.startswith("_")}
    return type(terms)(**{**given, "sd": sd})


def semidefinite_root(matrix: torch.Tensor) -> torch.Tensor:
    r"""Lower-triangular R with a non-negative diagonal and :math:`RR^T` = a known positive semidefinite matrix.

    By Cholesky where the matrix is positive definite to working precision; else from its eigenvectors, with the
    pivots that are zero but for rounding set to zero, so that the determinant is exactly zero. No gradient.
    """
    n = len(matrix)
    largest = float(matrix.diagonal().max())
    tolerance = 10 * n * torch.finfo(matrix.dtype).eps
    root, info = torch.linalg.cholesky_ex(matrix)
    if not int(info) and float(root.diagonal().square().min()) > tolerance * largest:
        return root
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.where(values > tolerance * values[-1], values, torch.zeros_like(values))
    upper = torch.linalg.qr((vectors * values.sqrt()).mT, mode="r").R
    pivots = upper.diagonal()
    upper = upper * torch.where(pivots < 0, -1.0, 1.0)[:, None]
    vanishing = upper.diagonal() <= tolerance * float(upper.diagonal().max())
    if bool((values == 0).any()) and not bool(vanishing.any()):  # the determinant must say that it is singular
        vanishing[int(upper.diagonal().argmin())] = True
    upper = upper - torch.diag(torch.where(vanishing, upper.diagonal(), torch.zeros_like(pivots)))
    return upper.mT.contiguous()


def cholesky(matrix: torch.Tensor, where: str, hint: str = "") -> torch.Tensor:
    """Differentiable Cholesky factor (*batch, n, n); `NumericalError` saying how far the matrix is from definite.

    In a traced program, which has no errors, it is NaN there, and so is whatever follows from it.
    """
    root, info = torch.linalg.cholesky_ex(matrix)
    if get_proxy_mode() is not None:
        return torch.where((info != 0)[..., None, None], torch.nan, root)
    if bool((info != 0).any()):
        with torch.no_grad():
            finite = bool(torch.isfinite(matrix).all())
            smallest = f"{float(torch.linalg.eigvalsh(matrix).min()):.3g}" if finite else "not finite"
        raise NumericalError(
            f"{where}: the correlations of its levels are singular (smallest eigenvalue {smallest}){hint}."
        )
    return root
