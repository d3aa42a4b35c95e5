"""``python -m benchmarks.posterior_accuracy``: how far posteriors with integrated effects are from long joint NUTS.

For every hyper-parameter: difference of posterior means in posterior SDs, and ratio of SDs.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, table
from benchmarks.posterior_report import CORES, machine
from benchmarks.posterior_side import backend
from benchmarks.posteriors import CORRECTED, LAPLACE, NESTED, NESTED_QUADRATURE, NUTS, QUADRATURE

MEAN, SD = 0.1, 0.1  # largest difference of means in SDs, and of SDs as a fraction
DOCUMENT = ROOT / "docs" / "posterior_accuracy.md"
Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A generalised linear mixed model with pyromix's default priors."""

    name: str
    formula: str
    methods: tuple[str, ...]
    data: Callable[[], Any]


def _contraception() -> Any:
    from benchmarks.cases import contraception

    return contraception().astype({"livch": "category", "district": "category"})


def _verbagg() -> Any:
    from benchmarks.cases import verbagg

    return verbagg().astype({"id": "category", "item": "category"})


def _cbpp() -> Any:
    import pyromix as pmx

    return pmx.datasets.load("cbpp")


def _toenail() -> Any:
    import pyromix as pmx

    d = pmx.datasets.load("toenail")
    return d.assign(y=(d["outcome"].astype(str) == "moderate or severe").astype(int))


MODELS = {
    model.name: model
    for model in (
        Model(
            "Contraception",
            "use ~ age10 + I(age10**2) + urb + livch + (1 + urb | district)",
            (NESTED, LAPLACE),
            _contraception,
        ),
        Model(
            "VerbAgg", "y ~ Anger + Gender + btype + situ + mode + (1 | id) + (1 | item)", (NESTED, LAPLACE), _verbagg
        ),
        Model("cbpp", "cbind(incidence, size - incidence) ~ period + (1 | herd)", (NESTED, LAPLACE), _cbpp),
        Model(
            "toenail",
            "y ~ treatment * time + (1 | patientID)",
            (NESTED, LAPLACE, CORRECTED, NESTED_QUADRATURE, QUADRATURE),
            _toenail,
        ),
    )
}


def hyper_draws(fit: Any) -> Draws:
    """Draws (chain, draw) of every hyper-parameter by name; of a Cholesky factor, the correlations it stands for."""
    found: Draws = {}
    sites = [name for name in fit.estimate.point if name not in fit.estimate.latents]
    columns = list(fit.design.columns)
    for site, value in fit.draws().items():
        if site not in sites:
            continue
        array = value.numpy()
        if array.ndim == 3:
            rows, cols = np.tril_indices(array.shape[1], -1)
            array = (array @ array.swapaxes(1, 2))[:, rows, cols]
        flat = array.reshape(len(array), -1)
        for k in range(flat.shape[1]):
            label = columns[k] if site == "beta" else site if flat.shape[1] == 1 else f"{site}[{k}]"
            found[label] = flat[:, k].reshape(fit.estimate.chains, -1)
    return {name: array for name, array in found.items() if array.std() > 0}


@dataclass(frozen=True)
class Comparison:
    """One hyper-parameter under one method: difference of means in SDs with its Monte Carlo error, ratio of SDs."""

    model: str
    method: str
    parameter: str
    mean: float
    error: float
    ratio: float


def compare(model: str, method: str, draws: Draws, reference: Draws, ess: float | None) -> list[Comparison]:
    import arviz as az

    found = []
    for name, array in draws.items():
        exact = reference[name]
        sd = float(exact.std())
        size = ess or float(az.ess(array, method="mean"))
        error = math.hypot(array.std() / math.sqrt(size), float(az.mcse(exact, method="mean"))) / sd
        found.append(
            Comparison(model, method, name, float(array.mean() - exact.mean()) / sd, error, float(array.std()) / sd)
        )
    return found


def run(model: Model, options: argparse.Namespace) -> tuple[list[Comparison], dict[str, dict[str, Any]]]:
    """Reference and methods on one model; also what each took and what it said of itself."""
    import pyromix as pmx

    family = pmx.Binomial()
    fitted = pmx.model(model.formula, model.data(), family)
    settings = {"tune": options.tune, "chains": 4, "cores": CORES}
    comparisons: list[Comparison] = []
    notes: dict[str, dict[str, Any]] = {}
    reference: Draws = {}
    for method in (NUTS, *model.methods):
        if options.methods is not None and method not in (NUTS, *options.methods):
            continue
        size = options.long if method == NUTS else options.draws
        count = 4 * size if method.startswith("NestedLaplace") else size
        start = time.perf_counter()
        fit = fitted.fit(backend(method, {**settings, "draws": count}), seed=options.seed, progress=False)
        seconds = time.perf_counter() - start
        draws = hyper_draws(fit)
        notes[method] = {"seconds": seconds, **described(fit, draws)}
        print(f"{model.name}, {method}: {notes[method]}", flush=True)
        if method == NUTS:
            reference = draws
        else:
            comparisons += compare(model.name, method, draws, reference, fit.estimate.settings.get("effective_size"))
    return comparisons, notes


