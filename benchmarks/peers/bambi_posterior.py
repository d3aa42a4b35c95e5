"""Bambi's side of the posterior benchmarks: its own formula and non-centred effects, sampled by nutpie."""

import time

import bambi as bmb
import nutpie
import pandas as pd
from target import finish, read

FAMILIES = {"binomial": "bernoulli", "poisson": "poisson", "gaussian": "gaussian"}


def priors(target):
    prior, scale = target.prior, target.prior.sd
    sd = bmb.Prior("Exponential", lam=1 / scale) if prior.sd_family == "exponential" else half_normal(scale)
    given = {"Intercept": bmb.Prior("Normal", mu=0, sigma=prior.intercept)}
    given |= {name: bmb.Prior("Normal", mu=0, sigma=prior.slope) for name in vars(target.columns)}
    given |= {f"1|{name}": bmb.Prior("Normal", mu=0, sigma=sd) for name in vars(target.groups)}
    return given if prior.sigma is None else given | {"sigma": half_normal(prior.sigma)}


def half_normal(scale):
    return bmb.Prior("HalfNormal", sigma=scale)


def main():
    target = read()
    labels = {name: pd.Series(index).astype(str) for name, index in vars(target.groups).items()}
    data = pd.DataFrame({"y": target.y, **vars(target.columns), **labels})
    if target.family != "gaussian":
        data["y"] = data["y"].astype(int)
    start = time.perf_counter()
    model = bmb.Model(target.formula, data, family=FAMILIES[target.family], priors=priors(target))
    idata = model.fit(
        draws=target.draws,
        tune=target.tune,
        chains=target.chains,
        cores=target.cores,
        inference_method="nutpie",
        random_seed=target.seed,
        progressbar=False,
    )
    seconds = time.perf_counter() - start
    groups = {f"{name}.sd": f"1|{name}_sigma" for name in vars(target.groups)}
    draws = {name: idata.posterior[groups.get(name, name)].to_numpy() for name in target.names}
    compiling = seconds - float(idata.posterior.attrs["sampling_time"])
    finish(f"Bambi {bmb.__version__}, nutpie {nutpie.__version__}", draws, seconds, compiling)


if __name__ == "__main__":
    main()
