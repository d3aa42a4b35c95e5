"""Prediction: the same program, run on new data under the fit's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from pyro.poutine.messenger import Messenger

from pyromix.errors import ConfigError, UnseenLevelError, UnsupportedError
from pyromix.results.declared import numpy_of, values_of
from pyromix.results.quadrature import gaussian_mean
from pyromix.running import Record, Site, run
from pyromix.sites import Latent, RowMap, annotation

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


@dataclass(frozen=True)
class Rows:
    """Rows to predict at.

    Attributes
    ----------
    args
        What the program takes.
    index
        Row labels, if there are any.
    unseen
        Labels of levels not seen in the fit, by grouping factor, where the design knows them.
    policy
        What such levels get.
    whole
        Rows without missing values, a mask; only they are in `args`. ``None`` if all are.
    """

    args: tuple[Any, ...]
    index: pd.Index | None
    unseen: Mapping[str, Any]
    policy: str
    whole: np.ndarray | None = None

    @classmethod
    def of(cls, fit: Fit, data: Any, policy: str) -> Rows:
        """The training rows for ``None``, else new ones, those with missing values left out."""
        if data is None:
            args = fit.args
        elif fit.new_design is not None:
            args = (fit.new_design(data),)
        else:
            args = (data,)
        index = getattr(args[0], "index", None) if args else None
        index = index if isinstance(index, pd.Index) else None
        missing = getattr(args[0], "missing", None) if data is not None and fit.new_design is not None else None
        whole = None
        if missing is not None and bool(missing.any()):
            # a network would refuse NaN inputs, and one row must not cost the others their prediction
            whole = ~np.asarray(missing)
            args = (fit.new_design(_take(data, whole)),) if whole.any() else args
        unseen = getattr(args[0], "unseen", None) if args else None
        return cls(args, index, unseen if isinstance(unseen, Mapping) else {}, policy, whole)

    def label(self, position: int) -> str:
        """``row 'a17' (position 16)`` for a position among the rows that are run."""
        at = position if self.whole is None else int(np.flatnonzero(self.whole)[position])
        return f"position {at}" if self.index is None else f"row {self.index[at]!r} (position {at})"

    def scatter(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Values of the rows that are run at their places among all rows, NaN elsewhere."""
        if self.whole is None:
            return values
        shape = list(values.shape)
        shape[axis] = len(self.whole)
        out = np.full(shape, np.nan)
        out[(slice(None),) * axis + (self.whole,)] = values
        return out


def _take(data: Any, rows: np.ndarray) -> Any:
    """The given rows of a data frame or of a mapping of columns."""
    if isinstance(data, Mapping):
        return {name: np.asarray(column)[rows] for name, column in data.items()}
    frame = data if isinstance(data, pd.DataFrame) else data.to_pandas()
    return frame[rows]


class _Effects(Messenger):
    """Put the fit's random effects at their sites, with rows appended for the levels that the fit has not seen."""

    def __init__(self, known: dict[str, torch.Tensor], rows: Rows, append: str) -> None:
        super().__init__()
        self.known, self.rows, self.append = known, rows, append
        self.appended: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        role = annotation(msg)
        if not isinstance(role, Latent) or msg["name"] not in self.known:
            return
        value = self.known[msg["name"]]
        index = role.rows.index
        extra = max(0, -int(index.min())) if index.numel() else 0
        _check_levels(msg["name"], role, len(value))
        if extra and self.rows.policy == "error":
            raise UnseenLevelError(_unseen_message(msg["name"], role, self.rows))
        if extra:
            value = torch.cat([value, self._new_rows(msg, role, extra, value)])
            self.appended.add(msg["name"])
        msg["value"], msg["is_observed"] = value, True  # as poutine.condition would

    def _new_rows(self, msg: Any, role: Latent, extra: int, value: torch.Tensor) -> torch.Tensor:
        block = msg["fn"].operator.block
        if self.rows.policy != "zero" and block is None:
            raise UnsupportedError(
                f"new_groups={self.rows.policy!r}: the levels of {msg['name']!r} depend on each other, and its "
                "covariance does not say how a new level depends on the known ones; use new_groups='zero'."
            )
        if self.append == "zero" or self.rows.policy == "zero":
            return value.new_zeros((extra, value.shape[1]))
        return torch.randn((extra, value.shape[1]), dtype=value.dtype) @ block.mT


def _check_levels(name: str, role: Latent, count: int) -> None:
    high = int(role.rows.index.max()) if role.rows.index.numel() else -1
    if high >= count:
        row = int((role.rows.index.reshape(len(role.rows.index), -1) == high).any(1).nonzero()[0])
        raise UnseenLevelError(
            f"column {role.group!r} (random effect {name!r}): index {high} at row {row} is not one of the {count} "
            "levels of the fit; number new levels -1, -2, ... and pass new_groups='zero', 'marginal' or 'conditional'."
        )


def _unseen_message(name: str, role: Latent, rows: Rows) -> str:
    new = role.rows.index.reshape(len(role.rows.index), -1) < 0
    count = int(new.any(1).sum())
    first = int(new.any(1).nonzero()[0])
    labels = list(dict.fromkeys(rows.unseen.get(name) or rows.unseen.get(role.group) or ()))
    if labels:
        shown = ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
        what = f"{len(labels)} level{'s' * (len(labels) != 1)} not seen in the fit: {shown}"
    else:
        what = "levels not seen in the fit"
    return (
        f"column {role.group!r}: {what}; {count} row{'s' * (count != 1)}, first at {rows.label(first)}. Choose what "
        "they get: new_groups='zero' (no effect), 'marginal' (its prior, integrated over) or 'conditional' (given the "
        "known levels)."
    )


