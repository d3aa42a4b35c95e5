r"""Shares of the variance: heritability, repeatability, intraclass correlation.

For random effect k with level covariance T_k (its mean over levels, as in the variance components) and row design z,

.. math:: h^2_k = \frac{v_k}{\sum_j v_j + \sigma^2}, \qquad v_k = \frac1n \sum_i z_i^T T_k z_i,

and :math:`\sigma^2` the residual variance, its mean over rows where it varies (with weights of precision, or a variance
function). So :math:`v_k = sd^2\, \mathrm{tr}(K)/m` for an intercept over m levels with a relationship matrix K: the
share of an average level's variance, which does not depend on how K is scaled (as GEMMA's PVE). With ``scaled=False``
K counts at unit scale, :math:`sd^2 / (sd^2 + \sigma^2)`, which is sommer's ``vpredict(h2 ~ V1 / (V1 + V2))``. The mean
over rows for slopes is that of Johnson (2014).

Intervals: profile likelihood where one such effect and the residual are all there is (`BoundRotated.profiled`), which
may end at zero; else by the delta method on the logit scale; quantiles for draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.special import expit, ndtri
from scipy.stats import chi2
from torch.distributions import biject_to, constraints

from pyromix.errors import ConfigError, NumericalError, UnsupportedError
from pyromix.linalg.known import KnownOperator
from pyromix.marginal import Exact
from pyromix.marginal.rotated import BoundRotated
from pyromix.results import declared
from pyromix.results.draws import Values, over_draws
from pyromix.running import Record, Site, run

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

COLUMNS = ["group", "name", "estimate", "se", "lower", "upper"]
NEAR_ONE = 1e-9  # a share this close to one leaves no residual


def heritability(fit: Fit, group: str | None, level: float, scaled: bool) -> pd.DataFrame:
    """Share of the variance of every effect, or of those of one group, with its interval."""
    if not 0 < level < 1:
        raise ConfigError(f"heritability(level={level!r}): must lie between 0 and 1, e.g. 0.95.")
    sites = list(fit.record.latents.values()) if group is None else declared.effects_of(fit.record, group)
    if not sites:
        raise UnsupportedError("heritability(): the program has no random effects, whose share of the variance it is.")
    _residual(fit.record)
    names = [site.name for site in sites]
    find = _from_draws if fit.estimate.kind == "draws" else _from_point
    intervals, how = find(fit, names, level, scaled)
    rows = [
        [site.role.group, label, share.estimate, share.se, share.lower, share.upper]
        for site, label, share in zip(sites, _labels(sites), intervals, strict=True)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["interval"] = how
    return table


def _labels(sites: list[Site]) -> list[str]:
    """Terms of every effect, with the effect's name where another one of its group has the same."""
    pairs = [(site.role.group, ", ".join(map(str, site.role.terms))) for site in sites]
    return [
        f"{site.name}[{pair[1]}]" if pairs.count(pair) > 1 else pair[1] for site, pair in zip(sites, pairs, strict=True)
    ]


@dataclass(frozen=True)
class _Share:
    """One share of the variance."""

    estimate: float
    se: float
    lower: float
    upper: float


def _shares(fit: Fit, values: Values, names: list[str], scaled: bool) -> torch.Tensor:
    """Share of every effect in `names` at these hyper-parameters; gradients flow."""
    zeros = {name: torch.zeros_like(site.value) for name, site in fit.record.latents.items()}
    record = run(fit.program, fit.args, {**values, **zeros})
    parts = {name: _variance(site, scaled) for name, site in record.latents.items()}
    total = sum(parts.values(), _residual_variance(record))
    return torch.stack([parts[name] / total for name in names])


def _residual_variance(record: Record) -> torch.Tensor:
    """Of an average row, about its mean: not given the rows before it, where residuals are correlated."""
    (site,) = record.data.values()
    role = site.role if site.role.plain is None else site.role.plain
    return role.family.gaussian_sd(**role.dispersion).square().mean()


def _variance(site: Site, scaled: bool) -> torch.Tensor:
    """What an effect adds to the variance of an average row."""
    return (_level_covariance(site, scaled) * _moments(site)).sum()


def _level_covariance(site: Site, scaled: bool) -> torch.Tensor:
    operator = site.fn.operator
    if scaled or operator.block is not None:
        return declared.term_covariance(site)
    tril = operator.tril if isinstance(operator, KnownOperator) else operator.separable().tril
    return tril @ tril.mT


def _moments(site: Site) -> torch.Tensor:
    """Mean over rows of ``z z^T``, (q, q)."""
    rows, q = site.role.rows.own or site.role.rows, len(site.role.terms)
    n = len(rows.index)
    z = torch.ones(n, q, dtype=torch.float64) if rows.design is None else rows.design.detach()
    weight = 1.0 if rows.weight is None else rows.weight.detach().reshape(n, -1).square().sum(1)[:, None]
    return z.mT @ (weight * z) / n


def _residual(record: Record) -> tuple[str, float]:
    """Site and value of the residual SD."""
    if len(record.data) != 1:
        raise UnsupportedError(f"heritability(): the program observes {len(record.data)} responses; it takes one.")
    (site,) = record.data.values()
    gaussian = site.role.family.gaussian_sd(**site.role.dispersion) is not None
    found = declared.residual_sd(record, site) if gaussian else None
    if found is None:
        raise UnsupportedError(
            f"heritability(): {site.role.family!r} has no residual variance on the scale of the effects; take the "
            "variances from variance_components() and add that of the link, pi^2 / 3 for a logit."
        )
    return found


