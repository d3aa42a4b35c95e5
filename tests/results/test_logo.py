"""Leave-one-group-out scores against closed forms, other marginalisers and fits without the group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import arviz
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

import pyromix as pmx
from pyromix.errors import ApproximationWarning, DataError, UnsupportedError
from pyromix.marginal.units import Batch, Units
from pyromix.results import Fit
from pyromix.running import run
from tests.results.models import tensor
from tests.results.test_condition import estimate

QUIET: dict[str, Any] = {"progress": False}


def frame(groups: int = 12, seed: int = 1) -> pd.DataFrame:
    """Groups of one to seven rows, labelled out of order, with a nested factor h and a crossed one c."""
    rng = np.random.default_rng(seed)
    names = np.array([f"g{k}" for k in rng.permutation(groups)])
    g = np.repeat(names, rng.integers(1, 8, groups))
    n, effect = len(g), dict(zip(names, rng.normal(size=groups), strict=True))
    x = rng.normal(size=n)
    eta = 0.3 + 0.5 * x + np.array([effect[name] for name in g])
    hit = (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int)
    data = {"y": eta + 0.7 * rng.normal(size=n), "count": rng.poisson(np.exp(eta)), "hit": hit, "x": x, "g": g}
    table = pd.DataFrame(data | {"h": rng.integers(0, 3, n), "c": rng.integers(0, 5, n).astype(str)})
    return table.sample(frac=1, random_state=seed)


def moderate(model: pmx.Model, draws: int) -> dict[str, torch.Tensor]:
    """Random values of every hyper-parameter, (draws, ...)."""
    records = [run(model.program, (model.design,), hypers="moderate", seed=s) for s in range(draws)]
    return {name: torch.stack([r.hypers[name].value for r in records]) for name in records[0].hypers}


def drawn_fit(model: pmx.Model, values: dict[str, torch.Tensor], chains: int = 1) -> Fit:
    """A fit of draws: these."""
    count = len(next(iter(values.values())))
    with torch.no_grad():
        record = run(model.program, (model.design,), {name: value[0] for name, value in values.items()})
    latents = {name: torch.zeros(site.fn.event_shape, dtype=torch.float64) for name, site in record.latents.items()}
    base = estimate({name: value.mean(0) for name, value in values.items()}, latents)
    effects = {name: value.expand(count, *value.shape) for name, value in latents.items()}
    made = replace(base, kind="draws", n_draws=count, chains=chains, draw=lambda n, seed: {**values, **effects})
    return Fit(made, model.program, (model.design,), design=model.design, new_design=model.design.new)


MODELS = {
    "gaussian": ("y ~ x + (x | g)", pmx.Gaussian(), pmx.Exact(), None),
    "nested": ("y ~ x + (1 | g / h)", pmx.Gaussian(), pmx.Exact(), None),
    "laplace": ("hit ~ x + (x | g)", pmx.Binomial(), pmx.Laplace(), pmx.Laplace()),
    "nested counts": ("count ~ x + (1 | g / h)", pmx.Poisson(), pmx.Laplace(), pmx.Laplace()),
    "two terms": ("count ~ x + (1 | g) + (0 + x | g)", pmx.Poisson(), pmx.Laplace(), pmx.Laplace()),
    "quadrature": ("hit ~ x + (1 | g)", pmx.Binomial(), pmx.GaussHermite(9), pmx.GaussHermite(9)),
    "two dimensions": ("count ~ x + (x | g)", pmx.Poisson(), pmx.GaussHermite(5), pmx.GaussHermite(5)),
    "default": ("hit ~ x + (1 | g)", pmx.Binomial(), pmx.GaussHermite(15), None),
}


@pytest.mark.parametrize(("formula", "family", "marginal", "asked"), MODELS.values(), ids=MODELS)
def test_the_groups_add_up_to_the_log_marginal(formula: str, family: Any, marginal: Any, asked: Any) -> None:
    model = pmx.model(formula, frame(), family)
    values = moderate(model, 40)
    with pytest.warns(ApproximationWarning):  # the values are no posterior
        scores = drawn_fit(model, values).logo(marginal=asked)
    bound = marginal.prepare(model.program, (model.design,))
    with torch.no_grad():
        records = [run(model.program, (model.design,), {n: v[s] for n, v in values.items()}) for s in range(40)]
        expected = np.array([float(bound.log_marginal(record)) for record in records])
    found = scores.log_likelihood.sum("g_level").to_numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-8)
    levels = sorted(frame()["g"].unique())
    assert scores.table.index.tolist() == scores.log_likelihood["g_level"].values.tolist() == levels
    counts = frame()["g"].value_counts()
    assert scores.table["rows"].to_dict() == counts.to_dict()


def test_a_group_is_scored_by_its_own_rows() -> None:
    """Against the marginal likelihood of the group's rows alone."""
    data = frame()
    model = pmx.model("count ~ x + (x | g)", data, pmx.Poisson())
    values = moderate(model, 3)
    with pytest.warns(ApproximationWarning):
        array = drawn_fit(model, values).logo(marginal=pmx.Laplace()).log_likelihood
    rows = torch.from_numpy(np.flatnonzero(data["g"].to_numpy() == "g4"))
    alone = model.design.subset(rows)
    bound = pmx.Laplace().prepare(model.program, (alone,))
    for s in range(3):
        record = run(model.program, (alone,), {n: v[s] for n, v in values.items()})
        assert float(array.sel(g_level="g4")[0, s]) == pytest.approx(float(bound.log_marginal(record)), abs=1e-9)


