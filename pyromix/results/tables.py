"""Tables of a fit: coefficients, variance components, correlations, random effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri

from pyromix.errors import ConfigError
from pyromix.results import declared
from pyromix.results.draws import Values, over_draws
from pyromix.running import Site

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

# Covariances of a posterior are read at all draws, or at as many as keep (draws, rows) within the second number.
COVARIANCE_DRAWS = 400
MAX_ENTRIES = 20_000_000  # of the levels' effects at draws
COVARIANCE_ENTRIES = 40_000_000


def fixed_effects(fit: Fit, level: float) -> pd.DataFrame:
    """Coefficients with standard errors and central intervals."""
    if not 0 < level < 1:
        raise ConfigError(f"fixed_effects(level={level!r}): must lie between 0 and 1, e.g. 0.95.")
    entries = declared.coefficients(fit.record)
    labels = pd.Index([entry.label for entry in entries], dtype=object)
    values = {entry.site: fit.record.hypers[entry.site].value.reshape(-1) for entry in entries}
    estimate = np.array([float(values[entry.site][entry.position]) for entry in entries])
    if fit.estimate.kind == "draws":
        draws = fit.draws()
        columns = [draws[entry.site].reshape(fit.n_draws, -1)[:, entry.position].double() for entry in entries]
        sample = torch.stack(columns).numpy() if columns else np.zeros((0, 2))
        estimate = sample.mean(1)
        se, lower, upper = _spread(fit, sample, level)
    else:
        known = _coefficient_blocks(fit, entries)
        variance = [known[e.site][e.position, e.position] if e.site in known else np.nan for e in entries]
        se = np.sqrt([value if value >= 0 else np.nan for value in variance])
        half = ndtri((1 + level) / 2) * se
        lower, upper = estimate - half, estimate + half
    table = pd.DataFrame({"estimate": estimate, "se": se, "lower": lower, "upper": upper}, index=labels, dtype=float)
    dropped = [name for name in getattr(fit.design, "aliased", ()) if name not in table.index]
    return table.reindex([*table.index, *dropped]) if dropped else table


def coefficient_covariance(fit: Fit) -> pd.DataFrame:
    """Covariance matrix of the coefficients; NaN between sites whose joint covariance the backend did not give."""
    entries = declared.coefficients(fit.record)
    labels = [entry.label for entry in entries]
    matrix = np.full((len(entries), len(entries)), np.nan)
    known = _coefficient_blocks(fit, entries)
    for i, a in enumerate(entries):
        for j, b in enumerate(entries):
            if a.site == b.site and a.site in known:
                matrix[i, j] = known[a.site][a.position, b.position]
    return pd.DataFrame(matrix, index=labels, columns=labels)


def _coefficient_blocks(fit: Fit, entries: list[declared.Coefficient]) -> dict[str, np.ndarray]:
    """Covariance of every coefficient site, each asked for once: a backend may compute it on demand."""
    if not fit.trusted:
        return {}
    sites = dict.fromkeys(entry.site for entry in entries)
    return {name: declared.numpy_of(fit.estimate.covariance[name]) for name in sites if name in fit.estimate.covariance}


def covariances(fit: Fit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """SDs (q,) and correlations (q, q) of each effect's terms: at the point, or averaged over draws."""
    if fit.estimate.kind != "draws":
        found = {name: declared.term_covariance(site) for name, site in fit.record.latents.items()}
        return {name: split_covariance(declared.numpy_of(value)) for name, value in found.items()}
    averaged = {}
    for name, matrices in fit.covariance_draws.items():
        parts = [split_covariance(matrix) for matrix in matrices]
        averaged[name] = (np.mean([sd for sd, _ in parts], axis=0), np.mean([corr for _, corr in parts], axis=0))
    return averaged