# -- draws -----------------------------------------------------------------------------------------------------------
def _from_draws(fit: Fit, names: list[str], level: float, scaled: bool) -> tuple[list[_Share], str]:
    hypers = {name: value for name, value in fit.draws().items() if name not in fit.record.latents}

    def one(values: Values) -> Values:
        return {"share": _shares(fit, values, names, scaled)}

    rows = max(len(site.role.rows.index) for site in fit.record.latents.values())
    sample = declared.numpy_of(over_draws(one, hypers, rows)["share"])
    mean, se = sample.mean(0), sample.std(0, ddof=1)
    lower, upper = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if not fit.trusted:
        se, lower, upper = (np.full(len(names), np.nan),) * 3
    return [_Share(*map(float, row)) for row in zip(mean, se, lower, upper, strict=True)], "quantiles"


# -- points ----------------------------------------------------------------------------------------------------------
def _from_point(fit: Fit, names: list[str], level: float, scaled: bool) -> tuple[list[_Share], str]:
    with torch.no_grad():
        estimate = declared.numpy_of(_shares(fit, dict(fit.estimate.point), names, scaled))
    if not fit.trusted:
        return [_Share(float(value), np.nan, np.nan, np.nan) for value in estimate], "none"
    se = _standard_errors(fit, names, scaled)
    bound = _profile(fit)
    if bound is not None:
        lower, upper = _profile_interval(fit, bound, float(estimate[0]), level, scaled)
        return [_Share(float(estimate[0]), float(se[0]), lower, upper)], "profile likelihood"
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.log(estimate) - np.log1p(-estimate)
        half = ndtri((1 + level) / 2) * se / (estimate * (1 - estimate))
        lower, upper = expit(centre - half), expit(centre + half)
    rows = zip(estimate, se, lower, upper, strict=True)
    return [_Share(*map(float, row)) for row in rows], "delta method, logit scale"


def _standard_errors(fit: Fit, names: list[str], scaled: bool) -> np.ndarray:
    """By the delta method from the covariance of the hyper-parameters on the real line; NaN on a boundary."""
    covariance = fit.estimate.state.get("natural")
    out = set(fit.estimate.settings.get("out", ()))
    sites = {name: site for name, site in fit.record.hypers.items() if name not in out}
    starts, maps = [], {}
    for name, site in sites.items():
        support = constraints.positive if site.role.support is constraints.nonnegative else site.role.support
        transform = biject_to(support)
        value = transform.inv(fit.estimate.point[name])
        maps[name] = (transform, value.shape, value.numel())
        starts.append(value.reshape(-1))
    flat = torch.cat(starts) if starts else torch.zeros(0, dtype=torch.float64)
    if covariance is None or len(covariance) != len(flat) or not bool(torch.isfinite(flat).all()):
        return np.full(len(names), np.nan)

    def shares(point: torch.Tensor) -> torch.Tensor:
        values, at = {}, 0
        for name, (transform, shape, size) in maps.items():
            values[name] = transform(point[at : at + size].reshape(shape))
            at += size
        fixed = {name: fit.estimate.point[name] for name in out}
        return _shares(fit, {**fixed, **values}, names, scaled)

    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(shares, flat)
    variance = torch.einsum("ka,ab,kb->k", jacobian, torch.as_tensor(covariance), jacobian).numpy()
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def _profile(fit: Fit) -> BoundRotated | None:
    """The likelihood on the eigenvectors of K, where the effect's SD and the residual's are all that it depends on."""
    criterion = fit.estimate.settings.get("criterion")
    if criterion not in ("ml", "reml") or fit.record.functions or len(fit.record.latents) != 1:
        return None
    (latent,) = fit.record.latents.values()
    free = {name for name, site in fit.record.hypers.items() if site.role.design is None}
    names = {f"{latent.name}.sd", _residual(fit.record)[0]}
    if free != names or any(fit.record.hypers[name].value.numel() > 1 for name in names):
        return None
    try:
        bound = Exact("integrate" if criterion == "reml" else "profile").prepare(fit.program, fit.args)
    except (UnsupportedError, NumericalError):
        return None
    return bound if isinstance(bound, BoundRotated) and len(bound.out) == len(fit.record.hypers) - 2 else None


def _profile_interval(
    fit: Fit, bound: BoundRotated, estimate: float, level: float, scaled: bool
) -> tuple[float, float]:
    """Where the profile of the log-likelihood has fallen by half a quantile of chi-squared on one degree of freedom."""
    (latent,) = fit.record.latents.values()
    zero, sd = torch.zeros_like(latent.value), fit.estimate.point[f"{latent.name}.sd"]
    record = fit.run({**fit.estimate.point, latent.name: zero, f"{latent.name}.sd": torch.ones_like(sd)})
    unit = float(_variance(record.latents[latent.name], scaled))
    middle = min(estimate, 1 - NEAR_ONE)
    top = bound.profiled(record, middle, unit)
    limit = top - 0.5 * float(chi2.ppf(level, 1))

    def excess(share: float) -> float:
        return max(bound.profiled(record, share, unit) - limit, -1e6)

    lower = 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, middle, xtol=1e-10))
    upper = 1.0 if excess(1 - NEAR_ONE) >= 0 else float(brentq(excess, middle, 1 - NEAR_ONE, xtol=1e-10))
    return lower, upper
