"""The figure of ``pyromix demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyromix.results.plots import GREY, GROUP, INK, POPULATION, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyromix.results import Fit

NEURAL = "#2f8f6b"
POINTS = 40
SUBJECTS = 9
BINS = 12


def demo_figure(sleep: Fit, sleep_neural: Fit, use: Fit, use_neural: Fit) -> Figure:
    """Nine drivers on the left; women by age, and districts, on the right."""
    figure = Figure(figsize=(13.2, 7.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.55, 1], wspace=0.03)
    left, right = parts
    _drivers(left, sleep, sleep_neural)
    top, bottom = right.subplots(2, 1, height_ratios=[1, 1.15])
    _ages(top, use, use_neural)
    _districts(bottom, use)
    return figure


def _drivers(canvas: Any, linear: Fit, neural: Fit) -> None:
    """Data, the population's line and every shown driver's line with its interval."""
    modes = linear.random_effects("Subject")["Days"].sort_values()
    shown = list(modes.index[np.linspace(0, len(modes) - 1, SUBJECTS).round().astype(int)])
    days = np.linspace(0.0, 9.0, POINTS)
    grid = pd.DataFrame({"Days": np.tile(days, SUBJECTS), "Subject": np.repeat(shown, POINTS)})
    nobody = pd.DataFrame({"Days": days, "Subject": "nobody"})
    draws = linear.predict(grid, kind="draws").to_numpy()
    lower, upper = np.quantile(draws.reshape(-1, len(grid)), [0.05, 0.95], axis=0).reshape(2, SUBJECTS, POINTS)
    mean, curve = (fit.predict(grid).reshape(SUBJECTS, POINTS) for fit in (linear, neural))
    population = linear.predict(nobody, new_groups="zero")
    raw = linear.design.frame()
    axes = canvas.subplots(3, 3, sharex=True, sharey=True)
    for k, (axis, subject) in enumerate(zip(axes.flat, shown, strict=True)):
        tidy(axis)
        rows = raw["Subject"] == subject
        axis.fill_between(days, lower[k], upper[k], color=GROUP, alpha=0.16, linewidth=0)
        axis.plot(days, population, color=POPULATION, linewidth=1.4, linestyle=(0, (5, 2)))
        axis.plot(days, mean[k], color=GROUP, linewidth=2.0)
        axis.plot(days, curve[k], color=NEURAL, linewidth=1.4)
        axis.plot(raw["Days"][rows], raw["Reaction"][rows], "o", color=INK, markersize=3.6, alpha=0.8, mew=0)
        axis.set_title(f"driver {subject}", fontsize=9, color=INK, loc="left", pad=3)
    canvas.suptitle("sleepstudy: Reaction ~ Days + (Days | Subject)", fontsize=11.5, color=INK, x=0.02, ha="left")
    axes[-1, 1].set_xlabel("days with too little sleep", fontsize=10, color=INK)
    canvas.supylabel("reaction time (ms)", fontsize=10, color=INK)
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=4, label="data"),
        Line2D([], [], color=POPULATION, linewidth=1.4, linestyle=(0, (5, 2)), label="population"),
        Line2D([], [], color=GROUP, linewidth=2.0, label="driver, linear mean"),
        Patch(color=GROUP, alpha=0.16, linewidth=0, label="90 % interval"),
        Line2D([], [], color=NEURAL, linewidth=1.4, label="driver, neural mean"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=INK)


def _ages(axis: Axes, linear: Fit, neural: Fit) -> None:
    """Share of users in bins of age, as observed and as each mean fits it."""
    raw = linear.design.frame()
    order = np.argsort(raw["age"], kind="stable")
    bins = np.array_split(order, BINS)

    def by_bin(values: np.ndarray) -> np.ndarray:
        return np.array([values[rows].mean() for rows in bins])

    age, share = by_bin(raw["age"]), by_bin(raw["use"])
    error = np.sqrt(share * (1 - share) / [len(rows) for rows in bins])
    tidy(axis)
    axis.vlines(age, share - 1.645 * error, share + 1.645 * error, color=GREY, linewidth=1.0)
    axis.plot(age, share, "o", color=INK, markersize=4.5, mew=0)
    axis.plot(age, by_bin(linear.fitted()), color=GROUP, linewidth=2.0)
    axis.plot(age, by_bin(neural.fitted()), color=NEURAL, linewidth=2.0)
    axis.set_ylim(0, 0.72)
    _mark(axis, 0.985, 0.93, "observed share, 90 % interval", INK)
    _mark(axis, 0.985, 0.85, "linear mean", GROUP)
    _mark(axis, 0.985, 0.77, "neural mean", NEURAL)
    axis.set_xlabel("age, centred (years)", fontsize=9.5, color=INK)
    axis.set_ylabel("uses contraception", fontsize=9.5, color=INK)
    axis.set_title("Contraception: share of users by age", fontsize=11.5, color=INK, loc="left")


def _districts(axis: Axes, linear: Fit) -> None:
    """Every district's probability for the same woman, with its interval."""
    levels = list(linear.random_effects("district").index)
    same = {"age": 0.0, "urban": "N", "livch": pd.Categorical(["2"] * len(levels), categories=["0", "1", "2", "3+"])}
    women = pd.DataFrame({**same, "district": levels})
    draws = linear.predict(women, kind="draws").to_numpy().reshape(-1, len(levels))
    mean = linear.predict(women)
    order = np.argsort(mean, kind="stable")
    lower, upper = np.quantile(draws[:, order], [0.05, 0.95], axis=0)
    population = linear.predict(women.head(1).assign(district="nowhere"), new_groups="zero")[0]
    tidy(axis)
    at = np.arange(len(levels))
    axis.axhline(population, color=POPULATION, linewidth=1.4, linestyle=(0, (5, 2)))
    axis.vlines(at, lower, upper, color=GROUP, alpha=0.35, linewidth=2.2)
    axis.plot(at, mean[order], "o", color=GROUP, markersize=3.6, mew=0)
    axis.set_xticks([])
    axis.set_xlim(-1, len(levels))
    axis.set_ylim(0, 1)
    _mark(axis, 0.015, 0.93, "typical district", POPULATION, "left")
    _mark(axis, 0.015, 0.85, "district, 90 % interval", GROUP, "left")
    axis.set_xlabel(f"{len(levels)} districts, sorted", fontsize=9.5, color=INK)
    axis.set_ylabel("P(uses contraception)", fontsize=9.5, color=INK)
    axis.set_title("The same woman in every district: (1 | district)", fontsize=11.5, color=INK, loc="left")


def _mark(axis: Axes, x: float, y: float, text: str, color: str, side: str = "right") -> None:
    """A legend entry as coloured text."""
    axis.text(x, y, text, transform=axis.transAxes, ha=side, va="center", color=color, fontsize=9)
