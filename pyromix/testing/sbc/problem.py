"""One simulation: parameters from the prior, a response from the program, a fit, ranks of the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch.distributions import constraints

from pyromix.backends.base import AbstractBackend
from pyromix.errors import ConfigError, DataError
from pyromix.results.draws import over_draws
from pyromix.results.mixing import measure
from pyromix.running import Program, Record, isolated, run
from pyromix.sites import Data, annotation
from pyromix.testing.sbc.ranks import rank

Values = dict[str, torch.Tensor]
NAN = float("nan")
RANKS = 99  # posterior draws that a truth is ranked among
LOG_LIKELIHOOD, LOG_PRIOR = "log likelihood", "log prior"


@dataclass(frozen=True)
class Problem:
    """A program with proper priors, and what it is run on.

    Attributes
    ----------
    name
        For tables and files.
    program
        Called with the data.
    data
        Without a response: the program draws it.
    respond
        ``respond(data, responses)`` puts responses, by site, into the data.
    """

    name: str
    program: Program
    data: Any
    respond: Callable[[Any, Values], Any]


@dataclass(frozen=True)
class Fitted:
    """What a sampler hands back.

    Attributes
    ----------
    draws
        By site (S, *shape), chain after chain.
    chains
        Number of Markov chains; 0 for draws that are none (exact, importance or variational).
    khat, effective_size
        Of importance draws: Pareto's k-hat, and how many draws they are worth.
    findings
        Codes of what the fit says about itself.
    """

    draws: Mapping[str, torch.Tensor]
    chains: int = 0
    khat: float = NAN
    effective_size: float = NAN
    findings: tuple[str, ...] = ()


Sampler = Callable[[Program, Any, int], Fitted]


def by_backend(backend: AbstractBackend) -> Sampler:
    """Draws of a backend's fit, as a user gets them."""

    def sample(program: Program, data: Any, seed: int) -> Fitted:
        fit = backend.fit(program, data, seed=seed, progress=False)
        estimate = fit.estimate
        khat, effective = (float(estimate.settings.get(key, NAN)) for key in ("khat", "effective_size"))
        codes = tuple(record.code for record in fit.health)
        return Fitted(fit.draws(), estimate.chains if estimate.markov else 0, khat, effective, codes)

    return sample


def simulate(problem: Problem, sampler: Sampler, number: int, seed: int = 0) -> dict[str, Any]:
    """The simulation of that number, as plain values (JSON).

    Parameters
    ----------
    number
        All random numbers follow from it and `seed`: truth and response are the same for every sampler.

    Returns
    -------
    dict
        ``quantities``: name -> [rank, truth, posterior mean, posterior SD]; of chains ``rhat`` (the largest over them)
        and ``tail`` (the smallest tail effective size); ``khat``, ``effective_size``, ``findings``, ``cpu`` (seconds
        of the fit). Numbers that do not apply are null. Instead of all this, ``error`` where the fit failed;
        ``refused`` where the response is one that its family refuses (all zero, say): that depends on the data alone,
        so the ranks of the others stay uniform.
    """
    rng = np.random.default_rng([seed, number])
    prior_seed, fit_seed = (int(s) for s in rng.integers(2**31, size=2))
    truth, data = draw(problem, prior_seed)
    out: dict[str, Any] = {"number": number}
    begun = time.process_time()
    try:
        found = sampler(problem.program, data, fit_seed)
    except DataError as error:
        return out | {"refused": str(error)}
    except Exception as error:  # of any class: a calibration goes on, and reports the fits that failed
        return out | {"error": f"{type(error).__name__}: {error}"}
    out["cpu"] = round(time.process_time() - begun, 3)
    missing = sorted(set(truth) - set(found.draws))
    if missing:
        raise ConfigError(f"simulation-based calibration: the fit has no draws of {missing[0]!r}, which has a prior.")
    values = {name: torch.cat([value[None], found.draws[name]]) for name, value in truth.items()}
    return out | _ranked(quantities(problem.program, data, values), found, rng)