def test_against_the_closed_form_without_each_group(rng: np.random.Generator) -> None:
    """Gaussian with known variances: posterior, and prediction of a group left out, are Gaussian."""
    data, sd, sigma, prior = frame(groups=10), 0.9, 0.7, 2.0
    import pyro.distributions as dist

    priors = {"beta": dist.Normal(0.0, prior), "g.sd": sd, "y.sigma": sigma}
    model = pmx.model("y ~ x + (1 | g)", data, priors=priors)
    x, y = model.design.x.numpy(), model.design.y.numpy()
    same = data["g"].to_numpy()[:, None] == data["g"].to_numpy()[None, :]
    v = sigma**2 * np.eye(len(y)) + sd**2 * same
    precision = x.T @ np.linalg.solve(v, x) + np.eye(2) / prior**2
    mean = np.linalg.solve(precision, x.T @ np.linalg.solve(v, y))
    beta = rng.multivariate_normal(mean, np.linalg.inv(precision), size=4000)
    scores = drawn_fit(model, {"beta": tensor(beta)}, chains=4).logo()
    marginal = v + prior**2 * x @ x.T
    whole = multivariate_normal(np.zeros(len(y)), marginal).logpdf(y)
    expected = []
    for level in scores.table.index:
        rest = data["g"].to_numpy() != level
        without = multivariate_normal(np.zeros(rest.sum()), marginal[np.ix_(rest, rest)]).logpdf(y[rest])
        expected.append(whole - without)
    # importance sampling of 4000 independent draws: errors measured at most 0.01 over 50 seeds
    assert scores.table["elpd"].to_numpy() == pytest.approx(np.array(expected), abs=0.03)
    assert (scores.table["khat"] < 0.7).all()
    assert scores.elpd == pytest.approx(sum(expected), abs=0.1)
    assert scores.se == pytest.approx(np.sqrt(10 * np.var(expected)), rel=0.03)
    assert 1 < scores.p_logo < 4, "two coefficients"
    text = repr(scores)
    assert text.startswith(f"Leave-one-group-out by g: 10 groups, {len(y)} rows\nelpd_logo")
    assert "integrated out: exactly" in text


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # arviz on pandas 3
def test_models_compare_by_their_scores() -> None:
    model, other = pmx.model("y ~ x + (1 | g)", frame()), pmx.model("y ~ 1 + (1 | g)", frame())
    rng = np.random.default_rng(0)

    def near(model: pmx.Model) -> Fit:
        fit = model.fit(pmx.MaximumLikelihood(criterion="ml"), **QUIET)
        noise = {name: tensor(0.02 * rng.normal(size=(200, *v.shape))) for name, v in fit.estimate.point.items()}
        return drawn_fit(model, {name: v * noise[name].exp() for name, v in fit.estimate.point.items()})

    table = arviz.compare({"with": near(model).logo().arviz, "without": near(other).logo().arviz})
    assert table.index.tolist() == ["with", "without"]


def test_a_point_fit_is_scored_at_its_estimate() -> None:
    model = pmx.model("hit ~ x + (1 | g)", frame(), pmx.Binomial())
    fit = model.fit(pmx.MaximumLikelihood(marginal=pmx.Laplace()), **QUIET)
    scores = fit.logo()
    assert scores.elpd == pytest.approx(fit.log_likelihood, abs=1e-6)
    assert scores.marginal == "Laplace" and np.isnan(scores.p_logo) and scores.table["khat"].isna().all()
    assert "has seen every group" in repr(scores) and scores.arviz is None
    assert scores.se == pytest.approx(np.sqrt(len(scores.table) * scores.table["elpd"].var(ddof=0)))
    finer = fit.logo(marginal=pmx.GaussHermite(15))
    assert finer.marginal == "adaptive Gauss-Hermite, 15 nodes" and finer.elpd != scores.elpd
    quadrature = model.fit(pmx.MaximumLikelihood(marginal=pmx.GaussHermite(9)), **QUIET)
    assert quadrature.logo().elpd == pytest.approx(quadrature.log_likelihood, abs=1e-6)


