"""Prediction: the same program, run on new data under the fit's values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ConfigError, UnsupportedError
from pyromix.results.declared import numpy_of, values_of
from pyromix.results.quadrature import gaussian_mean
from pyromix.results.rows import Rows, response_site, row_labels, run_at
from pyromix.running import Site
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


def predict(fit: Fit, data: Any, kind: str, new_groups: str, level: float, seed: int) -> Any:
    """`Fit.predict`."""
    for name, value, allowed in (("kind", kind, KINDS), ("new_groups", new_groups, POLICIES)):
        if value not in allowed:
            raise ConfigError(f"predict({name}={value!r}): choose one of {', '.join(map(repr, allowed))}.")
    if not 0 < level < 1:
        raise ConfigError(f"predict(level={level!r}): must lie between 0 and 1, e.g. 0.9.")
    rows = Rows.of(fit, data, new_groups)
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


def _at_draws(fit: Fit, count: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    draws = fit.draws(count, seed)
    for s in progress(range(count)):
        yield {name: value[s] for name, value in draws.items()}


def progress(steps: range) -> Any:
    """The steps with a bar that shows itself only if they take longer than two seconds."""
    from tqdm import tqdm

    return tqdm(steps, desc="draws", delay=2.0, leave=False)


def _draw_count(fit: Fit, wanted: int, n: int) -> int:
    limit = max(MIN_DRAWS, MAX_ENTRIES // max(n, 1))
    return min(fit.estimate.n_draws or wanted, limit)


def population_mean(fit: Fit, data: Any = None) -> np.ndarray:
    """Expected response with every random effect at zero, (n,)."""
    rows = Rows.of(fit, data, "zero")
    zeros = {name: torch.zeros_like(value) for name, value in fit.estimate.latents.items()}
    site = response_site(run_at(fit, rows, {**fit.estimate.point, **zeros}, append="zero")[0])
    return rows.scatter(numpy_of(_mean(site, site.role.eta)))


# -- kinds ------------------------------------------------------------------------------------------------------------
def _point(fit: Fit, rows: Rows, kind: str, seed: int) -> np.ndarray:
    """Plug-in at the conditional modes for a point fit, the average over draws otherwise."""
    if fit.estimate.kind != "draws":
        return rows.scatter(numpy_of(_plug_in(fit, rows, kind, values_of(fit.estimate), seed)))
    parts = (_plug_in(fit, rows, kind, values, seed) for values in _at_draws(fit, fit.n_draws, seed))
    return rows.scatter(numpy_of(_average(parts)))


def _average(values: Iterator[torch.Tensor]) -> torch.Tensor:
    """Mean of tensors of one shape, one at a time in memory."""
    total, count = next(values), 1
    for value in values:
        total, count = total + value, count + 1
    return total / count


def _plug_in(fit: Fit, rows: Rows, kind: str, values: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    record, appended = run_at(fit, rows, values, append="zero")
    site = response_site(record)
    eta = site.role.eta
    if not appended or rows.policy == "zero":
        return eta if kind == "linear" else _mean(site, eta)
    maps = {name: record.latents[name].role.rows for name in appended}
    if not _enters_linearly(fit, rows, values, maps, eta, seed):
        return _average(_simulated(fit, rows, kind, values, seed))
    if kind == "linear":
        return eta
    variance = torch.zeros_like(eta)
    for name, row_map in maps.items():
        block = record.latents[name].fn.operator.block
        variance = variance + new_level_variance(row_map, block)
    return gaussian_mean(lambda x: _mean(site, x), eta, variance)


def _enters_linearly(
    fit: Fit, rows: Rows, values: dict[str, torch.Tensor], maps: dict[str, RowMap], eta: torch.Tensor, seed: int
) -> bool:
    """Whether the predictor is affine in the new levels' effects through the declared row maps: probe and compare."""
    record, _ = run_at(fit, rows, values, append="prior", seed=seed)
    probe = eta
    for name, row_map in maps.items():
        u = record.latents[name].value.clone()
        u[: len(values[name])] = 0
        rows_of = row_map.apply(u)
        if rows_of.shape != eta.shape:
            return False
        probe = probe + rows_of
    return torch.allclose(probe, record.data[next(iter(record.data))].role.eta, rtol=1e-9, atol=1e-9, equal_nan=True)


def _simulated(fit: Fit, rows: Rows, kind: str, values: dict[str, torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    """Means (or predictors) under draws of new effects that enter through a network; a seed always gives the same."""
    for each in _seeds(seed, INTERVAL_DRAWS):
        site = response_site(run_at(fit, rows, values, append="prior", seed=each)[0])
        yield site.role.eta if kind == "linear" else _mean(site, site.role.eta)


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
    means = np.stack([numpy_of(_mean(site, site.role.eta)) for site in _sites_at_draws(fit, rows, None, seed)])
    means = rows.scatter(means, axis=1)
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


def _sites_at_draws(fit: Fit, rows: Rows, wanted: int | None, seed: int) -> Iterator[Site]:
    """The response site at each draw, with new levels drawn from their prior under that draw's hyper-parameters."""
    n = len(response_site(run_at(fit, rows, values_of(fit.estimate), append="zero")[0]).role.eta)
    count = _draw_count(fit, wanted or fit.n_draws, n)
    for values, each in zip(_at_draws(fit, count, seed), _seeds(seed, count), strict=True):
        yield response_site(run_at(fit, rows, values, append="prior", seed=each)[0])


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for the runs of a program."""
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _interval(fit: Fit, rows: Rows, level: float, seed: int) -> pd.DataFrame:
    mean = _point(fit, rows, "mean", seed)
    if mean.ndim != 1:
        raise UnsupportedError(
            f"predict(kind='interval'): the mean has shape {mean.shape}; intervals need one mean a row."
        )
    samples: list[torch.Tensor] = []
    discrete = False
    for s, site in enumerate(_sites_at_draws(fit, rows, INTERVAL_DRAWS, seed)):
        y, discrete = replicate(site, seed + 1 + s)
        samples.append(y if site.role.trials is None else y / site.role.trials)
    sample = rows.scatter(torch.stack(samples).numpy(), axis=1)
    # a quantile of counts is a count
    method: Literal["inverted_cdf", "linear"] = "inverted_cdf" if discrete else "linear"
    whole = np.isfinite(mean)
    bounds = np.full((2, len(mean)), np.nan)
    bounds[:, whole] = np.quantile(sample[:, whole], [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)
    return _frame(rows, mean, bounds)


def _frame(rows: Rows, mean: np.ndarray, bounds: np.ndarray) -> pd.DataFrame:
    index = rows.index if rows.index is not None else pd.RangeIndex(len(mean))
    return pd.DataFrame({"mean": mean, "lower": bounds[0], "upper": bounds[1]}, index=index, dtype=float)


def replicate(site: Site, seed: int) -> tuple[torch.Tensor, bool]:
    """One new response of every row, float64 (n,), NaN where the predictor is NaN; and whether responses are counts."""
    role = site.role
    bad = ~torch.isfinite(role.eta).reshape(len(role.eta), -1).all(1)
    eta = torch.where(bad.reshape(-1, *[1] * (role.eta.dim() - 1)), torch.zeros_like(role.eta), role.eta)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        response = role.family.distribution(eta, role.trials, **role.dispersion)
        sample = response.sample().to(torch.float64)
    sample[bad] = torch.nan
    return sample, bool(response.support.is_discrete)
