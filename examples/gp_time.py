r"""A time series by a trend and a Gaussian process: carbon dioxide on Mauna Loa, forecast ten years ahead.

.. math::
    y_t = \beta_0 + \beta_1 (t - 1980) + u_t + e_t, \quad
    u \sim GP(0, w_1 k_{RBF} + w_2 k_{RBF} k_{periodic} + w_3 k_{Matern}),

a slow curve, a season that changes over the years, and what lasts some months.

The kernels are GPyTorch's. The last ten years are held out; ``new_groups="conditional"`` forecasts them, with the
uncertainty of the process, its hyper-parameters and the noise.

    python examples/gp_time.py --out co2.png
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyro.distributions as dist
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel

import pyromix as pmx

SPLIT = 1988.0
# What each part is: decades, a season of one year (a number fixes it) that changes over decades, months
PRIORS = {
    "lengthscale_1": dist.LogNormal(math.log(20.0), 0.3),
    "lengthscale_2": dist.LogNormal(math.log(20.0), 0.3),
    "period_length": 1.0,
    "lengthscale_4": dist.LogNormal(math.log(0.5), 0.5),
}


def kernel() -> ScaleKernel:
    """A slow curve, a season that changes over the years, and what lasts some months."""
    return ScaleKernel(RBFKernel()) + ScaleKernel(RBFKernel() * PeriodicKernel()) + ScaleKernel(MaternKernel(nu=1.5))


def fit(known: pd.DataFrame) -> pmx.Fit:
    """Posterior mode: the priors say which part is which."""
    process = pmx.GP(kernel(), sd=1.0, priors=PRIORS)
    model = pmx.model("co2 ~ 1 + since1980 + (1 | time)", known, covariances={"time": process})
    return model.fit(pmx.MaximumLikelihood(criterion="map"), progress=False)


def forecast(found: pmx.Fit, later: pd.DataFrame) -> pd.DataFrame:
    """Mean and central 95 % of the months ahead."""
    return found.predict(later, kind="interval", new_groups="conditional", level=0.95)


def draw(known: pd.DataFrame, later: pd.DataFrame, ahead: pd.DataFrame, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.5), constrained_layout=True)
    axis.fill_between(later["time"], ahead["lower"], ahead["upper"], color="#9ecae1", label="95 % of the forecast")
    axis.plot(later["time"], ahead["mean"], color="#08519c", lw=1.2, label="forecast")
    axis.plot(known["time"], known["co2"], color="#444444", lw=0.8, label="fitted to")
    axis.plot(later["time"], later["co2"], ".", color="#d94801", ms=3, label="held out")
    axis.set(xlabel="year", ylabel="carbon dioxide, ppm", xlim=(1975, 1998), ylim=(325, 372))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Forecast carbon dioxide on Mauna Loa.")
    parser.add_argument("--out", type=Path, default=Path("co2.png"), help="picture to write (%(default)s)")
    parser.add_argument("--since", type=float, default=1974.0, help="first year that is fitted to (%(default)g)")
    parser.add_argument("--until", type=float, default=1998.0, help="end of the forecast (%(default)g)")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    data = pmx.datasets.load("co2").assign(since1980=lambda d: d["time"] - 1980)
    known = data[(data["time"] >= options.since) & (data["time"] < SPLIT)]
    later = data[(data["time"] >= SPLIT) & (data["time"] < options.until)]
    found = fit(known)
    print(found.summary())
    ahead = forecast(found, later)
    draw(known, later, ahead, options.out)
    error = later["co2"] - ahead["mean"]
    inside = (later["co2"] > ahead["lower"]) & (later["co2"] < ahead["upper"])
    results = {"rmse": float(np.sqrt((error**2).mean())), "coverage": float(inside.mean())}
    print(
        f"{len(later)} months ahead: root mean squared error {results['rmse']:.2f} ppm, {inside.mean():.0%} of them in "
        f"the 95 % band; {time.perf_counter() - start:.0f} s; {options.out}"
    )
    return results


if __name__ == "__main__":
    main()
