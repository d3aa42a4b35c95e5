"""Stationary autoregressive moving averages over the levels of an effect."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pyromix.covariances.arguments import check_columns, correlation, sd_parameter
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import cholesky
from pyromix.covariances.chains import Chains, in_steps, markov, read_chains
from pyromix.covariances.partial import regressions, remaining
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.linalg.operators import DENSE, AbstractOperator, PrecisionOperator, RootOperator
from pyromix.parameters import Argument, Parameter

HIGHEST = 10  # order
FARTHEST = 1e6  # steps between two levels, each with an autocovariance


class ARMA(Covariance):
    r"""Stationary ARMA(p, q) process over whole steps of time.

    .. math:: u_t = \sum_{i=1}^p \phi_i u_{t-i} + e_t + \sum_{j=1}^q \theta_j e_{t-j}, \qquad
        \Sigma_{st} = sd^2 \frac{\gamma_{|s-t|}}{\gamma_0} \text{ within a series, 0 between series}

    e is white noise, :math:`\gamma` the autocovariances at unit noise; `sd` is the SD of an effect, not of the noise.
    The coefficients are those of partial autocorrelations, each free in (-1, 1), so that the process is stationary and
    its moving average invertible (Monahan 1984; Barndorff-Nielsen and Schou 1973): with :math:`\phi(r)` the
    Durbin-Levinson recursion, :math:`\phi = \phi(r_{ar})` and :math:`\theta = -\phi(-r_{ma})`; of order one they are
    the coefficients themselves. Sampled sites: ``<effect>.pacf_ar`` (p,) and ``<effect>.pacf_ma`` (q,); ``<effect>.ar``
    and ``<effect>.ma`` record :math:`\phi` and :math:`\theta`.

    A level is a time, or a pair (series, time); series are independent. Times are the ``coords`` of the effect, one
    per level, or, where there are none, the labels of its levels. They are whole steps apart; steps may be missing,
    levels may come in any order. Terms of a level are independent, with the same SD.

    Without a moving average and without missing steps the precision has p bands, and costs are linear in the number of
    levels. Otherwise the covariance is factored densely, up to 2000 levels. The autocovariances are exact: the first
    follow from the partial autocorrelations, the rest by the autoregression.

    Signs are those of R's ``arima``, nlme's ``corARMA`` and brms' ``arma()``. Their scale is the SD of the noise
    (``arima``, brms), or of a residual (nlme), as here.

    Parameters
    ----------
    p, q
        Orders, 0 to 10, not both zero.
    time, within
        Where it correlates residuals, ``Gaussian(residual=ARMA(1, 1, time="time", within="Subject"))``: names of the
        columns that say when a row was observed (by default one step after the row before it) and which series it
        belongs to (by default all are one). An effect has levels instead.
    sd
        Standard deviation of every effect, >= 0: a number fixes it, a distribution is its prior; by default
        HalfNormal(scale 10).
    pacf_ar, pacf_ma
        Partial autocorrelations, (p,) and (q,), or one number for all: numbers or priors; by default Uniform(-1, 1)
        each.

    Raises
    ------
    ConfigError
        Orders out of range, a negative SD, a partial autocorrelation outside (-1, 1), a prior that reaches outside.
    StructureError
        Where the effect is used: levels that are no times, times that are not whole steps apart, two levels at one
        time of a series.
    UnsupportedError
        More than 2000 levels, or a million steps, with a moving average or with missing steps.
    NumericalError
        Values so close to a unit root that the correlations are singular to rounding.
    """

    def __init__(
        self,
        p: int = 1,
        q: int = 0,
        sd: Argument = None,
        pacf_ar: Argument = None,
        pacf_ma: Argument = None,
        *,
        time: str | None = None,
        within: str | None = None,
    ) -> None:
        check_columns("ARMA", time=time, within=within)
        for name, order in (("p", p), ("q", q)):
            if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= HIGHEST:
                raise ConfigError(f"ARMA({name}={order!r}): pass an order from 0 to {HIGHEST}.")
        if p == q == 0:
            raise ConfigError("ARMA(p=0, q=0): nothing is correlated; use pyromix.IID().")
        for name, order, given in (("pacf_ar", p, pacf_ar), ("pacf_ma", q, pacf_ma)):
            if not order and given is not None:
                raise ConfigError(f"ARMA({name}={given!r}): the order of that part is zero; leave it out.")
        self.p = p
        self.q = q
        self.sd = sd
        self.pacf_ar = pacf_ar
        self.pacf_ma = pacf_ma
        self.time = time
        self.within = within
        self.parameters(Coords((), ("Intercept",)))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        out = [sd_parameter(self.sd, "ARMA")]
        if self.p:
            out.append(correlation("pacf_ar", self.pacf_ar, "ARMA", shape=(self.p,)))
        if self.q:
            out.append(correlation("pacf_ma", self.pacf_ma, "ARMA", shape=(self.q,)))
        return tuple(out)

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        if "pacf_ar" in theta:
            out["ar"] = regressions(theta["pacf_ar"])[-1]
        if "pacf_ma" in theta:
            out["ma"] = -regressions(-theta["pacf_ma"])[-1]
        return out

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        sd, chains = theta["sd"], in_steps(read_chains(coords, "ARMA"), "ARMA")
        tril = sd * torch.eye(len(coords.terms), dtype=sd.dtype)
        steps = self.steps(theta, chains)
        if steps is not None:
            return PrecisionOperator(markov(chains, *steps), tril)
        if len(chains.order) > DENSE:
            raise UnsupportedError(
                f"ARMA(p={self.p}, q={self.q}): {len(chains.order)} levels would be factored densely, at most {DENSE} "
                "are. Use q=0 with a level for every step, or pyromix.AR1 or pyromix.OU."
            )
        if chains.span > FARTHEST:
            raise UnsupportedError(
                f"ARMA(p={self.p}, q={self.q}): levels lie up to {chains.span:.4g} steps apart, at most {FARTHEST:.4g} "
                "are taken. Use pyromix.AR1 or pyromix.OU."
            )
        none = torch.zeros(0, dtype=sd.dtype)
        ma = self.describe(theta).get("ma", none)
        covariances = autocovariances(theta.get("pacf_ar", none), ma, round(chains.span))
        return RootOperator(_root(covariances / covariances[0], chains), tril)

    def steps(
        self, theta: Mapping[str, torch.Tensor], chains: Chains
    ) -> tuple[list[torch.Tensor], torch.Tensor] | None:
        """Coefficients on the places before each, and what they leave of the variance, in sorted order.

        ``None`` where there is no such recursion: with a moving average, or missing steps.
        """
        if self.q or bool((in_steps(chains, "ARMA").gap != 1).any()):
            return None
        return _steps(theta["pacf_ar"], chains)


def _steps(partial: torch.Tensor, chains: Chains) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Coefficients of every place on those before it, and what they leave of the variance: exact from the start on."""
    p = len(partial)
    known = torch.from_numpy(np.minimum(chains.position, p))  # how many places before it are used
    zeros = partial.new_zeros(p)
    rows = [zeros, *(torch.cat([phi, zeros[len(phi) :]]) for phi in regressions(partial))]
    table = torch.stack(rows)  # (p + 1, p)
    return list(table[known].T), remaining(partial)[known]


