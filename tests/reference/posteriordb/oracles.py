"""The log densities of the references, row by row in NumPy and SciPy, up to constants.

They are written from the statement of each model alone and share nothing with the programs they are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import integrate, stats

Data = dict[str, Any]
Parameters = dict[str, np.ndarray]


def _normal(y: Any, mean: Any, sd: Any) -> float:
    return float(stats.norm.logpdf(y, mean, sd).sum())


def _rows(data: Data, mean: Callable[..., float], response: Callable[..., float], sigma: float) -> float:
    """Normal log density, with mean and response functions of one row's columns."""
    columns = {name: v for name, v in data.items() if isinstance(v, list)}
    total = 0.0
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        total += _normal(response(row), mean(row), sigma)
    return total


# -- regressions -------------------------------------------------------------------------------------------------------
def earn_height(data: Data, p: Parameters) -> float:
    b = p["beta"]
    return _rows(data, lambda r: b[0] + b[1] * r["height"], lambda r: r["earn"], p["sigma"])


def logearn_interaction(data: Data, p: Parameters) -> float:
    b = p["beta"]

    def mean(r: Data) -> float:
        return b[0] + b[1] * r["height"] + b[2] * r["male"] + b[3] * r["height"] * r["male"]

    return _rows(data, mean, lambda r: np.log(r["earn"]), p["sigma"])


def kidscore_interaction(data: Data, p: Parameters) -> float:
    b = p["beta"]

    def mean(r: Data) -> float:
        return b[0] + b[1] * r["mom_hs"] + b[2] * r["mom_iq"] + b[3] * r["mom_hs"] * r["mom_iq"]

    return _rows(data, mean, lambda r: r["kid_score"], p["sigma"]) + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)


def kidscore_momhsiq(data: Data, p: Parameters) -> float:
    return kidscore_interaction(data, {"beta": np.append(p["beta"], 0.0), "sigma": p["sigma"]})


def logmesquite_logvash(data: Data, p: Parameters) -> float:
    b = p["beta"]

    def mean(r: Data) -> float:
        area = r["diam1"] * r["diam2"]
        size = b[1] * np.log(area * r["canopy_height"]) + b[2] * np.log(area)
        return (
            b[0] + size + b[3] * np.log(r["diam1"] / r["diam2"]) + b[4] * np.log(r["total_height"]) + b[5] * r["group"]
        )

    return _rows(data, mean, lambda r: np.log(r["weight"]), p["sigma"])


def nes(data: Data, p: Parameters) -> float:
    b = p["beta"]

    def mean(r: Data) -> float:
        age = {1: 0.0, 2: b[3], 3: b[4], 4: b[5]}[r["age_discrete"]]
        person = b[6] * r["educ1"] + b[7] * r["gender"] + b[8] * r["income"]
        return b[0] + b[1] * r["real_ideo"] + b[2] * r["race_adj"] + age + person

    return _rows(data, mean, lambda r: r["partyid7"], p["sigma"])


def blr(data: Data, p: Parameters) -> float:
    fit = _normal(data["y"], np.array(data["X"]) @ p["beta"], p["sigma"])
    return fit + _normal(p["beta"], 0, 10) + stats.halfnorm.logpdf(p["sigma"], scale=10)


def kilpisjarvi(data: Data, p: Parameters) -> float:
    prior = _normal(p["alpha"], data["pmualpha"], data["psalpha"]) + _normal(p["beta"], data["pmubeta"], data["psbeta"])
    return prior + _normal(data["y"], p["alpha"] + p["beta"] * np.array(data["x"]), p["sigma"])


# -- hierarchical models -----------------------------------------------------------------------------------------------
def eight_schools(data: Data, p: Parameters) -> float:
    prior = _normal(p["mu"], 0, 5) + stats.halfcauchy.logpdf(p["tau"], scale=5) + _normal(p["z"], 0, 1)
    return prior + _normal(data["y"], p["mu"] + p["tau"] * p["z"], data["sigma"])


def radon(data: Data, p: Parameters) -> float:
    prior = _normal(p["mu_alpha"], 0, 10) + _normal(p["beta"], 0, 10) + _normal(p["alpha_raw"], 0, 1)
    prior += stats.halfnorm.logpdf(p["sigma_alpha"]) + stats.halfnorm.logpdf(p["sigma_y"])
    for y, county, uppm, floor in zip(
        data["log_radon"], data["county_idx"], data["log_uppm"], data["floor_measure"], strict=True
    ):
        alpha = p["mu_alpha"] + p["sigma_alpha"] * p["alpha_raw"][county - 1]
        prior += _normal(y, alpha + p["beta"][0] * uppm + p["beta"][1] * floor, p["sigma_y"])
    return float(prior)


