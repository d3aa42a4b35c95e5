"""Correlations between the effects of a level that depend on their distance in the design."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyromix.covariances.arguments import check_columns, correlation, sd_parameter
from pyromix.covariances.base import Coords, Covariance, terms_of
from pyromix.covariances.partial import toeplitz_factor
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter


class Toeplitz(Covariance):
    r"""Effects within a level correlated by their distance in the design; glmmTMB's ``toep`` and ``homtoep``.

    .. math:: u_g \sim N(0, D R D), \quad D = diag(sd), \quad R_{kl} = \rho_{|k-l|}

    Levels are independent. The q - 1 correlations are any for which R is positive definite: they are sampled as
    partial autocorrelations r, each free in (-1, 1) (Barndorff-Nielsen and Schou 1973),

    .. math:: |R| = \prod_{k=1}^{q-1} (1 - r_k^2)^{q-k}

    at site ``<effect>.pacf``; ``<effect>.corr`` records R. Terms are taken in the order of the design, one step apart.
    With one term there is no correlation and only ``<effect>.sd``. :math:`r = (\rho, 0, ..., 0)` is
    ``AR1(over="terms")``.

    Parameters
    ----------
    hom
        One SD for all terms (glmmTMB's ``homtoep``); otherwise one per term (``toep``).
    sd
        Standard deviation, >= 0 (``hom=False``: (terms,), or one number for all): a number fixes it, a distribution is
        its prior; by default HalfNormal(scale 10).
    pacf
        Partial autocorrelations, (q - 1,) or one number for all: numbers or a prior; by default Uniform(-1, 1) each.
    time, within
        Where it correlates residuals, ``Gaussian(residual=Toeplitz(time="week", within="Subject"))``: names of columns
        that say which occasion a row is (by default its place in its series) and which series it belongs to (by
        default all are one). Occasions then are the terms.

    Raises
    ------
    ConfigError
        A negative SD, a partial autocorrelation outside (-1, 1), a prior that reaches outside, or (where the effect is
        used) counts that do not fit the terms.
    """

    def __init__(
        self,
        hom: bool = True,
        sd: Argument = None,
        pacf: Argument = None,
        *,
        time: str | None = None,
        within: str | None = None,
    ) -> None:
        check_columns("Toeplitz", time=time, within=within)
        self.hom = hom
        self.sd = sd
        self.pacf = pacf
        self.time = time
        self.within = within
        self._sd_parameter(len(terms_of(None if hom else sd, "Toeplitz(sd=...)")))
        self._pacf_parameter(1 + len(terms_of(pacf, "Toeplitz(pacf=...)")))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        q = len(coords.terms)
        return (self._sd_parameter(q),) if q == 1 else (self._sd_parameter(q), self._pacf_parameter(q))

    def _sd_parameter(self, q: int) -> Parameter:
        return sd_parameter(self.sd, "Toeplitz", () if self.hom else (q,))

    def _pacf_parameter(self, q: int) -> Parameter:
        return correlation("pacf", self.pacf, "Toeplitz", shape=(q - 1,))

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        sd = theta["sd"]
        scale = sd[..., None, None] if self.hom else sd[..., None]
        factor = torch.eye(1, dtype=sd.dtype) if len(coords.terms) == 1 else toeplitz_factor(theta["pacf"])
        return BlockOperator(scale * factor, len(coords.levels))

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "pacf" not in theta:
            return {}
        factor = toeplitz_factor(theta["pacf"])
        return {"corr": factor @ factor.mT}
