r"""Pupils who changed schools: multiple membership.

.. math:: y_i = \beta_0 + \beta_1 x_i + \sum_m w_{im} u_{s(i,m)} + e_i

A pupil belongs to the school of the first and to that of the second half of the year, by the time spent there. Taking
the last school alone makes schools look more alike than they are. Simulated, so that the truth is known.

    python examples/changed_schools.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

import pyromix as pmx

SD = 0.8


def simulate(pupils: int = 900, schools: int = 30, movers: float = 0.5, seed: int = 2) -> pd.DataFrame:
    """Half of the pupils have changed schools."""
    rng = np.random.default_rng(seed)
    effect = SD * rng.normal(size=schools)
    first = rng.integers(0, schools, pupils)
    last = np.where(rng.random(pupils) < movers, rng.integers(0, schools, pupils), first)
    share = rng.uniform(0.2, 0.8, pupils)
    x = rng.normal(size=pupils)
    y = 1 + 0.5 * x + share * effect[first] + (1 - share) * effect[last] + rng.normal(size=pupils)
    names = np.array([f"school {k:02d}" for k in range(schools)])
    return pd.DataFrame({"y": y, "x": x, "first": names[first], "last": names[last], "early": share, "late": 1 - share})


def main(arguments: Sequence[str] | None = None) -> dict[str, pmx.Fit]:
    """The last school alone, and both by the time spent there."""
    argparse.ArgumentParser(description="Multiple membership.").parse_args(arguments)
    data = simulate()
    formulas = {
        "last school alone": "y ~ x + (1 | last)",
        "both, by time": "y ~ x + (1 | mm(first, last, weights = cbind(early, late)))",
    }
    fits = {name: pmx.model(formula, data).fit(progress=False) for name, formula in formulas.items()}
    for name, fit in fits.items():
        sd = fit.variance_components().iloc[0]["sd"]
        print(f"{name}: SD of schools {sd:.3f} (true {SD}), log-likelihood {fit.log_likelihood:.1f}")
    print(fits["both, by time"].summary())
    return fits


if __name__ == "__main__":
    main()