def seeds(data: Data, p: Parameters) -> float:
    alphas = [p[name] for name in ("alpha0", "alpha1", "alpha2", "alpha12")]
    total = _normal(alphas, 0, 1) + stats.halfcauchy.logpdf(p["sigma"]) + _normal(p["c"], 0, p["sigma"])
    for k, c in enumerate(p["c"]):
        x1, x2 = data["x1"][k], data["x2"][k]
        eta = alphas[0] + alphas[1] * x1 + alphas[2] * x2 + alphas[3] * x1 * x2 + c - np.mean(p["c"])
        total += stats.binom.logpmf(data["n"][k], data["N"][k], 1 / (1 + np.exp(-eta)))
    return float(total)


def irt_2pl(data: Data, p: Parameters) -> float:
    total = (
        _normal(p["theta"], 0, p["sigma_theta"]) + _normal(p["b"], p["mu_b"], p["sigma_b"]) + _normal(p["mu_b"], 0, 5)
    )
    total += stats.lognorm.logpdf(p["a"], p["sigma_a"]).sum()
    total += sum(stats.halfcauchy.logpdf(p[f"sigma_{name}"], scale=2) for name in ("theta", "a", "b"))
    for i, answers in enumerate(data["y"]):
        chance = 1 / (1 + np.exp(-p["a"][i] * (p["theta"] - p["b"][i])))
        total += stats.bernoulli.logpmf(answers, chance).sum()
    return float(total)


# -- time series -------------------------------------------------------------------------------------------------------
def autoregression(data: Data, p: Parameters) -> float:
    y, order = data["y"], data["K"]
    total = _normal(p["alpha"], 0, 10) + _normal(p["beta"], 0, 10) + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)
    for t in range(order, len(y)):
        mean = p["alpha"] + sum(p["beta"][k] * y[t - 1 - k] for k in range(order))
        total += _normal(y[t], mean, p["sigma"])
    return float(total)


def arma(data: Data, p: Parameters) -> float:
    y = data["y"]
    errors = [y[0] - (p["mu"] + p["phi"] * p["mu"])]
    for t in range(1, len(y)):
        errors.append(y[t] - (p["mu"] + p["phi"] * y[t - 1] + p["theta"] * errors[-1]))
    prior = (
        _normal(p["mu"], 0, 10) + _normal([p["phi"], p["theta"]], 0, 2) + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)
    )
    return prior + _normal(errors, 0, p["sigma"])


def garch(data: Data, p: Parameters) -> float:
    """Flat inside its bounds."""
    sd, total = data["sigma1"], 0.0
    for t, y in enumerate(data["y"]):
        if t > 0:
            shock = (data["y"][t - 1] - p["mu"]) ** 2
            sd = np.sqrt(p["alpha0"] + p["alpha1"] * shock + p["beta1"] * sd**2)
        total += _normal(y, p["mu"], sd)
    return float(total)


def lotka_volterra(data: Data, p: Parameters) -> float:
    """The equations solved to twelve digits."""
    a, b, c, d = p["theta"]
    solved = integrate.solve_ivp(
        lambda t, z: [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]],
        (0.0, data["ts"][-1]),
        p["z_init"],
        method="DOP853",
        t_eval=data["ts"],
        rtol=1e-12,
        atol=1e-12,
    )
    total = _normal([a, c], 1, 0.5) + _normal([b, d], 0.05, 0.05)
    total += stats.lognorm.logpdf(p["z_init"], 1, scale=10).sum()
    total += stats.lognorm.logpdf(p["sigma"], 1, scale=np.exp(-1)).sum()
    total += stats.lognorm.logpdf(data["y_init"], p["sigma"], scale=p["z_init"]).sum()
    return float(total + stats.lognorm.logpdf(data["y"], p["sigma"], scale=solved.y.T).sum())


# -- Gaussian processes ------------------------------------------------------------------------------------------------
def _covariance(data: Data, p: Parameters) -> np.ndarray:
    return np.array(
        [[p["alpha"] ** 2 * np.exp(-((a - b) ** 2) / (2 * p["rho"] ** 2)) for a in data["x"]] for b in data["x"]]
    )


def _process_prior(p: Parameters) -> float:
    return float(stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + stats.halfnorm.logpdf(p["alpha"], scale=2))


def gp_regr(data: Data, p: Parameters) -> float:
    covariance = _covariance(data, p) + p["sigma"] * np.eye(11)
    fit = stats.multivariate_normal(np.zeros(11), covariance).logpdf(data["y"])
    return float(_process_prior(p) + stats.halfnorm.logpdf(p["sigma"]) + fit)


def gp_pois_regr(data: Data, p: Parameters) -> float:
    f = np.linalg.cholesky(_covariance(data, p) + 1e-10 * np.eye(11)) @ p["f_tilde"]
    return float(_process_prior(p) + _normal(p["f_tilde"], 0, 1) + stats.poisson.logpmf(data["k"], np.exp(f)).sum())
