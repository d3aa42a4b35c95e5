"""Prediction: the same program, run on new data under the fit's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ConfigError, UnsupportedError
from pyromix.results.condition import NewGroups
from pyromix.results.declared import numpy_of, values_of
from pyromix.results.draws import Responses, Values, describe, over_draws
from pyromix.results.new_levels import row_variance
from pyromix.results.quadrature import gaussian_mean
from pyromix.results.rows import NOISE, Appended, Rows, response_site, row_labels, run_at, stream
from pyromix.running import Record, Site
from pyromix.sites import RowMap

if TYPE_CHECKING:
    import xarray

    from pyromix.results.fit import Fit

KINDS = ("mean", "linear", "interval", "draws")
POLICIES = ("error", "zero", "marginal", "conditional")
POINT_DRAWS = 500  # draws from a point fit's approximation, where none are stored
INTERVAL_DRAWS = 1000
MAX_ENTRIES = 20_000_000  # of an array (draws, rows); more rows get fewer draws
MIN_DRAWS = 100
PROBE = 0  # seed of the random effects that a program is probed with


def predict(
    fit: Fit, data: Any, kind: str, new_groups: str, level: float, seed: int, condition_on: Any = None, **how: Any
) -> Any:
    """`Fit.predict`."""
    for name, value, allowed in (("kind", kind, KINDS), ("new_groups", new_groups, POLICIES)):
        if value not in allowed:
            raise ConfigError(f"predict({name}={value!r}): choose one of {', '.join(map(repr, allowed))}.")
    if not 0 < level < 1:
        raise ConfigError(f"predict(level={level!r}): must lie between 0 and 1, e.g. 0.9.")
    rows = Rows.of(fit, data, new_groups, **how)
    if condition_on is not None:
        if data is None:
            raise ConfigError("predict(condition_on=...): the training rows have no new levels; pass data=.")
        rows = replace(rows, given=NewGroups.of(fit, condition_on))
    if rows.whole is not None and not rows.whole.any():
        return _nothing(rows, kind)
    if kind in ("mean", "linear"):
        return _point(fit, rows, kind, seed)
    if kind == "interval":
        return _interval(fit, rows, level, seed)
    return _draws(fit, rows, seed)


def _nothing(rows: Rows, kind: str) -> Any:
    """The prediction where every row has a missing value."""
    nan = np.full(len(rows.whole) if rows.whole is not None else 0, np.nan)
    if kind == "interval":
        return _frame(rows, nan, np.stack([nan, nan]))
    return nan if kind in ("mean", "linear") else _array(rows, nan[None], 1, {})


def _mean(site: Site, eta: torch.Tensor) -> torch.Tensor:
    return site.role.family.mean(eta, **site.role.dispersion)


def _draw_count(fit: Fit, wanted: int, n: int) -> int:
    limit = max(MIN_DRAWS, MAX_ENTRIES // max(n, 1))
    return min(fit.estimate.n_draws or wanted, limit)


def population_mean(fit: Fit, data: Any = None) -> np.ndarray:
    """Expected response with every random effect at zero, (n,)."""
    rows = Rows.of(fit, data, "zero")
    zeros = {name: torch.zeros_like(value) for name, value in fit.estimate.latents.items()}
    site = response_site(run_at(fit, rows, {**fit.estimate.point, **zeros})[0])
    return rows.scatter(numpy_of(_mean(site, site.role.eta)))


def _at_estimate(fit: Fit, rows: Rows) -> Values:
    """The estimate's values, with the conditional modes of the levels that `condition_on` is about."""
    values = values_of(fit.estimate)
    return values if rows.given is None else {**values, **rows.given.at_estimate()}


def _at_draws(fit: Fit, rows: Rows, count: int, seed: int) -> Values:
    """Draws of every site, with one of those levels' effects for each."""
    values = fit.draws(count, seed)
    return values if rows.given is None else {**values, **rows.given.draw(values, stream(seed, "levels with rows"))}


