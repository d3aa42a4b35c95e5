"""A fit as ArviZ groups with named dimensions and labelled coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.results import declared
from pyromix.results.draws import Responses, Values, describe, following, over_draws
from pyromix.results.observed import Observed, replicates, run_observed
from pyromix.results.predict import MAX_ENTRIES, MIN_DRAWS
from pyromix.results.rows import NOISE, row_labels, stream, tidy_labels
from pyromix.results.storage import plain_stats, thinned
from pyromix.running import Record

if TYPE_CHECKING:
    import arviz
    import xarray

    from pyromix.results.fit import Fit

MAX_DETERMINISTIC = 10_000  # entries of a user's own deterministic site that is kept at every draw
MAX_GIVEN = 1_000_000  # entries of an array handed to a program that is repeated in constant_data
_POINT = (
    "draws from a Gaussian approximation at a point estimate, not from a Markov chain: R-hat and effective sample size "
    "say nothing about them"
)
_APPROXIMATE = (
    "draws from an approximation of the posterior, not from a Markov chain: R-hat and effective sample size say "
    "nothing about them; health has what was found"
)
_MARGINAL = "Markov chains on an approximate posterior: with more draws they tend to it, not to the exact one"
# of a backend's settings, what goes into the attributes: ArviZ's own names, then ours
_SETTINGS = ("sampling_time", "tuning_steps", "khat", "effective_size")
Arrays = dict[str, np.ndarray]


def inference_data(fit: Fit) -> arviz.InferenceData:
    """Convert a fit.

    Groups: posterior, sample_stats (where the backend has them), log_likelihood, posterior_predictive, observed_data,
    constant_data, and log_prior for posteriors. Dimensions: ``obs_id``, ``<effect>_level``, ``<effect>_term``,
    ``<coefficients>_coef``; correlation matrices have ``<effect>_term`` and ``<effect>_term_bis``; sites that are
    Pyro's own ``<site>_dim_0``, ... Long data sets get fewer draws, the same in every group, so that an array
    (draws, rows) stays below 2e7 entries; the attribute ``draws`` says how many. Draws of approximations are one chain.
    """
    import arviz

    names = _Names.of(fit)
    count = _count(fit)
    draws = fit.draws(count)
    chains = fit.estimate.chains if fit.estimate.markov and count % fit.estimate.chains == 0 else 1
    found = _run_all(fit, draws)
    values = {name: draws[name].detach().numpy() for name in draws}
    values |= {name: array for name, array in found.derived.items() if name not in values}
    attrs = _attributes(fit, count)
    groups: dict[str, xarray.Dataset] = {"posterior": names.dataset(values, names.site_dims, attrs, chains)}
    if fit.estimate.sample_stats is not None:
        groups["sample_stats"] = _sample_stats(fit, count, chains, attrs)
    groups["log_likelihood"] = names.dataset(found.likelihood, names.row_dims, attrs, chains)
    if found.prior:
        groups["log_prior"] = names.dataset(found.prior, names.prior_dims, attrs, chains)
    groups["posterior_predictive"] = names.dataset(found.replicated, names.row_dims, attrs, chains)
    groups["observed_data"] = names.dataset(_responses(fit), names.row_dims, attrs)
    groups["constant_data"] = names.constants(fit, attrs)
    return arviz.InferenceData(**groups)  # type: ignore[arg-type]  # typed for its own options


def _count(fit: Fit) -> int:
    rows = sum(len(site.role.eta) for site in fit.record.data.values())
    rows += sum(site.value.numel() for site in fit.observed.values())
    count = min(fit.n_draws, max(MIN_DRAWS, MAX_ENTRIES // max(rows, 1)))
    return max(1, count - count % fit.estimate.chains) if count >= fit.estimate.chains else count


def _attributes(fit: Fit, count: int) -> dict[str, Any]:
    from pyromix import __version__

    estimate = fit.estimate
    attrs: dict[str, Any] = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyromix",
        "inference_library_version": __version__,
        "inference": estimate.inference,
        "status": fit.status.value,
        "health": json.dumps(fit.health.to_dicts()),
        "draws": count,
    }
    if not estimate.exact:
        attrs["note"] = _POINT if estimate.kind != "draws" else _MARGINAL if estimate.markov else _APPROXIMATE
    if fit.formula:
        attrs["formula"] = fit.formula
    attrs |= {key: estimate.settings[key] for key in _SETTINGS if isinstance(estimate.settings.get(key), int | float)}
    if math.isfinite(estimate.log_evidence):
        attrs["log_evidence"] = float(estimate.log_evidence)
    return attrs


def _responses(fit: Fit) -> Arrays:
    found = {name: site.role.obs.detach().numpy() for name, site in fit.record.data.items()}
    found |= {name: site.value.detach().numpy() for name, site in fit.observed.items()}
    return {name: _whole(array) if _is_discrete(fit, name) else array for name, array in found.items()}


def _is_discrete(fit: Fit, name: str) -> bool:
    if name in fit.observed:
        return fit.observed[name].discrete
    return bool(fit.record.data[name].fn.support.is_discrete)


def _whole(array: np.ndarray) -> np.ndarray:
    """Counts as integers, by which ArviZ draws them as bars; what is no count, or none that fits, stays as it is."""
    whole = np.isfinite(array).all() and (array == np.round(array)).all() and np.abs(array).max(initial=0) < 2**53
    return array.astype(np.int64) if whole else array


@dataclass(frozen=True)
class _Found:
    """Arrays (draws, ...) by site: log-likelihood of each row, replicated responses, log prior, derived quantities."""

    likelihood: Arrays
    replicated: Arrays
    prior: Arrays
    derived: Arrays


def _run_all(fit: Fit, draws: Values) -> _Found:
    """Run the program at every draw."""
    kept = [name for name, value in fit.record.deterministic.items() if value.numel() <= MAX_DETERMINISTIC]
    priors = fit.estimate.kind == "draws"

    def one(values: Values) -> Values:
        record, seen = run_observed(fit, values)
        found = {f"derived\0{name}": record.deterministic[name] for name in kept}
        found |= {f"density\0{name}": site.log_prob for name, site in seen.items()}
        if priors:
            sites = {**record.hypers, **record.plain}
            found |= {f"prior\0{name}": site.fn.log_prob(site.value) for name, site in sites.items()}
        for name, site in record.data.items():
            found |= {f"response {name}\0{key}": value for key, value in describe(site).items()}
            if site.role.chain is not None:
                found[f"following\0{name}"] = following(site, values[NOISE + name])
        return found

    rows = sum(len(site.role.eta) for site in fit.record.data.values())
    rows += sum(site.value.numel() for site in fit.observed.values())
    found = over_draws(one, {**draws, **_noise(fit, len(next(iter(draws.values()))))}, rows)
    likelihood = _part(found, "density")
    replicated = {name: declared.numpy_of(value) for name, value in replicates(fit, draws, seed=0).items()}
    for name, site in fit.record.data.items():
        prefix = f"response {name}\0"
        at = Responses.of(site, {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)})
        likelihood[name] = declared.numpy_of(at.log_likelihoods())
        replicated[name] = declared.numpy_of(at.replicates(seed=0)[0])
    replicated |= _part(found, "following")
    replicated = {name: _whole(array) if _is_discrete(fit, name) else array for name, array in replicated.items()}
    return _Found(likelihood, replicated, _part(found, "prior"), _part(found, "derived"))


def _noise(fit: Fit, count: int) -> Values:
    """Noise for replicates whose rows follow each other, (draws, n) by response."""
    generator = torch.Generator().manual_seed(stream(0, "rows that follow each other"))
    return {
        NOISE + name: torch.randn(count, len(site.role.eta), dtype=torch.float64, generator=generator)
        for name, site in fit.record.data.items()
        if site.role.chain is not None
    }


def _part(found: Values, kind: str) -> Arrays:
    prefix = f"{kind}\0"
    return {k.removeprefix(prefix): declared.numpy_of(v) for k, v in found.items() if k.startswith(prefix)}


def _sample_stats(fit: Fit, count: int, chains: int, attrs: dict[str, Any]) -> xarray.Dataset:
    """What the backend has of every draw, for the draws that the other groups hold."""
    import xarray

    keep = thinned(fit.n_draws, count, fit.estimate.chains).numpy()
    variables: dict[str, Any] = {}
    for name, array in plain_stats(fit.estimate.sample_stats or {}).items():
        rest = array.shape[2:]
        array = array.reshape(-1, *rest)[keep].reshape(chains, -1, *rest)
        variables[name] = (("chain", "draw", *(f"{name}_dim_{k}" for k in range(len(rest)))), array)
    coords = {"chain": np.arange(chains), "draw": np.arange(count // chains)}
    return xarray.Dataset(variables, coords=coords, attrs=attrs)


@dataclass
class _Names:
    """Dimensions of every site, and the coordinates of every dimension."""

    record: Record
    observed: Mapping[str, Observed]
    taken: set[str]
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)  # response -> its row dimension

    @classmethod
    def of(cls, fit: Fit) -> _Names:
        record, observed = fit.record, fit.observed
        taken = {*record.hypers, *record.latents, *record.data, *record.deterministic, *record.plain, *observed}
        names = cls(record, observed, {_netcdf(name) for name in {*taken, "chain", "draw"}})
        index = getattr(fit.args[0], "index", None) if fit.args else None
        lengths = {name: len(site.role.eta) for name, site in record.data.items()}
        lengths |= {name: len(site.log_prob) for name, site in observed.items() if site.log_prob.dim() == 1}
        for name, length in lengths.items():
            dim = "obs_id" if len(record.data) + len(observed) == 1 else f"{name}_obs_id"
            names.rows[name] = names.dim(dim, row_labels(index, length))
        return names

    def dim(self, name: str, labels: Any) -> str:
        """A dimension of this name with these labels; arrays and their labelled dimensions may not share a name."""
        name = _netcdf(name)
        while name in self.taken:
            name += "_"
        self.coords.setdefault(name, labels if isinstance(labels, np.ndarray) else tidy_labels(labels))
        return name

    def row_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Dimensions of a response or of its density: its rows, then what one of them consists of."""
        first = (self.rows[name],) if name in self.rows else ()
        return first + tuple(self.dim(f"{name}_dim_{k}", range(shape[k])) for k in range(len(first), len(shape)))

    def prior_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Dimensions of a log prior density: the site's own where it has one for every entry."""
        site = self.record.hypers.get(name) or self.record.plain[name]
        if shape == tuple(site.value.shape):
            return self.site_dims(name, shape)
        return tuple(self.dim(f"{name}_prior_dim_{k}", range(size)) for k, size in enumerate(shape))

    def site_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Dimensions of one draw of a site."""
        if name in self.record.latents:
            role = self.record.latents[name].role
            if role.spread is not None:
                return self.dim(f"{name}_part", role.levels), self.dim(f"{name}_function", role.terms)
            return self.dim(f"{name}_level", role.levels), self.dim(f"{name}_term", role.terms)
        hyper = self.record.hypers.get(name)
        if hyper is not None and hyper.role.design is not None:
            labels = hyper.role.labels or range(hyper.role.design.shape[1])
            return (self.dim(f"{name}_coef", labels),)
        owner = declared.owner(self.record, name)
        terms = () if owner is None else self.record.latents[owner].role.shown.terms
        own = None if hyper is None else hyper.role.labels
        if own is not None and own != terms and shape == (len(own),):
            return (self.dim(f"{name}_dim_0", own),)
        if owner is not None:
            if shape == (len(terms),):
                return (self.dim(f"{owner}_term", terms),)
            if shape == (len(terms), len(terms)):
                return self.dim(f"{owner}_term", terms), self.dim(f"{owner}_term_bis", terms)
        return tuple(self.dim(f"{name}_dim_{k}", range(size)) for k, size in enumerate(shape))

    def dataset(self, arrays: Arrays, dims: Any, attrs: dict[str, Any], chains: int | None = None) -> xarray.Dataset:
        """Arrays as a data set; with `chains`, their first dimension holds draws, chain after chain."""
        import xarray

        variables: dict[str, Any] = {}
        used: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            shape = array.shape[1:] if chains else array.shape
            own = dims(name, shape)
            if chains:
                array, own = array.reshape(chains, -1, *shape), ("chain", "draw", *own)
            variables[_netcdf(name)] = (own, array)
            used |= {dim: self.coords[dim] for dim in own if dim in self.coords}
        if chains and variables:
            first = next(iter(variables.values()))[1]
            used |= {"chain": np.arange(chains), "draw": np.arange(first.shape[1])}
        return xarray.Dataset(variables, coords=used, attrs=attrs)

    def constants(self, fit: Fit, attrs: dict[str, Any]) -> xarray.Dataset:
        """What the program was given: columns, row maps, trials, weights, offset."""
        arrays: Arrays = {}
        dims: dict[str, tuple[str, ...]] = {}

        def add(name: str, value: torch.Tensor | None, *rest: str) -> None:
            if value is not None:
                arrays[name] = value.detach().numpy()
                dims[name] = (self._row_dim(name, len(value)), *rest)

        for name, site in self.record.hypers.items():
            if site.role.design is not None:
                add(f"{name}.x", site.role.design, *self.site_dims(name, (site.role.design.shape[1],)))
        for name, site in self.record.latents.items():
            rows = site.role.shown.rows
            member = (self.dim(f"{name}_member", range(rows.index.shape[1])),) if rows.index.dim() == 2 else ()
            add(f"{name}.index", rows.index, *member)
            add(f"{name}.design", rows.design, self.dim(f"{name}_term", site.role.shown.terms))
            add(f"{name}.weight", rows.weight, *member)
        for name, site in self.record.data.items():
            add(f"{name}.trials", site.role.trials)
            add(f"{name}.weights", site.role.weights)
            add(f"{name}.mask", site.role.mask)
        if self.record.functions and hasattr(fit.design, "columns"):  # a network's inputs multiply no coefficients
            add("inputs", fit.design.x, self.dim("inputs_column", fit.design.columns))
        given = {name: array for name, array in _given(fit).items() if _netcdf(name) not in self.taken}
        arrays |= given
        for name, array in given.items():
            dims[name] = tuple(self.dim(f"{name}_dim_{k}", range(size)) for k, size in enumerate(array.shape))
        for key in ("offset", "precision_weights"):
            value = getattr(fit.design, key, None)
            add(key, None if value is None else torch.as_tensor(value))
        return self.dataset(arrays, lambda name, shape: dims[name], attrs)

    def _row_dim(self, name: str, count: int) -> str:
        for dim in self.rows.values():
            if len(self.coords[dim]) == count:
                return dim
        return self.dim(f"{name}_row", range(count))


def _given(fit: Fit) -> Arrays:
    """Numbers that a program was handed by name."""
    found = {}
    for arg in fit.args:
        for name, value in arg.items() if isinstance(arg, Mapping) else ():
            if isinstance(value, torch.Tensor | np.ndarray | int | float) and not isinstance(value, bool):
                array = np.asarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
                if array.dtype.kind in "iuf" and array.size <= MAX_GIVEN:
                    found[str(name)] = array
    return found


def _netcdf(name: str) -> str:
    """netCDF reads a slash as a group."""
    return name.replace("/", "|")
