"""One chain by Pyro's own NUTS: slower, in plain Python; for comparison, and where nutpie is not to be had."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroKernel

from pyromix.backends.nutpie_engine import Chain, Density
from pyromix.running import isolated

EVERY = 20  # draws between two progress reports


class _Potential(torch.autograd.Function):
    """Minus the log density, with the gradient that comes with it."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, density: Density) -> torch.Tensor:  # type: ignore[no-untyped-def]
        value, gradient = density(z.detach().numpy())
        ctx.save_for_backward(torch.from_numpy(np.array(gradient)))
        return torch.tensor(-value, dtype=torch.float64)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return -grad * gradient, None


def sample_chain(
    density: Density,
    start: np.ndarray,
    *,
    draws: int,
    tune: int,
    seed: int,
    target_accept: float,
    max_depth: int,
    report: Callable[[tuple[int, int]], None],
) -> Chain:
    """One chain; parameters as in `nutpie_engine.sample_chain`."""
    evaluations = 0

    def potential(sites: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        return _Potential.apply(sites["z"], density)

    kernel = PyroKernel(
        potential_fn=potential,
        target_accept_prob=target_accept,
        max_tree_depth=max_depth,
    )
    kernel.transforms = {}
    steps: list[tuple[float, float]] = []

    def after(kernel: PyroKernel, samples: dict, stage: str, i: int) -> None:
        diverged = len(kernel._divergences)
        if i % EVERY == 0:
            report(((0 if "arm" in stage else tune) + i, diverged))
        if "arm" not in stage:
            steps.append((float(kernel.step_size), -float(kernel._potential_energy_last)))

    with isolated(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        chain = MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=tune,
            initial_params={"z": torch.from_numpy(start.copy())},
            disable_progbar=True,
            hook_fn=after,
        )
        chain.run()
        z = chain.get_samples()["z"].numpy()
    diverging = np.zeros(draws, dtype=bool)
    diverging[[k for k in chain.diagnostics()["divergences"]["chain 0"] if k < draws]] = True
    size, lp = (np.array(column) for column in zip(*steps, strict=True))
    return Chain(z, {"lp": lp, "step_size": size, "diverging": diverging}, evaluations)
