r"""The groups' Gaussians: what is kept of every level of a grouping factor, and how it is brought up to date.

`Sites` keeps for every level a Gaussian stand-in for its likelihood,
:math:`q(u_g \mid x) \propto p(u_g \mid \theta) \exp(h_g(x)^T u_g - \frac12 u_g^T A_g u_g)`, :math:`h_g(x) = h_g +
C_g x`: exact for Gaussian data at given dispersion, whatever the covariance of the effects. Without data it is the
prior at every :math:`\theta`, with much data it does not move with :math:`\theta`, so centred and non-centred
parametrisations are its two ends. `Free` keeps one Gaussian with independent coordinates, the same at every
:math:`\theta`.

Neither is fitted by gradients. At the best Gaussian (Opper & Archambeau 2009)

.. math:: A = E[Z^T W Z], \qquad h = E[Z^T s] + A m,

with score s and weight W of the rows, so a step averages the right-hand side into the left one (a natural-gradient
step, Khan & Lin 2017). Only levels that a batch holds are read or written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch

from pyromix.backends.variational.small import inverse_factor

FORGET = 0.6  # a level's k-th update has weight (1 + k) ** -FORGET: later ones replace earlier ones, and average


class LocalPosterior(NamedTuple):
    """Gaussians of some levels at one x.

    Attributes
    ----------
    mean, factor
        (g, size) and (g, size, size): covariance ``F F'``.
    divergence
        Kullback-Leibler divergence from each level's prior, (g,).
    """

    mean: torch.Tensor
    factor: torch.Tensor
    divergence: torch.Tensor


class Target(NamedTuple):
    """What an update moves to: quadratic (g, q, q), linear (g, q), slope (g, q, k)."""

    quadratic: torch.Tensor
    linear: torch.Tensor
    slope: torch.Tensor


class AbstractLocal(ABC):
    """Tables of a block's levels.

    Attributes
    ----------
    tables
        ``quadratic`` (levels, q, q), ``linear`` (levels, q), ``slope`` (levels, q, k), ``count`` (levels,): updates.
    """

    def __init__(self, levels: int, size: int, slopes: int) -> None:
        self.tables = {
            "quadratic": torch.zeros(levels, size, size, dtype=torch.float64),
            "linear": torch.zeros(levels, size, dtype=torch.float64),
            "slope": torch.zeros(levels, size, slopes, dtype=torch.float64),
            "count": torch.zeros(levels, dtype=torch.float64),
        }

    @abstractmethod
    def posterior(self, levels: torch.Tensor, factor: torch.Tensor, x: torch.Tensor) -> LocalPosterior:
        """The levels' Gaussians.

        Parameters
        ----------
        factor
            Factor of the prior covariance at x, (size, size); gradients flow through it.
        x
            The coordinates that slopes multiply, (k,).
        """

    @abstractmethod
    def target(
        self, gram: torch.Tensor, score: torch.Tensor, slope: torch.Tensor, at: LocalPosterior, factor: torch.Tensor
    ) -> Target:
        """Where the tables should be, from ``E[Z'WZ]``, ``E[Z's]`` and the derivative of the latter in x at fixed u."""

    @abstractmethod
    def draw(self, factor: torch.Tensor, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Effects of all levels at one draw of x, from standard normals (levels, size)."""

    def move(self, levels: torch.Tensor, targets: list[tuple[Target, torch.Tensor]]) -> None:
        """Average the targets, found at several x, into the tables."""
        share = 1 / len(targets)
        quadratic = sum(share * t.quadratic for t, _ in targets)
        linear = sum(share * (t.linear - torch.einsum("gqk,k->gq", t.slope, x)) for t, x in targets)
        slope = sum(share * t.slope for t, _ in targets)
        tables = self.tables
        finite = torch.isfinite(quadratic).flatten(1).all(1) & torch.isfinite(linear).all(1)
        rho = (1 + tables["count"][levels]) ** -FORGET
        for name, new in (("quadratic", quadratic), ("linear", linear), ("slope", slope)):
            weight = rho.reshape(-1, *[1] * (new.dim() - 1))
            old = tables[name][levels]
            moved = old + weight * (new - old)
            tables[name][levels] = torch.where(finite.reshape(weight.shape), moved, old)
        tables["count"][levels] += finite.to(torch.float64)


