"""Fit a reference posterior with a backend and hold what comes out against the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

import pyromix as pmx
from pyromix.backends import AbstractBackend
from pyromix.marginal import AbstractMarginal
from tests.reference.posteriordb.posteriors import GATE, Comparison, Posterior, compare

TUNE, DRAWS, CHAINS = 1000, 2500, 4
MORE_DRAWS = {
    ("radon_mn-radon_hierarchical_intercept_noncentered", "pyro"): 5000,
    ("irt_2pl-irt_2pl", "pyro"): 7000,
    ("seeds_data-seeds_centered_model", "pyro"): 8000,
    ("gp_pois_regr-gp_pois_regr", "pyro"): 4000,
}
ACCEPT = {  # funnels, in which 0.8 leaves a few divergences in 10,000 draws
    ("eight_schools-eight_schools_noncentered", "pyro"): 0.95,
    ("eight_schools-eight_schools_noncentered", "pyromix"): 0.95,
    ("irt_2pl-irt_2pl", "pyro"): 0.95,
    ("seeds_data-seeds_centered_model", "pyro"): 0.99,
    ("garch-garch11", "pyro"): 0.95,
    ("gp_pois_regr-gp_pois_regr", "pyro"): 0.99,
}
ENOUGH = 1600  # effective draws: the Monte Carlo error of a mean is then a quarter of the gate
R_HAT = 1.01


@dataclass(frozen=True)
class Measured:
    """A fit against its reference.

    Attributes
    ----------
    divergences, steps
        Divergent transitions and leapfrog steps after tuning; ``None`` for what is no sampler.
    seconds
        Wall time of the whole fit: tracing, compiling, tuning, draws.
    """

    comparison: Comparison
    divergences: int | None
    steps: int | None
    seconds: float

    def problems(self) -> list[str]:
        """What a gate refuses; empty if all is well."""
        c = self.comparison
        found = []
        for what, (name, error) in (("mean error / SD", c.worst_mean), ("log SD ratio", c.worst_sd)):
            if not abs(error) < GATE:
                found.append(f"{what} of {name} is {error:+.3f}, allowed {GATE}")
        if self.divergences:
            found.append(f"{self.divergences} divergences")
        if self.divergences is not None and not c.r_hat < R_HAT:
            found.append(f"R-hat {c.r_hat:.4f}, allowed {R_HAT}")
        if c.ess < ENOUGH:
            found.append(f"{c.ess:.0f} effective draws, {ENOUGH} needed to tell")
        return found


def nuts(posterior: str, form: str, marginal: AbstractMarginal | None = None) -> AbstractBackend:
    """NUTS with as many draws and as small steps as this posterior needs; fewer draws of hyper-parameters alone."""
    if marginal is not None:
        return pmx.NUTS(draws=1000, tune=500, chains=CHAINS, marginal=marginal)
    draws, accept = MORE_DRAWS.get((posterior, form), DRAWS), ACCEPT.get((posterior, form), 0.8)
    return pmx.NUTS(draws=draws, tune=TUNE, chains=CHAINS, target_accept=accept)


def measure(posterior: Posterior, form: str, backend: AbstractBackend, seed: int = 1) -> Measured:
    """Fit and compare."""
    (data,) = posterior.arguments(form)
    start = time.perf_counter()
    fit = pmx.fit(posterior.forms[form].program, data, backend=backend, seed=seed, progress=False)
    seconds = time.perf_counter() - start
    chains = fit.estimate.chains
    draws = {name: value.detach().numpy() for name, value in fit.draws().items()}
    shaped = {name: value.reshape(chains, -1, *value.shape[1:]) for name, value in draws.items()}
    stats = fit.estimate.sample_stats or {}
    divergences = int(np.sum(stats["diverging"])) if "diverging" in stats else None
    steps = int(np.sum(stats["n_steps"])) if "n_steps" in stats else None
    return Measured(compare(posterior, form, shaped), divergences, steps, seconds)
