"""A fit as ArviZ groups with named dimensions and labelled coordinates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.results import declared
from pyromix.results.draws import Responses, Values, describe, over_draws
from pyromix.results.predict import MAX_ENTRIES, MIN_DRAWS
from pyromix.results.rows import row_labels, tidy_labels
from pyromix.running import Record

if TYPE_CHECKING:
    import arviz
    import xarray

    from pyromix.results.fit import Fit

MAX_DETERMINISTIC = 10_000  # entries of a user's own deterministic site that is kept at every draw
_APPROXIMATE = (
    "draws from a Gaussian approximation at a point estimate, not from a Markov chain: R-hat and effective sample size "
    "say nothing about them"
)


def inference_data(fit: Fit) -> arviz.InferenceData:
    """Convert a fit.

    Groups: posterior, sample_stats (samplers only), log_likelihood, posterior_predictive, observed_data, constant_data.
    Dimensions: ``obs_id``, ``<effect>_level``, ``<effect>_term``, ``<coefficients>_coef``; correlation matrices have
    ``<effect>_term`` and ``<effect>_term_bis``. Long data sets get fewer draws, so that an array (draws, rows) stays
    below 2e7 entries; the attribute ``draws`` says how many.
    """
    import arviz

    names = _Names.of(fit)
    count = _count(fit)
    draws = fit.draws(count)
    values = {name: draws[name].detach().numpy() for name in draws}
    likelihood, replicated, derived = _run_all(fit, draws)
    values |= {name: array for name, array in derived.items() if name not in values}
    attrs = _attributes(fit, count)
    chains = fit.estimate.chains if count % fit.estimate.chains == 0 else 1
    groups: dict[str, xarray.Dataset] = {"posterior": names.dataset(values, names.site_dims, attrs, chains)}
    if fit.estimate.sample_stats is not None:
        groups["sample_stats"] = _sample_stats(fit.estimate.sample_stats, attrs)
    groups["log_likelihood"] = names.dataset(likelihood, names.row_dims, attrs, chains)
    groups["posterior_predictive"] = names.dataset(replicated, names.row_dims, attrs, chains)
    observed = {name: site.role.obs.detach().numpy() for name, site in fit.record.data.items()}
    groups["observed_data"] = names.dataset(observed, names.row_dims, attrs)
    groups["constant_data"] = names.constants(fit, attrs)
    return arviz.InferenceData(**groups)  # type: ignore[arg-type]  # typed for its own options


def _count(fit: Fit) -> int:
    rows = sum(len(site.role.eta) for site in fit.record.data.values())
    count = min(fit.n_draws, max(MIN_DRAWS, MAX_ENTRIES // max(rows, 1)))
    return max(1, count - count % fit.estimate.chains) if count >= fit.estimate.chains else count


def _attributes(fit: Fit, count: int) -> dict[str, Any]:
    from pyromix import __version__

    attrs = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyromix",
        "inference_library_version": __version__,
        "inference": fit.estimate.inference,
        "status": fit.status.value,
        "health": json.dumps(fit.health.to_dicts()),
        "draws": count,
    }
    if fit.estimate.kind != "draws":
        attrs["note"] = _APPROXIMATE
    if fit.formula:
        attrs["formula"] = fit.formula
    return attrs


Arrays = dict[str, np.ndarray]


def _run_all(fit: Fit, draws: Values) -> tuple[Arrays, Arrays, Arrays]:
    """Row-wise log-likelihood, one replicated response and the derived quantities, at every draw."""
    kept = [name for name, value in fit.record.deterministic.items() if value.numel() <= MAX_DETERMINISTIC]

    def one(values: Values) -> Values:
        record = fit.run(values)
        found = {f"derived\0{name}": record.deterministic[name] for name in kept}
        for name, site in record.data.items():
            found |= {f"{name}\0{key}": value for key, value in describe(site).items()}
        return found

    rows = sum(len(site.role.eta) for site in fit.record.data.values())
    found = over_draws(one, draws, rows)
    likelihood: Arrays = {}
    replicated: Arrays = {}
    for name, site in fit.record.data.items():
        prefix = f"{name}\0"
        at = Responses.of(site, {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)})
        likelihood[name] = declared.numpy_of(at.log_likelihoods())
        replicated[name] = declared.numpy_of(at.replicates(seed=0)[0])
    return likelihood, replicated, {name: declared.numpy_of(found[f"derived\0{name}"]) for name in kept}


def _sample_stats(stats: Mapping[str, Any], attrs: dict[str, Any]) -> xarray.Dataset:
    import xarray

    arrays = {name: np.asarray(value) for name, value in stats.items()}
    variables = {
        name: (("chain", "draw", *(f"{name}_dim_{k}" for k in range(array.ndim - 2))), array)
        for name, array in arrays.items()
    }
    first = next(iter(arrays.values()))
    coords = {"chain": np.arange(first.shape[0]), "draw": np.arange(first.shape[1])}
    return xarray.Dataset(variables, coords=coords, attrs=attrs)


@dataclass
class _Names:
    """Dimensions of every site, and the coordinates of every dimension."""

    record: Record
    taken: set[str]
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)  # response -> its row dimension

    @classmethod
    def of(cls, fit: Fit) -> _Names:
        record = fit.record
        taken = {*record.hypers, *record.latents, *record.data, *record.deterministic, "chain", "draw"}
        names = cls(record, {_netcdf(name) for name in taken})
        index = getattr(fit.args[0], "index", None) if fit.args else None
        for name, site in record.data.items():
            dim = "obs_id" if len(record.data) == 1 else f"{name}_obs_id"
            names.rows[name] = names.dim(dim, row_labels(index, len(site.role.eta)))
        return names

    def dim(self, name: str, labels: Any) -> str:
        """A dimension of this name with these labels; arrays and their labelled dimensions may not share a name."""
        name = _netcdf(name)
        while name in self.taken:
            name += "_"
        self.coords.setdefault(name, labels if isinstance(labels, np.ndarray) else tidy_labels(labels))
        return name

    def row_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        return (self.rows[name],)

    def site_dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Dimensions of one draw of a site."""
        if name in self.record.latents:
            role = self.record.latents[name].role
            return self.dim(f"{name}_level", role.levels), self.dim(f"{name}_term", role.terms)
        hyper = self.record.hypers.get(name)
        if hyper is not None and hyper.role.design is not None:
            labels = hyper.role.labels or range(hyper.role.design.shape[1])
            return (self.dim(f"{name}_coef", labels),)
        owner = max((e for e in self.record.latents if name.startswith(f"{e}.")), key=len, default=None)
        if owner is not None:
            terms = self.record.latents[owner].role.terms
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
            rows = site.role.rows
            member = (self.dim(f"{name}_member", range(rows.index.shape[1])),) if rows.index.dim() == 2 else ()
            add(f"{name}.index", rows.index, *member)
            add(f"{name}.design", rows.design, self.dim(f"{name}_term", site.role.terms))
            add(f"{name}.weight", rows.weight, *member)
        for name, site in self.record.data.items():
            add(f"{name}.trials", site.role.trials)
            add(f"{name}.weights", site.role.weights)
            add(f"{name}.mask", site.role.mask)
        if self.record.functions and hasattr(fit.design, "columns"):  # a network's inputs multiply no coefficients
            add("inputs", fit.design.x, self.dim("inputs_column", fit.design.columns))
        for key in ("offset", "precision_weights"):
            value = getattr(fit.design, key, None)
            add(key, None if value is None else torch.as_tensor(value))
        return self.dataset(arrays, lambda name, shape: dims[name], attrs)

    def _row_dim(self, name: str, count: int) -> str:
        for dim in self.rows.values():
            if len(self.coords[dim]) == count:
                return dim
        return self.dim(f"{name}_row", range(count))


def _netcdf(name: str) -> str:
    """netCDF reads a slash as a group."""
    return name.replace("/", "|")
