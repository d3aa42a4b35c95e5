"""Draws from the priors of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.errors import ConfigError
from pyromix.running import Program, isolated, run

if TYPE_CHECKING:
    import arviz

    PriorPredictive = arviz.InferenceData
else:
    PriorPredictive = Any


def prior_predictive(program: Program, args: tuple[Any, ...], draws: int, seed: int) -> PriorPredictive:
    """Run the program from its priors: groups ``prior`` (hyper-parameters) and ``prior_predictive`` (responses).

    Parameters
    ----------
    draws
        Number of runs, one chain.
    """
    import arviz

    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigError(f"prior_predictive(draws={draws!r}): must be a positive integer.")
    hypers: dict[str, list[np.ndarray]] = {}
    responses: dict[str, list[np.ndarray]] = {}
    for k in range(draws):
        record = run(program, args, latents="prior", seed=seed + k)
        with isolated(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + k)
            for name, site in record.data.items():
                responses.setdefault(name, []).append(site.fn.sample().numpy())
        for name, site in record.hypers.items():
            hypers.setdefault(name, []).append(site.value.detach().numpy())
    dims = {name: ["obs_id"] for name in responses}
    return arviz.from_dict(
        prior={name: np.stack(values)[None] for name, values in hypers.items()},
        prior_predictive={name: np.stack(values)[None] for name, values in responses.items()},
        dims=dims,
    )
