r"""Sudden infant deaths in the counties of North Carolina: a map by neighbours, under three backends.

.. math:: deaths_i \sim Poisson(births_i\, e^{\eta_i}), \qquad \eta_i = \beta_0 + \beta_1 x_i + u_i

x is the share of births to parents who are not white, u a BYM2 field: part of its variance follows the county's
neighbours, the rest is the county's own (Riebler et al. 2016). Data: 1974 to 1978 (Cressie and Read 1985). Maximum
likelihood puts that part, phi, at an edge of its range and warns; its posterior is spread over all of it.

    python examples/infant_deaths.py --out deaths.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import pyromix as pmx


def load() -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The counties, and the neighbours of each."""
    data = pmx.datasets.load("nc_sids")
    data["share"] = data["nonwhite"] / data["births"]
    lists = [[] if text == "none" else text.split(";") for text in data["neighbours"]]  # two counties are islands
    neighbours = dict(zip(data["county"].astype(str), lists, strict=True))
    return data.assign(county=data["county"].astype(str)), neighbours


def make_model(data: pd.DataFrame, neighbours: dict[str, list[str]]) -> pmx.Model:
    return pmx.model(
        "deaths ~ share + bym2(county, G) + offset(log(births))", data, pmx.Poisson(), known={"G": neighbours}
    )


def draw(data: pd.DataFrame, fit: pmx.Fit, path: Path) -> None:
    """Rates as counted and as estimated, at the county seats; areas of the circles are births."""
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    counted = 1000 * data["deaths"] / data["births"]
    estimated = 1000 * fit.predict() / data["births"]
    for axis, rate, title in zip(axes, (counted, estimated), ("as counted", "as estimated"), strict=True):
        size = 12 + data["births"] / 40
        shown = axis.scatter(data["east"], data["north"], c=rate, s=size, cmap="magma_r", vmin=0, vmax=5, lw=0)
        axis.set_aspect("equal")
        axis.set_title(f"Deaths per 1,000 births, {title}", loc="left", fontsize=10)
        axis.axis("off")
    figure.colorbar(shown, ax=axes, shrink=0.7)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> dict[str, pmx.Fit]:
    """Fit, compare and draw."""
    parser = argparse.ArgumentParser(description="Sudden infant deaths by county.")
    parser.add_argument("--out", type=Path, help="PNG file of the maps")
    parser.add_argument("--draws", type=int, default=1000, help="of the nested Laplace approximation")
    options = parser.parse_args(arguments)
    data, neighbours = load()
    model = make_model(data, neighbours)
    fits = {
        "maximum likelihood": model.fit(progress=False),
        "nested Laplace": model.fit(pmx.NestedLaplace(draws=options.draws), progress=False),
    }
    print(fits["nested Laplace"].summary())
    for name, fit in fits.items():
        rate = 1000 * fit.predict() / data["births"].to_numpy()
        print(f"{name}: rates from {rate.min():.2f} to {rate.max():.2f} per 1,000 births")
    counted = 1000 * data["deaths"] / data["births"]
    print(f"as counted: from {counted.min():.2f} to {counted.max():.2f}; small counties are drawn to their neighbours")
    if options.out:
        draw(data, fits["nested Laplace"], options.out)
        print(f"maps: {options.out}")
    return fits


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
