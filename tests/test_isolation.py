"""Fits do not see each other, leave the process as it was, and take structures and families defined elsewhere."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_info
from torch.distributions import constraints

import pyromix as pmx
from pyromix.covariances.base import Coords, Covariance
from pyromix.families.base import AbstractFamily
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Parameter

QUIET: dict[str, Any] = {"progress": False}


def frame(seed: int) -> pd.DataFrame:
    """Two responses, one grouping factor; other seeds, other numbers under the same names."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(8), 10)
    x = rng.normal(size=80)
    eta = 0.3 + 0.5 * x + rng.permutation(np.linspace(-1, 1, 8))[g]
    return pd.DataFrame({"y": eta + rng.normal(size=80), "count": rng.poisson(np.exp(eta)), "x": x, "g": g})


def linear(seed: int) -> pmx.Fit:
    """A linear mixed model."""
    return pmx.model("y ~ x + (1 | g)", frame(seed)).fit(pmx.MaximumLikelihood(criterion="reml"), **QUIET)


def counts(seed: int) -> pmx.Fit:
    """Counts by quadrature."""
    model = pmx.model("count ~ x + (1 | g)", frame(seed), pmx.Poisson())
    return model.fit(pmx.MaximumLikelihood(pmx.GaussHermite(5)), seed=seed, **QUIET)


def neural(seed: int) -> pmx.Fit:
    """A network, trained for a little."""
    network = pmx.networks.MLP(hidden=(3,), dropout=0.2, seed=seed)
    training = pmx.Training(epochs=3, batch_groups=4)
    model = pmx.model("y ~ x + (1 | g)", frame(seed), mean=network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.PyromixWarning)
        return model.fit(pmx.MaximumLikelihood(training=training), seed=seed, **QUIET)


MAKERS = {"linear": linear, "counts": counts, "neural": neural}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def numbers(fit: pmx.Fit) -> dict[str, bytes]:
    """Everything numeric of a fit, as bytes."""
    out = {"log_likelihood": np.float64(fit.log_likelihood).tobytes(), "se": fit.fixed_effects().to_numpy().tobytes()}
    for part in (fit.estimate.point, fit.estimate.latents, fit.draws(5, seed=1)):
        out.update({f"{name} {len(out)}": value.numpy().tobytes() for name, value in part.items()})
    out["mean"] = fit.predict().tobytes()
    out["interval"] = fit.predict(kind="interval").to_numpy().tobytes()
    return out


# -- fits do not see each other ----------------------------------------------------------------------------------------
@each_maker
def test_the_same_seed_gives_the_same_bits(make: Callable[[int], pmx.Fit]) -> None:
    first = numbers(make(3))
    torch.manual_seed(99)
    np.random.seed(99)
    assert numbers(make(3)) == first


def test_another_seed_gives_another_network() -> None:
    assert numbers(neural(3))["mean"] != numbers(neural(4))["mean"]


def test_a_later_fit_leaves_an_earlier_one_alone() -> None:
    first = {name: make(1) for name, make in MAKERS.items()}
    before = {name: numbers(fit) for name, fit in first.items()}
    for make in MAKERS.values():
        make(2).idata.posterior.load()
    assert {name: numbers(fit) for name, fit in first.items()} == before


def test_fits_in_threads_are_those_one_after_the_other() -> None:
    jobs = [(name, seed) for name in ("linear", "counts", "neural") for seed in (1, 2)]
    expected = {job: numbers(MAKERS[job[0]](job[1])) for job in jobs}
    with ThreadPoolExecutor(4) as pool:
        # the filters of warnings belong to the process: set once, outside of the threads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pmx.PyromixWarning)
            found = list(pool.map(lambda job: numbers(MAKERS_PLAIN[job[0]](job[1])), jobs))
    assert dict(zip(jobs, found, strict=True)) == expected