def covariance_draws(fit: Fit) -> dict[str, np.ndarray]:
    """Covariance of each effect's terms at draws of the posterior, (draws, q, q)."""
    if not fit.record.latents:
        return {}

    def one(values: Values) -> Values:
        record = fit.run(values)
        return {name: declared.term_covariance(site) for name, site in record.latents.items()}

    rows = max(len(site.role.rows.index) for site in fit.record.latents.values())
    count = min(fit.n_draws, max(COVARIANCE_DRAWS, COVARIANCE_ENTRIES // max(rows, 1)))
    return {name: declared.numpy_of(v) for name, v in over_draws(one, fit.draws(count), rows).items()}


def _spread(fit: Fit, sample: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SD and central interval of draws, (quantities, draws); NaN where the fit is not to be trusted."""
    if not fit.trusted:
        return (np.full(len(sample), np.nan),) * 3
    lower, upper = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return sample.std(1, ddof=1), lower, upper


def split_covariance(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SDs and correlations of a covariance matrix; correlations with a term of SD zero are NaN."""
    sd = np.sqrt(covariance.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        corr = covariance / np.outer(sd, sd)
    corr[np.outer(sd, sd) == 0] = np.nan
    np.fill_diagonal(corr, 1.0)
    return sd, corr


def variance_components(fit: Fit) -> pd.DataFrame:
    """Variance and SD of every random term, then of the residual; for draws their means, and the spread of the SD."""
    rows = _sds(fit)
    names = [(group, name) for group, name, _ in rows]
    sample = np.stack([values for _, _, values in rows]) if rows else np.zeros((0, 2))
    table = pd.DataFrame(names, columns=["group", "name"]).astype(object)
    table["variance"], table["sd"] = np.square(sample).mean(1), sample.mean(1)
    if fit.estimate.kind == "draws":
        table["se"], table["lower"], table["upper"] = _spread(fit, sample, 0.95)
    return table


def _sds(fit: Fit) -> list[tuple[str, str, np.ndarray]]:
    """Group, term and SD (at the point, or at draws) of every random term, then of the residual."""
    sampled = fit.estimate.kind == "draws"
    rows = []
    for group, effects in declared.groups(fit.record).items():
        if sampled:
            parts = [np.sqrt(fit.covariance_draws[site.name].diagonal(axis1=1, axis2=2)).T for site in effects]
        else:
            parts = [fit.covariances()[site.name][0][:, None] for site in effects]
        rows += [
            (group, term, sd) for term, sd in zip(declared.term_labels(effects), np.concatenate(parts), strict=True)
        ]
    count = rows[0][2].size if rows else fit.n_draws if sampled else 1
    draws = fit.draws(count) if sampled else {}
    for site in fit.record.data.values():
        found = declared.residual_sd(fit.record, site)
        if found is not None:
            name, value = found
            sd = declared.numpy_of(draws[name]).reshape(-1) if name in draws else np.full(count, value)
            rows.append(("Residual", "" if len(fit.record.data) == 1 else site.name, sd))
    return rows


def correlations(fit: Fit, group: str) -> pd.DataFrame:
    """Correlations of the terms of one grouping factor; terms of different effects are independent."""
    effects = declared.effects_of(fit.record, group)
    known, labels = fit.covariances(), declared.term_labels(effects)
    matrix, start = np.zeros((len(labels), len(labels))), 0
    for site in effects:
        corr = known[site.name][1]
        stop = start + len(corr)
        matrix[start:stop, start:stop] = corr
        start = stop
    return pd.DataFrame(matrix, index=labels, columns=labels)


def random_effects(fit: Fit, group: str, what: str) -> pd.DataFrame:
    """Conditional modes (``"mode"``) or SDs (``"sd"``) of one grouping factor, levels x terms."""
    if what not in ("mode", "sd"):
        raise ConfigError(f"random_effects({group!r}, {what!r}): choose 'mode' or 'sd'.")
    effects = declared.effects_of(fit.record, group)
    source = fit.estimate.latents if what == "mode" else fit.estimate.latent_sd
    labels, parts, start = declared.term_labels(effects), [], 0
    for site in effects:
        role = site.role.shown
        stop = start + len(role.terms)
        shape = (len(role.levels), stop - start)
        value = source.get(site.name)
        if value is not None and site.role.spread is not None:
            value = of_functions(fit, site, what)
        if value is None or (what == "sd" and not fit.trusted):
            array = np.full(shape, np.nan)
        else:
            array = declared.numpy_of(value).reshape(shape)
        index = pd.Index(role.levels, name=group, tupleize_cols=False)
        parts.append(pd.DataFrame(array, index=index, columns=labels[start:stop], dtype=float))
        start = stop
    first = parts[0].index
    return pd.concat([part.reindex(first) if not part.index.equals(first) else part for part in parts], axis=1)


def of_functions(fit: Fit, site: Site, what: str) -> torch.Tensor:
    """Modes or SDs of the levels of an effect that is a sum of functions; for draws, over draws."""
    name, estimate = site.name, fit.estimate
    if estimate.kind != "draws":
        return site.role.spread.apply(estimate.latents[name]) if what == "mode" else estimate.latent_sd[name]

    def one(values: Values) -> Values:
        at = fit.run(values).latents[name]
        return {name: at.role.spread.apply(at.value)}

    rows = len(site.role.rows.index)
    count = min(fit.n_draws, max(COVARIANCE_DRAWS, MAX_ENTRIES // len(site.role.shown.levels)))
    drawn = over_draws(one, fit.draws(count), rows)[name]
    return drawn.mean(0) if what == "mode" else drawn.std(0)
