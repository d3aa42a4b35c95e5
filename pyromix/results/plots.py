"""Plots of a fit, drawn without pyplot, so that no global figure state changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from pyromix.errors import ConfigError, DataError
from pyromix.results import declared
from pyromix.results.predict import population_mean
from pyromix.results.rows import response_site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyromix.results.fit import Fit

INK, GREY, GRID = "#22303c", "#8795a1", "#e4e9ed"
GROUP, POPULATION = "#1f6fb2", "#c9562b"
GRID_POINTS = 60


def plot_fitted(fit: Fit, x: str | None, group: str | None, groups: Sequence[Any] | int) -> Figure:
    """`Fit.plot_fitted`."""
    site = response_site(fit.record)
    label, column = _column(fit, x)
    group = group_of(fit, group)
    effect = declared.effects_of(fit.record, group)[0]
    if effect.role.rows.index.dim() != 1:
        raise DataError(f"plot_fitted(group={group!r}): rows belong to several levels at once; choose another group.")
    index = effect.role.rows.index.numpy()
    shown = _levels(fit, group, effect, groups)
    y = site.role.obs.numpy() / (1.0 if site.role.trials is None else site.role.trials.numpy())
    curves = _curves(fit, label, column, index, shown)
    figure, axes = panels(len(shown), width=2.5, height=2.25, sharey=True)
    for axis, code, curve in zip(axes, shown, curves, strict=True):
        axis.fill_between(curve.x, curve.lower, curve.upper, color=GROUP, alpha=0.18, linewidth=0)
        axis.plot(curve.x, curve.population, color=POPULATION, linewidth=1.3, linestyle=(0, (5, 2)))
        axis.plot(curve.x, curve.mean, color=GROUP, linewidth=1.9)
        rows = np.flatnonzero(index == code)
        axis.plot(column[rows], y[rows], "o", color=INK, markersize=3.2, alpha=0.75, markeredgewidth=0)
        axis.set_title(str(effect.role.levels[code]), fontsize=9, color=INK, loc="left", pad=3)
    _legend(figure, [("data", INK, "o"), (f"{group} (90 % interval)", GROUP, "-"), ("population", POPULATION, "--")])
    figure.supxlabel(label, fontsize=10, color=INK)
    figure.supylabel(site.name, fontsize=10, color=INK)
    return figure


def plot_caterpillar(fit: Fit, group: str | None, term: str | None) -> Figure:
    """`Fit.plot_caterpillar`."""
    group = group_of(fit, group)
    modes, lower, upper = _intervals(fit, group)
    if term is not None and term not in modes.columns:
        known = ", ".join(repr(str(name)) for name in modes.columns)
        raise ConfigError(f"plot_caterpillar(term={term!r}): {group!r} has no such term (it has: {known}).")
    terms = list(modes.columns) if term is None else [term]
    count = len(modes)
    height = float(np.clip(0.17 * count, 2.2, 9.0))
    figure, axes = panels(len(terms), width=3.6, height=height, columns=len(terms))
    for axis, name in zip(axes, terms, strict=True):
        order = np.argsort(modes[name].to_numpy(), kind="stable")
        at = np.arange(count)
        mode, low, high = (table[name].to_numpy()[order] for table in (modes, lower, upper))
        clear = (low > 0) | (high < 0)
        axis.axvline(0, color=GREY, linewidth=0.9)
        axis.hlines(at, low, high, color=np.where(clear, GROUP, GREY).tolist(), linewidth=1.4)
        axis.scatter(mode, at, s=14, c=np.where(clear, GROUP, GREY).tolist(), zorder=3)
        axis.set_title(name, fontsize=10, color=INK, loc="left")
        axis.set_ylim(-0.8, count - 0.2)
        if count <= 60:
            axis.set_yticks(at, [str(level) for level in modes.index[order]], fontsize=8 if count <= 40 else 6)
        else:
            axis.set_yticks([])
        axis.grid(axis="y", visible=False)
    figure.supylabel(f"{group}, {count} levels, sorted", fontsize=10, color=INK)
    what = "posterior mean" if fit.estimate.kind == "draws" else "conditional mode"
    figure.supxlabel(f"{what}, 95 % interval (blue: zero lies outside)", fontsize=9, color=INK)
    return figure


def _intervals(fit: Fit, group: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Centres and 95 % limits of a grouping factor's effects: normal at a point, quantiles of draws."""
    modes, sds = fit.random_effects(group), fit.random_effects(group, "sd")
    if fit.estimate.kind != "draws" or not fit.trusted:
        return modes, modes - 1.96 * sds, modes + 1.96 * sds
    draws = fit.draws()
    limits = [
        np.concatenate(
            [np.quantile(draws[site.name].numpy(), q, axis=0) for site in declared.effects_of(fit.record, group)],
            axis=1,
        )
        for q in (0.025, 0.975)
    ]
    lower, upper = (pd.DataFrame(array, index=modes.index, columns=modes.columns) for array in limits)
    return modes, lower, upper


