"""Time series and an ordinary differential equation, in plain Pyro; recursions are written as loops."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.reference.posteriordb import oracles
from tests.reference.posteriordb.posteriors import Form, Posterior, Tensors, tensor

Data = dict[str, Any]


def _normal(mean: float, sd: float) -> dist.Normal:
    return dist.Normal(tensor(mean), tensor(sd))


def _cauchy(scale: float) -> dist.HalfCauchy:
    return dist.HalfCauchy(tensor(scale))


# -- AR(5) -------------------------------------------------------------------------------------------------------------
def _ar_data(data: Data) -> Tensors:
    y, order = tensor(data["y"]), data["K"]
    return {"y": y[order:], "lags": torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], 1)}


def autoregression(data: Tensors) -> None:
    alpha = pyro.sample("alpha", _normal(0.0, 10.0))
    beta = pyro.sample("beta", _normal(0.0, 10.0).expand([data["lags"].shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", _cauchy(2.5))
    pyro.sample("y", dist.Normal(alpha + data["lags"] @ beta, sigma).to_event(1), obs=data["y"])


# -- ARMA(1, 1) --------------------------------------------------------------------------------------------------------
def _series_data(data: Data) -> Tensors:
    return {name: tensor(data[name]) for name in ("y", "sigma1") if name in data}


def arma(data: Tensors) -> None:
    mu = pyro.sample("mu", _normal(0.0, 10.0))
    phi, theta = (pyro.sample(name, _normal(0.0, 2.0)) for name in ("phi", "theta"))
    sigma = pyro.sample("sigma", _cauchy(2.5))
    y = data["y"].unbind()
    means, error = [mu + phi * mu], y[0] - (mu + phi * mu)
    for t in range(1, len(y)):
        means.append(mu + phi * y[t - 1] + theta * error)
        error = y[t] - means[-1]
    pyro.sample("y", dist.Normal(torch.stack(means), sigma).to_event(1), obs=data["y"])


# -- GARCH(1, 1) -------------------------------------------------------------------------------------------------------
def garch(data: Tensors) -> None:
    """The support of the last parameter depends on the one before it."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(tensor(0.0), tensor(1.0)))
    beta1 = pyro.sample("beta1", dist.ImproperUniform(constraints.interval(tensor(0.0), 1 - alpha1), (), ()))
    variances = [data["sigma1"] ** 2]
    for shock in ((data["y"] - mu) ** 2)[:-1].unbind():
        variances.append(alpha0 + alpha1 * shock + beta1 * variances[-1])
    pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()).to_event(1), obs=data["y"])


# -- predator and prey -------------------------------------------------------------------------------------------------
STEPS = 4  # Runge-Kutta steps a year: the error is below 1e-4 of log populations whose residual SD is 0.25


def _hare_data(data: Data) -> Tensors:
    return {"y": tensor(data["y"]), "y_init": tensor(data["y_init"])}


def populations(theta: torch.Tensor, start: torch.Tensor, years: int, steps: int = STEPS) -> torch.Tensor:
    """Log populations (years, 2) after each year, by the classical fourth-order method on the log scale."""
    rate = torch.stack([theta[0], -theta[2]])
    coupling = torch.stack([-theta[1], theta[3]])
    h = 1 / steps

    def slope(x: torch.Tensor) -> torch.Tensor:
        return rate + coupling * torch.exp(x.flip(-1))

    x, found = torch.log(start), []
    for _ in range(years):
        for _ in range(steps):
            k1 = slope(x)
            k2 = slope(x + h / 2 * k1)
            k3 = slope(x + h / 2 * k2)
            k4 = slope(x + h * k3)
            x = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        found.append(x)
    return torch.stack(found)


def lotka_volterra(data: Tensors) -> None:
    means, sds = tensor([1.0, 0.05, 1.0, 0.05]), tensor([0.5, 0.05, 0.5, 0.05])
    positive = constraints.positive
    theta = pyro.sample("theta", dist.ImproperUniform(positive, (), (4,)))
    pyro.factor("truncated normal prior of theta", dist.Normal(means, sds).log_prob(theta).sum())
    start = pyro.sample("z_init", dist.LogNormal(tensor(10.0).log(), tensor(1.0)).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(tensor(-1.0), tensor(1.0)).expand([2]).to_event(1))
    pyro.sample("y_init", dist.LogNormal(start.log(), sigma).to_event(1), obs=data["y_init"])
    z = populations(theta, start, len(data["y"]))
    with pyro.plate("years", len(data["y"])):
        pyro.sample("y", dist.LogNormal(z, sigma).to_event(1), obs=data["y"])


POSTERIORS = (
    Posterior("arK-arK", oracles.autoregression, {"pyro": Form(autoregression, _ar_data)}),
    Posterior("arma-arma11", oracles.arma, {"pyro": Form(arma, _series_data)}),
    Posterior("garch-garch11", oracles.garch, {"pyro": Form(garch, _series_data)}),
    Posterior("hudson_lynx_hare-lotka_volterra", oracles.lotka_volterra, {"pyro": Form(lotka_volterra, _hare_data)}),
)
