"""Gaussian responses."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.regression import columns_of, residual_structure
from pyromix.errors import ConfigError
from pyromix.families.base import AbstractFamily, Derivatives, Prepared
from pyromix.families.variance import AbstractVariance
from pyromix.parameters import Argument, Parameter, encode, parameter

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(AbstractFamily):
    r"""Gaussian responses, :math:`y_n \sim N(h(\eta_n), \sigma^2)`.

    Parameters
    ----------
    link
        ``"identity"`` or ``"log"``.
    sigma
        Residual SD: a number fixes it, a distribution is its prior; by default HalfNormal(scale 10), or scaled to the
        response by `pyromix.model`.
    residual
        Correlations of the residuals, nlme's ``correlation=``: a structure that names the columns of series and times,
        such as ``AR1("time", within="Subject")``, `pyromix.OU` (``corCAR1``), `pyromix.ARMA`,
        `pyromix.CompoundSymmetry`, `pyromix.Toeplitz` or `pyromix.Unstructured` (``corSymm``). Its parameters are
        sites ``<response>.<parameter>``. Predictions are those of a row by itself; residuals, leave-one-out scores and
        log-likelihoods of rows are given the rows before them in their series.
    variance
        How the residual SD changes, nlme's ``weights=``: `pyromix.VarIdent`, `pyromix.VarPower`, `pyromix.VarExp`.

    With residual SDs :math:`\sigma_n` and correlations C the residuals have covariance
    :math:`diag(\sigma_n)\,C\,diag(\sigma_n)` (Pinheiro and Bates 2000, chapter 5).

    Raises
    ------
    ConfigError
        An unknown link; a `sigma` that is not positive, not scalar, or whose prior reaches below zero; a `residual` or
        `variance` of another kind, or with another link than the identity.
    """

    links = ("identity", "log")
    has_residual = True

    def __init__(
        self, link: str = "identity", sigma: Argument = None, *, residual: Any = None, variance: Any = None
    ) -> None:
        super().__init__(link)
        self.sigma = sigma
        if residual is not None:
            residual_structure(residual, "Gaussian(residual=...)")
        if variance is not None and not isinstance(variance, AbstractVariance):
            raise ConfigError(f"Gaussian(variance={variance!r}): pass VarIdent, VarPower or VarExp of a column.")
        if link != "identity" and (residual is not None or variance is not None):
            raise ConfigError(f"Gaussian(link={link!r}): residual= and variance= need the identity link.")
        self.residual = residual
        self.variance = variance
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        self._parameter = parameter("sigma", sigma, constraints.positive, default, where="Gaussian")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `residual` and `variance` read."""
        residual = () if self.residual is None else columns_of(self.residual)
        return (*residual, *(() if self.variance is None else (self.variance.column,)))

    def parameters(self) -> tuple[Parameter, ...]:
        return (self._parameter,)

    def config(self) -> dict[str, Any]:
        out = {**super().config(), "sigma": encode(self.sigma, "Gaussian(sigma=...)")}
        for key in ("residual", "variance"):
            part = getattr(self, key)
            if part is not None:
                out[key] = part.config()
        return out

    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> dist.Distribution:
        return dist.Normal(self.link.inverse(eta), dispersion["sigma"])

    def weigh(self, dispersion: dict[str, torch.Tensor], precision: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**dispersion, "sigma": dispersion["sigma"] / precision.sqrt()}

    def gaussian_sd(self, **dispersion: torch.Tensor) -> torch.Tensor | None:
        return dispersion["sigma"] if self.link.name == "identity" else None

    def log_prob(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> torch.Tensor:
        sigma = dispersion["sigma"]
        return -0.5 * ((y - self.link.inverse(eta)) / sigma).square() - sigma.log() - HALF_LOG_2PI

    def derivatives(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> Derivatives:
        sigma = dispersion["sigma"]
        precision = sigma**-2
        log_prob = self.log_prob(eta, y, trials, **dispersion)
        if self.link.name == "identity":
            score = (y - eta) * precision
            return Derivatives(log_prob, score, precision.expand_as(score), torch.zeros_like(score))
        mu = eta.exp()
        scaled = mu * precision
        return Derivatives(log_prob, scaled * (y - mu), scaled * (2 * mu - y), scaled * (4 * mu - y))
