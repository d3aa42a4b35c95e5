r"""A map of zinc in a flood plain: a Matern field on a mesh, by its sparse precision.

155 soil samples by the river Meuse (Rikken and Van Rijn, 1993). With d the distance to the river and u a Matern field
of smoothness one,

.. math:: \log zinc_i = \beta_0 + \beta_1 \sqrt{d_i} + u(s_i) + e_i.

The field lives on the vertices of a mesh, from where its weights carry it to the samples and, after the fit, to the
3,103 cells of a map: places that the fit has not seen need no new levels.

    python examples/spatial_field.py --out meuse

writes ``meuse/zinc.png``: the median of zinc, and the SD of its logarithm. Estimates are maximum likelihood; the map
takes those of the field's SD and range as known, as kriging does. ``--posterior`` averages over them by a nested
Laplace approximation, which takes a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import pyromix as pmx

KM = 1000.0
Rows = dict[str, torch.Tensor]


def make_mesh(samples: pd.DataFrame, cells: pd.DataFrame, edge: float = 0.08) -> pmx.Mesh:
    """Over samples and cells, in kilometres, with a kilometre of padding: the field is free at the edge."""
    places = np.vstack([samples[["x", "y"]], cells[["x", "y"]].iloc[::20]]) / KM
    return pmx.Mesh.from_points(places, edge=edge, padding=1.0)


def rows(mesh: pmx.Mesh, frame: pd.DataFrame) -> Rows:
    """What the program takes: the design of the line, the mesh's weights at the places, the response where known."""
    index, weight = mesh.projector(frame[["x", "y"]].to_numpy() / KM)
    design = np.column_stack([np.ones(len(frame)), np.sqrt(frame["dist"])])
    zinc = frame["zinc"].to_numpy() if "zinc" in frame else np.ones(len(frame))
    return {"x": torch.from_numpy(design), "index": index, "weight": weight, "y": torch.from_numpy(np.log(zinc))}


def make_program(mesh: pmx.Mesh) -> Any:
    """A line in the root of the distance, a field, and noise."""
    beta = pmx.LinearEffect("beta")
    field = pmx.RandomEffect("field", pmx.SPDE(mesh), levels=mesh.size)

    def program(data: Rows) -> None:
        eta = beta(data["x"]) + field(data["index"], weight=data["weight"])
        pmx.observe("log_zinc", pmx.Gaussian(), eta, data["y"])

    return program


def surface(fit: pmx.Fit, data: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD of the predictor at rows, over the fit's draws."""
    draws = fit.draws()
    field = (draws["field"][:, data["index"], 0] * data["weight"]).sum(-1)
    eta = draws["beta"] @ data["x"].T + field
    return eta.mean(0).numpy(), eta.std(0).numpy()


def draw(cells: pd.DataFrame, samples: pd.DataFrame, mean: np.ndarray, sd: np.ndarray, path: Path) -> None:
    """Both maps side by side, the samples on top."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    maps = ((np.exp(mean), "zinc, median (mg/kg)", "viridis"), (sd, "SD of its logarithm", "magma"))
    for axis, (values, title, colours) in zip(axes, maps, strict=True):
        image = cells.assign(value=values).pivot(index="y", columns="x", values="value")
        shown = axis.pcolormesh(image.columns / KM, image.index / KM, image.to_numpy(), cmap=colours)
        axis.scatter(samples["x"] / KM, samples["y"] / KM, s=9, facecolors="none", edgecolors="white", linewidths=0.6)
        axis.set(title=title, xlabel="easting (km)", aspect="equal")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    axes[0].set_ylabel("northing (km)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fit, predict, draw."""
    parser = argparse.ArgumentParser(description="A map of zinc by a Matern field on a mesh.")
    parser.add_argument("--posterior", action="store_true", help="average over the hyper-parameters")
    parser.add_argument("--out", type=Path, help="folder for the map; without, none is drawn")
    given = parser.parse_args(arguments)
    samples, cells = pmx.datasets.load("meuse"), pmx.datasets.load("meuse_grid")
    mesh = make_mesh(samples, cells)
    backend = pmx.NestedLaplace(draws=1000) if given.posterior else pmx.MaximumLikelihood()
    fit = pmx.fit(make_program(mesh), rows(mesh, samples), backend, seed=0, progress=False)
    print(f"field on a {repr(mesh)[1:-1]}\n{fit.summary()}")
    mean, sd = surface(fit, rows(mesh, cells))
    print(f"SD of log zinc on the map: {sd.min():.2f} to {sd.max():.2f}, median {np.median(sd):.2f}")
    if given.out is not None:
        draw(cells, samples, mean, sd, given.out / "zinc.png")
        print(f"the map is in {given.out / 'zinc.png'}")
    return {"fit": fit, "mesh": mesh, "mean": mean, "sd": sd}


if __name__ == "__main__":
    main()
