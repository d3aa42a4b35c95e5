"""``pyromix demo``: two real data sets, linear and neural means, several backends on the same program."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyromix.cli.commands import speaking
from pyromix.cli.writing import Folder, write_csv

if TYPE_CHECKING:
    import pandas as pd

    from pyromix.backends import AbstractBackend
    from pyromix.model import Model
    from pyromix.results import Fit
    from pyromix.results.agreement import Agreement

SLEEP = "Reaction ~ Days + (Days | Subject)"
CONTRACEPTION = "use ~ age + urban + livch + (1 | district)"
FILES = (
    *("agreement.csv", "contraception.nc", "demo.png", "posteriors.csv", "posteriors.png"),
    *("sleepstudy.nc", "sleepstudy_nuts.nc", "summary.txt"),
)


@dataclass(frozen=True)
class Run:
    """One fit of the demonstration and what it took."""

    data: str
    mean: str
    method: str
    fit: Fit
    seconds: float


def demo(arguments: Namespace) -> int:
    """Fit, compare, predict, write."""
    start = time.perf_counter()
    folder = Folder(arguments.output, own=FILES)
    with speaking(arguments):
        sleep, contraception = _models()
        reml, *sleeps = _sleepstudy(sleep, arguments.quick)
        uses = _contraception(contraception, arguments.quick)
        _section("sleepstudy: reaction times (ms) of 18 drivers over ten days of too little sleep")
        print(reml.fit.summary())
        _section("Log-likelihoods: the same program, its random effects integrated out in several ways")
        table = _agreement(sleeps, uses)
        print(_aligned(table))
        print(_remark(sleeps, uses))
        posteriors = _posteriors(sleep[0], arguments.quick)
        _section("Posteriors: the first program again, sampled in three ways")
        compared = _compared(reml, posteriors)
        print(compared)
        _section("New groups: the random effect integrated over its distribution")
        print(_predictions(reml.fit, uses[0].fit))
        with folder.writing() as draft:
            _write(draft, table, reml, sleeps, uses)
            _write_posteriors(draft, compared, posteriors)
            names = sorted(file.name for file in draft.iterdir())
    _section("Files")
    for name in names:
        print(folder.path / name)
    print(f"\n{time.perf_counter() - start:.1f} seconds in all")
    return 0


# -- fits -------------------------------------------------------------------------------------------------------------
def _models() -> tuple[list[Model], list[Model]]:
    """Linear and neural model of each data set."""
    from pyromix.datasets import load
    from pyromix.families import Binomial
    from pyromix.model import model
    from pyromix.networks import MLP

    sleepstudy, contraception = load("sleepstudy"), load("Contraception")
    contraception["use"] = (contraception["use"] == "Y").astype(float)
    net = MLP(hidden=(3,), activation="tanh", standardize=True)
    other = MLP(hidden=(3,), activation="tanh", standardize=True)
    return (
        [model(SLEEP, sleepstudy), model(SLEEP, sleepstudy, mean=net)],
        [
            model(CONTRACEPTION, contraception, Binomial()),
            model(CONTRACEPTION, contraception, Binomial(), mean=other),
        ],
    )


def _sleepstudy(models: list[Model], quick: bool) -> list[Run]:
    from pyromix.backends import MaximumLikelihood
    from pyromix.backends.training import Training
    from pyromix.marginal import Exact, Laplace

    linear, neural = models
    training = Training(lr=0.1, epochs=20 if quick else 300, validation=0.0)
    return [
        _run("sleepstudy", "linear", "Exact, REML", linear, MaximumLikelihood(Exact(), "reml")),
        _run("sleepstudy", "linear", "Exact", linear, MaximumLikelihood(Exact())),
        _run("sleepstudy", "linear", "Laplace", linear, MaximumLikelihood(Laplace())),
        _run("sleepstudy", "neural", "Exact", neural, MaximumLikelihood(Exact(), training=training)),
    ]


def _contraception(models: list[Model], quick: bool) -> list[Run]:
    from pyromix.backends import MaximumLikelihood
    from pyromix.backends.training import Training
    from pyromix.marginal import GaussHermite, Laplace

    linear, neural = models
    training = Training(lr=0.03, epochs=10 if quick else 300, validation=0.0)
    runs = [_run("Contraception", "linear", "Laplace", linear, MaximumLikelihood(Laplace()))]
    for nodes in (1, 7, 25):
        backend = MaximumLikelihood(GaussHermite(nodes))
        runs.append(_run("Contraception", "linear", f"GaussHermite({nodes})", linear, backend))
    backend = MaximumLikelihood(Laplace(), training=training)
    return [*runs, _run("Contraception", "neural", "Laplace", neural, backend)]


def _posteriors(model: Model, quick: bool) -> list[Run]:
    from pyromix.backends import NUTS, SVI, NestedLaplace

    size = 100 if quick else 1000
    return [
        _run("sleepstudy", "linear", "NestedLaplace", model, NestedLaplace(size)),
        _run("sleepstudy", "linear", "NUTS", model, NUTS(size, size, chains=2 if quick else 4)),
        _run("sleepstudy", "linear", "SVI", model, SVI(steps=200 if quick else 1500)),
    ]


def _compared(reml: Run, posteriors: list[Run]) -> Agreement:
    from pyromix.results.agreement import agreement

    fits = {run.method: run.fit for run in (*posteriors, reml)}
    return agreement(fits, reference="NUTS")


def _run(data: str, mean: str, method: str, model: Model, backend: AbstractBackend) -> Run:
    """One fit, with a word on standard error while it runs."""
    if sys.stderr.isatty():
        print(f"fitting {data}, {mean} mean, {method} ...", file=sys.stderr)
    start = time.perf_counter()
    return Run(data, mean, method, model.fit(backend, seed=1, progress=False), time.perf_counter() - start)


# -- tables -----------------------------------------------------------------------------------------------------------
def _agreement(sleeps: list[Run], uses: list[Run]) -> pd.DataFrame:
    """Log-likelihoods, and their differences to the most exact integral of the same data with a linear mean."""
    import pandas as pd

    references = {run.data: run.fit.log_likelihood for run in (sleeps[0], uses[3])}
    rows = [
        {
            "data": run.data,
            "mean": run.mean,
            "integral": run.method,
            "log_likelihood": run.fit.log_likelihood,
            "difference": run.fit.log_likelihood - references[run.data],
            "parameters": run.fit.n_parameters,
            "aic": run.fit.aic,
            "seconds": run.seconds,
        }
        for run in (*sleeps, *uses)
    ]
    return pd.DataFrame(rows)


def _aligned(table: pd.DataFrame) -> str:
    rows = [["data", "mean", "integral", "log-likelihood", "difference", "parameters", "AIC", "seconds"]]
    last = ""
    for row in table.itertuples():
        difference = round(row.difference, 6) + 0.0  # no minus before a zero
        numbers = [f"{row.log_likelihood:.6f}", f"{difference:+.6f}", str(row.parameters), f"{row.aic:.1f}"]
        name = "" if row.data == last else row.data
        rows.append([name, row.mean, row.integral, *numbers, f"{row.seconds:.2f}"])
        last = row.data
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if k < 3 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _remark(sleeps: list[Run], uses: list[Run]) -> str:
    """Whether the networks are worth their weights, by AIC."""
    words = []
    for linear, neural in ((sleeps[0].fit, sleeps[-1].fit), (uses[0].fit, uses[-1].fit)):
        gain = neural.log_likelihood - linear.log_likelihood
        extra = neural.n_parameters - linear.n_parameters
        verdict = "prefers the network" if neural.aic < linear.aic else "prefers the line"
        words.append(f"{gain:+.1f} nats for {extra} parameters more, AIC {verdict}")
    return f"Network against line: sleepstudy {words[0]}; Contraception {words[1]}."


def _predictions(sleep: Fit, use: Fit) -> str:
    """One line: a driver and a woman from groups that the fits have not seen."""
    import pandas as pd

    driver = pd.DataFrame({"Days": [10.0], "Subject": ["new"]})
    reaction = sleep.predict(driver, kind="interval", new_groups="marginal").iloc[0]
    woman = pd.DataFrame({"age": [0.0], "urban": ["N"], "livch": ["2"], "district": ["new"]})
    woman["livch"] = pd.Categorical(woman["livch"], categories=["0", "1", "2", "3+"])
    marginal, zero = (use.predict(woman, new_groups=policy)[0] for policy in ("marginal", "zero"))
    return (
        f"new driver, day 10: {reaction['mean']:.0f} ms, 90 % interval {reaction['lower']:.0f} to "
        f"{reaction['upper']:.0f}; rural woman of mean age with two children, new district: P(use) = {marginal:.3f} "
        f"({zero:.3f} in a typical district)"
    )


def _section(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


# -- files ------------------------------------------------------------------------------------------------------------
def _write(folder: Path, table: pd.DataFrame, reml: Run, sleeps: list[Run], uses: list[Run]) -> None:
    from pyromix.cli.demo_figure import demo_figure

    (folder / "summary.txt").write_text(f"{reml.fit.summary()}\n", encoding="utf-8")
    write_csv(table, folder / "agreement.csv")
    reml.fit.idata.to_netcdf(str(folder / "sleepstudy.nc"))
    uses[0].fit.idata.to_netcdf(str(folder / "contraception.nc"))
    demo_figure(reml.fit, sleeps[-1].fit, uses[0].fit, uses[-1].fit).savefig(folder / "demo.png")


def _write_posteriors(folder: Path, compared: Agreement, posteriors: list[Run]) -> None:
    table = compared.table.copy()
    table.columns = [" ".join(map(str, column)) for column in table.columns]
    write_csv(table.reset_index(names="parameter"), folder / "posteriors.csv")
    compared.plot().savefig(folder / "posteriors.png")
    posteriors[1].fit.idata.to_netcdf(str(folder / "sleepstudy_nuts.nc"))