def plot_residuals(fit: Fit) -> Figure:
    """`Fit.plot_residuals`."""
    residuals, fitted = fit.residuals("pearson"), fit.fitted()
    whole = np.isfinite(residuals) & np.isfinite(fitted)
    residuals, fitted = residuals[whole], fitted[whole]
    figure, (left, right) = panels(2, width=4.2, height=3.5, columns=2)
    size = float(np.clip(600 / np.sqrt(max(len(fitted), 1)) / 3, 3, 16))
    left.axhline(0, color=GREY, linewidth=0.9)
    left.scatter(fitted, residuals, s=size, color=GROUP, alpha=0.55, linewidth=0)
    at, trend = _running_mean(fitted, residuals)
    left.plot(at, trend, color=POPULATION, linewidth=1.8)
    left.text(0.99, 0.98, "local mean", transform=left.transAxes, ha="right", va="top", color=POPULATION, fontsize=9)
    left.set_xlabel("fitted value", color=INK)
    left.set_ylabel("Pearson residual", color=INK)
    left.set_title("Residuals and fitted values", fontsize=10, color=INK, loc="left")
    ordered = np.sort(residuals)
    theory = ndtri((np.arange(len(ordered)) + 0.5) / len(ordered))
    ends = np.array([theory[0], theory[-1]]) if len(theory) else np.zeros(2)
    right.plot(ends, ends, color=GREY, linewidth=0.9)
    right.scatter(theory, ordered, s=size, color=GROUP, alpha=0.7, linewidth=0)
    right.set_xlabel("standard normal quantile", color=INK)
    right.set_ylabel("Pearson residual", color=INK)
    right.set_title("Normal quantiles", fontsize=10, color=INK, loc="left")
    return figure


# -- data -------------------------------------------------------------------------------------------------------------
def _column(fit: Fit, x: str | None) -> tuple[str, np.ndarray]:
    """Label and values of a fixed-effect column; by default the first that varies."""
    columns: dict[str, np.ndarray] = {}
    for name, site in fit.record.hypers.items():
        if site.role.design is not None:
            labels = site.role.labels or [f"{name}[{j}]" for j in range(site.role.design.shape[1])]
            columns |= {str(label): site.role.design[:, j].numpy() for j, label in enumerate(labels)}
    design = fit.design
    if design is not None:
        columns |= {str(n): np.asarray(design.x)[:, j] for j, n in enumerate(design.columns) if str(n) not in columns}
    varying = [name for name, values in columns.items() if np.ptp(values) > 0]
    if x is None and varying:
        return varying[0], columns[varying[0]]
    if x is None or x not in columns:
        known = ", ".join(map(repr, varying)) or "none"
        raise ConfigError(f"plot_fitted(x={x!r}): no such fixed-effect column that varies (there are: {known}).")
    return x, columns[x]


def group_of(fit: Fit, group: str | None) -> str:
    if group is not None:
        declared.effects_of(fit.record, group)
        return group
    found = declared.groups(fit.record)
    if not found:
        raise DataError("the fit has no random effects to plot.")
    return max(found, key=lambda name: len(found[name][0].role.levels))


def _levels(fit: Fit, group: str, effect: Any, groups: Sequence[Any] | int) -> list[int]:
    """Positions of the levels to show; a count picks them evenly along the sorted first term."""
    levels = list(effect.role.levels)
    if isinstance(groups, int):
        if groups < 1:
            raise ConfigError(f"plot_fitted(groups={groups}): show at least one level.")
        order = np.argsort(fit.random_effects(group).iloc[:, 0].to_numpy(), kind="stable")
        if groups >= len(levels):
            return list(range(len(levels)))
        return [int(k) for k in order[np.linspace(0, len(levels) - 1, groups).round().astype(int)]]
    missing = [level for level in groups if level not in levels]
    if missing:
        raise DataError(f"plot_fitted(groups=...): {group!r} has no level {missing[0]!r}.")
    return [levels.index(level) for level in groups]


