r"""The level of Lake Huron: random walk, autoregression, moving average, and a forecast.

.. math:: level_t = \mu + u_t + e_t

for the years 1875 to 1972 (Brockwell and Davis 1991), u one of four processes in time. The gauge is read without
error, so e is held at 0.05 feet.

    python examples/lake_levels.py --out lake.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import pyromix as pmx

PROCESSES = {
    "random walk": "rw(1 | year)",
    "AR(1)": "ar1(1 | year)",
    "OU": "ou(1 | year)",
    "AR(2)": "arma(1 | year, p=2)",
    "ARMA(1, 1)": "arma(1 | year, p=1, q=1)",
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Fit, compare, forecast ten years."""
    parser = argparse.ArgumentParser(description="Processes in time.")
    parser.add_argument("--out", type=Path, help="PNG file of the process with its forecast")
    options = parser.parse_args(arguments)
    data = pmx.datasets.load("LakeHuron")
    ahead = pd.DataFrame({"year": [float(year) for year in range(1973, 1983)]})
    rows, fits = {}, {}
    for name, process in PROCESSES.items():
        fit = pmx.model(f"level ~ 1 + {process}", data, pmx.Gaussian(sigma=0.05)).fit(progress=False)
        forecast = fit.predict(ahead, new_groups="conditional")
        rows[name] = {
            "log-likelihood": fit.log_likelihood,
            "AIC": fit.aic,
            "forecast 1973": forecast[0],
            "forecast 1982": forecast[-1],
        }
        fits[name] = fit
    table = pd.DataFrame(rows).T
    print(table.to_string(float_format=lambda x: f"{x:.2f}"))
    interval = fits["AR(2)"].predict(ahead, kind="interval", new_groups="conditional").iloc[-1]
    print(f"1982 by the AR(2): {interval['mean']:.1f}, 90 % interval {interval['lower']:.1f} to {interval['upper']:.1f}")
    if options.out:
        fits["AR(2)"].plot_field(at=list(ahead["year"])).savefig(options.out)
        print(f"process and forecast: {options.out}")
    return table


if __name__ == "__main__":
    main()
