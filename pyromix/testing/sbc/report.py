"""What a calibration found, as a table, a figure and plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyromix.testing.sbc.campaign import Verdict, ranks_of
from pyromix.testing.sbc.problem import RANKS
from pyromix.testing.sbc.ranks import ecdf_band, ecdf_difference

BLUE, RED, GREY = "#1f6fb2", "#c9562b", "#8795a1"
LEVEL = 0.99


def table(verdict: Verdict) -> str:
    """Tests, coverage and health of one cell."""
    lines = [
        f"{verdict.cell}",
        f"  {'quantity':<22} {'chi2 p':>8} {'mean z':>7} {'var. z':>7} {'50 %':>6} {'90 %':>6}  verdict",
    ]
    for name, test in verdict.first.items():
        coverages = " ".join(f"{100 * verdict.coverage(name, level):6.1f}" for level in (0.5, 0.9))
        lines.append(
            f"  {name:<22} {test.chi2_p:8.2g} {test.mean_z:7.2f} {test.variance_z:7.2f} {coverages}  "
            f"{_word(verdict, name)}"
        )
    health = verdict.health
    shares = {
        "rhat": "R-hat < 1.01",
        "tail": "tail ESS/L > 0.5",
        "khat": "k-hat <= 0.7",
        "effective_size": "ESS/L > 0.5",
    }
    shown = [f"{label}: {100 * health[key]:.1f} %" for key, label in shares.items() if np.isfinite(health[key])]
    counts = f"{health['fits']} fits, {health['errors']} failed, {health['refused']} responses refused"
    lines.append("  " + "; ".join([counts, *shown, f"{health['cpu']:.2f} CPU s a fit"]))
    return "\n".join(lines)


def _word(verdict: Verdict, name: str) -> str:
    if name in verdict.failed:
        return "FAILED (again on fresh seeds)"
    if name not in verdict.flagged:
        return "ok"
    return "flagged, not confirmed" if verdict.again else "flagged"


def plain(verdict: Verdict) -> dict[str, Any]:
    """The same, for JSON."""

    def tests(found: dict) -> dict[str, Any]:
        return {name: {k: _finite(v) for k, v in vars(test).items()} for name, test in found.items()}

    return {
        "cell": verdict.cell,
        "first": tests(verdict.first),
        "again": tests(verdict.again),
        "flagged": verdict.flagged,
        "failed": verdict.failed,
        "coverage": {
            name: {str(level): verdict.coverage(name, level) for level in (0.5, 0.9)} for name in verdict.first
        },
        "health": {key: _finite(value) for key, value in verdict.health.items()},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def plot(verdict: Verdict, path: Path) -> None:
    """ECDF of the ranks minus the uniform one, a panel for each quantity, with a 99 % band for the whole curve.

    A curve that is above first and then below has too many ranks at both ends: posteriors too narrow. The other way
    round: too wide. All above: draws too high; all below: too low.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranks = ranks_of(verdict.simulations)
    if not ranks:  # no fit came to an end
        return
    columns = min(4, max(1, len(ranks)))
    lines = -(-len(ranks) // columns)
    figure = Figure(figsize=(2.6 * columns, 1.9 * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, ranks.items(), strict=False):
        z, difference = ecdf_difference(values, RANKS)
        width = ecdf_band(len(values), RANKS, LEVEL) * np.sqrt(z * (1 - z) / len(values))
        axis.fill_between(z, -width, width, color=GREY, alpha=0.25, linewidth=0)
        outside = bool((np.abs(difference[:-1]) > width[:-1]).any())
        axis.step(z, difference, color=RED if outside else BLUE, linewidth=1.2, where="post")
        axis.set_title(name, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
    for axis in axes[len(ranks) :]:
        axis.set_visible(False)
    count = len(next(iter(ranks.values()))) if ranks else 0
    figure.suptitle(f"{verdict.cell}: {count} simulations, band {LEVEL:.0%} for each curve", fontsize=9)
    figure.supxlabel("fractional rank of the truth", fontsize=8)
    figure.supylabel("ECDF - uniform", fontsize=8)
    figure.savefig(path, dpi=110)
