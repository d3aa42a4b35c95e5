"""Variational inference of other programs: plain Pyro, own guides, networks, new groups, several responses."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value

import pyromix as pmx
from pyromix.backends.svi import SVI
from tests.backends.svi_programs import grouped_data

F64 = torch.float64


def quietly(program: Any, data: Any, backend: SVI, seed: int = 0) -> Any:
    """A fit whose findings are not the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.PyromixWarning)
        return pmx.fit(program, data, backend, seed=seed, progress=False)


# -- plain Pyro -------------------------------------------------------------------------------------------------------
def _regression() -> tuple[Any, dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """A conjugate regression far from the origin, its posterior mean and SD."""
    rng = np.random.default_rng(0)
    x = np.stack([np.ones(50), rng.normal(size=50)], 1)
    y = x @ [200.0, 3.0] + 2.0 * rng.normal(size=50)
    precision = x.T @ x / 4 + np.eye(2) / 1000.0**2
    mean = np.linalg.solve(precision, x.T @ y / 4)
    data = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}

    def program(d: dict[str, torch.Tensor]) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2, dtype=F64), 1000.0).to_event(1))
        with pyro.plate("rows", len(d["x"])):
            pyro.sample("y", dist.Normal(d["x"] @ b, 2.0), obs=d["y"])

    return program, data, mean, np.sqrt(np.diag(np.linalg.inv(precision)))


@pytest.mark.parametrize("guide", ["group", "mean_field", "low_rank", "full"])
def test_a_plain_program_against_its_conjugate_posterior(guide: str) -> None:
    program, data, mean, sd = _regression()
    fit = quietly(program, data, SVI(guide, steps=150))
    draws = fit.draws()["b"].numpy()
    # five standard errors of 1000 draws (false alarm 1e-6), and 0.1 SD for the guide
    assert np.abs((draws.mean(0) - mean) / sd).max() < 5 / np.sqrt(1000) + 0.1
    assert draws.std(0) == pytest.approx(sd, rel=0.2)
    if guide == "group":
        assert any("in" in r.remedy and "'full'" in r.remedy for r in fit.health if r.code == "svi")


def test_a_discrete_site_is_refused_by_name() -> None:
    def program(y: torch.Tensor) -> None:
        k = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    with pytest.raises(pmx.UnsupportedError, match="site 'kind'.*no density"):
        pmx.fit(program, torch.zeros(4, dtype=F64), SVI(steps=5), progress=False)


def test_batches_of_a_plain_program_are_refused() -> None:
    program, data, _, _ = _regression()
    with pytest.raises(pmx.UnsupportedError, match="batch_groups"):
        pmx.fit(program, data, SVI(steps=5, batch_groups=3), progress=False)


# -- guides of the user's ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["class", "instance", "function"])
def test_a_guide_of_ones_own(kind: str) -> None:
    program, data, mean, sd = _regression()
    data = {**data, "y": data["y"] - 200.0}
    mean = mean - [200.0, 0.0]

    def function(d: dict[str, torch.Tensor]) -> None:
        loc = pyro.param("loc", torch.zeros(2, dtype=F64))
        scale = pyro.param("scale", torch.ones(2, dtype=F64), constraint=dist.constraints.positive)
        pyro.sample("b", dist.Normal(loc, scale).to_event(1))

    start = init_to_value(values={"b": torch.zeros(2, dtype=F64)})
    instance = AutoMultivariateNormal(program, init_loc_fn=start)
    guides = {"class": AutoNormal, "instance": instance, "function": function}
    fit = quietly(program, data, SVI(guides[kind], steps=200, lr=0.1, draws=400))
    draws = fit.draws()["b"].numpy()
    assert np.abs((draws.mean(0) - mean) / sd).max() < 0.5
    assert draws.std(0) == pytest.approx(sd, rel=0.35)
    assert len(pyro.get_param_store()) == 0
    if kind == "instance":  # untouched: it can be fitted again
        assert guides[kind].prototype_trace is None and guides[kind].model is not None


def test_a_guide_without_parameters_is_refused() -> None:
    program, data, _, _ = _regression()

    def nothing(d: Any) -> None:
        pyro.sample("b", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))

    with pytest.raises(pmx.ConfigError, match="no parameters"):
        pmx.fit(program, data, SVI(nothing, steps=5), progress=False)


# -- networks ---------------------------------------------------------------------------------------------------------
def _network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = [torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)]
        return torch.nn.Sequential(*layers).double()


def _curve() -> tuple[dict[str, torch.Tensor], np.ndarray]:
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(15), 8)
    x = rng.uniform(-2, 2, size=len(g))
    mean = np.sin(1.5 * x)
    y = mean + 0.5 * rng.normal(size=15)[g] + 0.2 * rng.normal(size=len(g))
    return {"x": torch.from_numpy(x[:, None]), "g": torch.from_numpy(g), "y": torch.from_numpy(y)}, mean


