"""Saved fits, loaded in a fresh process: the same bits, no code, and refusals that say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyromix as pmx

ROOT = Path(__file__).resolve().parents[1]
QUIET: dict[str, Any] = {"progress": False}


def frame() -> pd.DataFrame:
    """Several kinds of columns, and row labels that are times."""
    rng = np.random.default_rng(8)
    n, groups = 60, 10
    index = pd.date_range("2024-01-01", periods=n, freq="h", tz="UTC", name="when")
    g = np.repeat(np.arange(groups) * 10, n // groups)
    x = rng.normal(size=n)
    eta = 0.4 + 0.5 * x + np.repeat(rng.permutation(np.linspace(-1, 1, groups)), n // groups)
    return pd.DataFrame(
        {
            "y": eta + 0.3 * rng.normal(size=n),
            "count": rng.poisson(np.exp(eta)),
            "x": x,
            "o": rng.uniform(size=n),
            "w": rng.uniform(0.5, 2, size=n),
            "g": g,
            "c": pd.Categorical(rng.choice(["lo", "hi"], size=n), categories=["lo", "mid", "hi"]),
            "flag": rng.uniform(size=n) > 0.5,
        },
        index=index,
    )


def cube(values: Any) -> Any:
    """A function of the user's."""
    return values**3


def by_hand(data: dict[str, torch.Tensor]) -> None:
    """A program over tensors."""
    eta = pmx.LinearEffect("beta", dist.Normal(0.0, 5.0))(data["x"])
    eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=10)(data["g"])
    pmx.observe("y", pmx.Gaussian(), eta, data["y"])


def over_a_design(design: pmx.Design) -> None:
    """A program over a design, counts with an effect a row."""
    eta = pmx.LinearEffect("beta", dist.Normal(0.0, 5.0))(design.x)
    for term in design.terms:
        eta = eta + pmx.RandomEffect(term.name, pmx.IID(), levels=term.levels)(term.index)
    pmx.observe("count", pmx.Poisson(), eta, design.y, offset=design.offset)


def network() -> torch.nn.Module:
    """The network of the neural fit."""
    return pmx.networks.MLP(hidden=(4,), embeddings={"c": (3, 2)}, standardize=True, seed=2)


def with_a_network(data: dict[str, torch.Tensor]) -> None:
    """A program with a network of its own."""
    eta = pmx.NeuralEffect("f", NETWORK)(data["x"])
    eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=10)(data["g"])
    pmx.observe("y", pmx.Gaussian(), eta, data["y"])


NETWORK = pmx.networks.MLP(n_inputs=2, hidden=(3,), seed=3)


