"""The facade: what a formula, its arguments and a backend give, against closed forms and dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from pyro import poutine
from scipy.optimize import minimize

import pyromix as pmx

QUIET: dict[str, Any] = {"progress": False}


def frame(seed: int = 3, groups: int = 10, per: int = 12) -> pd.DataFrame:
    """Rows labelled r0, r1, ...: a Gaussian, a count, a 0/1 and a binomial response with a group effect."""
    rng = np.random.default_rng(seed)
    n = groups * per
    g = np.repeat([f"g{k}" for k in range(groups)], per)
    x, w = rng.normal(size=n), rng.uniform(0.5, 2.0, size=n)
    spread = np.linspace(-1.2, 1.2, groups)
    intercepts, slopes = np.repeat(rng.permutation(spread), per), np.repeat(rng.permutation(spread) * 0.7, per)
    eta = 0.3 + 0.6 * x + intercepts + slopes * x
    trials = rng.integers(3, 9, size=n)
    data = {
        "y": eta + rng.normal(size=n) / np.sqrt(w),
        "count": rng.poisson(np.exp(eta)),
        "hit": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
        "s": rng.binomial(trials, 1 / (1 + np.exp(-eta))),
        "x": x,
        "w": w,
        "k": rng.integers(1, 4, size=n),
        "o": rng.normal(size=n),
        "g": g,
        "h": np.tile(["a", "b", "c"], n // 3),
    }
    data["f"] = trials - data["s"]
    return pd.DataFrame(data, index=[f"r{i}" for i in range(n)])


FAMILIES = {
    "gaussian": ("y", pmx.Gaussian()),
    "poisson": ("count", pmx.Poisson()),
    "bernoulli": ("hit", pmx.Binomial()),
    "binomial": ("cbind(s, f)", pmx.Binomial()),
}
each_family = pytest.mark.parametrize(("response", "family"), FAMILIES.values(), ids=FAMILIES)


def same_fit(one: pmx.Fit, other: pmx.Fit, tolerance: float = 1e-8) -> None:
    """Equal likelihoods, coefficients and standard errors."""
    assert_allclose(one.log_likelihood, other.log_likelihood, rtol=tolerance, atol=tolerance)
    for column in ("estimate", "se"):
        left, right = one.fixed_effects()[column], other.fixed_effects()[column]
        assert_allclose(left.to_numpy(), right.to_numpy(), rtol=2e-4, atol=1e-5)


# -- sites -------------------------------------------------------------------------------------------------------------
def sites(model: pmx.Model) -> dict[str, Any]:
    """Sample sites of one run."""
    with torch.random.fork_rng():
        trace = poutine.trace(model.program).get_trace(model.design)
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name != "y.rows"}


def test_sites_are_called_as_documented() -> None:
    model = pmx.model("y ~ x + (x | g) + (1 | h)", frame_quiet())
    expected = ["beta", "g.sd", "g.corr_cholesky", "g.corr", "g", "h.sd", "h", "y.sigma", "y"]
    assert set(sites(model)) == set(expected)
    fit = model.fit(**QUIET)
    assert set(fit.idata.posterior.data_vars) == {"beta", "g.sd", "g.corr", "g", "h.sd", "h", "y.sigma"} | (
        {"g.corr_cholesky"} & set(fit.idata.posterior.data_vars)
    )
    assert fit.idata.posterior["g"].dims == ("chain", "draw", "g_level", "g_term")
    assert list(fit.idata.posterior["g_term"].values) == ["Intercept", "x"]


def frame_quiet() -> pd.DataFrame:
    """More levels of h, so that nothing is said about few groups."""
    df = frame()
    h = np.random.default_rng(1).integers(0, 6, size=len(df))
    return df.assign(h=[f"h{k}" for k in h], y=df["y"] + h / 2)


def test_nested_groups_give_two_effects() -> None:
    model = pmx.model("y ~ 1 + (1 | g / h)", frame())
    assert [term.name for term in model.design.terms] == ["g", "g:h"]
    assert {"g", "g:h", "g.sd", "g:h.sd"} <= set(sites(model))
    assert model.design.terms[1].levels[:2] == ("g0:a", "g0:b")


def test_coefficients_carry_the_formula_builders_names() -> None:
    fit = pmx.model("y ~ x * h + (1 | g)", frame()).fit(**QUIET)
    assert list(fit.fixed_effects().index) == ["Intercept", "h[T.b]", "h[T.c]", "x", "x:h[T.b]", "x:h[T.c]"]
    assert list(fit.fixed_effects().columns) == ["estimate", "se", "lower", "upper"]


# -- source ------------------------------------------------------------------------------------------------------------
SOURCES = {
    "slope": ("y ~ x + (x | g)", pmx.Gaussian(), {}),
    "no fixed part": ("y ~ 0 + (1 | g)", pmx.Gaussian(sigma=0.5), {}),
    "weights": ("y ~ x + (x || g)", pmx.Gaussian(), {"precision_weights": "w", "offset": "o"}),
    "nested": ("count ~ x + (1 | g / h)", pmx.Poisson(), {"frequency_weights": "k"}),
    "binomial": ("cbind(s, f) ~ x + diag(x | g)", pmx.Binomial("probit"), {}),
    "priors": (
        "y ~ x + (x | g)",
        pmx.Gaussian("log", sigma=dist.Gamma(2.0, 1.0)),
        {"covariances": {"g": pmx.Unstructured(sd=[0.5, 0.2], corr=0.3)}, "priors": {"beta": dist.Normal(0.0, 2.0)}},
    ),
    "prior of correlations": (
        "y ~ x + (x | g)",
        pmx.Gaussian(),
        {"priors": {"g.corr": dist.LKJCholesky(2, 3.0), "g.sd": dist.Exponential(1.0), "y.sigma": 0.7}},
    ),
}


@pytest.mark.parametrize(("formula", "family", "arguments"), SOURCES.values(), ids=SOURCES)
def test_source_is_the_same_program(formula: str, family: Any, arguments: dict[str, Any]) -> None:
    model = pmx.model(formula, frame(), family, **arguments)
    space: dict[str, Any] = {}
    exec(model.source(), space)
    pyro.set_rng_seed(1)
    trace = poutine.trace(model.program).get_trace(model.design)
    values = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    other = poutine.trace(poutine.condition(space["program"], values)).get_trace(model.design)
    assert [n for n, s in other.nodes.items() if s["type"] == "sample"] == [
        n for n, s in trace.nodes.items() if s["type"] == "sample"
    ]
    assert float(other.log_prob_sum()) == float(trace.log_prob_sum())


def test_source_with_a_network() -> None:
    network = pmx.networks.MLP(hidden=(3,)).requires_grad_(False)
    model = pmx.model("y ~ x + w + (1 | g)", frame(), mean=network)
    space: dict[str, Any] = {"network": network}
    exec(model.source(), space)
    pyro.set_rng_seed(1)
    trace = poutine.trace(model.program).get_trace(model.design)
    values = {n: trace.nodes[n]["value"] for n in ("beta", "g.sd", "g", "y.sigma")}
    other = poutine.trace(poutine.condition(space["program"], values)).get_trace(model.design)
    assert float(other.log_prob_sum().detach()) == float(trace.log_prob_sum().detach())


# -- arguments ---------------------------------------------------------------------------------------------------------
def dense_negative(theta: np.ndarray, df: pd.DataFrame, weights: np.ndarray) -> float:
    """Minus the log-likelihood of y ~ x + (1 | g), residual variance sigma^2 / w, coefficients at their best."""
    sd, sigma = np.exp(theta)
    same = df["g"].to_numpy()[:, None] == df["g"].to_numpy()[None]
    v = sd**2 * same + np.diag(sigma**2 / weights)
    x = np.column_stack([np.ones(len(df)), df["x"]])
    solved = np.linalg.solve(v, np.column_stack([x, df["y"]]))
    beta = np.linalg.solve(x.T @ solved[:, :2], x.T @ solved[:, 2])
    residual = df["y"].to_numpy() - x @ beta
    return 0.5 * (np.linalg.slogdet(2 * np.pi * v)[1] + residual @ np.linalg.solve(v, residual))


@pytest.mark.parametrize("given", ["w", "array", "series"])
def test_precision_weights_divide_the_residual_variance(given: str) -> None:
    df = frame()
    shuffled = df["w"].sample(frac=1.0, random_state=1)
    weights = {"w": "w", "array": df["w"].to_numpy(), "series": shuffled}[given]
    fit = pmx.model("y ~ x + (1 | g)", df, precision_weights=weights).fit(**QUIET)
    best = minimize(dense_negative, [-0.3, 0.0], args=(df, df["w"].to_numpy()), method="BFGS", options={"gtol": 1e-8})
    assert_allclose(fit.log_likelihood, -best.fun, rtol=1e-10)
    assert_allclose(fit.variance_components()["sd"], np.exp(best.x), rtol=1e-5)


@pytest.mark.parametrize(("response", "family"), [FAMILIES["poisson"], FAMILIES["bernoulli"]])
def test_precision_weights_are_for_residuals(response: str, family: Any) -> None:
    with pytest.raises(pmx.ConfigError, match="precision_weights.*frequency_weights"):
        pmx.model(f"{response} ~ x + (1 | g)", frame(), family, precision_weights="w")


@each_family
def test_frequency_weights_are_repeated_rows(response: str, family: Any) -> None:
    df = frame()
    repeated = df.loc[df.index.repeat(df["k"])].reset_index(drop=True)
    weighted = pmx.model(f"{response} ~ x + (x | g)", df, family, frequency_weights="k").fit(**QUIET)
    longer = pmx.model(f"{response} ~ x + (x | g)", repeated, family).fit(**QUIET)
    same_fit(weighted, longer)
    assert weighted.n_obs == len(repeated)
    assert_allclose(weighted.bic, longer.bic, rtol=1e-8)


@each_family
def test_offset_as_column_array_series_and_in_the_formula(response: str, family: Any) -> None:
    df = frame()
    fits = [
        pmx.model(f"{response} ~ x + (1 | g)", df, family, offset=offset).fit(**QUIET)
        for offset in ("o", df["o"].to_numpy(), df["o"].sample(frac=1.0, random_state=2))
    ]
    fits.append(pmx.model(f"{response} ~ x + offset(o) + (1 | g)", df, family).fit(**QUIET))
    for fit in fits[1:]:
        assert fit.log_likelihood == fits[0].log_likelihood
        assert_allclose(fit.predict(kind="linear"), fits[0].predict(kind="linear"), rtol=0, atol=0)
    without = pmx.model(f"{response} ~ x + (1 | g)", df, family).fit(**QUIET)
    assert abs(without.log_likelihood - fits[0].log_likelihood) > 0.1


def test_functions_of_the_user() -> None:
    df = frame()
    given = pmx.model("y ~ cube(x) + (1 | g)", df, functions={"cube": lambda v: v**3}).fit(**QUIET)
    same_fit(given, pmx.model("y ~ I(x**3) + (1 | g)", df).fit(**QUIET))
    assert list(given.fixed_effects().index) == ["Intercept", "cube(x)"]


def test_missing_rows_are_dropped_and_counted() -> None:
    df = frame()
    holed = df.assign(x=df["x"].mask(df.index.isin(["r3", "r17"])), g=df["g"].mask(df.index == "r20"))
    with pytest.raises(pmx.DataError, match="column 'x'.*2 missing values.*'r3'"):
        pmx.model("y ~ x + (1 | g)", holed)
    model = pmx.model("y ~ x + (1 | g)", holed, missing="drop")
    assert model.design.n_dropped == 3
    same_fit(model.fit(**QUIET), pmx.model("y ~ x + (1 | g)", holed.dropna()).fit(**QUIET), 0.0)


def test_a_covariance_takes_the_place_of_the_formulas() -> None:
    df = frame()
    diagonal = pmx.model("y ~ x + (x | g)", df, covariances={"g": pmx.Diagonal()}).fit(**QUIET)
    bars = pmx.model("y ~ x + (x || g)", df).fit(**QUIET)
    same_fit(diagonal, bars)
    fixed = pmx.model("y ~ x + (1 | g)", df, covariances={"g": pmx.IID(sd=0.9)}).fit(**QUIET)
    assert fixed.variance_components()["sd"].iloc[0] == 0.9
    assert fixed.n_parameters == 3
    best = minimize(lambda t: dense_negative(np.array([np.log(0.9), t[0]]), df, np.ones(len(df))), [0.0])
    assert_allclose(fixed.log_likelihood, -best.fun, rtol=1e-9)


def test_numbers_fix_parameters_by_site_name() -> None:
    df = frame()
    priors = {"g.sd": 0.9, "y.sigma": 1.1, "beta": dist.Normal(0.0, 1.0)}
    fit = pmx.model("y ~ x + (1 | g)", df, priors=priors).fit(**QUIET)
    assert_allclose(fit.log_likelihood, -dense_negative(np.log([0.9, 1.1]), df, np.ones(len(df))), rtol=1e-12)
    assert list(fit.variance_components()["sd"]) == [0.9, 1.1]
    assert pmx.model("y ~ x + (1 | g)", df, pmx.Gaussian(sigma=1.1), priors={"g.sd": 0.9}).fit(
        **QUIET
    ).log_likelihood == pytest.approx(fit.log_likelihood, rel=1e-14)


# -- penalised and restricted likelihood -------------------------------------------------------------------------------
def test_map_is_the_penalised_mode_by_dense_algebra() -> None:
    """With the variances fixed the mode is (X' V^-1 X + P)^-1 (X' V^-1 y + P m), for priors N(m, P^-1)."""
    df = frame()
    priors = {"g.sd": 0.9, "y.sigma": 1.1, "beta": dist.Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.1, 0.2]))}
    fit = pmx.model("y ~ x + (1 | g)", df, priors=priors).fit(pmx.MaximumLikelihood(criterion="map"), **QUIET)
    same = df["g"].to_numpy()[:, None] == df["g"].to_numpy()[None]
    v = 0.9**2 * same + 1.1**2 * np.eye(len(df))
    x = np.column_stack([np.ones(len(df)), df["x"]])
    precision = np.diag(np.array([0.1, 0.2], dtype=np.float32).astype(float) ** -2)
    information = x.T @ np.linalg.solve(v, x) + precision
    mode = np.linalg.solve(information, x.T @ np.linalg.solve(v, df["y"]) + precision @ [1.0, -1.0])
    table = fit.fixed_effects()
    assert_allclose(table["estimate"], mode, rtol=1e-5)
    assert_allclose(table["se"], np.sqrt(np.diag(np.linalg.inv(information))), rtol=1e-5)


def test_map_of_a_variance_with_its_prior() -> None:
    df = frame()
    priors = {"g.sd": dist.Gamma(3.0, 2.0), "y.sigma": dist.LogNormal(0.0, 0.5), "beta": dist.Normal(0.0, 10.0)}
    fit = pmx.model("y ~ x + (1 | g)", df, priors=priors).fit(pmx.MaximumLikelihood(criterion="map"), **QUIET)

    def negative(t: np.ndarray) -> float:
        sd, sigma = np.exp(t[:2])
        same = df["g"].to_numpy()[:, None] == df["g"].to_numpy()[None]
        v = sd**2 * same + sigma**2 * np.eye(len(df))
        residual = df["y"].to_numpy() - t[2] - t[3] * df["x"].to_numpy()
        value = 0.5 * (np.linalg.slogdet(v)[1] + residual @ np.linalg.solve(v, residual))
        value -= 2 * np.log(sd) - 2 * sd  # gamma(3, 2)
        value += np.log(sigma) + 0.5 * (np.log(sigma) / 0.5) ** 2  # log-normal(0, 0.5)
        return value + 0.5 * (t[2:] ** 2).sum() / 100

    best = minimize(negative, [-0.3, 0.0, 0.0, 0.5], method="BFGS", options={"gtol": 1e-9})
    assert_allclose(fit.variance_components()["sd"], np.exp(best.x[:2]), rtol=1e-5)
    assert_allclose(fit.fixed_effects()["estimate"], best.x[2:], rtol=1e-5)


def test_more_coefficients_than_rows_under_priors() -> None:
    """With the variances fixed the mode is ridge regression on the whitened rows."""
    rng = np.random.default_rng(5)
    df = pd.DataFrame(rng.normal(size=(6, 9)), columns=[f"x{k}" for k in range(9)]).assign(
        y=rng.normal(size=6), g=list("aabbcc")
    )
    formula = "y ~ " + " + ".join(f"x{k}" for k in range(9)) + " + (1 | g)"
    with pytest.raises(pmx.DataError, match="10 columns.*6 rows"):
        pmx.model(formula, df)
    priors = {"beta": dist.Normal(0.0, 2.0), "g.sd": 0.7, "y.sigma": 0.5}
    with pytest.warns(pmx.FewGroupsWarning, match="3 levels"):
        model = pmx.model(formula, df, priors=priors)
    with pytest.raises(pmx.ConfigError, match="criterion='ml'.*6 rows.*10 coefficients.*criterion='map'"):
        model.fit(**QUIET)
    fit = model.fit(pmx.MaximumLikelihood(criterion="map"), **QUIET)
    x = model.design.x.numpy()
    same = df["g"].to_numpy()[:, None] == df["g"].to_numpy()[None]
    v = 0.49 * same + 0.25 * np.eye(6)
    mode = np.linalg.solve(x.T @ np.linalg.solve(v, x) + np.eye(10) / 4, x.T @ np.linalg.solve(v, df["y"]))
    assert_allclose(fit.fixed_effects()["estimate"], mode, rtol=1e-5, atol=2e-5)


PARTLY = {"beta": dist.Normal(0.0, 2.0), "g.sd": dist.HalfNormal(1.0), "y.sigma": dist.HalfNormal(1.0)}


@pytest.mark.parametrize("gone", sorted(PARTLY))
def test_one_missing_prior_is_enough_to_refuse_what_the_data_do_not_identify(gone: str) -> None:
    df = frame().assign(y=1.0)
    with pytest.warns(pmx.DataWarning, match="response 'y' is constant"):
        pmx.model("y ~ x + (1 | g)", df, priors=PARTLY)
    with pytest.raises(pmx.DataError, match="response 'y' is constant"):
        pmx.model("y ~ x + (1 | g)", df, priors={name: prior for name, prior in PARTLY.items() if name != gone})


@pytest.mark.parametrize(("response", "family"), [FAMILIES["poisson"], FAMILIES["binomial"]])
def test_restricted_likelihood_is_for_gaussian_responses(response: str, family: Any) -> None:
    with pytest.raises(pmx.UnsupportedError, match="criterion='reml'.*Gaussian.*criterion='ml'"):
        pmx.model(f"{response} ~ x + (1 | g)", frame(), family).fit(pmx.MaximumLikelihood(criterion="reml"), **QUIET)


def test_restricted_likelihood_is_for_linear_means() -> None:
    model = pmx.model("y ~ x + (1 | g)", frame(), mean=pmx.networks.MLP(hidden=(2,)))
    with pytest.raises(pmx.UnsupportedError, match="through a network.*criterion='ml'"):
        model.fit(pmx.MaximumLikelihood(criterion="reml"), **QUIET)


# -- without random effects --------------------------------------------------------------------------------------------
def irls(x: np.ndarray, y: np.ndarray, trials: np.ndarray, family: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors of a canonical GLM by iteratively reweighted least squares."""
    beta = np.zeros(x.shape[1])
    beta[0] = np.log(y.mean()) if isinstance(family, pmx.Poisson) else 0.0
    for _ in range(50):
        eta = x @ beta
        mean = np.exp(eta) if isinstance(family, pmx.Poisson) else trials / (1 + np.exp(-eta))
        weight = mean if isinstance(family, pmx.Poisson) else mean * (1 - mean / trials)
        information = x.T @ (weight[:, None] * x)
        beta = beta + np.linalg.solve(information, x.T @ (y - mean))
    return beta, np.sqrt(np.diag(np.linalg.inv(information)))


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "binomial"])
def test_glm_is_iteratively_reweighted_least_squares(name: str) -> None:
    df = frame()
    response, family = FAMILIES[name]
    y = df["s"] if name == "binomial" else df[response]
    trials = df["s"] + df["f"] if name == "binomial" else np.ones(len(df))
    fit = pmx.model(f"{response} ~ x", df, family).fit(**QUIET)
    beta, se = irls(np.column_stack([np.ones(len(df)), df["x"]]), y.to_numpy(), np.asarray(trials), family)
    assert_allclose(fit.fixed_effects()["estimate"], beta, rtol=1e-6)
    assert_allclose(fit.fixed_effects()["se"], se, rtol=1e-5)