# -- running ----------------------------------------------------------------------------------------------------------
def _run(
    fit: Fit, rows: Rows, values: dict[str, torch.Tensor], append: str, seed: int | None = None
) -> tuple[Record, set[str]]:
    """One run at the rows: the record, and the effects that met new levels; `seed` is that of appended prior draws."""
    known = {name: value for name, value in values.items() if name in fit.record.latents}
    others = {name: value for name, value in values.items() if name not in known}
    effects = _Effects(known, rows, append)

    def program(*args: Any) -> None:
        with effects:
            fit.program(*args)

    with torch.no_grad():
        return run(program, rows.args, others, seed=seed), effects.appended


def response_site(record: Record) -> Site:
    """The program's one response."""
    if len(record.data) > 1:
        names = ", ".join(map(repr, record.data))
        raise UnsupportedError(f"predict: the program observes several responses ({names}); predict needs exactly one.")
    return next(iter(record.data.values()))


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
    site = response_site(_run(fit, rows, {**fit.estimate.point, **zeros}, append="zero")[0])
    return rows.scatter(numpy_of(_mean(site, site.role.eta)))


# -- kinds ------------------------------------------------------------------------------------------------------------
def _point(fit: Fit, rows: Rows, kind: str, seed: int) -> np.ndarray:
    """Plug-in at the conditional modes for a point fit, the average over draws otherwise."""
    if fit.estimate.kind != "draws":
        return rows.scatter(numpy_of(_plug_in(fit, rows, kind, values_of(fit.estimate), seed)))
    total, count = None, fit.n_draws
    for values in _at_draws(fit, count, seed):
        value = _plug_in(fit, rows, kind, values, seed)
        total = value if total is None else total + value
    return rows.scatter(numpy_of(total / count))


def _plug_in(fit: Fit, rows: Rows, kind: str, values: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    record, appended = _run(fit, rows, values, append="zero")
    site = response_site(record)
    eta = site.role.eta
    if not appended or rows.policy == "zero":
        return eta if kind == "linear" else _mean(site, eta)
    maps = {name: record.latents[name].role.rows for name in appended}
    if not _enters_linearly(fit, rows, values, maps, eta, seed):
        return _average(fit, rows, kind, values, seed)
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
    record, _ = _run(fit, rows, values, append="prior", seed=seed)
    probe = eta
    for name, row_map in maps.items():
        u = record.latents[name].value.clone()
        u[: len(values[name])] = 0
        rows_of = row_map.apply(u)
        if rows_of.shape != eta.shape:
            return False
        probe = probe + rows_of
    return torch.allclose(probe, record.data[next(iter(record.data))].role.eta, rtol=1e-9, atol=1e-9, equal_nan=True)


def _average(fit: Fit, rows: Rows, kind: str, values: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """Mean over draws of new effects that enter through a network; the same seed gives the same draws."""
    total = None
    for each in _seeds(seed, INTERVAL_DRAWS):
        site = response_site(_run(fit, rows, values, append="prior", seed=each)[0])
        value = site.role.eta if kind == "linear" else _mean(site, site.role.eta)
        total = value if total is None else total + value
    return total / INTERVAL_DRAWS


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
    n = len(response_site(_run(fit, rows, values_of(fit.estimate), append="zero")[0]).role.eta)
    count = _draw_count(fit, wanted or fit.n_draws, n)
    for values, each in zip(_at_draws(fit, count, seed), _seeds(seed, count), strict=True):
        yield response_site(_run(fit, rows, values, append="prior", seed=each)[0])


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for the runs of a program."""
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _interval(fit: Fit, rows: Rows, level: float, seed: int) -> pd.DataFrame:
    mean = _point(fit, rows, "mean", seed)
    if mean.ndim != 1:
        raise UnsupportedError(
            f"predict(kind='interval'): the mean has shape {mean.shape}; intervals need one mean a row."
        )
    samples, discrete = [], False
    for s, site in enumerate(_sites_at_draws(fit, rows, INTERVAL_DRAWS, seed)):
        sample, discrete = replicate(site, seed + 1 + s)
        samples.append(sample if site.role.trials is None else sample / site.role.trials)
    sample = rows.scatter(torch.stack(samples).numpy(), axis=1)
    # a quantile of counts is a count
    method = "inverted_cdf" if discrete else "linear"
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


def row_labels(index: Any, n: int) -> np.ndarray:
    """Row labels as coordinates: the index's own if they are unique, of one type and flat, else positions."""
    if not isinstance(index, pd.Index) or isinstance(index, pd.MultiIndex) or not index.is_unique or len(index) != n:
        return np.arange(n)
    return tidy_labels(index)


def tidy_labels(labels: Any) -> np.ndarray:
    """Labels as an array of numbers or of strings; a mixture becomes strings."""
    values = list(labels)
    if all(isinstance(v, bool | np.bool_) for v in values) or not values:
        return np.array([str(v) for v in values])
    if all(isinstance(v, int | np.integer) for v in values):
        return np.array(values, dtype=np.int64)
    if all(isinstance(v, float | np.floating | int | np.integer) for v in values):
        return np.array(values, dtype=np.float64)
    return np.array([str(v) for v in values])
