"""NumPyro's side of ``benchmarks.joint_gradient``: potential and gradient of the non-centred VerbAgg model.

Reads one command a line: ``value`` prints the potential and the sum of squares of its gradient at the common point,
``call N`` the seconds of N calls of the jitted function, ``loop N`` those of N evaluations in one jitted loop, which
is how NumPyro's own sampler runs it.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.util import initialize_model
from target import read

target = read()
jax.config.update("jax_enable_x64", target.double)


def model(x, y, groups, sizes):
    prior = target.prior
    scale = jnp.array([prior.intercept] + [prior.slope] * (x.shape[1] - 1))
    eta = x @ numpyro.sample("beta", dist.Normal(0, scale).to_event(1))
    for name, index in groups.items():
        sd = numpyro.sample(f"{name}.sd", dist.Exponential(1 / prior.sd))
        z = numpyro.sample(name, dist.Normal(0, 1).expand([sizes[name]]).to_event(1))
        eta = eta + sd * z[index]
    numpyro.sample("y", dist.BernoulliLogits(eta), obs=y)


def main():
    groups = {name: np.array(index) for name, index in vars(target.groups).items()}
    sizes = {name: int(index.max()) + 1 for name, index in groups.items()}
    x = np.column_stack([np.ones(len(target.y)), *vars(target.columns).values()])
    args = (jnp.array(x), jnp.array(target.y), {k: jnp.array(v) for k, v in groups.items()}, sizes)
    potential = initialize_model(jax.random.PRNGKey(0), model, model_args=args).potential_fn
    step = jax.jit(jax.value_and_grad(potential))
    loop = jax.jit(lambda point, count: jax.lax.fori_loop(0, count, lambda _, at: moved(step, at), point))
    point = {name: jnp.array(value) for name, value in vars(target.point).items()}
    start = time.perf_counter()
    jax.block_until_ready(step(point))
    setup = time.perf_counter() - start
    jax.block_until_ready(loop(point, 1))
    print(json.dumps({"version": f"NumPyro {numpyro.__version__}", "setup": setup}), flush=True)
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "value":
            value, gradient = step(point)
            squares = sum(float((part**2).sum()) for part in gradient.values())
            print(json.dumps({"value": float(value), "squares": squares}), flush=True)
        else:
            start = time.perf_counter()
            if command == "call":
                calls(step, point, int(count))
            else:
                jax.block_until_ready(loop(point, int(count)))
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def moved(step, point):
    """A step too small to matter, so that no evaluation can be taken out of the loop."""
    _, gradient = step(point)
    return {name: value - 1e-12 * gradient[name] for name, value in point.items()}


def calls(step, point, count):
    for _ in range(count):
        jax.block_until_ready(step(point))


if __name__ == "__main__":
    main()
