"""Draws from the priors of a program, of its parameters, random effects and responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pyromix.errors import ConfigError, Status
from pyromix.results.draws import Values, sampled_over_draws
from pyromix.results.estimate import Estimate
from pyromix.results.rows import stream
from pyromix.running import Program, Record, Site, isolated, run

if TYPE_CHECKING:
    import arviz

    PriorPredictive = arviz.InferenceData
else:
    PriorPredictive = Any

_KEPT = {"posterior": "prior", "posterior_predictive": "prior_predictive", "observed_data": "observed_data"}


def prior_predictive(program: Program, args: tuple[Any, ...], draws: int, seed: int) -> PriorPredictive:
    """Run the program from its priors: groups ``prior``, ``prior_predictive`` and ``observed_data``.

    They have the names, dimensions and coordinates of a fit's. Long data sets get fewer draws, as a fit's groups do.

    Parameters
    ----------
    draws
        Number of draws, one chain.

    Raises
    ------
    ConfigError
        A number of draws that is no positive integer; a prior that cannot be drawn from.
    """
    import arviz

    from pyromix.results.fit import Fit

    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigError(f"prior_predictive(draws={draws!r}): must be a positive integer.")
    values = prior_draws(program, args, draws, seed)
    idata = Fit(_estimate(program, args, values, draws), program, args).idata
    attrs = {key: value for key, value in idata["posterior"].attrs.items() if key not in ("note", "health", "status")}
    groups = {new: idata[old] for old, new in _KEPT.items()}
    for group in groups.values():
        group.attrs = dict(attrs)
    return arviz.InferenceData(**groups)  # type: ignore[arg-type]  # typed for its own options


def prior_draws(program: Program, args: tuple[Any, ...], draws: int, seed: int) -> Values:
    """Draws of every parameter and random effect from its prior, (draws, ...) by site."""
    first, second = (run(program, args, hypers="moderate", seed=s) for s in (0, 1))
    if not _latent(first):
        raise ConfigError("prior_predictive: the program has no parameters, so nothing that priors are of.")
    given: Values = {"draw\0": torch.arange(draws)}
    with isolated(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "parameters"))
        for site in _latent(first).values():
            _check_proper(site)
        if not first.plain and all(_same_prior(site, second.hypers[name]) for name, site in first.hypers.items()):
            # drawn at once: not every distribution can be drawn from under vmap, and effects can
            given |= {name: site.fn.sample((draws,)) for name, site in first.hypers.items()}

    def one(values: Values, number: int) -> Values:
        known = {name: value for name, value in values.items() if name in first.hypers}
        with torch.no_grad():
            record = run(program, args, known, latents="prior", seed=stream(seed, f"effects {number}"))
        return {name: site.value for name, site in _latent(record).items()}

    return sampled_over_draws(one, given, sum(len(site.role.eta) for site in first.data.values()))


def _latent(record: Record) -> dict[str, Site]:
    return {**record.hypers, **record.latents, **record.plain}


def _same_prior(one: Site, other: Site) -> bool:
    """Whether a prior is the same in two runs, under different values of the other parameters."""
    value = one.fn.sample()
    return torch.equal(one.fn.log_prob(value), other.fn.log_prob(value))


def _check_proper(site: Site) -> None:
    try:
        site.fn.sample()
    except NotImplementedError as error:
        raise ConfigError(
            f"prior_predictive: the prior of {site.name!r} ({type(site.fn).__name__}) cannot be drawn from; give it a "
            "proper one."
        ) from error


def _estimate(program: Program, args: tuple[Any, ...], values: Values, draws: int) -> Estimate:
    """The draws as if they were a posterior's, so that everything written for posteriors serves them."""
    first = {name: value[0] for name, value in values.items()}
    with torch.no_grad():
        record = run(program, args, first)
    return Estimate(
        kind="draws",
        inference="prior",
        point={name: first[name] for name in (*record.hypers, *record.plain)},
        latents={name: first[name] for name in record.latents},
        latent_sd={name: values[name].std(0) for name in record.latents},
        covariance={},
        draw=lambda count, seed: {name: value[:count] for name, value in values.items()},
        log_likelihood=float("nan"),
        n_parameters=0,
        status=Status.CONVERGED,
        n_draws=draws,
    )
