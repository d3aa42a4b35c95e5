r"""Growth of 27 children: structures of the repeated measurements, beside each other.

Four measurements a child, at 8, 10, 12 and 14 years (Potthoff and Roy 1964). The mean is a line in age for girls and
for boys; what is compared is how a child's four values hang together: by a random intercept or line, by effects of the
occasions that are free (``us``), equally correlated (``cs``), correlated by distance (``toep``) or autoregressive
(``ar1``), and by residuals that follow each other or have an SD of their own for each sex.

    python examples/growth_curves.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd

import pyromix as pmx

# random part of the formula, and arguments of the Gaussian response; four effects a child leave no other residual,
# so its SD is held at a thousandth of the data's
OCCASIONS = {"sigma": 0.003}
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "intercept": ("(1 | Subject)", {}),
    "line": ("(year | Subject)", {}),
    "us(occasions)": ("us(0 + at | Subject)", OCCASIONS),
    "cs(occasions)": ("cs(0 + at | Subject)", OCCASIONS),
    "homcs(occasions)": ("homcs(0 + at | Subject)", OCCASIONS),
    "toep(occasions)": ("toep(0 + at | Subject)", OCCASIONS),
    "ar1(occasions)": ("ar1(0 + at | Subject)", OCCASIONS),
    "intercept, AR1 residuals": ("(1 | Subject)", {"residual": pmx.AR1("step", within="Subject")}),
    "intercept, an SD a sex": ("(1 | Subject)", {"variance": pmx.VarIdent("Sex")}),
    "line, an SD a sex": ("(year | Subject)", {"variance": pmx.VarIdent("Sex")}),
}


def load() -> pd.DataFrame:
    data = pmx.datasets.load("Orthodont")
    return data.assign(year=data["age"] - 8, at="a" + data["age"].astype(int).astype(str), step=(data["age"] - 8) / 2)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Fit all by maximum likelihood; a table sorted by AIC."""
    argparse.ArgumentParser(description="Structures of repeated measurements.").parse_args(arguments)
    data, rows = load(), []
    for name, (random, response) in CANDIDATES.items():
        fit = pmx.model(f"distance ~ year * Sex + {random}", data, pmx.Gaussian(**response)).fit(progress=False)
        rows.append((name, fit.log_likelihood, fit.aic, fit.bic))
    table = pd.DataFrame(rows, columns=["structure", "log-likelihood", "AIC", "BIC"]).set_index("structure")
    table = table.sort_values("AIC")
    print(table.round(2).to_string())
    print("\nBoys' measurements scatter more than girls': an SD for each sex is worth more than any correlation.")
    return table


if __name__ == "__main__":
    main()