@pytest.mark.parametrize(("prior", "layers", "sites"), [(None, "all", 0), (1.0, "all", 4), (1.0, "last", 2)])
def test_networks(prior: float | None, layers: str, sites: int) -> None:
    """Weights as points, all with a prior, or those of the last layer: each learns the curve."""
    data, mean = _curve()
    module = _network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    effect = pmx.NeuralEffect("f", module, None if prior is None else dist.Normal(0.0, prior), layers=layers)

    def program(d: dict[str, torch.Tensor]) -> None:
        eta = effect(d["x"]) + pmx.RandomEffect("g", pmx.IID(), levels=15)(d["g"])
        pmx.observe("y", pmx.Gaussian(), eta, d["y"])

    fit = quietly(program, data, SVI(steps=250, lr=0.2, draws=50))
    draws = fit.draws()
    assert sum(name.startswith("f.") for name in draws) == sites
    curves = torch.stack([record.functions["f"].value for record in fit.records(50)]).numpy()
    centred = curves.mean(0) - curves.mean()
    assert np.corrcoef(centred, mean)[0, 1] > 0.9
    moved = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {0: set(before), 4: set(), 2: {"0.weight", "0.bias"}}[sites]
    assert (curves.std(0).max() > 1e-6) == (sites > 0)


def test_a_formula_fit_leaves_the_module_alone() -> None:
    frame = pmx.datasets.load("sleepstudy")
    module = pmx.networks.MLP(hidden=(4,), standardize=True, seed=1)
    model = pmx.model("Reaction ~ Days + (1 | Subject)", frame, mean=module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.PyromixWarning)
        fit = model.fit(SVI(steps=20, draws=20), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert fit.predict().shape == (180,)


# -- new groups -------------------------------------------------------------------------------------------------------
def test_an_amortised_guide_conditions_new_groups() -> None:
    """Against the shrinkage formula at every draw of the hyper-parameters, which for Gaussian rows is exact."""
    data = grouped_data(20, 5, seed=11)

    def program(d: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta", dist.Normal(0.0, 2.0))(torch.ones(len(d["g"]), 1, dtype=F64))
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=20)(d["g"])
        pmx.observe("y", pmx.Gaussian(), eta, d["y"])

    fit = quietly(program, data, SVI("amortised", steps=40, draws=300))
    assert all(name.startswith("encoder.") for name in fit.estimate.state) and fit.estimate.state
    y = torch.tensor([4.0, 5.0, 6.0, -3.0], dtype=F64)
    new = {"g": torch.tensor([-1, -1, -1, -2]), "y": y}
    draws = fit.draws()
    found = fit.estimate.condition((new,), draws, 5)["g"]
    assert found.shape == (300, 2, 1)
    for level, rows in ((1, y[:3]), (0, y[3:])):  # new level -1 is the last
        n = len(rows)
        precision = n / draws["y.sigma"] ** 2 + 1 / draws["g.sd"] ** 2
        mean = (rows.sum() - n * draws["beta"][:, 0]) / draws["y.sigma"] ** 2 / precision
        z = (found[:, level, 0] - mean) * precision.sqrt()
        # standard normal if the encoder is exact; 0.3 for what little data taught it. 5 SE of 300 draws: 0.29, 0.2
        assert abs(float(z.mean())) < 0.6 and abs(float(z.std()) - 1) < 0.4


def test_an_amortised_guide_needs_one_factor() -> None:
    data = grouped_data(6, 4, seed=1)

    def crossed(d: dict[str, torch.Tensor]) -> None:
        other = torch.arange(len(d["g"])) % 3
        eta = pmx.RandomEffect("g", pmx.IID(), levels=6)(d["g"]) + pmx.RandomEffect("h", pmx.IID(), levels=3)(other)
        pmx.observe("y", pmx.Gaussian(), eta, d["y"])

    with pytest.raises(pmx.UnsupportedError, match="2 grouping factors"):
        pmx.fit(crossed, data, SVI("amortised", steps=5), progress=False)


# -- programs that are not affine -------------------------------------------------------------------------------------
def test_an_effect_inside_a_function() -> None:
    """The groups' plateaus enter through an exponential; the joint guide takes over, and says so."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(10), 10)
    u = 0.4 * rng.normal(size=10)
    data = {"g": torch.from_numpy(g), "y": torch.from_numpy(np.exp(0.5 + u[g]) + 0.1 * rng.normal(size=100))}

    def program(d: dict[str, torch.Tensor]) -> None:
        log = pmx.LinearEffect("beta", dist.Normal(0.0, 1.0))(torch.ones(100, 1, dtype=F64))
        log = log + pmx.RandomEffect("g", pmx.IID(sd=0.4), levels=10)(d["g"])
        pmx.observe("y", pmx.Gaussian(sigma=0.1), torch.exp(log), d["y"])

    fit = quietly(program, data, SVI(steps=120, draws=200))
    assert any("took the place of 'group'" in record.remedy for record in fit.health)
    total = (fit.draws()["beta"] + fit.draws()["g"][:, :, 0]).mean(0).numpy()
    level = np.log(np.bincount(g, data["y"].numpy()) / 10)  # its SD is 0.05 at the lowest level, the prior's 0.4
    assert np.abs(total - level).max() < 0.1