def neural_plain(seed: int) -> pmx.Fit:
    """`neural` without touching the filters of warnings."""
    network = pmx.networks.MLP(hidden=(3,), dropout=0.2, seed=seed)
    training = pmx.Training(epochs=3, batch_groups=4)
    model = pmx.model("y ~ x + (1 | g)", frame(seed), mean=network)
    return model.fit(pmx.MaximumLikelihood(training=training), seed=seed, **QUIET)


MAKERS_PLAIN = {"linear": linear, "counts": counts, "neural": neural_plain}


# -- the process stays as it was ---------------------------------------------------------------------------------------
def state() -> dict[str, Any]:
    """What belongs to the process and not to a fit."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),
        "random": repr(random.getstate()),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "BLAS threads": [library["num_threads"] for library in threadpool_info()],
        "gradients": torch.is_grad_enabled(),
        "validation": pyro.infer.util.is_validation_enabled(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "filters": list(warnings.filters),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "parameters": sorted(pyro.get_param_store().keys()),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "errors": np.geterr(),
        "options": (pd.get_option("display.width"), torch._C._get_deterministic_algorithms()),
    }


CALLS: dict[str, Callable[[Any], Any]] = {
    "datasets": lambda path: pmx.datasets.load("sleepstudy"),
    "model": lambda path: pmx.model("y ~ scale(x) + (x | g)", frame(1)),
    "source": lambda path: pmx.model("y ~ x + (1 | g)", frame(1)).source(),
    "prior predictive": lambda path: pmx.model("y ~ x + (1 | g)", frame(1)).prior_predictive(20),
    "linear": lambda path: linear(1),
    "counts": lambda path: counts(1),
    "neural": lambda path: neural(1),
    "summary": lambda path: str(counts(1).summary()),
    "tables": lambda path: [linear(1).fixed_effects(), linear(1).random_effects("g", "sd")],
    "predictions": lambda path: [counts(1).predict(kind=kind) for kind in ("mean", "linear", "interval", "draws")],
    "new groups": lambda path: counts(1).predict(frame(1).assign(g=77), new_groups="marginal"),
    "arviz": lambda path: counts(1).idata.posterior.load(),
    "draws": lambda path: neural(1).draws(10),
    "plots": lambda path: _close(counts(1).plot_caterpillar()),
    "saving": lambda path: (linear(1).save(path / "fit.pmx"), pmx.load(path / "fit.pmx").predict()),
    "refusal": lambda path: _refused(lambda: pmx.model("y ~ zz", frame(1))),
    "failed fit": lambda path: _refused(
        lambda: pmx.model("count ~ x + (1 | g)", frame(1), pmx.Poisson()).fit(pmx.MaximumLikelihood(pmx.Exact()))
    ),
}


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


def _refused(call: Callable[[], Any]) -> None:
    with pytest.raises(pmx.PyromixError):
        call()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_leaves_the_process_as_it_was(call: Callable[[Any], Any], tmp_path: Any) -> None:
    call(tmp_path)  # imports happen once
    pyro.param("users_own", torch.ones(2))
    torch.manual_seed(5)
    before = state()
    call(tmp_path)
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()
    assert torch.equal(pyro.param("users_own"), torch.ones(2))


def test_a_raised_default_dtype_changes_no_number() -> None:
    expected = numbers(counts(1))
    torch.set_default_dtype(torch.float64)
    try:
        assert numbers(counts(1)) == expected
    finally:
        torch.set_default_dtype(torch.float32)


# -- structures and families from elsewhere ----------------------------------------------------------------------------
class Halves(Covariance):
    """A structure of this file: two correlated effects a level whose SDs are tied, sd and sd / 2."""

    def __init__(self, sd: Any = None) -> None:
        self.sd = sd

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        prior = dist.HalfNormal(torch.tensor(2.0, dtype=torch.float64))
        return (Parameter("sd", constraints.nonnegative, prior=prior),)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        shape = torch.tensor([[1.0, 0.0], [0.25, 0.4330127018922193]], dtype=torch.float64)
        return BlockOperator(theta["sd"][..., None, None] * shape, len(coords.levels))


class Logistic(AbstractFamily):
    """A family of this file: logistic errors of a learned scale."""

    links = ("identity",)
    has_residual = True

    def __init__(self, link: str = "identity") -> None:
        super().__init__(link)

    def parameters(self) -> tuple[Parameter, ...]:
        prior = dist.HalfNormal(torch.tensor(5.0, dtype=torch.float64))
        return (Parameter("scale", constraints.positive, prior=prior),)

    def distribution(self, eta: torch.Tensor, trials: Any = None, **dispersion: torch.Tensor) -> dist.Distribution:
        return dist.Logistic(eta, dispersion["scale"])


def slopes(seed: int) -> pd.DataFrame:
    """Intercepts and slopes by group."""
    rng = np.random.default_rng(seed)
    df = frame(seed)
    u = rng.multivariate_normal([0, 0], [[1, 0.25], [0.25, 0.25]], size=8)
    return df.assign(y=df["x"] + u[df["g"], 0] + u[df["g"], 1] * df["x"] + rng.logistic(size=80) * 0.5)


@pytest.mark.parametrize("marginal", [pmx.Exact(), pmx.Laplace(), pmx.GaussHermite(7)], ids=repr)
def test_a_structure_from_elsewhere_is_fitted_by_every_marginaliser(marginal: Any) -> None:
    """The dense likelihood at the estimate, and no better one beside it."""
    df = slopes(2)
    fit = pmx.model("y ~ x + (x | g)", df, covariances={"g": Halves()}).fit(pmx.MaximumLikelihood(marginal), **QUIET)
    x = np.column_stack([np.ones(80), df["x"]])
    same = df["g"].to_numpy()[:, None] == df["g"].to_numpy()[None]

    def dense(sd: float, sigma: float, beta: np.ndarray) -> float:
        block = sd**2 * np.array([[1, 0.25], [0.25, 0.25]])
        v = (x @ block @ x.T) * same + sigma**2 * np.eye(80)
        residual = df["y"].to_numpy() - x @ beta
        return -0.5 * (np.linalg.slogdet(2 * np.pi * v)[1] + residual @ np.linalg.solve(v, residual))

    sd, sigma = (float(fit.estimate.point[name]) for name in ("g.sd", "y.sigma"))
    beta = fit.estimate.point["beta"].numpy()
    assert_allclose(fit.log_likelihood, dense(sd, sigma, beta), rtol=1e-10)
    for factor in (0.97, 1.03):
        assert dense(sd * factor, sigma, beta) < fit.log_likelihood
        assert dense(sd, sigma * factor, beta) < fit.log_likelihood


def test_a_family_from_elsewhere_is_fitted_by_every_marginaliser() -> None:
    """Quadrature against the integral on a fine grid, group by group."""
    df = slopes(3)
    model = pmx.model("y ~ x + (1 | g)", df, Logistic())
    laplace = model.fit(pmx.MaximumLikelihood(pmx.Laplace()), **QUIET)
    fit = model.fit(pmx.MaximumLikelihood(pmx.GaussHermite(31)), **QUIET)
    sd, scale = (float(fit.estimate.point[name]) for name in ("g.sd", "y.scale"))
    intercept, slope = fit.fixed_effects()["estimate"]
    grid = np.linspace(-8, 8, 4001)
    total = 0.0
    for _, rows in df.groupby("g"):
        z = (rows["y"].to_numpy()[:, None] - intercept - slope * rows["x"].to_numpy()[:, None] - sd * grid) / scale
        log_density = (-np.abs(z) - 2 * np.log1p(np.exp(-np.abs(z))) - np.log(scale)).sum(0)
        total += np.log(np.trapezoid(np.exp(log_density - 0.5 * grid**2) / np.sqrt(2 * np.pi), grid))
    assert_allclose(fit.log_likelihood, total, atol=1e-6)
    assert abs(laplace.log_likelihood - fit.log_likelihood) < 0.5
    with pytest.raises(pmx.UnsupportedError, match=r"Exact\(\) needs a Gaussian response"):
        model.fit(pmx.MaximumLikelihood(pmx.Exact()), **QUIET)
