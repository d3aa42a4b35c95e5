r"""A field trial in rows and columns: neighbouring plots are alike, and so are related lines.

.. math:: y = \mu + g_{line} + s_{row,column} + e, \qquad g \sim N(0, \sigma_g^2 K), \qquad
    s \sim N(0, \sigma_s^2\, A_{row} \otimes A_{column})

with autoregressions A along rows and along columns (Gilmour, Cullis and Verbyla 1997) and K by simulated markers.
Plots that pull in the same direction as their neighbours say something of the soil, not of their lines. The trial is
simulated, so that the truth is known.

    python examples/field_trial.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

import pyromix as pmx
from pyromix.covariances import vanraden

ROWS, COLUMNS, LINES = 14, 12, 56


def simulate(seed: int = 5) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """The trial, the lines' relationship, and their true values: three plots a line, at random places."""
    rng = np.random.default_rng(seed)
    lines = [f"L{k:02d}" for k in range(LINES)]
    markers = pd.DataFrame(rng.binomial(2, rng.uniform(0.1, 0.9, 300), (LINES, 300)), index=lines)
    kinship = pd.DataFrame(vanraden(markers)[0], index=lines, columns=lines)
    values = np.linalg.cholesky(kinship.to_numpy() + 1e-8 * np.eye(LINES)) @ rng.normal(size=LINES)
    along = {
        n: np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))) for n in (ROWS, COLUMNS)
    }
    soil = along[ROWS] @ rng.normal(size=(ROWS, COLUMNS)) @ along[COLUMNS].T
    line = rng.permutation(np.repeat(np.arange(LINES), 3))
    row, column = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    y = 10 + values[line] + 1.2 * soil.ravel() + 0.5 * rng.normal(size=len(line))
    trial = pd.DataFrame({"y": y, "line": np.array(lines)[line], "row": row, "column": column})
    return trial, kinship, pd.Series(values, index=lines)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Three models of one trial: how well are the lines ranked?"""
    argparse.ArgumentParser(description="A field trial.").parse_args(arguments)
    trial, kinship, truth = simulate()
    models = {
        "lines alone": "(1 | line)",
        "lines and relatives": "propto(1 | line, K)",
        "lines, relatives and soil": "propto(1 | line, K) + kron(1 | row:column, ar1, ar1)",
    }
    rows = {}
    for name, random in models.items():
        known = {"K": kinship} if "K)" in random else None
        fit = pmx.model(f"y ~ 1 + {random}", trial, known=known).fit(
            pmx.MaximumLikelihood(criterion="reml"), progress=False
        )
        found = fit.random_effects("line").iloc[:, 0]
        rows[name] = {"log-likelihood": fit.log_likelihood, "correlation with truth": found.corr(truth[found.index])}
        print(f"{name}: {fit.log_likelihood:.1f}, correlation of predicted with true values "
              f"{rows[name]['correlation with truth']:.2f}")  # fmt: skip
    print(fit.summary())
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    main()