def test_linear_regression_is_least_squares() -> None:
    df = frame()
    x = np.column_stack([np.ones(len(df)), df["x"]])
    beta, rss, _, _ = np.linalg.lstsq(x, df["y"], rcond=None)
    n, p = x.shape
    ml = pmx.model("y ~ x", df).fit(**QUIET)
    reml = pmx.model("y ~ x", df).fit(pmx.MaximumLikelihood(criterion="reml"), **QUIET)
    assert_allclose(ml.fixed_effects()["estimate"], beta, rtol=1e-10)
    assert_allclose(ml.log_likelihood, -0.5 * n * (np.log(2 * np.pi * rss[0] / n) + 1), rtol=1e-12)
    assert_allclose(reml.variance_components()["variance"], rss[0] / (n - p), rtol=1e-5)
    expected = np.sqrt(rss[0] / (n - p) * np.diag(np.linalg.inv(x.T @ x)))
    assert_allclose(reml.fixed_effects()["se"], expected, rtol=1e-5)


def test_an_intercept_alone_and_nothing_at_all() -> None:
    df = frame()
    fit = pmx.model("y ~ 1", df).fit(**QUIET)
    assert_allclose(fit.fixed_effects().loc["Intercept", "estimate"], df["y"].mean(), rtol=1e-10)
    nothing = pmx.model("y ~ 0", df).fit(**QUIET)
    assert_allclose(nothing.variance_components()["variance"], (df["y"] ** 2).mean(), rtol=1e-5)
    assert nothing.fixed_effects().empty


