"""The parameters of any fit under one set of names: estimate, SD and a central interval of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri
from torch.distributions import constraints

from pyromix.results import declared
from pyromix.results.diagnostics import entry_name
from pyromix.results.mixing import measure
from pyromix.results.tables import of_functions

if TYPE_CHECKING:
    from pyromix.results.fit import Fit
    from pyromix.running import Site

LEVEL = 0.9
MAX_ENTRIES = 200  # of one site; of longer ones (weights of a network) none is taken


@dataclass(frozen=True)
class Quantity:
    """One parameter of one fit.

    Attributes
    ----------
    estimate, sd
        Posterior mean and SD; for a point fit the estimate and its standard error, NaN where there is none.
    lower, upper
        The central 90 % interval: quantiles of draws, else normal.
    ess, rhat
        Effective draws and R-hat of a sampler, else NaN.
    """

    estimate: float
    sd: float
    lower: float
    upper: float
    ess: float = float("nan")
    rhat: float = float("nan")


def parameters(fit: Fit) -> dict[str, Quantity]:
    """Hyper-parameters and the program's own parameters: coefficients by their labels, ``Subject.sd[Days]``,
    ``Subject.corr[Intercept, Days]``, ``y.sigma``; neither random effects nor weights of networks."""
    sites = {**fit.record.hypers, **fit.record.plain}
    networks = tuple(f"{name}." for name in fit.record.functions)
    names = [n for n, site in sites.items() if site.value.numel() <= MAX_ENTRIES and not n.startswith(networks)]
    labels = _labels(fit, {name: sites[name] for name in names})
    if fit.estimate.kind == "draws":
        return _from_draws(fit, names, labels)
    return _from_point(fit, names, labels)


def effects(fit: Fit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Conditional means (or modes) and SDs of every random effect, (levels, terms)."""
    estimate, found = fit.estimate, {}
    for name, value in estimate.latents.items():
        site, both = fit.record.latents[name], (value, estimate.latent_sd[name])
        if site.role.spread is not None:
            both = (of_functions(fit, site, "mode"), of_functions(fit, site, "sd"))
        found[name] = (declared.numpy_of(both[0]), declared.numpy_of(both[1]))
    return found


def _labels(fit: Fit, sites: dict[str, Site]) -> dict[str, list[str]]:
    """Names of the entries of every site, those below the diagonal for a correlation matrix."""
    known = declared.dimension_labels(fit.record)
    coefficients = {(c.site, c.position): c.label for c in declared.coefficients(fit.record)}
    out = {}
    for name, site in sites.items():
        if _is_corr(site):
            short = name.removesuffix("_cholesky")
            shape = tuple(site.value.shape)
            out[name] = [
                entry_name(short, j * shape[1] + i, shape, known.get(name)) for i in range(shape[0]) for j in range(i)
            ]
            continue
        count = site.value.numel()
        plain = [entry_name(name, k, tuple(site.value.shape), known.get(name)) for k in range(count)]
        out[name] = [coefficients.get((name, k), label) for k, label in enumerate(plain)]
    return out


def _is_corr(site: Site) -> bool:
    return getattr(site.role, "support", None) is constraints.corr_cholesky


def _entries(site: Site, value: torch.Tensor) -> torch.Tensor:
    """Entries of values (*batch, *shape), flattened; the correlations below the diagonal for a Cholesky factor."""
    if not _is_corr(site):
        return value.reshape(*value.shape[: value.dim() - site.value.dim()], -1)
    matrix = value @ value.mT
    rows, columns = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], offset=-1)
    return matrix[..., rows, columns]


def _from_draws(fit: Fit, names: list[str], labels: dict[str, list[str]]) -> dict[str, Quantity]:
    draws, sites = fit.draws(), {**fit.record.hypers, **fit.record.plain}
    columns = [declared.numpy_of(_entries(sites[name], draws[name])) for name in names]
    if not columns:
        return {}
    sample = np.concatenate(columns, axis=1).T
    lower, upper = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    chains, ess, rhat = fit.estimate.chains, np.full(len(sample), np.nan), np.full(len(sample), np.nan)
    if fit.estimate.markov and sample.shape[1] >= 8 * chains and sample.shape[1] % chains == 0:
        found = measure(sample.reshape(len(sample), chains, -1))
        ess, rhat = found.bulk, found.rhat
    rows = zip(sample.mean(1), sample.std(1, ddof=1), lower, upper, ess, rhat, strict=True)
    flat = [label for name in names for label in labels[name]]
    return {label: Quantity(*map(float, row)) for label, row in zip(flat, rows, strict=True)}


def _from_point(fit: Fit, names: list[str], labels: dict[str, list[str]]) -> dict[str, Quantity]:
    half, out = float(ndtri((1 + LEVEL) / 2)), {}
    for name in names:
        site, value = {**fit.record.hypers, **fit.record.plain}[name], fit.estimate.point[name]
        estimate = declared.numpy_of(_entries(site, value)).reshape(-1)
        sd = _standard_errors(fit, name, site, value)
        for label, centre, spread in zip(labels[name], estimate, sd, strict=True):
            out[label] = Quantity(centre, spread, centre - half * spread, centre + half * spread)
    return out


def _standard_errors(fit: Fit, name: str, site: Site, value: torch.Tensor) -> np.ndarray:
    """From the covariance of the site's entries; for correlations through their derivatives in the factor."""
    count = len(_entries(site, value).reshape(-1))
    if not fit.trusted or name not in fit.estimate.covariance:
        return np.full(count, np.nan)
    covariance = declared.numpy_of(fit.estimate.covariance[name])
    if _is_corr(site):
        with torch.enable_grad():
            derivative = torch.autograd.functional.jacobian(lambda factor: _entries(site, factor), value)
        jacobian = declared.numpy_of(derivative.reshape(count, -1))
        covariance = jacobian @ covariance @ jacobian.T
    variance = covariance.diagonal()
    return np.sqrt(np.where(variance >= 0, variance, np.nan))
