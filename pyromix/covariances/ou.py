"""Ornstein-Uhlenbeck process: autoregression in continuous time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro.distributions as dist
import torch

from pyromix.covariances.arguments import check_columns, double, rate_parameter, sd_parameter
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.chains import Chains, markov, read_chains
from pyromix.linalg.operators import PrecisionOperator
from pyromix.parameters import Argument, Parameter

SPREAD = 1.5  # of the log rate: 95% of the default prior within a factor of 19 either way


class OU(Covariance):
    r"""Ornstein-Uhlenbeck process: correlations decay exponentially with the time between levels.

    .. math:: \Sigma_{ij} = sd^2 e^{-rate\,|t_i - t_j|} \text{ within a series, 0 between series}

    With levels sorted by series and time, d_i the time since the one before,

    .. math:: u_i = e^{-rate\,d_i} u_{i-1} + e_i, \quad e_i \sim N(0, sd^2 (1 - e^{-2\,rate\,d_i})), \quad
        u_1 \sim N(0, sd^2), \qquad \log|\Sigma| = \sum_i \log sd^2(1 - e^{-2\,rate\,d_i}),

    so the precision is tridiagonal, and costs are linear in the number of levels.

    A level is a time, or a pair (series, time); series are independent. Times are the ``coords`` of the effect, one
    per level, or, where there are none, the labels of its levels: any numbers, in any order. Terms of a level are
    independent, with the same SD.

    It is the exponential covariance with range 1 / rate (nlme's ``corExp``, the Matern covariance of smoothness 1/2),
    and on times one apart `pyromix.AR1` with :math:`\rho = e^{-rate}`. glmmTMB's ``ou`` has these two parameters;
    nlme's ``corCAR1`` has :math:`\phi = e^{-rate}`, for residuals.

    Parameters
    ----------
    time, within
        Where it correlates residuals, ``Gaussian(residual=OU("time", within="Subject"))``: names of the columns that
        say when a row was observed and which series it belongs to (by default all are one). An effect has levels
        instead, and in a formula ``ou(1 | Subject:time)``.
    sd
        Standard deviation of every effect, >= 0, on the scale of the predictor: a number fixes it, a distribution is
        its prior; by default HalfNormal(scale 10).
    rate
        Decay of the correlation per unit of time, > 0: a number or a prior. By default LogNormal with its median at
        3 / span, where the range 1 / rate is a third of the time from the first to the last level of the longest
        series, and SD 1.5 of its logarithm. The prior therefore follows a change of the unit of time.

    Raises
    ------
    ConfigError
        A negative SD, a `rate` that is not positive, a prior that reaches below zero.
    StructureError
        Where the effect is used: levels that are no times, two levels at one time of a series.
    """

    def __init__(
        self, time: str | None = None, within: str | None = None, *, sd: Argument = None, rate: Argument = None
    ) -> None:
        check_columns("OU", time=time, within=within)
        self.time = time
        self.within = within
        self.sd = sd
        self.rate = rate
        self.parameters(Coords((), ("Intercept",)))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        given = self.rate is not None  # then the default's place in time is not needed
        default = _prior(1.0 if given else read_chains(coords, "OU").span)
        return sd_parameter(self.sd, "OU"), rate_parameter("rate", self.rate, "OU", default)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> PrecisionOperator:
        sd, chains = theta["sd"], read_chains(coords, "OU")
        precision = markov(chains, *self.steps(theta, chains))
        return PrecisionOperator(precision, sd * torch.eye(len(coords.terms), dtype=sd.dtype))

    def steps(self, theta: Mapping[str, torch.Tensor], chains: Chains) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Coefficients on the places before each, and what they leave of the variance, in sorted order."""
        linked, moved = torch.from_numpy(chains.linked), theta["rate"] * torch.from_numpy(chains.gap)
        # by expm1, as steps may be tiny
        return [torch.where(linked, torch.exp(-moved), 0.0)], torch.where(linked, -torch.expm1(-2 * moved), 1.0)


def _prior(span: float) -> dist.Distribution:
    return dist.LogNormal(double(math.log(3.0 / (span or 1.0))), double(SPREAD))
