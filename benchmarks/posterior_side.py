"""pyromix's half of a posterior benchmark: ``python -m benchmarks.posterior_side TARGET METHOD`` in its own process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.posteriors import CORRECTED, EXACT, LAPLACE, NESTED_QUADRATURE, QUADRATURE

Target = dict[str, Any]
Fitter = Callable[[Any], Any]  # a backend -> its Fit
NODES = 25
FAMILIES = {"binomial": "Binomial", "poisson": "Poisson", "gaussian": "Gaussian"}


def backend(method: str, target: Target) -> Any:
    """The backend of a method, with the target's draws, chains and cores; nested Laplace makes one set of as many."""
    import pyromix as pmx

    if method.startswith("NestedLaplace"):
        options: dict[str, dict[str, Any]] = {
            NESTED_QUADRATURE: {"marginal": pmx.GaussHermite(NODES)},
            CORRECTED: {"correct": 20},
        }
        draws = target["draws"] * target["chains"]
        return pmx.NestedLaplace(draws=draws, cores=target["cores"], **options.get(method, {}))
    marginals = {LAPLACE: pmx.Laplace(), EXACT: pmx.Exact(), QUADRATURE: pmx.GaussHermite(NODES)}
    chains = {key: target[key] for key in ("draws", "tune", "chains", "cores")}
    return pmx.NUTS(**chains, marginal=marginals.get(method))


def mixed(target: Target) -> Fitter:
    """A formula's model, made within the timed part as a peer's is."""
    df = _frame(target)
    return lambda chosen: mixed_model(target, df).fit(chosen, seed=target["seed"], progress=False)


def mixed_model(target: Target, df: Any = None) -> Any:
    import pyromix as pmx

    family = getattr(pmx, FAMILIES[target["family"]])()
    return pmx.model(target["formula"], _frame(target) if df is None else df, family, priors=_priors(target))


def _frame(target: Target) -> Any:
    import pandas as pd

    groups = {name: pd.Categorical(index) for name, index in target["groups"].items()}
    return pd.DataFrame({"y": target["y"], **target["columns"], **groups})


def _priors(target: Target) -> dict[str, Any]:
    import pyro.distributions as dist

    prior, count = target["prior"], len(target["columns"])
    scale = torch.tensor([prior["intercept"], *[prior["slope"]] * count], dtype=torch.float64)
    size = torch.tensor(prior["sd"], dtype=torch.float64)
    sd = dist.Exponential(1 / size) if prior["sd_family"] == "exponential" else dist.HalfNormal(size)
    priors = {"beta": dist.Normal(torch.zeros_like(scale), scale), **{f"{name}.sd": sd for name in target["groups"]}}
    if prior["sigma"] is not None:
        priors["y.sigma"] = dist.HalfNormal(torch.tensor(prior["sigma"], dtype=torch.float64))
    return priors


def schools(target: Target) -> Fitter:
    import pyro.distributions as dist

    import pyromix as pmx

    number = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    data = {"y": number(target["y"]), "s": number(target["s"])}
    mean = pmx.LinearEffect("mu", prior=dist.Normal(number(0.0), number(5.0)))
    effect = pmx.RandomEffect("school", pmx.IID(sd=dist.HalfCauchy(number(5.0))), levels=len(target["y"]))

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = mean(torch.ones(len(data["s"]), 1, dtype=torch.float64)) + effect(torch.arange(len(data["s"])))
        pmx.observe("y", pmx.Gaussian(), eta, data["y"], sigma=data["s"])

    return lambda chosen: pmx.fit(program, data, chosen, seed=target["seed"], progress=False)


def network(target: Target) -> Fitter:
    import pyro.distributions as dist

    import pyromix as pmx

    data = {key: torch.tensor(target[key], dtype=torch.float64) for key in ("x", "y")}
    unit = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    sigma = dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64))
    mean = pmx.NeuralEffect("mean", _module(target), prior=unit)

    def program(data: dict[str, torch.Tensor]) -> None:
        pmx.observe("y", pmx.Gaussian(sigma=sigma), mean(data["x"]), data["y"])

    return lambda chosen: pmx.fit(program, data, chosen, seed=target["seed"], progress=False)


def _module(target: Target) -> torch.nn.Module:
    n_inputs, hidden = len(target["x"][0]), target["hidden"]
    layers = (torch.nn.Linear(n_inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1), torch.nn.Flatten(0))
    return torch.nn.Sequential(*layers).double()


def named(target: Target, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Draws (n,) by the names that are compared."""
    if target["kind"] == "schools":
        found = {"mu": draws["mu"], "tau": draws["school.sd"]}
    elif target["kind"] == "network":
        found = {"sigma": draws["y.sigma"], **_function(target, draws)}
    else:
        found = {name: draws["beta"][:, k] for k, name in enumerate(["Intercept", *target["columns"]])}
        found |= {f"{name}.sd": draws[f"{name}.sd"] for name in target["groups"]}
        found |= {"sigma": draws["y.sigma"]} if "y.sigma" in draws else {}
    return {name: found[name].reshape(-1) for name in target["names"]}


def _function(target: Target, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's values at the rows of the grid."""
    weights = {site.removeprefix("mean."): value for site, value in draws.items() if site.startswith("mean.")}
    grid = torch.tensor(target["grid"], dtype=torch.float64)
    module = _module(target)
    values = torch.stack(
        [torch.func.functional_call(module, {k: v[s] for k, v in weights.items()}, (grid,)) for s in range(_n(weights))]
    )
    return {f"f[{i}]": values[:, i] for i in range(values.shape[1])}


def _n(draws: dict[str, torch.Tensor]) -> int:
    return len(next(iter(draws.values())))


def main(path: str, method: str) -> dict[str, Any]:
    import pyromix as pmx

    target = json.loads(Path(path).read_text(encoding="utf-8"))
    fitter = {"mixed": mixed, "schools": schools, "network": network}[target["kind"]](target)
    chosen = backend(method, target)
    start = time.perf_counter()
    fit = fitter(chosen)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        found = named(target, fit.draws())
    draws = {name: value.numpy().reshape(fit.estimate.chains, -1).tolist() for name, value in found.items()}
    return {
        "version": f"pyromix {pmx.__version__} {method}",
        "draws": draws,
        "seconds": seconds,
        "compile": float("nan"),
        "ess": effective_size(fit),
        "status": fit.status.name,
        "health": [f"{record.severity}: {record.code} {record.value}" for record in fit.health],
        "divergences": divergences(fit),
        "settings": {
            key: value for key, value in fit.estimate.settings.items() if isinstance(value, int | float | str)
        },
    }


def effective_size(fit: Any) -> float | None:
    """Of importance draws, as the backend reports it; it hands over no more than so many draws."""
    size = fit.estimate.settings.get("effective_size")
    return None if size is None else min(float(size), float(fit.n_draws))


def divergences(fit: Any) -> int | None:
    stats = fit.estimate.sample_stats or {}
    return int(np.sum(stats["diverging"])) if "diverging" in stats else None


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(sys.argv[1], sys.argv[2])))
