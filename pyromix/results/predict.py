"""Prediction: the same program, run on new data under the fit's values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ConfigError, UnsupportedError
from pyromix.results.declared import numpy_of, values_of
from pyromix.results.draws import Responses, Values, describe, over_draws
from pyromix.results.quadrature import gaussian_mean
from pyromix.results.rows import Rows, response_site, row_labels, run_at
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


def predict(fit: Fit, data: Any, kind: str, new_groups: str, level: float, seed: int, **how: Any) -> Any:
    """`Fit.predict`."""
    for name, value, allowed in (("kind", kind, KINDS), ("new_groups", new_groups, POLICIES)):
        if value not in allowed:
            raise ConfigError(f"predict({name}={value!r}): choose one of {', '.join(map(repr, allowed))}.")
    if not 0 < level < 1:
        raise ConfigError(f"predict(level={level!r}): must lie between 0 and 1, e.g. 0.9.")
    rows = Rows.of(fit, data, new_groups, **how)
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


# -- kinds ------------------------------------------------------------------------------------------------------------
def _point(fit: Fit, rows: Rows, kind: str, seed: int) -> np.ndarray:
    """Plug-in at the conditional modes for a point fit, the average over draws otherwise."""
    record, appended = run_at(fit, rows, values_of(fit.estimate))
    site = response_site(record)
    plain = not appended or rows.policy == "zero"
    if plain and fit.estimate.kind != "draws":
        return rows.scatter(numpy_of(site.role.eta if kind == "linear" else _mean(site, site.role.eta)))
    if fit.estimate.kind == "draws":
        values = fit.draws(_draw_count(fit, fit.n_draws, len(site.role.eta)), seed)
    else:
        values = {name: value[None] for name, value in values_of(fit.estimate).items()}
    if plain:
        at = responses(fit, rows, values, {}, site)
        return rows.scatter(numpy_of((at.eta if kind == "linear" else at.means()).mean(0)))
    if not _enters_linearly(fit, rows, appended, record, seed):
        # one draw of the new levels for each draw of the posterior, or many at a point
        values = {n: v.expand(INTERVAL_DRAWS, *v.shape[1:]) if len(v) == 1 else v for n, v in values.items()}
        at = responses(fit, rows, values, new_noise(appended, len(next(iter(values.values()))), seed), site)
        return rows.scatter(numpy_of((at.eta if kind == "linear" else at.means()).mean(0)))
    return rows.scatter(numpy_of(_integrated(fit, rows, kind, values, site)))


def _integrated(fit: Fit, rows: Rows, kind: str, values: Values, site: Site) -> torch.Tensor:
    """Mean with the new levels' effects, which enter linearly, integrated over their prior at each draw."""

    def one(draw: Values) -> Values:
        record, appended = run_at(fit, rows, draw)
        at = response_site(record)
        variance = torch.zeros_like(at.role.eta)
        for name in appended:
            latent = record.latents[name]
            variance = variance + new_level_variance(latent.role.rows, latent.fn.operator.block)
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


def _enters_linearly(fit: Fit, rows: Rows, appended: Appended, record: Record, seed: int) -> bool:
    """Whether the predictor is affine in the new levels' effects through the declared row maps: probe and compare."""
    values = values_of(fit.estimate)
    noise = {name: value[0] for name, value in new_noise(appended, 1, seed).items()}
    probed, _ = run_at(fit, rows, values, noise)
    expected = response_site(record).role.eta
    for name in appended:
        u = probed.latents[name].value.clone()
        u[: len(values[name])] = 0
        contribution = probed.latents[name].role.rows.apply(u)
        if contribution.shape != expected.shape:
            return False
        expected = expected + contribution
    return torch.allclose(response_site(probed).role.eta, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


Appended = Mapping[str, tuple[int, int]]
NOISE = "noise\0"


def new_noise(appended: Appended, count: int, seed: int) -> Values:
    """Standard normals for the new levels of every effect, (draws, new levels, terms)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *shape, dtype=torch.float64, generator=generator) for name, shape in appended.items()
    }


def responses(fit: Fit, rows: Rows, values: Values, noise: Values, site: Site) -> Responses:
    """The response at every draw of the values, with new levels drawn from their prior through `noise`."""

    def one(draw: Values) -> Values:
        own = {name.removeprefix(NOISE): value for name, value in draw.items() if name.startswith(NOISE)}
        rest = {name: value for name, value in draw.items() if not name.startswith(NOISE)}
        return describe(response_site(run_at(fit, rows, rest, own)[0]))

    inputs = {**values, **{NOISE + name: value for name, value in noise.items()}}
    return Responses.of(site, over_draws(one, inputs, len(site.role.eta)))


def new_level_variance(rows: RowMap, block: torch.Tensor) -> torch.Tensor:
    r"""Prior variance that new levels give to each row, (n,).

    With covariance :math:`\Sigma = LL^T` of one level, memberships m of row n and their weights w,
    :math:`s^2_n = (z_n^T\Sigma z_n) \sum_{m,m'} w_{nm} w_{nm'} [g(n,m) = g(n,m') < 0]`.
    """
    index = rows.index
    if rows.design is None:
        scale = block[0, 0].square().expand(len(index))
    else:
        scale = (rows.design @ block).square().sum(-1)
    new = (index < 0).to(block.dtype)
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
    record, appended = run_at(fit, rows, values_of(fit.estimate))
    site = response_site(record)
    count = _draw_count(fit, wanted or fit.n_draws, len(site.role.eta))
    noise = {} if rows.policy == "zero" else new_noise(appended, count, seed)
    return responses(fit, rows, fit.draws(count, seed), noise, site)


def _interval(fit: Fit, rows: Rows, level: float, seed: int) -> pd.DataFrame:
    mean = _point(fit, rows, "mean", seed)
    if mean.ndim != 1:
        raise UnsupportedError(
            f"predict(kind='interval'): the mean has shape {mean.shape}; intervals need one mean a row."
        )
    at = _sampled(fit, rows, INTERVAL_DRAWS, seed)
    y, discrete = at.replicates(seed)
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
