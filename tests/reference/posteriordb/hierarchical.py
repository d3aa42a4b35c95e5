"""Hierarchical models: with their effects written out in plain Pyro, and as pyromix's random effects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyromix as pmx
from tests.reference.posteriordb import oracles
from tests.reference.posteriordb.posteriors import Arrays, Form, Posterior, Tensors, tensor

Data = dict[str, Any]


def _normal(sd: float) -> dist.Normal:
    return dist.Normal(tensor(0.0), tensor(sd))


# -- eight schools -----------------------------------------------------------------------------------------------------
def _schools_data(data: Data) -> Tensors:
    return {"y": tensor(data["y"]), "sd": tensor(data["sigma"])}


def schools(data: Tensors) -> None:
    mu = pyro.sample("mu", _normal(5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(tensor(5.0)))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", _normal(1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, data["sd"]), obs=data["y"])


def schools_effects(data: Tensors) -> None:
    mu = pmx.LinearEffect("mu", prior=_normal(5.0))(torch.ones(8, 1, dtype=torch.float64))
    school = pmx.RandomEffect("school", pmx.IID(sd=dist.HalfCauchy(tensor(5.0))), levels=8)(torch.arange(8))
    pmx.observe("y", pmx.Gaussian(), mu + school, data["y"], sigma=data["sd"])


def _schools_point(near: Arrays, rng: np.random.Generator) -> Arrays:
    return {"mu": near["mu"], "tau": near["tau"], "z": (near["theta"] - near["mu"]) / near["tau"]}


def _schools_sites(p: Arrays) -> Arrays:
    return {"mu": p["mu"][None], "school.sd": p["tau"], "school": (p["tau"] * p["z"])[:, None]}


SCHOOLS = Posterior(
    "eight_schools-eight_schools_noncentered",
    oracles.eight_schools,
    {
        "pyro": Form(
            schools,
            _schools_data,
            derive=lambda d: {"mu": d["mu"], "tau": d["tau"], "theta": d["mu"][:, None] + d["tau"][:, None] * d["z"]},
        ),
        "pyromix": Form(
            schools_effects,
            _schools_data,
            _schools_sites,
            lambda p: 8 * float(np.log(p["tau"])),
            lambda d: {"mu": d["mu"][:, 0], "tau": d["school.sd"], "theta": d["mu"] + d["school"][..., 0]},
            ("Exact", "Laplace"),
        ),
    },
    _schools_point,
)


# -- radon -------------------------------------------------------------------------------------------------------------
def _radon_data(data: Data) -> Tensors:
    return {
        "y": tensor(data["log_radon"]),
        "uppm": tensor(data["log_uppm"]),
        "floor": tensor(data["floor_measure"]),
        "county": torch.as_tensor(data["county_idx"]) - 1,
    }


def radon(data: Tensors) -> None:
    mu = pyro.sample("mu_alpha", _normal(10.0))
    sd = pyro.sample("sigma_alpha", dist.HalfNormal(tensor(1.0)))
    beta = pyro.sample("beta", _normal(10.0).expand([2]).to_event(1))
    residual = pyro.sample("sigma_y", dist.HalfNormal(tensor(1.0)))
    with pyro.plate("counties", 85):
        raw = pyro.sample("alpha_raw", _normal(1.0))
    eta = (mu + sd * raw)[data["county"]] + beta[0] * data["uppm"] + beta[1] * data["floor"]
    with pyro.plate("houses", len(data["y"])):
        pyro.sample("y", dist.Normal(eta, residual), obs=data["y"])


def radon_effects(data: Tensors) -> None:
    x = torch.stack([torch.ones_like(data["y"]), data["uppm"], data["floor"]], 1)
    eta = pmx.LinearEffect("beta", prior=_normal(10.0))(x)
    eta = eta + pmx.RandomEffect("county", pmx.IID(sd=dist.HalfNormal(tensor(1.0))), levels=85)(data["county"])
    pmx.observe("y", pmx.Gaussian(sigma=dist.HalfNormal(tensor(1.0))), eta, data["y"])


def _radon_quantities(
    mu: np.ndarray, beta: np.ndarray, sd: np.ndarray, raw: np.ndarray, residual: np.ndarray
) -> Arrays:
    alpha = mu[:, None] + sd[:, None] * raw
    return {"mu_alpha": mu, "beta": beta, "sigma_alpha": sd, "alpha_raw": raw, "alpha": alpha, "sigma_y": residual}


def _radon_point(near: Arrays, rng: np.random.Generator) -> Arrays:
    return {name: near[name] for name in ("mu_alpha", "beta", "sigma_alpha", "alpha_raw", "sigma_y")}


def _radon_sites(p: Arrays) -> Arrays:
    return {
        "beta": np.concatenate([p["mu_alpha"][None], p["beta"]]),
        "county.sd": p["sigma_alpha"],
        "county": (p["sigma_alpha"] * p["alpha_raw"])[:, None],
        "y.sigma": p["sigma_y"],
    }


RADON = Posterior(
    "radon_mn-radon_hierarchical_intercept_noncentered",
    oracles.radon,
    {
        "pyro": Form(
            radon,
            _radon_data,
            derive=lambda d: _radon_quantities(
                d["mu_alpha"], d["beta"], d["sigma_alpha"], d["alpha_raw"], d["sigma_y"]
            ),
        ),
        "pyromix": Form(
            radon_effects,
            _radon_data,
            _radon_sites,
            lambda p: 85 * float(np.log(p["sigma_alpha"])),
            lambda d: _radon_quantities(
                d["beta"][:, 0],
                d["beta"][:, 1:],
                d["county.sd"],
                d["county"][..., 0] / d["county.sd"][:, None],
                d["y.sigma"],
            ),
            ("Exact", "Laplace"),
        ),
    },
    _radon_point,
)


# -- seeds -------------------------------------------------------------------------------------------------------------
ALPHAS = ("alpha0", "alpha1", "alpha2", "alpha12")


def _seeds_data(data: Data) -> Tensors:
    x1, x2 = tensor(data["x1"]), tensor(data["x2"])
    x = torch.stack([torch.ones_like(x1), x1, x2, x1 * x2], 1)
    return {"y": tensor(data["n"]), "trials": tensor(data["N"]), "x": x}


def seeds(data: Tensors) -> None:
    alpha = torch.stack([pyro.sample(name, _normal(1.0)) for name in ALPHAS])
    sigma = pyro.sample("sigma", dist.HalfCauchy(tensor(1.0)))
    plates = pyro.plate("plates", 21)
    with plates:
        c = pyro.sample("c", dist.Normal(tensor(0.0), sigma))
    logits = data["x"] @ alpha + c - c.mean()
    with plates:
        pyro.sample("y", dist.Binomial(data["trials"], logits=logits), obs=data["y"])


def seeds_effects(data: Tensors) -> None:
    """Every row belongs to all levels: to its own with weight 20/21, to the others with -1/21."""
    eta = pmx.LinearEffect("alpha", prior=_normal(1.0))(data["x"])
    everyone = torch.arange(21).expand(21, 21)
    centring = torch.eye(21, dtype=torch.float64) - 1 / 21
    effect = pmx.RandomEffect("c", pmx.IID(sd=dist.HalfCauchy(tensor(1.0))), levels=21)
    pmx.observe("y", pmx.Binomial(), eta + effect(everyone, weight=centring), data["y"], trials=data["trials"])


def _centred(c: np.ndarray) -> np.ndarray:
    return c - c.mean(-1, keepdims=True)


def _seeds_point(near: Arrays, rng: np.random.Generator) -> Arrays:
    return {name: near[name] for name in (*ALPHAS, "sigma", "c")}


def _seeds_sites(p: Arrays) -> Arrays:
    return {"alpha": np.array([p[name] for name in ALPHAS]), "c.sd": p["sigma"], "c": p["c"][:, None]}


def _seeds_derived(d: Arrays) -> Arrays:
    c = d["c"][..., 0]
    alphas = {name: d["alpha"][:, k] for k, name in enumerate(ALPHAS)}
    return {**alphas, "sigma": d["c.sd"], "c": c, "b": _centred(c)}


SEEDS = Posterior(
    "seeds_data-seeds_centered_model",
    oracles.seeds,
    {
        "pyro": Form(seeds, _seeds_data, derive=lambda d: {**d, "b": _centred(d["c"])}),
        "pyromix": Form(seeds_effects, _seeds_data, _seeds_sites, derive=_seeds_derived, marginals=("Laplace",)),
    },
    _seeds_point,
)


# -- item response -----------------------------------------------------------------------------------------------------
def _irt_data(data: Data) -> Tensors:
    return {"y": tensor(data["y"])}


def irt(data: Tensors) -> None:
    items, persons = data["y"].shape
    cauchy = dist.HalfCauchy(tensor(2.0))
    sd_theta, sd_a, sd_b = (pyro.sample(f"sigma_{name}", cauchy) for name in ("theta", "a", "b"))
    mu_b = pyro.sample("mu_b", _normal(5.0))
    with pyro.plate("persons", persons, dim=-1) as person:
        theta = pyro.sample("theta", dist.Normal(tensor(0.0), sd_theta))
    with pyro.plate("items", items, dim=-1):
        a = pyro.sample("a", dist.LogNormal(tensor(0.0), sd_a))
        b = pyro.sample("b", dist.Normal(mu_b, sd_b))
    with pyro.plate("answers of", items, dim=-2), pyro.plate("answers", len(person), dim=-1):
        logits = a[:, None] * (theta - b[:, None])
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=data["y"])


IRT = Posterior("irt_2pl-irt_2pl", oracles.irt_2pl, {"pyro": Form(irt, _irt_data)})

POSTERIORS = (SCHOOLS, RADON, SEEDS, IRT)
