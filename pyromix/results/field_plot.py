"""Plots of effects over times and places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyromix.errors import ConfigError
from pyromix.results import declared, plots
from pyromix.results.field import Field, field_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyromix.results.fit import Fit

MOST_SERIES = 12
SCATTERED = 400  # places beyond this many are not drawn one by one


def plot_field(fit: Fit, group: str | None, term: str | None, at: Sequence[Any] | None, draws: int) -> Figure:
    """`Fit.plot_field`."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ConfigError(f"plot_field(draws={draws!r}): pass a whole number above one.")
    group = plots.group_of(fit, group)
    site, k, name = _entry(fit, group, term)
    field = field_of(fit, site, k, at, draws)
    title = group if name == "Intercept" else f"{name} by {group}"
    return _map(field, title) if field.kind == "map" else _curves(field, title, site.role.shown.levels)


def _entry(fit: Fit, group: str, term: str | None) -> tuple[Any, int, str]:
    sites = declared.effects_of(fit.record, group)
    names = [(site, k, str(name)) for site in sites for k, name in enumerate(site.role.shown.terms)]
    found = [entry for entry in names if term is None or entry[2] == term]
    if not found:
        known = ", ".join(repr(entry[2]) for entry in names)
        raise ConfigError(f"plot_field(term={term!r}): {group!r} has no such term (it has: {known}).")
    return found[0]


def _curves(field: Field, title: str, known: Sequence[Any]) -> Figure:
    """A panel a series; what was not among the levels is drawn in another colour."""
    pairs = field.kind == "series"
    series = list(dict.fromkeys(label[0] for label in field.labels))[:MOST_SERIES] if pairs else [None]
    wide = len(series) == 1
    figure, axes = plots.panels(len(series), width=6.4 if wide else 2.5, height=3.2 if wide else 2.1, sharey=True)
    levels = set(known)
    for axis, one in zip(axes, series, strict=True):
        here = [k for k, label in enumerate(field.labels) if not pairs or label[0] == one]
        time = np.array([field.labels[k][1] if pairs else field.labels[k] for k in here], dtype=float)
        order = np.argsort(time)
        here, time = [here[k] for k in order], time[order]
        mean = field.mean[here]
        low, high = np.quantile(field.draws[:, here], [0.05, 0.95], axis=0)
        axis.axhline(0, color=plots.GREY, linewidth=0.9)
        axis.fill_between(time, low, high, color=plots.GROUP, alpha=0.18, linewidth=0)
        axis.plot(time, mean, color=plots.GROUP, linewidth=1.8)
        if len(here) == 1:
            axis.errorbar(time, mean, [mean - low, high - mean], color=plots.GROUP, marker="o", markersize=4)
        last = [k for k, at in enumerate(here) if field.labels[at] in levels]
        if last and last[-1] + 1 < len(here):
            ahead = slice(last[-1], None)
            axis.plot(time[ahead], mean[ahead], color=plots.POPULATION, linewidth=1.8)
            axis.axvline(time[last[-1]], color=plots.GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        if one is not None:
            axis.set_title(str(one), fontsize=9, color=plots.INK, loc="left", pad=3)
    figure.supylabel(f"{title}: mean, 90 % interval", fontsize=10, color=plots.INK)
    return figure


def _map(field: Field, title: str) -> Figure:
    figure, axes = plots.panels(2, width=4.6, height=4.0, columns=2)
    places = np.array(field.labels, dtype=float)
    mean, sd = field.mean, field.sd
    reach = float(np.abs(mean).max()) or 1.0
    shades: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
        (f"{title}: mean", mean, {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}),
        ("SD", sd, {"cmap": "viridis"}),
    )
    x, y = (np.unique(places[:, k]) for k in (0, 1))
    whole = len(x) * len(y) == len(places)
    for axis, (label, values, how) in zip(axes, shades, strict=True):
        axis.grid(visible=False)
        if whole:
            table = np.full((len(y), len(x)), np.nan)
            table[np.searchsorted(y, places[:, 1]), np.searchsorted(x, places[:, 0])] = values
            shown: Any = axis.pcolormesh(x, y, table, shading="nearest", **how)
        else:
            shown = axis.scatter(places[:, 0], places[:, 1], c=values, s=18, linewidth=0, **how)
        if whole and len(field.data) <= SCATTERED:
            axis.scatter(
                field.data[:, 0], field.data[:, 1], s=8, facecolors="none", edgecolors=plots.INK, linewidths=0.5
            )
        axis.set_aspect("equal")
        axis.set_title(label, fontsize=10, color=plots.INK, loc="left")
        bar = figure.colorbar(shown, ax=axis, shrink=0.8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=plots.INK, labelsize=8, length=0)
    return figure
