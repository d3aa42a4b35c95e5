"""PyMC's side of the posterior benchmarks that have no formula: non-centred effects, sampled by nutpie."""

import time

import numpy as np
import nutpie
import pymc as pm
from target import finish, read


def schools(target):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", 0, 1, shape=len(target.y))
        pm.Normal("y", mu + tau * z, np.array(target.s), observed=np.array(target.y))
    return model


def network(target):
    x = np.array(target.x)
    with pm.Model() as model:
        w1 = pm.Normal("w1", 0, 1, shape=(x.shape[1], target.hidden))
        b1 = pm.Normal("b1", 0, 1, shape=target.hidden)
        w2 = pm.Normal("w2", 0, 1, shape=target.hidden)
        b2 = pm.Normal("b2", 0, 1)
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("y", pm.math.tanh(x @ w1 + b1) @ w2 + b2, sigma, observed=np.array(target.y))
    return model


def named(target, posterior):
    """Draws by the names that are compared."""
    draws = {name: posterior[name].to_numpy() for name in posterior.data_vars}
    if target.kind == "network":
        hidden = np.tanh(np.array(target.grid) @ draws["w1"] + draws["b1"][:, :, None, :])
        values = (hidden @ draws["w2"][..., None])[..., 0] + draws["b2"][..., None]
        draws |= {f"f[{i}]": values[..., i] for i in range(values.shape[-1])}
    return {name: draws[name] for name in target.names}


def main():
    target = read()
    start = time.perf_counter()
    compiled = nutpie.compile_pymc_model({"schools": schools, "network": network}[target.kind](target))
    compiling = time.perf_counter() - start
    idata = nutpie.sample(
        compiled,
        draws=target.draws,
        tune=target.tune,
        chains=target.chains,
        cores=target.cores,
        seed=target.seed,
        progress_bar=False,
    )
    seconds = time.perf_counter() - start
    version = f"PyMC {pm.__version__}, nutpie {nutpie.__version__}"
    finish(version, named(target, idata.posterior), seconds, compiling)


if __name__ == "__main__":
    main()
