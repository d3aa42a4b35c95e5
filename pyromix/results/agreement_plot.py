"""The forest plot of several fits' estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyromix.results.plots import GREY, INK, tidy
from pyromix.results.quantities import Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# told apart by people who see colours differently, and by their markers in grey
COLOURS = ("#1f6fb2", "#c9562b", "#2f8f5b", "#8a5bb0", "#b08a1e", "#5b6770", "#c2477f", "#17a0a8")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
REACH = 6.0  # SDs of the reference that are shown; what lies beyond is marked at the edge
ROW = 0.34  # height of a parameter, in inches, and what every further fit adds
MORE = 0.11


def forest(reference: str, shown: list[str], found: Mapping[str, Mapping[str, Quantity]]) -> Figure:
    """Estimates and 90 % intervals of every fit, in the reference's SDs from its estimate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    usable = [name for name in shown if found[reference][name].sd > 0]
    height = 1.15 + len(usable) * (ROW + MORE * (len(found) - 1))
    figure = Figure(figsize=(7.2, max(2.2, height)), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    tidy(axis)
    axis.grid(axis="y", visible=False)
    for row in range(1, len(usable), 2):  # bands, so that the eye keeps to its row
        axis.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", linewidth=0, zorder=0)
    axis.axvline(0.0, color=GREY, linewidth=1.0, zorder=1)
    fits = [reference, *(name for name in found if name != reference)]
    offsets = np.linspace(-0.5, 0.5, len(fits)) * 0.62
    for k, name in enumerate(fits):
        _draw(axis, k, offsets[k], usable, found[reference], found[name])
    _frame(axis, usable)
    figure.suptitle(f"Estimates and 90 % intervals, in posterior SDs of {reference!r}", fontsize=10, color=INK)
    handles, _ = axis.get_legend_handles_labels()
    figure.legend(handles, fits, loc="outside lower center", ncols=min(len(fits), 5), frameon=False, fontsize=9)
    return figure


def _draw(
    axis: Axes, k: int, offset: float, usable: list[str], base: Mapping[str, Quantity], own: Mapping[str, Quantity]
) -> None:
    """One fit: a marker and a bar for each of its parameters."""
    colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
    rows = [row for row, name in enumerate(usable) if name in own]
    unit = np.array([[base[usable[row]].estimate, base[usable[row]].sd] for row in rows]).reshape(-1, 2)
    mine = [own[usable[row]] for row in rows]
    values = np.array([[q.lower, q.estimate, q.upper] for q in mine]).reshape(-1, 3)
    scaled = (values - unit[:, :1]) / unit[:, 1:]
    height = np.array(rows) + offset
    low, high = np.clip(scaled[:, 0], -REACH, REACH), np.clip(scaled[:, 2], -REACH, REACH)
    axis.hlines(height, low, high, color=colour, linewidth=1.8, alpha=0.85, zorder=2)
    inside = np.abs(scaled[:, 1]) <= REACH
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    style: dict[str, Any] = {"linestyle": "", "color": colour, "zorder": 3, **edge}
    axis.plot(scaled[inside, 1], height[inside], marker=marker, markersize=6, label=str(k), **style)
    for side, arrow in ((-1, "<"), (1, ">")):
        beyond = side * scaled[:, 1] > REACH
        axis.plot(np.full(beyond.sum(), side * REACH), height[beyond], marker=arrow, markersize=7, **style)


def _frame(axis: Axes, usable: list[str]) -> None:
    axis.set_yticks(range(len(usable)), usable, fontsize=9, color=INK)
    axis.set_ylim(len(usable) - 0.5, -0.5)
    reach = max(2.2, float(np.max(np.abs(axis.dataLim.intervalx), initial=0.0)) * 1.06)
    axis.set_xlim(-reach, reach)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("SDs from the reference's estimate", fontsize=9, color=INK)