def test_a_row_of_weight_three_counts_three_times() -> None:
    data = frame().assign(k=1)
    data.loc[data["g"] == "g3", "k"] = 3
    repeated = data.loc[data.index.repeat(data["k"])].reset_index(drop=True)
    for response, family in (("y", pmx.Gaussian()), ("count", pmx.Poisson())):
        formula = f"{response} ~ x + (1 | g)"
        weighted = pmx.model(formula, data, family, frequency_weights="k")
        plain = pmx.model(formula, repeated, family)
        values = moderate(weighted, 4)
        with pytest.warns(ApproximationWarning):
            one, other = (drawn_fit(model, values).logo().log_likelihood for model in (weighted, plain))
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def crossed() -> Fit:
    return drawn_fit(m := pmx.model("y ~ x + (1 | g) + (1 | c)", frame()), moderate(m, 3))


def test_crossed_and_inner_factors_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match="factors g, c are crossed .the rows fall into 1 independent part.*fit.loo"
    ):
        crossed().logo()
    with pytest.raises(UnsupportedError, match="logo.group='c'.: rows of different levels share.*other factors are g"):
        crossed().logo("c")
    model = pmx.model("y ~ x + (1 | g / h)", frame())
    with pytest.raises(UnsupportedError, match="group='g:h'.*outermost of nested factors"):
        drawn_fit(model, moderate(model, 3)).logo("g:h")
    with pytest.raises(DataError, match="no such grouping factor"):
        crossed().logo("nobody")
    with pytest.raises(pmx.ConfigError, match="logo.marginal='Laplace'.: pass an instance"):
        drawn_fit(model, moderate(model, 3)).logo(marginal="Laplace")
    big = pmx.model("count ~ x + (1 | g / h)", frame(), pmx.Poisson())
    with pytest.raises(UnsupportedError, match="a group has 4 effects, 9.4 nodes"):
        drawn_fit(big, moderate(big, 3)).logo(marginal=pmx.GaussHermite(9))


def test_programs_without_independent_groups_are_refused() -> None:
    from tests.results.test_predict import _Chained

    x = torch.ones(4, 1, dtype=torch.float64)
    y, g = tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])

    def make(effects: Any) -> Fit:
        def program(y: torch.Tensor) -> None:
            pmx.observe("y", pmx.Gaussian(sigma=1.0), pmx.LinearEffect("beta")(x) + effects(), y)

        with torch.no_grad():
            record = run(program, (y,), hypers="moderate", seed=0)
        latents = {name: site.fn.mean for name, site in record.latents.items()}
        values = {name: site.value for name, site in record.hypers.items()}
        return Fit(estimate(values, latents), program, (y,))

    cases: list[tuple[Any, str]] = [
        (lambda: 0.0, "has no random effects"),
        (lambda: pmx.RandomEffect("g", _Chained(sd=1.0), levels=2)(g), "levels of 'g' depend on each other"),
        (lambda: pmx.RandomEffect("g", pmx.IID(1.0), levels=2)(g).square(), "not affine"),
    ]
    for effects, message in cases:
        with pytest.raises(UnsupportedError, match=message):
            make(effects).logo()
    # a level without rows has no score
    fit = make(lambda: pmx.RandomEffect("g", pmx.IID(1.0), levels=["a", "none", "b"])(2 * g))
    assert fit.logo().table.index.tolist() == ["a", "b"]


def test_a_density_without_a_mode_is_named() -> None:
    """Units refuse a density that climbs for ever, and say which unit."""
    rows = pmx.sites.RowMap(torch.tensor([0, 1]))

    class Climbing(pmx.Gaussian):
        def gaussian_sd(self, **dispersion: torch.Tensor) -> None:
            return None

        def log_prob(self, eta, y, trials=None, *, prepared=None, **dispersion):
            return torch.where(y > 0, eta.square(), -eta.square())

        def derivatives(self, *args: Any, **kwargs: Any) -> Any:
            return super(pmx.Gaussian, self).derivatives(*args, **kwargs)

    role = pmx.sites.Data(Climbing(), tensor([1.0, 1.0]), tensor([-1.0, 1.0]), dispersion={"sigma": tensor(1.0)})
    units = Units({"g": rows}, role)
    batch = Batch(tensor([[1.0, 1.0]]), {"sigma": tensor([1.0])}, {"g": tensor([[[1.0]]])})
    with pytest.raises(pmx.NumericalError, match="unit 1|Newton steps"):
        units.log_marginal(batch)