class Sites(AbstractLocal):
    """Gaussian stand-ins for the likelihood, to be multiplied by the prior at each x."""

    def posterior(self, levels: torch.Tensor, factor: torch.Tensor, x: torch.Tensor) -> LocalPosterior:
        quadratic, linear = self.tables["quadratic"][levels], self._linear(levels, x)
        return site_posterior(quadratic, linear, factor)

    def target(
        self, gram: torch.Tensor, score: torch.Tensor, slope: torch.Tensor, at: LocalPosterior, factor: torch.Tensor
    ) -> Target:
        return Target(gram, score + torch.einsum("gqr,gr->gq", gram, at.mean), slope)

    def draw(self, factor: torch.Tensor, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(len(self.tables["count"]))
        at = self.posterior(levels, factor, x)
        return at.mean + torch.einsum("gqr,gr->gq", at.factor, noise)

    def _linear(self, levels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.tables["linear"][levels] + self.tables["slope"][levels] @ x


def site_posterior(quadratic: torch.Tensor, linear: torch.Tensor, factor: torch.Tensor) -> LocalPosterior:
    r"""Prior times stand-in: with :math:`u = Lb` and :math:`R R^T = I + L^T A L`, :math:`b \sim N(R^{-T} R^{-1} L^T h,
    R^{-T} R^{-1})`; a zero SD is an ordinary value.
    """
    q = factor.shape[-1]
    spherical = factor.mT @ quadratic @ factor + torch.eye(q, dtype=factor.dtype)
    inverse, logdet = inverse_factor(spherical)
    half = torch.einsum("gij,gj->gi", inverse, linear @ factor)
    b = torch.einsum("gji,gj->gi", inverse, half)
    divergence = 0.5 * (inverse.square().sum((-2, -1)) + b.square().sum(-1) - q + logdet)
    return LocalPosterior(b @ factor.mT, factor @ inverse.mT, divergence)


class Free(AbstractLocal):
    """Independent normals that do not depend on the hyper-parameters."""

    def posterior(self, levels: torch.Tensor, factor: torch.Tensor, x: torch.Tensor) -> LocalPosterior:
        q = factor.shape[-1]
        # the prior that the levels start from stands in for data they have not seen yet
        start = torch.linalg.inv(factor.detach() @ factor.detach().mT)
        unseen = (self.tables["count"][levels] == 0).to(torch.float64)
        precision = self.tables["quadratic"][levels] + unseen[:, None, None] * start
        inverse, _ = inverse_factor(precision)
        mean = torch.einsum("gji,gj->gi", inverse, torch.einsum("gij,gj->gi", inverse, self.tables["linear"][levels]))
        sd = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
        whitened = torch.linalg.solve_triangular(factor, torch.diag_embed(sd), upper=False)
        b = torch.linalg.solve_triangular(factor, mean.mT, upper=False).mT
        logdet = 2 * factor.diagonal().abs().log().sum() - 2 * sd.log().sum(-1)
        divergence = 0.5 * (whitened.square().sum((-2, -1)) + b.square().sum(-1) - q + logdet)
        return LocalPosterior(mean, torch.diag_embed(sd), divergence)

    def target(
        self, gram: torch.Tensor, score: torch.Tensor, slope: torch.Tensor, at: LocalPosterior, factor: torch.Tensor
    ) -> Target:
        prior = torch.linalg.inv(factor @ factor.mT)
        linear = score + torch.einsum("gqr,gr->gq", gram, at.mean)
        return Target(gram + prior, linear, torch.zeros_like(slope))

    def draw(self, factor: torch.Tensor, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        at = self.posterior(torch.arange(len(self.tables["count"])), factor, x)
        return at.mean + torch.einsum("gqr,gr->gq", at.factor, noise)


KINDS: Mapping[str, type[AbstractLocal]] = {"group": Sites, "mean_field": Free}
