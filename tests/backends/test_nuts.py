"""NUTS against closed forms in every way it can be run, and what it does when something goes wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyromix as pmx
from pyromix.backends import nuts, workers
from pyromix.errors import Status
from tests.backends import posterior_programs as programs

QUIET: dict[str, Any] = {"progress": False}
F64 = torch.float64


def sampled(program: Any, data: Any, seed: int = 0, **arguments: Any) -> pmx.Fit:
    settings = {"draws": 400, "tune": 300, "chains": 2, "cores": 1, **arguments}
    return pmx.fit(program, data, backend=pmx.NUTS(**settings), seed=seed, **QUIET)


def near(fit: pmx.Fit, name: str, mean: Any, sd: Any) -> None:
    """Means within 5 Monte Carlo errors, SDs within 25 %: for effective sizes above 250, false alarms below 1e-5."""
    draws = fit.draws()[name].reshape(fit.n_draws, -1).numpy()
    effective = 250.0
    assert np.abs(draws.mean(0) - mean).max() < 5 * np.max(sd) / effective**0.5, (name, draws.mean(0), mean)
    assert np.abs(draws.std(0) / sd - 1).max() < 0.25, (name, draws.std(0), sd)


WAYS = {
    "auto": {},
    "centered": {"parametrisation": "centered"},
    "noncentered": {"parametrisation": "noncentered", "target_accept": 0.95},  # its curvature differs from SD to SD
    "exact": {"marginal": pmx.Exact()},
    "laplace": {"marginal": pmx.Laplace()},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_closed_form(way: dict[str, Any]) -> None:
    data = programs.grouped()
    exact = programs.Integrated(data)
    fit = sampled(programs.variance, data, **way)
    sd = np.sqrt(np.diag(exact.covariance))
    near(fit, "group.sd", exact.sd_mean, exact.sd_sd)
    near(fit, "beta", exact.mean[:2], sd[:2])
    near(fit, "group", exact.mean[2:], sd[2:])
    assert fit.estimate.kind == "draws"
    assert fit.estimate.chains == 2
    assert fit.status is Status.CONVERGED


def test_a_plain_program_and_pyros_own_sampler() -> None:
    data = programs.grouped()
    exact = programs.Integrated(data)
    sd = np.sqrt(np.diag(exact.covariance))
    fit = sampled(programs.plain, data)
    near(fit, "sd", exact.sd_mean, exact.sd_sd)
    near(fit, "beta", exact.mean[:2], sd[:2])
    assert set(fit.draws()) == {"beta", "sd", "b"}
    slow = sampled(programs.plain, data, engine="pyro", draws=250, tune=100, chains=1)
    near(slow, "beta", exact.mean[:2], sd[:2])
    assert slow.estimate.sample_stats["lp"].shape == (1, 250)


def test_statistics_have_their_names_and_shapes() -> None:
    fit = sampled(programs.conjugate, programs.grouped(), draws=50, tune=50)
    stats = fit.estimate.sample_stats
    assert set(stats) >= {
        "lp", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging", "energy", "reached_max_treedepth",
    }  # fmt: skip
    assert all(value.shape == (2, 50) for value in stats.values())
    assert stats["diverging"].dtype == bool


def test_draws_depend_on_the_seed_alone() -> None:
    data = programs.grouped()
    kinds = {"draws": 60, "tune": 60}
    one, two = sampled(programs.variance, data, 1, **kinds), sampled(programs.variance, data, 1, cores=2, **kinds)
    other = sampled(programs.variance, data, 2, **kinds)
    for name, value in one.draws().items():
        assert torch.equal(value, two.draws()[name])
        assert not torch.equal(value, other.draws()[name])


def test_a_killed_fit_goes_on_with_the_chains_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = programs.grouped()
    kinds = {"draws": 60, "tune": 60, "chains": 3}
    whole = sampled(programs.variance, data, **kinds)
    path = tmp_path / "chains"
    original, made = nuts.ENGINES["nutpie"], []

    def counting(*given: Any, **rest: Any) -> Any:
        made.append(1)
        if len(made) == 3 and not os.environ.get("GO_ON"):
            raise KeyboardInterrupt
        return original(*given, **rest)

    monkeypatch.setitem(nuts.ENGINES, "nutpie", counting)
    with pytest.raises(KeyboardInterrupt):
        sampled(programs.variance, data, checkpoint=path, **kinds)
    monkeypatch.setenv("GO_ON", "1")
    resumed = sampled(programs.variance, data, checkpoint=path, **kinds)
    assert len(made) == 4  # two, the one that was interrupted, and the one that was missing
    for name, value in whole.draws().items():
        assert torch.equal(value, resumed.draws()[name])
    with pytest.raises(pmx.CheckpointError, match="settings"):
        sampled(programs.variance, data, checkpoint=path, **{**kinds, "draws": 61})


def test_no_start_names_the_site_and_the_row() -> None:
    def program(data: torch.Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0, dtype=F64)))
        with pyro.plate("rows", len(data)):
            pyro.sample("y", dist.Normal(torch.zeros((), dtype=F64), scale), obs=data)

    data = torch.zeros(5, dtype=F64)
    data[3] = torch.inf
    with pytest.raises(pmx.NumericalError, match="site 'y' is -inf, first at row 3"):
        sampled(program, data)


def test_bounded_and_correlated_sites_are_recovered() -> None:
    """Uniform on an interval, a simplex and a correlation matrix: their own priors, without data to move them."""

    def program(data: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Uniform(torch.tensor(2.0, dtype=F64), 5.0))
        pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 5.0], dtype=F64)))
        pyro.sample("c", dist.LKJCholesky(3, torch.tensor(2.0, dtype=F64)))
        pyro.sample("top", dist.Uniform(torch.tensor(0.0, dtype=F64), a))  # a support that moves
        pyro.sample("y", dist.Normal(torch.tensor(0.0, dtype=F64), 1.0), obs=data)

    fit = sampled(program, torch.tensor(0.3, dtype=F64), draws=800)
    near(fit, "a", 3.5, 3 / 12**0.5)
    near(fit, "p", [0.2, 0.3, 0.5], [(0.2 * 0.8 / 11) ** 0.5, (0.3 * 0.7 / 11) ** 0.5, (0.5 * 0.5 / 11) ** 0.5])
    near(fit, "top", 1.75, _uniform_product_sd())
    correlation = fit.draws()["c"] @ fit.draws()["c"].mT
    # LKJ(eta = 2) of order 3: every correlation is 2 Beta(2.5, 2.5) - 1, with variance 1 / 6
    assert float(correlation[:, 0, 1].std()) == pytest.approx((1 / 6) ** 0.5, rel=0.2)


def _uniform_product_sd() -> float:
    """SD of a * U, a uniform on (2, 5) and U on (0, 1)."""
    second = (5**3 - 2**3) / 9 / 3  # E a^2 E U^2, with E a^2 = (5^3 - 2^3) / 9
    return (second - 1.75**2) ** 0.5


def test_discrete_sites_are_refused() -> None:
    def program(data: torch.Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
        pyro.sample("y", dist.Normal(k, torch.tensor(1.0, dtype=F64)), obs=data)

    with pytest.raises(pmx.UnsupportedError, match="site 'k' .Bernoulli."):
        sampled(program, torch.tensor(0.3, dtype=F64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, r"draws=0.*positive integer"),
        ({"tune": -5}, r"tune=-5"),
        ({"chains": True}, r"chains=True"),
        ({"cores": 0}, r"cores=0"),
        ({"engine": "stan"}, r"engine='stan'.*'nutpie', 'pyro'"),
        ({"parametrisation": "both"}, r"parametrisation='both'.*'auto'"),
        ({"marginal": pmx.Laplace}, r"pass an instance"),
        ({"target_accept": 1.5}, r"target_accept=1.5"),
        ({"max_depth": 0}, r"max_depth=0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        pmx.NUTS(**arguments)


def network_data() -> programs.Data:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(6), 10)
    x = rng.uniform(-2, 2, size=(60, 1))
    y = np.sin(x[:, 0]) + rng.normal(0, 0.7, 6)[g] + rng.normal(0, 0.3, 60)
    return {"x": torch.from_numpy(x), "g": torch.from_numpy(g), "y": torch.from_numpy(y)}


@pytest.mark.parametrize("layers", ["all", "last", None])
def test_weights_of_a_network(layers: str | None) -> None:
    """Bayesian, Bayesian in the last layer, or held where training put them."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0)
    ).double()
    prior = None if layers is None else dist.Normal(0.0, 1.0)
    extra = {} if layers is None else {"layers": layers}

    def program(data: programs.Data) -> None:
        eta = pmx.NeuralEffect("net", module, prior=prior, **extra)(data["x"])
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=6)(data["g"])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    training = pmx.Training(epochs=30)
    fit = sampled(program, network_data(), draws=60, tune=150, chains=1, training=training)
    weights = {name for name in fit.draws() if name.startswith("net.")}
    expected = {"all": 4, "last": 2, None: 0}[layers]
    assert len(weights) == expected
    assert fit.idata.posterior["g"].shape == (1, 60, 6, 1)
    residual = network_data()["y"].numpy() - fit.predict()
    assert residual.std() < 0.6 * network_data()["y"].numpy().std()


@pytest.mark.skipif(not workers.can_fork(), reason="no forked processes here")
def test_progress_is_reported(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuts, "PATIENCE", 0.0)
    monkeypatch.setattr(nuts.nutpie_engine, "REPORT", 5)  # the chains take a tenth of a second
    backend = pmx.NUTS(draws=3000, tune=300, chains=2, cores=2)
    pmx.fit(programs.variance, programs.grouped(), backend=backend, progress=True)
    shown = capfd.readouterr().err
    assert "NUTS" in shown
    assert "divergences" in shown
