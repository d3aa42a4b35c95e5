"""First-order autoregression over the levels of an effect, or over its terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyromix.covariances.arguments import check_columns, correlation, sd_parameter
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.chains import Chains, in_steps, markov, read_chains
from pyromix.errors import ConfigError
from pyromix.linalg.operators import AbstractOperator, BlockOperator, PrecisionOperator
from pyromix.parameters import Argument, Parameter


class AR1(Covariance):
    r"""First-order autoregression: levels k steps apart are correlated by :math:`\rho^k`.

    .. math:: \Sigma_{ij} = sd^2 \rho^{|t_i - t_j|} \text{ within a series, 0 between series}

    With levels sorted by series and time, k_i the steps since the one before,

    .. math:: u_i = \rho^{k_i} u_{i-1} + e_i, \quad e_i \sim N(0, sd^2 (1 - \rho^{2k_i})), \quad
        u_1 \sim N(0, sd^2), \qquad \log|\Sigma| = \sum_i \log sd^2(1 - \rho^{2 k_i}),

    so the precision is tridiagonal, and costs are linear in the number of levels.

    A level is a time, or a pair (series, time); series are independent. Times are the ``coords`` of the effect, one
    per level, or, where there are none, the labels of its levels. They are whole steps apart; steps may be missing,
    levels may come in any order. Terms of a level (an intercept and a slope) are independent, with the same SD.

    With ``over="terms"`` it is the terms of a level that follow each other, one step apart in the order of the design,
    and levels are independent: glmmTMB's ``ar1(0 + factor(time) | g)``.

    Against others: glmmTMB's ``ar1`` has these two parameters, `sd` being the SD of an effect, not of an innovation.
    nlme's ``corAR1`` correlates residuals: with SD sigma, it is this effect with a level per row and no residual of its
    own. brms' ``ar(p = 1)`` has the innovation's SD, :math:`sd\sqrt{1-\rho^2}`.

    Parameters
    ----------
    time, within
        Where it correlates residuals, ``Gaussian(residual=AR1("time", within="Subject"))``: names of the columns that
        say when a row was observed (by default one step after the row before it) and which series it belongs to (by
        default all are one). An effect has levels instead, and in a formula ``ar1(1 | Subject:time)``.
    sd
        Standard deviation of every effect, >= 0, on the scale of the predictor: a number fixes it, a distribution is
        its prior; by default HalfNormal(scale 10).
    rho
        Correlation of neighbours, in (-1, 1): a number or a prior; by default Uniform(-1, 1).
    over
        ``"levels"`` or ``"terms"``.

    Raises
    ------
    ConfigError
        A negative SD, a `rho` outside (-1, 1), a prior that reaches outside, another `over`.
    StructureError
        Where the effect is used: levels that are no times, times that are not whole steps apart, two levels at one
        time of a series.
    """

    def __init__(
        self,
        time: str | None = None,
        within: str | None = None,
        *,
        sd: Argument = None,
        rho: Argument = None,
        over: str = "levels",
    ) -> None:
        check_columns("AR1", time=time, within=within)
        if over not in ("levels", "terms"):
            raise ConfigError(f'AR1(over={over!r}): choose "levels" or "terms".')
        self.time = time
        self.within = within
        self.sd = sd
        self.rho = rho
        self.over = over
        self.parameters(Coords((), ("Intercept",)))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return sd_parameter(self.sd, "AR1"), correlation("rho", self.rho, "AR1")

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        sd, rho, q = theta["sd"], theta["rho"], len(coords.terms)
        if self.over == "terms":
            return BlockOperator(sd[..., None, None] * _factor(rho, q), len(coords.levels))
        chains = read_chains(coords, "AR1")
        return PrecisionOperator(markov(chains, *self.steps(theta, chains)), sd * torch.eye(q, dtype=sd.dtype))

    def steps(self, theta: Mapping[str, torch.Tensor], chains: Chains) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Coefficients on the places before each, and what they leave of the variance, in sorted order."""
        chains = in_steps(chains, "AR1")
        linked, gap = torch.from_numpy(chains.linked), torch.from_numpy(chains.gap)
        decay = torch.where(linked, theta["rho"].expand(gap.shape) ** gap, 0.0)
        return [decay], 1 - decay**2


def _factor(rho: torch.Tensor, q: int) -> torch.Tensor:
    """Cholesky factor (*batch, q, q) of the correlations: innovations, each carried on by the powers of rho."""
    at = torch.arange(q, dtype=rho.dtype)
    powers = rho[..., None, None] ** (at[:, None] - at).clamp(min=0)
    rest = (1 - rho**2).sqrt()[..., None].expand(*rho.shape, q)
    scale = torch.where(at == 0, 1.0, rest)
    return (powers * scale[..., None, :]).tril()
