"""Shares of the variance and their intervals, against dense likelihoods."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, logit
from scipy.stats import norm

import pyromix as pmx
from pyromix.errors import ConfigError, DataError, UnsupportedError

LEVELS = 40
IDS = [f"id {k}" for k in range(LEVELS)]


def relationship() -> np.ndarray:
    """A genomic matrix whose diagonal is about 0.4."""
    z = np.random.default_rng(11).normal(size=(LEVELS, 60))
    z -= z.mean(0)
    return 0.4 * z @ z.T / 60


K = relationship()


def rows(repeats: int, sd: float, seed: int = 0, other: float = 0.0) -> pd.DataFrame:
    """Relatives with `repeats` rows each, less a few at the end; further groups of five across them."""
    rng = np.random.default_rng(seed)
    n = LEVELS * repeats - 3
    at, herd = np.resize(np.arange(LEVELS), n), rng.integers(0, 12, n)
    values, vectors = np.linalg.eigh(K)
    u = vectors @ (np.sqrt(values.clip(0)) * rng.normal(size=LEVELS))
    x = rng.normal(size=n)
    y = 1 + 0.5 * x + sd * u[at] + other * rng.normal(size=12)[herd] + rng.normal(size=n)
    return pd.DataFrame({"id": np.array(IDS)[at], "herd": [f"h{k}" for k in herd], "x": x, "y": y})


def fit(data: pd.DataFrame, backend: pmx.backends.AbstractBackend | str, formula: str = "y ~ x + (1 | id)") -> pmx.Fit:
    chosen = pmx.MaximumLikelihood(criterion=backend) if isinstance(backend, str) else backend
    covariances = {"id": pmx.Kinship((K, IDS))} if "| id" in formula else None
    return pmx.model(formula, data, covariances=covariances).fit(chosen, progress=False)


def dense(data: pd.DataFrame, restricted: bool) -> Callable[[list[float]], float]:
    """Log-likelihood of the variances of relatives at unit K, herds, and the residual; coefficients taken out."""
    x, y = np.column_stack([np.ones(len(data)), data["x"]]), data["y"].to_numpy()
    z = (data["id"].to_numpy()[:, None] == np.array(IDS)).astype(float)
    h = pd.get_dummies(data["herd"]).to_numpy(float)

    def log_likelihood(variances: list[float]) -> float:
        relatives, herds, residual = variances
        v = relatives * z @ K @ z.T + herds * h @ h.T + residual * np.eye(len(y))
        w = np.linalg.inv(v)
        xwx = x.T @ w @ x
        r = y - x @ np.linalg.solve(xwx, x.T @ w @ y)
        value = -0.5 * (np.linalg.slogdet(v)[1] + r @ w @ r)
        return float(value - 0.5 * np.linalg.slogdet(xwx)[1] if restricted else value)

    return log_likelihood


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("criterion", ["reml", "ml"])
def test_the_interval_is_that_of_the_dense_profile(criterion: str, repeats: int, scaled: bool) -> None:
    data = rows(repeats, 2.0, seed=9)
    log_likelihood = dense(data, criterion == "reml")
    unit = K.trace() / LEVELS if scaled and repeats == 3 else 1.0
    if scaled and repeats == 1:
        present = data["id"].nunique()
        unit = K.diagonal()[:present].mean()  # levels that the data have

    def profile(share: float) -> float:
        best = minimize_scalar(
            lambda log_total: -log_likelihood([np.exp(log_total) * share / unit, 0.0, np.exp(log_total) * (1 - share)]),
            bounds=(-4, 4),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return -best.fun

    best = minimize_scalar(lambda h: -profile(h), bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-7})
    limit = -best.fun - 0.5 * norm.ppf(0.95) ** 2
    expected = [
        0.0 if profile(1e-9) >= limit else brentq(lambda h: profile(h) - limit, 1e-9, best.x, xtol=1e-9),
        1.0 if profile(1 - 1e-6) >= limit else brentq(lambda h: profile(h) - limit, best.x, 1 - 1e-6, xtol=1e-9),
    ]
    table = fit(data, criterion).heritability("id", level=0.9, scaled=scaled)
    assert table.attrs["interval"] == "profile likelihood"
    (found,) = table.to_dict("records")
    assert (found["group"], found["name"]) == ("id", "Intercept")
    assert found["estimate"] == pytest.approx(best.x, abs=1e-4)
    assert [found["lower"], found["upper"]] == pytest.approx(expected, abs=1e-6)


def test_other_effects_are_in_the_denominator_and_intervals_by_the_delta_method() -> None:
    data = rows(3, 2.0, other=1.0)
    log_likelihood = dense(data, True)

    def loss(log_variances: np.ndarray) -> float:
        return -log_likelihood(list(np.exp(log_variances)))

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 4000}).x
    step = 1e-3 * np.eye(3)
    hessian = np.array(
        [
            [(loss(best + a + b) - loss(best + a - b) - loss(best - a + b) + loss(best - a - b)) / 4e-6 for b in step]
            for a in step
        ]
    )

    def shares(log_variances: np.ndarray) -> np.ndarray:
        parts = np.exp(log_variances) * [K.trace() / LEVELS, 1.0, 1.0]
        return parts[:2] / parts.sum()

    jacobian = np.column_stack([(shares(best + a) - shares(best - a)) / 2e-3 for a in step])
    se = np.sqrt(np.einsum("ka,ab,kb->k", jacobian, np.linalg.inv(hessian), jacobian))
    centre = shares(best)
    half = norm.ppf(0.975) * se / (centre * (1 - centre))
    table = fit(data, "reml", "y ~ x + (1 | id) + (1 | herd)").heritability().set_index("group").loc[["id", "herd"]]
    np.testing.assert_allclose(table["estimate"], centre, rtol=1e-4)
    np.testing.assert_allclose(table["se"], se, rtol=1e-3)
    np.testing.assert_allclose(table["lower"], expit(logit(centre) - half), rtol=2e-3)
    np.testing.assert_allclose(table["upper"], expit(logit(centre) + half), rtol=2e-3)


def test_no_heritability_is_on_the_boundary() -> None:
    data = rows(2, 0.0, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.SingularFitWarning)
        found = fit(data, "reml").heritability().iloc[0]
    assert found["estimate"] == 0.0 == found["lower"] and np.isnan(found["se"])
    assert 0.0 < found["upper"] < 0.6


def test_independent_groups_have_an_intraclass_correlation() -> None:
    found = pmx.model("Reaction ~ 1 + (1 | Subject)", pmx.datasets.load("sleepstudy")).fit(progress=False)
    variance = found.variance_components().set_index("group")["variance"]
    table = found.heritability()
    assert table["estimate"][0] == pytest.approx(variance["Subject"] / variance.sum(), rel=1e-12)
    assert table["lower"][0] < table["estimate"][0] < table["upper"][0]


def test_slopes_count_at_the_average_row() -> None:
    df = pmx.datasets.load("sleepstudy")
    found = pmx.model("Reaction ~ Days + (Days | Subject)", df).fit(progress=False)
    sd, corr = found.covariances()["Subject"]
    z = np.column_stack([np.ones(len(df)), df["Days"]])
    variance = np.einsum("ni,ij,nj->n", z, corr * np.outer(sd, sd), z).mean()
    residual = found.variance_components().set_index("group")["variance"]["Residual"]
    assert found.heritability("Subject")["estimate"][0] == pytest.approx(variance / (variance + residual), rel=1e-10)


def test_draws_give_quantiles() -> None:
    data = rows(3, 2.0)
    posterior = fit(data, pmx.NestedLaplace(300))
    draws = posterior.draws()
    variance, residual = draws["id.sd"].numpy()[:, 0] ** 2 * K.trace() / LEVELS, draws["y.sigma"].numpy() ** 2
    share = variance / (variance + residual)
    (found,) = posterior.heritability(level=0.8).to_dict("records")
    assert [found["estimate"], found["se"]] == pytest.approx([share.mean(), share.std(ddof=1)], rel=1e-9)
    assert [found["lower"], found["upper"]] == pytest.approx(list(np.quantile(share, [0.1, 0.9])), rel=1e-9)


def test_a_loaded_fit_says_the_same(tmp_path: Path) -> None:
    found = fit(rows(2, 2.0), "reml")
    found.save(tmp_path / "fit.pmx")
    pd.testing.assert_frame_equal(pmx.load(tmp_path / "fit.pmx").heritability(), found.heritability(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::pyromix.errors.PyromixWarning")
def test_what_has_no_heritability_is_refused() -> None:
    data = rows(2, 2.0)
    found = fit(data, "ml")
    with pytest.raises(ConfigError, match=r"heritability\(level=95\): must lie between 0 and 1"):
        found.heritability(level=95)
    with pytest.raises(DataError, match=r"group 'herd': the fit has no such grouping factor \(it has: 'id'\)"):
        found.heritability("herd")
    counts = pmx.model("y ~ 1 + (1 | herd)", data.assign(y=data["y"] > 1), family=pmx.Binomial()).fit(progress=False)
    with pytest.raises(UnsupportedError, match=r"Binomial.* has no residual variance .* pi\^2 / 3 for a logit"):
        counts.heritability()
    with pytest.raises(UnsupportedError, match="the program has no random effects"):
        pmx.model("y ~ x", data).fit(progress=False).heritability()


def test_residuals_that_vary_count_at_the_average_row() -> None:
    """Whatever their strata are called; the dense maximum of the likelihood says what the variances are."""
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"g": np.repeat(np.arange(40), 5), "s": np.where(rng.random(200) < 0.3, "a", "b")})
    frame["y"] = rng.normal(size=40)[frame["g"]] + np.where(frame["s"] == "a", 0.5, 2.0) * rng.normal(size=200)
    frame["t"] = frame["s"].map({"a": "z", "b": "b"})
    found = []
    for name in ("s", "t"):
        fit = pmx.model("y ~ 1 + (1 | g)", frame, pmx.Gaussian(variance=pmx.VarIdent(name))).fit(progress=False)
        found.append(fit.heritability()["estimate"].iloc[0])
    sd, residual = fit.estimate.point["g.sd"], fit.record.data["y"].role.dispersion["sigma"]
    expected = float(sd.square() / (sd.square() + residual.detach().square().mean()))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    share = float((residual > residual.min()).double().mean())
    assert share == pytest.approx((frame["s"] == "b").mean()) and expected < 0.5


def test_correlated_residuals_count_whole() -> None:
    """Not what is left of them given the row before."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"g": np.repeat(np.arange(30), 8), "t": np.tile(np.arange(8), 30)})
    frame["y"] = rng.normal(size=30)[frame["g"]] + rng.normal(size=240)
    fixed = {"g.sd": 1.0, "y.sigma": 2.0, "y.rho": 0.7}
    family = pmx.Gaussian(residual=pmx.AR1("t", within="g"))
    fit = pmx.model("y ~ 1 + (1 | g)", frame, family, priors=fixed).fit(progress=False)
    assert fit.heritability()["estimate"].iloc[0] == pytest.approx(1 / 5, rel=1e-12)


def test_effects_of_one_group_are_told_apart() -> None:
    frame = rows(4, 1.0)
    model = pmx.model("y ~ 1 + propto(1 | id, K) + (1 | id)", frame, known={"K": (K, IDS)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = model.fit(progress=False)
        table = fit.heritability()
        assert list(table["name"]) == ["id[Intercept]", "id.1[Intercept]"]
        assert fit.heritability("id.1")["estimate"].iloc[0] == table["estimate"].iloc[1]
    assert list(fit.random_effects("id.1").columns) == ["Intercept"]
