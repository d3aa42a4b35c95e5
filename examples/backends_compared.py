r"""One program, every backend, one kind of result: contagious bovine pleuropneumonia in 15 herds.

.. math:: y_{ht} \sim Binomial(n_{ht}, p_{ht}), \quad logit\,p_{ht} = \beta_{t} + u_h, \quad u_h \sim N(0, sd^2)

The fits are compared with each other (estimates in units of posterior SD, log evidence), by leave-one-out, and each is
an ArviZ object: the tables and plots below are ArviZ's own, whatever the backend.

    python examples/backends_compared.py --out compared

writes, for every backend, ``<name>.nc`` (netCDF, read by ``az.from_netcdf``) and ``<name>_trace.png``,
``<name>_ppc.png``; and ``forest.png`` with all of them side by side.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib
import pandas as pd

import pyromix as pmx
from pyromix.backends.svi import SVI
from pyromix.results.agreement import agreement

FORMULA = "cbind(incidence, size - incidence) ~ period + (1 | herd)"
VARIABLES = ["beta", "herd.sd"]


def backends(draws: int) -> dict[str, Any]:
    """By name: a point estimate, the posterior's mode, and posteriors."""
    return {
        "ML": pmx.MaximumLikelihood(),
        "MAP": pmx.MaximumLikelihood(criterion="map"),
        "nested Laplace": pmx.NestedLaplace(draws=2 * draws),
        "NUTS": pmx.NUTS(draws=draws, tune=draws, chains=4, target_accept=0.9),
        "NUTS, Laplace": pmx.NUTS(draws=draws, tune=draws, chains=4, marginal=pmx.Laplace()),
        "SVI": SVI(guide="group", steps=1500, draws=2 * draws),
    }


def fit_all(draws: int, seed: int = 0) -> dict[str, pmx.Fit]:
    """The same model by every backend; time and status are printed."""
    model = pmx.model(FORMULA, pmx.datasets.load("cbpp"), family=pmx.Binomial())
    fits = {}
    for name, backend in backends(draws).items():
        start = time.perf_counter()
        fits[name] = model.fit(backend, seed=seed, progress=False)
        codes = ", ".join(f"{record.code} ({record.severity})" for record in fits[name].health) or "no findings"
        print(f"{name:<16}{time.perf_counter() - start:6.1f} s   {fits[name].status.value}; {codes}")
    return fits


def draw(fits: dict[str, pmx.Fit], out: Path) -> None:
    """Trace and posterior predictive plots of each fit, a forest of all, and a file of each."""
    matplotlib.use("Agg")
    for name, fit in fits.items():
        stem = name.lower().replace(", ", "_").replace(" ", "_")
        fit.idata.to_netcdf(str(out / f"{stem}.nc"), engine="h5netcdf")
        assert az.from_netcdf(str(out / f"{stem}.nc"), engine="h5netcdf").posterior.equals(fit.idata.posterior)
        axes = az.plot_trace(fit.idata, var_names=VARIABLES)
        save(axes[0, 0].figure, out / f"{stem}_trace.png")
        save(az.plot_ppc(fit.idata, num_pp_samples=100, random_seed=0).figure, out / f"{stem}_ppc.png")
    axes = az.plot_forest(
        [fit.idata for fit in fits.values()], model_names=list(fits), var_names=VARIABLES, combined=True, figsize=(7, 8)
    )
    save(axes[0].figure, out / "forest.png")


def save(figure: Any, path: Path) -> None:
    """Write a figure and let go of it."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    matplotlib.pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, pmx.Fit]:
    """Fit, compare, draw."""
    parser = argparse.ArgumentParser(description="One model by every backend, compared.")
    parser.add_argument("--draws", type=int, default=500, help="draws of each chain")
    parser.add_argument("--out", type=Path, help="folder for plots and netCDF files; without, none are written")
    given = parser.parse_args(arguments)
    fits = fit_all(given.draws)
    print(f"\n{agreement(fits, reference='NUTS' if 'NUTS' in fits else None)}\n")
    with warnings.catch_warnings(), pd.option_context("display.width", 120, "display.max_columns", 20):
        warnings.simplefilter("ignore")  # rows with a large k-hat are in the table; deprecations are ArviZ's own
        for name, fit in fits.items():
            print(f"{name}\n{az.summary(fit.idata, var_names=VARIABLES)}\n")
        print(az.compare({name: fit.idata for name, fit in fits.items()}))
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            draw(fits, given.out)
            print(f"\nplots and netCDF files are in {given.out}")
    return fits


if __name__ == "__main__":
    main()
