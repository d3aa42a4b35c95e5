r"""Heritability and breeding values of wheat lines from their markers.

.. math:: yield_i = \mu + g_i + e_i, \qquad g \sim N(0, \sigma_g^2 K), \qquad e_i \sim N(0, \sigma^2)

for 599 lines, K from 1,279 markers (`pyromix.Kinship`). Restricted likelihood gives the variances, their share is the
heritability, and lines that were left out are predicted from their relatives by Henderson's rule: ten fits to nine
tenths of the lines each. Data: BGLR's wheat (Crossa et al. 2010), yields standardised, in four environments.

    python examples/heritability.py --out heritability.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import pyromix as pmx

DATA = Path(__file__).resolve().parents[1] / "tests" / "reference" / "data" / "wheat.csv.xz"
REML = pmx.MaximumLikelihood(criterion="reml")


def load(path: Path = DATA) -> tuple[pd.DataFrame, pmx.Kinship]:
    """Yields with their folds, and the relationship of the lines; markers are presence or absence, so 0 and 2."""
    data = pd.read_csv(path, dtype={"line": str, "markers": str})
    markers = np.stack([np.frombuffer(text.encode(), dtype=np.uint8) - ord("0") for text in data.pop("markers")])
    return data, pmx.Kinship(markers=(2.0 * markers, data["line"]))


def fit(trait: str, data: pd.DataFrame, kinship: pmx.Kinship) -> pmx.Fit:
    return pmx.model(f"{trait} ~ 1 + (1 | line)", data, covariances={"line": kinship}).fit(REML, progress=False)


def held_out(trait: str, data: pd.DataFrame, kinship: pmx.Kinship) -> np.ndarray:
    """Prediction of every line by a fit to the other folds, (599,)."""
    predicted = np.empty(len(data))
    for fold in sorted(data["set"].unique()):
        out = (data["set"] == fold).to_numpy()
        predicted[out] = fit(trait, data[~out], kinship).predict(data[out], new_groups="conditional")
    return predicted


def plot(path: Path, trait: str, observed: np.ndarray, predicted: np.ndarray, shares: pd.DataFrame) -> None:
    """Left: lines predicted from their relatives against their yields. Right: heritabilities with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.scatter(predicted, observed, s=10, alpha=0.5, linewidths=0)
    ends = np.array([predicted.min(), predicted.max()])
    left.plot(ends, ends, color="black", linewidth=1, label="yield = prediction")
    left.set(xlabel="predicted from relatives, line left out", ylabel=f"yield in {trait} (SD)")
    left.set_title(f"correlation {np.corrcoef(predicted, observed)[0, 1]:.2f}")
    left.legend(frameon=False)
    at = np.arange(len(shares))
    beside = [shares["estimate"] - shares["lower"], shares["upper"] - shares["estimate"]]
    right.errorbar(shares["estimate"], at, xerr=beside, fmt="o", capsize=4)
    right.set_yticks(at, shares["trait"])
    right.set(xlim=(0, 1), ylim=(-0.6, len(shares) - 0.4), xlabel="heritability, 95 % profile interval")
    right.set_title("share of the variance")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Print heritabilities and the correlation of predictions with yields; the table."""
    parser = argparse.ArgumentParser(description="Heritability of wheat yield from markers.")
    parser.add_argument("--out", type=Path, default=Path("heritability.png"), help="where the plot goes (%(default)s)")
    options = parser.parse_args(arguments)
    data, kinship = load()
    traits = ("env1", "env2")
    shares = pd.concat([fit(trait, data, kinship).heritability("line") for trait in traits], ignore_index=True)
    shares.insert(0, "trait", traits)
    print(f"{'trait':<6} {'heritability':>12}   95 % interval")
    for row in shares.itertuples():
        print(f"{row.trait:<6} {row.estimate:>12.3f}   {row.lower:.3f} to {row.upper:.3f}")
    predicted = held_out("env1", data, kinship)
    found = np.corrcoef(predicted, data["env1"])[0, 1]
    print(f"\nLines left out of the fit, predicted from their relatives: correlation with their yield {found:.3f}")
    ceiling = np.sqrt(shares["estimate"][0])
    print(f"(a perfect breeding value would reach {ceiling:.2f}, the root of the heritability).")
    plot(options.out, "env1", data["env1"].to_numpy(), predicted, shares)
    print(f"Plot: {options.out}")
    return shares


if __name__ == "__main__":
    main()
