"""NumPyro's side of the posterior benchmarks: non-centred effects, its default NUTS, one host device a chain."""

import os
import time

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from target import finish, read

target = read()
jax.config.update("jax_enable_x64", target.double)


def sd_prior(prior):
    return dist.Exponential(1 / prior.sd) if prior.sd_family == "exponential" else dist.HalfNormal(prior.sd)


def mixed(x, y, groups, sizes):
    prior = target.prior
    eta = numpyro.sample("Intercept", dist.Normal(0, prior.intercept))
    eta = eta + x @ numpyro.sample("slopes", dist.Normal(0, prior.slope).expand([x.shape[1]]).to_event(1))
    for name, index in groups.items():
        sd = numpyro.sample(f"{name}.sd", sd_prior(prior))
        z = numpyro.sample(f"{name}.z", dist.Normal(0, 1).expand([sizes[name]]).to_event(1))
        eta = eta + sd * z[index]
    if target.family == "binomial":
        numpyro.sample("y", dist.BernoulliLogits(eta), obs=y)
    elif target.family == "poisson":
        numpyro.sample("y", dist.Poisson(jnp.exp(eta)), obs=y)
    else:
        numpyro.sample("y", dist.Normal(eta, numpyro.sample("sigma", dist.HalfNormal(prior.sigma))), obs=y)


def schools(y, s):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def function(weights, x):
    return jnp.tanh(x @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def network(x, y):
    shapes = {"w1": (x.shape[1], target.hidden), "b1": (target.hidden,), "w2": (target.hidden,), "b2": ()}
    weights = {name: numpyro.sample(name, dist.Normal(0, 1).expand(shape)) for name, shape in shapes.items()}
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(function(weights, x), sigma), obs=y)


def arguments():
    if target.kind == "schools":
        return schools, (jnp.array(target.y), jnp.array(target.s))
    if target.kind == "network":
        return network, (jnp.array(target.x), jnp.array(target.y))
    groups = {name: np.array(index) for name, index in vars(target.groups).items()}
    sizes = {name: int(index.max()) + 1 for name, index in groups.items()}
    x = np.column_stack(list(vars(target.columns).values()))
    return mixed, (jnp.array(x), jnp.array(target.y), {k: jnp.array(v) for k, v in groups.items()}, sizes)


def named(draws):
    """Draws by the names that are compared."""
    if target.kind == "mixed":
        draws = {**draws, **{name: draws["slopes"][..., k] for k, name in enumerate(vars(target.columns))}}
    if target.kind == "network":
        weights = {name: draws[name] for name in ("w1", "b1", "w2", "b2")}
        values = jax.vmap(jax.vmap(function, (0, None)), (0, None))(weights, jnp.array(target.grid))
        draws = {**draws, **{f"f[{i}]": values[..., i] for i in range(values.shape[-1])}}
    return {name: draws[name] for name in target.names}


def main():
    model, args = arguments()
    start = time.perf_counter()
    mcmc = MCMC(
        NUTS(model),
        num_warmup=target.tune,
        num_samples=target.draws,
        num_chains=target.chains,
        chain_method="parallel",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(target.seed), *args)
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - start
    # compilation is part of the first call and not reported apart
    finish(f"NumPyro {numpyro.__version__}, jax {jax.__version__}", named(draws), seconds, float("nan"))


if __name__ == "__main__":
    main()