@dataclass(frozen=True)
class _Curve:
    """One group's expected response along the horizontal axis, its interval, and the population's."""

    x: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    population: np.ndarray


def _curves(fit: Fit, label: str, column: np.ndarray, index: np.ndarray, shown: list[int]) -> list[_Curve]:
    """Curves on a grid where a formula's data frame allows one, else at the rows of the data."""
    grid = _grid(fit, label, index, shown)
    try:
        mean, draws = fit.predict(grid), fit.predict(grid, kind="draws")
    except DataError:  # the design needs more than its columns, such as an offset by row
        grid = None
        mean, draws = fit.predict(), fit.predict(kind="draws")
    if grid is None:
        order = np.argsort(column, kind="stable")
        parts = [order[index[order] == code] for code in shown]
        at = column
    else:
        parts = np.split(np.arange(len(grid)), len(shown))
        at = grid[label].to_numpy(dtype=float)
    lower, upper = np.quantile(draws.to_numpy().reshape(-1, len(mean)), [0.05, 0.95], axis=0)
    population = population_mean(fit, grid)
    return [_Curve(at[p], mean[p], lower[p], upper[p], population[p]) for p in parts]


def _grid(fit: Fit, label: str, index: np.ndarray, shown: list[int]) -> pd.DataFrame | None:
    """Rows along `label` for every level shown, its other columns at the level's median or most frequent value."""
    if fit.design is None or fit.new_design is None or not hasattr(fit.design, "frame"):
        return None
    raw = {name: np.asarray(values) for name, values in fit.design.frame().items()}
    if label not in raw or raw[label].dtype.kind not in "iuf":
        return None
    low, high = raw[label].min(), raw[label].max()
    parts = []
    for code in shown:
        rows = index == code
        part = {name: np.repeat(_typical(values[rows]), GRID_POINTS) for name, values in raw.items()}
        parts.append(pd.DataFrame({**part, label: np.linspace(low, high, GRID_POINTS)}))
    frame = pd.concat(parts, ignore_index=True)
    for name, categories in fit.design.categories.items():
        frame[name] = pd.Categorical(frame[name], categories=list(categories))
    return frame


def _typical(values: np.ndarray) -> np.ndarray:
    """One value that stands for many, of their type, as an array of length one."""
    if values.dtype.kind == "f":
        return np.array([np.median(values)])
    found, counts = np.unique(values.astype(str) if values.dtype == object else values, return_counts=True)
    most = found[counts.argmax()]
    return values[(values.astype(str) if values.dtype == object else values) == most][:1]


def _running_mean(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of y in up to twenty bins of equally many points along x."""
    order = np.argsort(x, kind="stable")
    bins = np.array_split(order, int(np.clip(len(x) // 15, 1, 20)))
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])


# -- canvas -----------------------------------------------------------------------------------------------------------
def panels(
    count: int, width: float, height: float, columns: int | None = None, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or _column_count(count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 0.6, height * rows + 0.7), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=sharey, sharey=sharey, squeeze=False)
    for k, axis in enumerate(grid.flat):
        axis.set_visible(k < count)
        if sharey and k < count <= k + columns:  # the lowest panel of its column
            axis.xaxis.set_tick_params(labelbottom=True)
        tidy(axis)
    return figure, list(grid.flat)[:count]


def tidy(axis: Axes) -> None:
    """The look every panel shares: a light grid behind the data, no box."""
    axis.grid(color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(colors=INK, labelsize=8, length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(GREY)


def _column_count(count: int) -> int:
    """Columns of a grid near the golden section, with as few empty panels as possible."""
    near = max(1, round((count * 1.5) ** 0.5))
    return min(range(max(1, near - 1), near + 2), key=lambda k: ((-count) % k, abs(k - near), -k))


def _legend(figure: Figure, entries: list[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, label=label, **({"marker": "o", "linestyle": ""} if style == "o" else
               {"linestyle": style, "linewidth": 1.9}), markersize=4)
        for label, color, style in entries
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