def autocovariances(partial: torch.Tensor, ma: torch.Tensor, last: int) -> torch.Tensor:
    r"""Autocovariances :math:`\gamma_0, ..., \gamma_{last}` of an ARMA process with unit noise.

    With :math:`\alpha` those of the autoregression alone and :math:`\theta_0 = 1`,

    .. math:: \gamma_k = \sum_{i=0}^q \sum_{j=0}^q \theta_i \theta_j \alpha_{|k+i-j|}.

    Parameters
    ----------
    partial
        Partial autocorrelations of the autoregression, (p,).
    ma
        :math:`\theta_1, ..., \theta_q`.
    """
    q = len(ma)
    alone = _autoregression(partial, last + q)
    around = torch.cat([alone[1 : q + 1].flip(0), alone])  # at lags -q to last + q
    theta = torch.cat([ma.new_ones(1), ma])
    weights = [(theta[d:] * theta[: q + 1 - d]).sum() for d in range(q + 1)]
    parts = [weights[abs(d)] * around[q + d : q + d + last + 1] for d in range(-q, q + 1)]
    return torch.stack(parts).sum(0)


def _autoregression(partial: torch.Tensor, last: int) -> torch.Tensor:
    r"""Autocovariances at lags 0 to `last` of an autoregression with unit noise.

    From the partial autocorrelations, with :math:`v_k` what prediction from k steps back leaves of the variance,
    :math:`\alpha_k = \sum_{l<k} \phi^{(k-1)}_l \alpha_{k-l} + r_k v_{k-1}`; later ones by the autoregression.
    """
    p, left = len(partial), remaining(partial)
    found, predictors = [1.0 / left[-1]], regressions(partial)
    for k in range(1, p + 1):
        new = partial[k - 1] * left[k - 1] / left[-1]
        if k > 1:
            new = new + (predictors[k - 2] * torch.stack(found[:0:-1])).sum()
        found.append(new)
    start = torch.stack(found)
    if last <= p:
        return start[: last + 1]
    if not p:
        return torch.cat([start, start.new_zeros(last)])
    # state (a_k, ..., a_{k-p+1}); doubling: what `size` steps of the recursion do is one matrix
    step = torch.cat([predictors[-1][None], torch.eye(p, dtype=partial.dtype)[:-1]])
    states = start.flip(0)[:p][None] @ step.T  # the state at lag p + 1
    while len(states) < last - p:
        states = torch.cat([states, states @ _power(step, len(states)).T])
    return torch.cat([start, states[: last - p, 0]])


def _power(step: torch.Tensor, count: int) -> torch.Tensor:
    """``step`` to a power that is one of two's."""
    while count > 1:
        step, count = step @ step, count // 2
    return step


def _root(correlations: torch.Tensor, chains: Chains) -> torch.Tensor:
    """A lower triangular root of the levels' correlations, in the order of the levels."""
    where = np.empty_like(chains.order)
    where[chains.order] = np.arange(len(where))
    time, series = chains.time[where], chains.series[where]
    lag = np.abs(np.round(time[:, None] - time)).astype(np.int64)
    same = series[:, None] == series
    matrix = torch.where(torch.from_numpy(same), correlations[torch.from_numpy(np.where(same, lag, 0))], 0.0)
    return cholesky(matrix, "ARMA", "; partial autocorrelations are too close to one")