# -- kinds ------------------------------------------------------------------------------------------------------------
def _point(fit: Fit, rows: Rows, kind: str, seed: int) -> np.ndarray:
    """Plug-in at the conditional modes for a point fit, the average over draws otherwise."""
    values = _at_estimate(fit, rows)
    record, appended = run_at(fit, rows, values)
    site = response_site(record)
    plain = not appended or rows.policy == "zero"
    if plain and fit.estimate.kind != "draws":
        return rows.scatter(numpy_of(site.role.eta if kind == "linear" else _mean(site, site.role.eta)))
    linear = plain or _enters_linearly(fit, rows, appended, record, values)
    if fit.estimate.kind == "draws":
        values = _at_draws(fit, rows, _draw_count(fit, fit.n_draws, len(site.role.eta)), seed)
    else:
        values = {name: value[None] for name, value in values.items()}
    if linear and not plain:
        return rows.scatter(numpy_of(_integrated(fit, rows, kind, values, site)))
    if not plain:  # one draw of the new levels for each draw of the posterior, or many at a point
        values = {n: v.expand(INTERVAL_DRAWS, *v.shape[1:]) if len(v) == 1 else v for n, v in values.items()}
        values |= new_noise(appended, len(next(iter(values.values()))), seed)
    at = responses(fit, rows, values, site)
    return rows.scatter(numpy_of((at.eta if kind == "linear" else at.means()).mean(0)))


def _integrated(fit: Fit, rows: Rows, kind: str, values: Values, site: Site) -> torch.Tensor:
    """Mean with the new levels' effects, which enter linearly, integrated over their prior at each draw."""

    def one(draw: Values) -> Values:
        record, appended = run_at(fit, rows, draw)
        at = response_site(record)
        variance = torch.zeros_like(at.role.eta)
        for name, new in appended.items():
            latent = record.latents[name]
            rows_ = latent.role.rows
            if new.root is None:
                variance = variance + new_level_variance(rows_, latent.fn.operator.block, new.open)
            else:
                variance = variance + row_variance(rows_, new.root, new.shape[1], new.open)
        return {**describe(at), "variance": variance}

    found = over_draws(one, values, len(site.role.eta))
    at = Responses.of(site, found)
    if kind == "linear":
        return at.eta.mean(0)
    total = torch.zeros_like(site.role.eta)
    for s in range(len(at)):
        mean = partial(site.role.family.mean, **at.at(s))
        total = total + gaussian_mean(mean, at.eta[s], found["variance"][s])
    return total / len(at)