def draw(problem: Problem, seed: int) -> tuple[Values, Any]:
    """Parameters and effects from their priors, by site, and the data with a response drawn given them.

    By Pyro's own trace of the program: nothing that a backend uses has a part in it.
    """
    with isolated(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        nodes = poutine.trace(problem.program).get_trace(problem.data).nodes
    truth, responses = {}, {}
    for name, site in nodes.items():
        if site["type"] != "sample" or site["is_observed"] or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not site["infer"].get("_deterministic"):
            kept = responses if isinstance(annotation(site), Data) else truth
            kept[name] = site["value"].to(torch.float64)
    return truth, problem.respond(problem.data, responses)


def quantities(program: Program, data: Any, values: Values) -> dict[str, np.ndarray]:
    """What is ranked, at draws of every site (S, ...): name -> (S,).

    Every entry of every parameter; of a random effect the first entry, the last, and the contrast of its first term
    between first and last level; the log likelihood, without which a posterior that ignores the data passes; the log
    prior of all sites.
    """

    def one(at: Values) -> Values:
        record = run(program, (data,), at)
        scalars = {}
        for name, site in {**record.hypers, **record.plain}.items():
            scalars |= _entries(name, site.value, getattr(site.role, "support", None))
        for name in record.latents:
            scalars |= _effects(name, record.latents[name].value)
        return scalars | {LOG_LIKELIHOOD: _log_likelihood(record), LOG_PRIOR: _log_prior(record)}

    with torch.no_grad():
        found = over_draws(one, values, 1)
    return {name: value.numpy() for name, value in found.items()}


def _entries(name: str, value: torch.Tensor, support: Any) -> Values:
    """Entries by name; of the factor of a correlation matrix, the correlations."""
    if support is constraints.corr_cholesky:
        matrix, label = value @ value.mT, name.removesuffix("_cholesky")
        rows, columns = np.tril_indices(matrix.shape[-1], -1)
        return {f"{label}[{i},{j}]": matrix[i, j] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)}
    if not value.dim():
        return {name: value}
    return {f"{name}[{','.join(map(str, at))}]": value[at] for at in np.ndindex(*value.shape)}


def _effects(name: str, value: torch.Tensor) -> Values:
    levels, terms = value.shape
    return {
        f"{name}[0,0]": value[0, 0],
        f"{name}[{levels - 1},{terms - 1}]": value[-1, -1],
        f"{name}[0,0] - {name}[{levels - 1},0]": value[0, 0] - value[-1, 0],
    }


def _log_likelihood(record: Record) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for site in record.data.values():
        role = site.role
        rows = role.family.log_prob(role.eta, role.obs, role.trials, **role.dispersion)
        rows = rows if role.weights is None else rows * role.weights
        total = total + (rows if role.mask is None else torch.where(role.mask, rows, 0.0)).sum()
    return total


def _log_prior(record: Record) -> torch.Tensor:
    sites = {**record.latents, **record.plain}
    return record.log_prior() + sum(site.fn.log_prob(site.value).sum() for site in sites.values())


def _ranked(table: Mapping[str, np.ndarray], found: Fitted, rng: np.random.Generator) -> dict[str, Any]:
    """Ranks of each quantity's first entry among `RANKS` evenly spaced others, and how healthy the draws are."""
    every = np.stack([value[1:] for value in table.values()])
    count = every.shape[1]
    if count < RANKS:
        raise ConfigError(f"simulation-based calibration: {count} draws a fit; at least {RANKS} are ranked among.")
    chosen = np.linspace(0, count - 1, RANKS).round().astype(int)
    entries = {
        name: [rank(value[0], value[1:][chosen], rng), *(float(f"{x:.6g}") for x in (value[0], *_moments(value[1:])))]
        for name, value in table.items()
    }
    mixing = measure(every.reshape(len(every), found.chains, -1)) if found.chains else None
    return {
        "quantities": entries,
        "rhat": None if mixing is None else _number(np.nanmax(mixing.rhat)),
        "tail": None if mixing is None else _number(np.nanmin(mixing.tail)),
        "khat": _number(found.khat),
        "effective_size": _number(found.effective_size),
        "findings": list(found.findings),
    }


def _number(value: float) -> float | None:
    """Six digits; JSON has no infinity and no NaN."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _moments(draws: np.ndarray) -> tuple[float, float]:
    return float(draws.mean()), float(draws.std(ddof=1))