# -- programs ----------------------------------------------------------------------------------------------------------
def program(data: dict[str, torch.Tensor]) -> None:
    """y ~ x + (1 | g), written by hand."""
    eta = pmx.LinearEffect("beta", dist.Normal(0.0, 10.0), labels=("Intercept", "x"))(data["x"])
    eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=10)(data["g"])
    pmx.observe("y", pmx.Gaussian(), eta, data["y"])


def test_a_program_by_hand_is_the_formulas_fit() -> None:
    df = frame()
    data = {
        "x": torch.tensor(np.column_stack([np.ones(len(df)), df["x"]])),
        "g": torch.tensor(pd.factorize(df["g"])[0]),
        "y": torch.tensor(df["y"].to_numpy()),
    }
    by_hand = pmx.fit(program, data, **QUIET)
    by_formula = pmx.model("y ~ x + (1 | g)", df).fit(**QUIET)
    same_fit(by_hand, by_formula, 1e-12)
    assert_allclose(by_hand.predict(data), by_formula.predict(df), rtol=1e-7)


# -- priors ------------------------------------------------------------------------------------------------------------
def test_prior_predictive_has_named_dims_and_keeps_the_random_state() -> None:
    df = frame()
    model = pmx.model("y ~ x + (x | g)", df, priors={"g.sd": dist.HalfNormal(0.2), "y.sigma": dist.Uniform(3.0, 4.0)})
    state = torch.get_rng_state()
    drawn = model.prior_predictive(draws=200, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.prior_predictive["y"].dims == ("chain", "draw", "obs_id")
    assert drawn.prior_predictive["y"].shape == (1, 200, len(df))
    assert drawn.prior["beta"].shape == (1, 200, 2)
    sigma = drawn.prior["y.sigma"].to_numpy()
    assert sigma.min() >= 3 and sigma.max() <= 4
    # E|half-normal(0.2)| = 0.16; 400 draws have a standard error of 0.006
    assert abs(float(drawn.prior["g.sd"].mean()) - 0.2 * np.sqrt(2 / np.pi)) < 0.03
    again = model.prior_predictive(draws=200, seed=4)
    assert (again.prior_predictive["y"].to_numpy() == drawn.prior_predictive["y"].to_numpy()).all()
    other = model.prior_predictive(draws=200, seed=5)
    assert (other.prior_predictive["y"].to_numpy() != drawn.prior_predictive["y"].to_numpy()).any()
    with pytest.raises(pmx.ConfigError, match="draws=0.*positive integer"):
        model.prior_predictive(draws=0)


# -- networks ----------------------------------------------------------------------------------------------------------
def test_a_network_takes_the_place_of_the_linear_columns() -> None:
    df = frame()
    network = pmx.networks.MLP(hidden=(4,), seed=1)
    model = pmx.model("y ~ x + w + (1 | g)", df, mean=network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    fit = model.fit(pmx.MaximumLikelihood(training=pmx.Training(epochs=3)), **QUIET)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(fit.fixed_effects().index) == ["Intercept"]
    assert fit.predict().shape == (len(df),)
    assert any(not torch.equal(before[n], w) for n, w in fit.program.network.state_dict().items())


# -- refusals ----------------------------------------------------------------------------------------------------------
REFUSED = {
    "family as text": ({"family": "poisson"}, r"family='poisson'.*instance such as"),
    "family as class": ({"family": pmx.Poisson}, r"family=.*Poisson.*instance such as"),
    "mean": ({"mean": "mlp"}, r"mean='mlp' is not a torch.nn.Module"),
    "unknown term": ({"covariances": {"zz": pmx.IID()}}, r"no random term 'zz'; the terms are g"),
    "no covariance": ({"covariances": {"g": "iid"}}, r"covariances\['g'\] = 'iid' is not a covariance"),
    "unknown site": ({"priors": {"g.variance": 1.0}}, r"no site 'g.variance'; the sites are .*g.sd.*y.sigma"),
    "prior below zero": ({"priors": {"g.sd": dist.Normal(0.0, 1.0)}}, r"IID\(sd=\.\.\.\)"),
    "number below zero": ({"priors": {"g.sd": -1.0}}, r"IID\(sd=\.\.\.\).*-1.0"),
    "missing": ({"missing": "ignore"}, r"missing='ignore'.*'error', 'drop'"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_arguments_outside_their_set(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        pmx.model("y ~ x + (1 | g)", frame(), **arguments)


@pytest.mark.parametrize("backend", ["ml", pmx.MaximumLikelihood, pmx.Laplace()])
def test_a_backend_is_an_instance_of_one(backend: Any) -> None:
    with pytest.raises(pmx.ConfigError, match=r"is not a backend; pass an instance"):
        pmx.model("y ~ x + (1 | g)", frame()).fit(backend)


def test_repr_says_what_it_is() -> None:
    model = pmx.model("y ~ x + (1 | g)", frame())
    assert repr(model) == "<Model 'y ~ x + (1 | g)': Gaussian(link='identity'), 120 rows>"


def test_an_offset_given_as_an_array_is_given_again_for_new_rows() -> None:
    df = pmx.datasets.load("sleepstudy")
    offset = np.linspace(0, 20, len(df))
    fit = pmx.model("Reaction ~ Days + (1 | Subject)", df, offset=offset).fit(progress=False)
    np.testing.assert_allclose(fit.predict(df, offset=offset), fit.predict(), rtol=1e-12)
    np.testing.assert_allclose(fit.predict(df, offset=offset + 5), fit.predict() + 5, rtol=1e-12)
    with pytest.raises(pmx.ConfigError, match="new data of a formula fit"):
        fit.predict(offset=offset)


def test_what_was_left_out_is_shown() -> None:
    df = pmx.datasets.load("sleepstudy").assign(twice=lambda d: 2 * d["Days"])
    df.loc[[3, 50], "Reaction"] = np.nan
    with pytest.warns(pmx.RankWarning, match="twice"):
        model = pmx.model("Reaction ~ Days + twice + (1 | Subject)", df, missing="drop")
    fit = model.fit(progress=False)
    assert "2 rows dropped for missing values" in str(fit.summary())
    assert np.isnan(fit.fixed_effects().loc["twice", "estimate"])
    assert list(fit.fixed_effects().index) == ["Intercept", "Days", "twice"]
    with pytest.raises(pmx.DataError, match="missing value"):
        fit.predict(df.assign(Days=np.nan), missing="error")


def test_structures_of_two_terms_agree_where_they_are_the_same_model() -> None:
    df = pmx.datasets.load("sleepstudy")

    def log_likelihood(wrapper: str) -> float:
        return pmx.model(f"Reaction ~ Days + {wrapper}(1 + Days | Subject)", df).fit(progress=False).log_likelihood

    # two terms have one correlation, however it is parametrised; lme4 gives -875.9697 for it
    assert log_likelihood("us") == pytest.approx(-875.9697, abs=1e-4)
    for wrapper in ("cs", "toep"):
        assert log_likelihood(wrapper) == pytest.approx(-875.9697, abs=1e-4)
    alike = [log_likelihood(wrapper) for wrapper in ("homcs", "homtoep")]
    over_terms = {"Subject": pmx.AR1(over="terms")}  # ar1(1 + Days | Subject) would take subjects for times
    chain = pmx.model("Reaction ~ Days + (1 + Days | Subject)", df, covariances=over_terms)
    alike.append(chain.fit(progress=False).log_likelihood)
    assert alike == pytest.approx([alike[0]] * 3, abs=1e-6)
    assert alike[0] < -880