def described(fit: Any, draws: Draws) -> dict[str, Any]:
    """Effective size, divergences, k-hat and findings of a fit."""
    import arviz as az

    size = fit.estimate.settings.get("effective_size")
    found: dict[str, Any] = {"ess": float(size or min(float(az.ess(array)) for array in draws.values()))}
    stats = fit.estimate.sample_stats or {}
    if "diverging" in stats:
        found["divergences"] = int(np.sum(stats["diverging"]))
    if "khat" in fit.estimate.settings:
        found["khat"] = float(fit.estimate.settings["khat"])
    found["findings"] = [record.code for record in fit.health if record.severity != "info"]
    return found


def worst(comparisons: Sequence[Comparison]) -> tuple[Comparison, Comparison]:
    """The parameters with the largest difference of means and of SDs."""
    return (
        max(comparisons, key=lambda found: abs(found.mean)),
        max(comparisons, key=lambda found: abs(math.log(found.ratio))),
    )


def within(comparisons: Sequence[Comparison]) -> bool:
    mean, ratio = worst(comparisons)
    return abs(mean.mean) < MEAN and abs(math.log(ratio.ratio)) < math.log1p(SD)


def by_method(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    found: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        found.setdefault((one.model, one.method), []).append(one)
    return found


SUMMARY = (
    "model",
    "method",
    "largest mean difference, SD",
    "of",
    "SD ratio farthest from 1",
    "of",
    "within",
    "seconds",
)


def summary(comparisons: Sequence[Comparison], notes: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The worst parameter of every model and method."""
    rows = []
    for (model, method), found in by_method(comparisons).items():
        mean, ratio = worst(found)
        rows.append(
            [
                model,
                method,
                f"{mean.mean:+.3f} ± {mean.error:.3f}",
                mean.parameter,
                f"{ratio.ratio:.3f}",
                ratio.parameter,
                "yes" if within(found) else "NO",
                f"{notes[model][method]['seconds']:.1f}",
            ]
        )
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def document(
    comparisons: Sequence[Comparison], notes: Mapping[str, Mapping[str, Any]], options: argparse.Namespace
) -> str:
    """The page of results."""
    detail = [
        [one.model, one.method, one.parameter, f"{one.mean:+.3f} ± {one.error:.3f}", f"{one.ratio:.3f}"]
        for one in comparisons
    ]
    runs = [
        [model, method, f"{note['ess']:.0f}", f"{note['seconds']:.1f}", str(note.get("divergences", "")), _khat(note)]
        for model, of_model in notes.items()
        for method, note in of_model.items()
    ]
    formulas = "\n".join(f"- {name}: `{MODELS[name].formula}`" for name in notes)
    return f"""# Accuracy of posteriors with integrated effects

Written by `python -m benchmarks.posterior_accuracy --write`. Every method is held against joint NUTS with 4 chains of
{options.long} draws on the same model with the same default priors: difference of posterior means in SDs of the joint
posterior (± Monte Carlo error) and ratio of SDs. Asked for: less than {MEAN:g} SD, and SDs within {SD:.0%}.
{time.strftime("%Y-%m-%d")}, {platform.machine()}, {CORES} cores.

{formulas}

## Worst hyper-parameter

{markdown(SUMMARY, summary(comparisons, notes))}

## Every hyper-parameter

{markdown(("model", "method", "parameter", "mean difference, SD", "SD ratio"), detail)}

## Runs

{markdown(("model", "method", "smallest effective size", "seconds", "divergences", "k-hat"), runs)}
"""


def _khat(note: Mapping[str, Any]) -> str:
    return f"{note['khat']:.2f}" if "khat" in note else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    methods = sorted({method for model in MODELS.values() for method in model.methods})
    parser.add_argument("--methods", nargs="*", metavar="METHOD", help=f"only these: {'; '.join(methods)}")
    parser.add_argument("--long", type=int, default=5000, help="draws a chain of the reference (%(default)s)")
    parser.add_argument("--draws", type=int, default=2000, help="draws a chain of a method (%(default)s)")
    parser.add_argument("--tune", type=int, default=1000, help="warm-up iterations a chain (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="%(default)s")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a method is not within the limits")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    print(machine())
    comparisons: list[Comparison] = []
    notes: dict[str, dict[str, dict[str, Any]]] = {}
    for name in options.models:
        found, notes[name] = run(MODELS[name], options)
        comparisons += found
    print(table(SUMMARY, summary(comparisons, notes)))
    if options.json:
        options.json.write_text(json.dumps({"comparisons": [vars(c) for c in comparisons], "runs": notes}, indent=1))
    if options.write:
        DOCUMENT.write_text(document(comparisons, notes, options), encoding="utf-8")
    met = all(within(found) for found in by_method(comparisons).values())
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    raise SystemExit(main())