def tensors() -> dict[str, torch.Tensor]:
    """The data of the programs."""
    df = frame()
    return {
        "x": torch.tensor(np.column_stack([np.ones(len(df)), df["x"]])),
        "g": torch.tensor(df["g"].to_numpy() // 10),
        "y": torch.tensor(df["y"].to_numpy()),
    }


@dataclass(frozen=True)
class Case:
    """A fit, what loading it needs, and new data to predict at."""

    make: Callable[[], pmx.Fit]
    needs: Callable[[], dict[str, Any]] = field(default=dict)
    new: Callable[[], Any] = lambda: frame().iloc[::7].assign(g=lambda d: [999, *d["g"][1:]])
    policy: str = "marginal"


def formula(text: str, family: Any = None, backend: Any = None, **arguments: Any) -> Callable[[], pmx.Fit]:
    """A formula's fit, when asked for."""
    return lambda: pmx.model(text, frame(), family, **arguments).fit(backend, **QUIET)


SHORT = pmx.MaximumLikelihood(training=pmx.Training(epochs=2))
CASES = {
    "linear": Case(formula("y ~ scale(x) + c + flag + (x | g)", backend=pmx.MaximumLikelihood(criterion="reml"))),
    "counts": Case(formula("count ~ bs(x, df=4) + offset(o) + (1 | g)", pmx.Poisson(), frequency_weights="w")),
    "quadrature": Case(
        formula("count ~ poly(x, 2) + (1 | g)", pmx.Poisson(), pmx.MaximumLikelihood(pmx.GaussHermite(9)))
    ),
    "priors": Case(
        formula(
            "y ~ x + (x | g)",
            pmx.Gaussian(sigma=dist.Gamma(2.0, 2.0)),
            pmx.MaximumLikelihood(criterion="map"),
            covariances={"g": pmx.Unstructured(sd=dist.HalfNormal(1.0), corr=0.2)},
            priors={"beta": dist.Normal(0.0, 3.0)},
            precision_weights=frame()["w"].sample(frac=1.0, random_state=0),
        )
    ),
    "offset array": Case(formula("y ~ x + (1 | g)", offset=frame()["o"].to_numpy()), new=lambda: None),
    "offset column": Case(formula("y ~ x + (1 | g)", offset="o")),
    "dropped rows": Case(
        lambda: pmx.model(
            "y ~ x + (1 | g)", frame().assign(x=frame()["x"].mask(frame()["x"] > 1.5)), missing="drop"
        ).fit(**QUIET)
    ),
    "functions": Case(
        formula("y ~ cube(x) + (1 | g)", functions={"cube": cube}), lambda: {"functions": {"cube": cube}}
    ),
    "network": Case(formula("y ~ x + o + c + (1 | g)", backend=SHORT, mean=network()), lambda: {"module": network()}),
    "program": Case(
        lambda: pmx.fit(by_hand, tensors(), **QUIET),
        lambda: {"program": by_hand},
        lambda: {name: value[::5] for name, value in tensors().items()},
        "error",
    ),
    "program of a design": Case(
        lambda: pmx.fit(over_a_design, pmx.model("count ~ x + c + (1 | g)", frame(), pmx.Poisson()).design, **QUIET),
        lambda: {"program": over_a_design},
        lambda: None,
    ),
    "program with a network": Case(
        lambda: pmx.fit(with_a_network, tensors(), SHORT, **QUIET),
        lambda: {"program": with_a_network, "module": NETWORK},
        lambda: {name: value[::5] for name, value in tensors().items()},
        "error",
    ),
}


def facts(fit: pmx.Fit, case: Case) -> dict[str, np.ndarray]:
    """Everything a user can ask for, as arrays."""
    out = {"log_likelihood": np.array(fit.log_likelihood), "formula": np.array(str(fit.formula))}
    for where, data in (("training", None), ("new", case.new())):
        policy = "error" if data is None else case.policy
        for kind in ("mean", "linear", "interval", "draws"):
            found = fit.predict(data, kind, new_groups=policy)
            out[f"{where} {kind}"] = np.asarray(found)
            if kind == "interval":
                out[f"{where} rows"] = np.array([str(found.index.dtype), str(found.index.name), *map(str, found.index)])
    for name, value in fit.draws(7, seed=3).items():
        out[f"draws of {name}"] = value.numpy()
    tables = {"fixed": fit.fixed_effects(), "variances": fit.variance_components()}
    for name, site in fit.record.latents.items():
        tables[f"modes {name}"] = fit.random_effects(name)
        tables[f"sds {name}"] = fit.random_effects(name, "sd")
        out[f"levels {name}"] = np.array([repr(level) for level in tables[f"modes {name}"].index])
        assert site is not None
    for name, table in tables.items():
        for column in table.columns:
            values = table[column].to_numpy()
            out[f"{name} {column}"] = values.astype(str) if values.dtype == object else np.asarray(values)
    out["summary"] = np.array(str(fit.summary()))
    out["status"] = np.array([fit.status.name, str(fit.estimate.inference)])
    return {name: value.astype(np.str_) if value.dtype.kind in "OT" else value for name, value in out.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fit saved, with what it says of itself; then loaded by another process, which says it too."""
    path = tmp_path_factory.mktemp("fits")
    for name, case in CASES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pmx.PyromixWarning)  # singular fits are saved like others
            fit = case.make()
        fit.save(path / f"{name}.pmx")
        np.savez(path / f"{name} before.npz", **facts(fit, case))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    command = f"from tests.test_persistence import tell; tell({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::FutureWarning", "-c", command],
        cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


def tell(path: str) -> None:
    """Load every fit and write down what it says (run in a process of its own)."""
    for name, case in CASES.items():
        fit = pmx.load(Path(path) / f"{name}.pmx", **case.needs())
        np.savez(Path(path) / f"{name} after.npz", **facts(fit, case))


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_says_the_same_bit_for_bit(name: str, folder: Path) -> None:
    with np.load(folder / f"{name} before.npz") as before, np.load(folder / f"{name} after.npz") as after:
        assert set(before) == set(after)
        for key in before:
            assert before[key].dtype == after[key].dtype, key
            assert before[key].tobytes() == after[key].tobytes(), key


def test_a_loaded_fit_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    first = pmx.load(folder / "priors.pmx")
    first.save(tmp_path / "again.pmx")
    assert (tmp_path / "again.pmx").read_bytes() == (folder / "priors.pmx").read_bytes()


def test_new_data_are_read_as_in_the_fit(folder: Path) -> None:
    """Stateful transforms, unused categories and unseen levels survive."""
    fit = pmx.load(folder / "linear.pmx")
    assert fit.design.unused_levels["c"] == ("mid",)
    new = frame().iloc[:3]
    whole = fit.predict(frame())
    np.testing.assert_array_equal(fit.predict(new), whole[:3])
    with pytest.raises(pmx.UnseenLevelError, match="'mid'"):
        fit.predict(new.assign(c="mid"))
    with pytest.raises(pmx.UnseenLevelError, match="column 'g': 1 level not seen in the fit: 7"):
        fit.predict(new.assign(g=7))


def test_two_fits_can_be_loaded_with_one_module(folder: Path, tmp_path: Path) -> None:
    module = network()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    first = pmx.load(folder / "network.pmx", module=module)
    before = first.predict()
    other = formula("y ~ x + o + c + (1 | g)", backend=SHORT, mean=pmx.networks.MLP(
        hidden=(4,), embeddings={"c": (3, 2)}, standardize=True, seed=5
    ))()  # fmt: skip
    other.save(tmp_path / "other.pmx")
    second = pmx.load(tmp_path / "other.pmx", module=module)
    assert (second.predict() != before).any()
    np.testing.assert_array_equal(first.predict(), before)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def another(data: dict[str, torch.Tensor]) -> None:
    """Not the program that was fitted."""
    pmx.observe("y", pmx.Gaussian(), torch.zeros(60, dtype=torch.float64), data["y"])


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no program": ("program", {}, pmx.ConfigError, r"program.pmx.*pass it: pyromix.load\(path, program=...\)"),
    "another program": ("program", {"program": another}, pmx.CheckpointError, "not the one that was fitted"),
    "no module": ("network", {}, pmx.ConfigError, r"has a network \(MLP\).*module="),
    "another module": (
        "network",
        {"module": pmx.networks.MLP(hidden=(5,), embeddings={"c": (3, 2)}, standardize=True)},
        pmx.CheckpointError,
        "does not have the structure of the fitted MLP",
    ),
    "no functions": ("functions", {}, pmx.ConfigError, r"calls cube; pass functions=\{'cube': ...\}"),
}


@pytest.mark.parametrize(("name", "given", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_missing_is_named(
    name: str, given: dict[str, Any], error: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message):
        pmx.load(folder / f"{name}.pmx", **given)


def test_data_that_cannot_be_stored_are_refused_when_saving(tmp_path: Path) -> None:
    class Holder:
        rows = tensors()

    fit = pmx.fit(lambda holder: by_hand(holder.rows), Holder(), **QUIET)
    with pytest.raises(pmx.DataTypeError, match=r"cannot save args.0: Holder is not a tensor"):
        fit.save(tmp_path / "fit.pmx")
    assert not list(tmp_path.iterdir())


def test_nothing_but_saved_fits_is_read(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(pmx.UnsafeFileError, match="model.pt.*not a file saved by pyromix"):
        pmx.load(tmp_path / "model.pt")
    with pytest.raises(pmx.CheckpointError, match="absent.pmx"):
        pmx.load(tmp_path / "absent.pmx")