def _enters_linearly(fit: Fit, rows: Rows, appended: Mapping[str, Appended], record: Record, values: Values) -> bool:
    """Whether the predictor is affine in the new levels' effects through the declared row maps: probe and compare."""
    noise = {name: value[0] for name, value in new_noise(appended, 1, PROBE).items()}
    probed, _ = run_at(fit, rows, {**values, **noise})
    expected = response_site(record).role.eta
    for name in appended:
        latent = probed.latents[name]
        contribution = latent.role.rows.apply(latent.value - record.latents[name].value)
        if contribution.shape != expected.shape:
            return False
        expected = expected + contribution
    return torch.allclose(response_site(probed).role.eta, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def new_noise(appended: Mapping[str, Appended], count: int, seed: int) -> Values:
    """Standard normals for the new levels of every effect, (draws, new levels, terms), under their prefix."""
    generator = torch.Generator().manual_seed(stream(seed, "levels without rows"))
    return {
        NOISE + name: torch.randn(count, *new.shape, dtype=torch.float64, generator=generator)
        for name, new in appended.items()
    }


def responses(fit: Fit, rows: Rows, values: Values, site: Site) -> Responses:
    """The response at every draw of the values; new levels are drawn from their prior through their noise."""

    def one(draw: Values) -> Values:
        return describe(response_site(run_at(fit, rows, draw)[0]))

    return Responses.of(site, over_draws(one, values, len(site.role.eta)))


def new_level_variance(rows: RowMap, block: torch.Tensor, is_open: torch.Tensor | None = None) -> torch.Tensor:
    r"""Prior variance that new levels give to each row, (n,).

    With covariance :math:`\Sigma = LL^T` of one level, memberships m of row n and their weights w,
    :math:`s^2_n = (z_n^T\Sigma z_n) \sum_{m,m'} w_{nm} w_{nm'} [g(n,m) = g(n,m') < 0]`. Levels that are not open
    (their effects are given) add nothing.
    """
    index = rows.index
    if rows.design is None:
        scale = block[0, 0].square().expand(len(index))
    else:
        scale = (rows.design @ block).square().sum(-1)
    new = (index < 0).to(block.dtype)
    new = new if is_open is None else new * is_open[index.clamp(max=-1)]
    weight = new if rows.weight is None else new * rows.weight
    if index.dim() == 1:
        share = weight.square()
    else:
        same = (index[:, :, None] == index[:, None, :]).to(block.dtype)
        share = torch.einsum("nm,nk,nmk->n", weight, weight, same)
    # rows without new levels get an exact zero, also where their design is NaN
    return torch.where(share == 0, torch.zeros_like(scale), scale * share)


def _draws(fit: Fit, rows: Rows, seed: int) -> xarray.DataArray:
    means = rows.scatter(numpy_of(_sampled(fit, rows, None, seed).means()), axis=1)
    chains = fit.estimate.chains if len(means) % fit.estimate.chains == 0 else 1
    return _array(rows, means, chains, {"inference": fit.estimate.inference})


def _array(rows: Rows, means: np.ndarray, chains: int, attrs: dict[str, Any]) -> xarray.DataArray:
    """Draws (draws, n) as an array (chain, draw, obs_id)."""
    import xarray

    values = means.reshape(chains, -1, *means.shape[1:])
    dims = ("chain", "draw", "obs_id", *(f"mean_dim_{k}" for k in range(means.ndim - 2)))
    labels = row_labels(rows.index, means.shape[1])
    coords = {"chain": np.arange(chains), "draw": np.arange(values.shape[1]), "obs_id": labels}
    return xarray.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def _sampled(fit: Fit, rows: Rows, wanted: int | None, seed: int) -> Responses:
    """The response at draws of the posterior, new levels drawn from their prior under each draw's hyper-parameters."""
    record, appended = run_at(fit, rows, _at_estimate(fit, rows))
    site = response_site(record)
    count = _draw_count(fit, wanted or fit.n_draws, len(site.role.eta))
    noise = {} if rows.policy == "zero" else new_noise(appended, count, seed)
    return responses(fit, rows, {**_at_draws(fit, rows, count, seed), **noise}, site)


def _interval(fit: Fit, rows: Rows, level: float, seed: int) -> pd.DataFrame:
    mean = _point(fit, rows, "mean", seed)
    if mean.ndim != 1:
        raise UnsupportedError(
            f"predict(kind='interval'): the mean has shape {mean.shape}; intervals need one mean a row."
        )
    at = _sampled(fit, rows, INTERVAL_DRAWS, seed)
    y, discrete = at.replicates(stream(seed, "responses"))
    trials = at.site.role.trials
    sample = rows.scatter(numpy_of(y if trials is None else y / trials), axis=1)
    # a quantile of counts is a count
    method: Literal["inverted_cdf", "linear"] = "inverted_cdf" if discrete else "linear"
    whole = np.isfinite(mean)
    bounds = np.full((2, len(mean)), np.nan)
    bounds[:, whole] = np.quantile(sample[:, whole], [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)
    return _frame(rows, mean, bounds)


def _frame(rows: Rows, mean: np.ndarray, bounds: np.ndarray) -> pd.DataFrame:
    index = rows.index if rows.index is not None else pd.RangeIndex(len(mean))
    return pd.DataFrame({"mean": mean, "lower": bounds[0], "upper": bounds[1]}, index=index, dtype=float)
