"""Correlated residuals and residual SDs by row: against nlme, against dense algebra, and through what a fit gives.

Reference values: nlme 3.1-162 under R 4.2.2, ``lme`` and ``gls`` with ``correlation=`` and ``weights=``; data in
tests/reference/README.md. Where nlme's random effects are singular (sleepstudy) the likelihood is that of a dense
maximisation instead, since nlme stops short of the boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyromix as pmx
from pyromix.errors import ConfigError, DataError, FormulaError, SingularFitWarning, StructureError, UnsupportedError
from pyromix.marginal.plan import data_of, make_plan
from pyromix.running import run

DATA = Path(__file__).parents[1] / "reference" / "data"


def ovary() -> pd.DataFrame:
    df = pd.read_csv(DATA / "ovary.csv")
    return df.assign(s=np.sin(2 * np.pi * df["Time"]), c=np.cos(2 * np.pi * df["Time"]))


def bodyweight() -> pd.DataFrame:
    df = pd.read_csv(DATA / "bodyweight.csv")
    return df.assign(Diet=pd.Categorical(df["Diet"]))


def orthodont() -> pd.DataFrame:
    df = pd.read_csv(DATA / "orthodont.csv")
    return df.assign(age8=df["age"] - 8, Sex=pd.Categorical(df["Sex"], ["Male", "Female"]))


def sleepstudy() -> pd.DataFrame:
    return pmx.datasets.load("sleepstudy")


AR1, ARMA, OU = pmx.AR1, pmx.ARMA, pmx.OU
SEX = pmx.VarIdent("Sex", strata=["Male", "Female"])
RAT, DIST, MARE = "weight ~ Time * Diet", "distance ~ age8 * Sex + (age8 | Subject)", "follicles ~ s + c"
DAYS = "Reaction ~ Days"
# data, formula, family, {criterion: (log-likelihood, {site: values})}
REFERENCES: dict[str, tuple[Callable[[], pd.DataFrame], str, dict[str, Any], dict[str, Any]]] = {
    "lme(random = ~1 | Rat, correlation = corAR1(form = ~1 | Rat))": (
        bodyweight, f"{RAT} + (1 | Rat)", {"residual": AR1(within="Rat")},
        {"ml": (-575.178179002216, {"Rat.sd": 30.6395864788302, "weight.rho": 0.930459447883743,
                                    "weight.sigma": 14.4813286482294})},
    ),
    "lme(random = ~Time | Rat, correlation = corExp(form = ~Time | Rat))": (
        bodyweight, f"{RAT} + (Time | Rat)", {"residual": OU("Time", within="Rat")},
        {"ml": (-573.080438033035, {"Rat.sd": [33.3022809251827, 0.216805563519119],
                                    "weight.rate": 1 / 3.64143283146989, "weight.sigma": 4.54860706261374}),
         "reml": (None, {"Rat.sd": [36.9745117139461, 0.24346051601834],
                                 "weight.rate": 1 / 3.65052420191547})},
    ),
    "lme(random = ~age8 | Subject, weights = varIdent(form = ~1 | Sex))": (
        orthodont, DIST, {"variance": SEX},
        {"ml": (-203.021194371575, {"Subject.sd": [1.64251511566148, 0.140589975128509],
                                    "distance.ratio": 0.411350846283852, "distance.sigma": 1.62153032688063}),
         "reml": (None, {"Subject.sd": [1.72506197936576, 0.156516553485196], "distance.ratio": 0.408845900589314})},
    ),
    "gls(correlation = corARMA(form = ~1 | Mare, p = 2))": (
        ovary, MARE, {"residual": ARMA(2, 0, within="Mare")},
        {"ml": (-776.420903595377, {"follicles.ar": [0.590904283741587, 0.202923866698467],
                                    "follicles.sigma": 4.50857800470598}),
         "reml": (None, {"follicles.ar": [0.599180330907364, 0.202864863384072]})},
    ),
    "gls(correlation = corARMA(form = ~1 | Mare, q = 2))": (
        ovary, MARE, {"residual": ARMA(0, 2, within="Mare")},
        {"ml": (-805.060142275783, {"follicles.ma": [0.653019550331893, 0.386015918886032],
                                    "follicles.sigma": 4.10381269658651}),
         "reml": (None, {"follicles.ma": [0.65874478541695, 0.389669799301775]})},
    ),
    "lme(random = ~1 | Mare, correlation = corAR1(form = ~1 | Mare))": (
        ovary, f"{MARE} + (1 | Mare)", {"residual": AR1(within="Mare")},
        {"ml": (None, {"Mare.sd": 2.66373261116286, "follicles.rho": 0.597466468521433}),
         "reml": (None, {"Mare.sd": 2.80726778965864, "follicles.rho": 0.607442277246411})},
    ),
    "lme(random = ~1 | Mare, correlation = corARMA(form = ~1 | Mare, p = 1, q = 1))": (
        ovary, f"{MARE} + (1 | Mare)", {"residual": ARMA(1, 1, within="Mare")},
        {"ml": (-773.507031554096, {"Mare.sd": 2.4039118860378, "follicles.ar": 0.793162325796541,
                                    "follicles.ma": -0.276550890017527, "follicles.sigma": 3.79536340500326}),
         "reml": (None, {"Mare.sd": 2.55035905864947, "follicles.ar": 0.796295131494764})},
    ),
    "gls(correlation = corAR1(form = ~Days | Subject))": (
        sleepstudy, DAYS, {"residual": AR1("Days", within="Subject")},
        {"ml": (-874.056908588458, {"Reaction.rho": 0.791661732710629, "Reaction.sigma": 48.4428667231162}),
         "reml": (None, {"Reaction.rho": 0.799952993793015})},
    ),
    "lme(random = ~Days | Subject, correlation = corAR1()), maximised densely": (
        sleepstudy, f"{DAYS} + (Days | Subject)", {"residual": AR1("Days", within="Subject")},
        {"ml": (-866.207944, {"Reaction.rho": 0.48185, "Reaction.sigma": 920.2829**0.5}),
         "reml": (-862.058228, {"Reaction.rho": 0.49211, "Reaction.sigma": 940.1481**0.5})},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pyromix.errors.SingularFitWarning")
@pytest.mark.parametrize("call", list(REFERENCES))
def test_against_nlme(call: str) -> None:
    data, formula, family, expected = REFERENCES[call]
    model = pmx.model(formula, data(), pmx.Gaussian(**family))
    for criterion, (log_likelihood, values) in expected.items():
        fit = model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)
        if log_likelihood is not None:
            assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-3)
        for site, value in values.items():
            found = fit.estimate.point.get(site)
            found = fit.record.deterministic[site] if found is None else found
            assert np.asarray(found).reshape(-1) == pytest.approx(np.atleast_1d(value), rel=1e-3), (criterion, site)


# -- dense algebra ----------------------------------------------------------------------------------------------------
N = 24
GENERATOR = np.random.default_rng(11)
SERIES = np.array(["a", "b", "c", "d", "e"])[np.sort(GENERATOR.integers(0, 5, N))]
TIME = np.concatenate(
    [np.sort(GENERATOR.choice(9, size=k, replace=False)) for k in np.unique(SERIES, return_counts=True)[1]]
)
ORDER = GENERATOR.permutation(N)  # rows in no order
SERIES, TIME = SERIES[ORDER], TIME[ORDER].astype(float)
GROUP = torch.as_tensor(np.unique(SERIES, return_inverse=True)[1])
CROSSED = torch.as_tensor(GENERATOR.integers(0, 4, N))
X = torch.as_tensor(np.column_stack([np.ones(N), GENERATOR.normal(size=N)]))
Y = torch.as_tensor(GENERATOR.normal(size=N)) * 2
LEVEL = GENERATOR.uniform(0.5, 2.0, N)
STRATUM = np.array(["u", "v", "w"])[GENERATOR.integers(0, 3, N)]
COLUMNS = {"series": SERIES, "time": TIME, "level": LEVEL, "stratum": STRATUM}


def lags(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.where(SERIES[:, None] == SERIES, function(np.abs(TIME[:, None] - TIME)), 0.0)


def arma11(k: np.ndarray, phi: float = 0.6, theta: float = 0.4) -> np.ndarray:
    """Brockwell and Davis (1991), example 3.3.1: rho_1 = (1 + phi theta)(phi + theta) / (1 + 2 phi theta + theta^2)."""
    first = (1 + phi * theta) * (phi + theta) / (1 + 2 * phi * theta + theta**2)
    return np.where(k == 0, 1.0, first * phi ** np.maximum(k - 1, 0))


PARTIAL = np.array([0.5, -0.2, 0.3, 0.1, 0.0, 0.2, -0.1, 0.1])


def toeplitz(k: np.ndarray) -> np.ndarray:
    """Autocorrelations from partial ones by Durbin and Levinson, as the solution of growing linear systems."""
    rho = [1.0]
    for lag, partial in enumerate(PARTIAL, start=1):
        before = np.array([[rho[abs(i - j)] for j in range(lag - 1)] for i in range(lag - 1)])
        ahead = np.array(rho[1:lag])
        solved = np.linalg.solve(before, ahead) if lag > 1 else np.empty(0)
        rho.append(float(partial * (1 - ahead @ solved) + ahead[::-1] @ solved))
    return np.array(rho)[k.astype(int)]


ANY = np.linalg.qr(GENERATOR.normal(size=(9, 9)))[0]
ANY = (ANY * np.linspace(0.5, 2, 9)) @ ANY.T
ANY = ANY / np.sqrt(np.outer(np.diag(ANY), np.diag(ANY)))
WHERE = {"time": "time", "within": "series"}
# the structure, its parameters, its correlations
STRUCTURES: dict[str, tuple[Any, dict[str, Any], np.ndarray]] = {
    "AR1": (pmx.AR1(**WHERE), {"rho": 0.7}, lags(lambda k: 0.7**k)),
    "AR1, negative": (pmx.AR1(**WHERE), {"rho": -0.4}, lags(lambda k: (-0.4) ** k)),
    "OU": (pmx.OU(**WHERE), {"rate": 0.3}, lags(lambda k: np.exp(-0.3 * k))),
    "ARMA(1, 1)": (pmx.ARMA(1, 1, **WHERE), {"pacf_ar": [0.6], "pacf_ma": [0.4]}, lags(arma11)),
    "CompoundSymmetry": (pmx.CompoundSymmetry(**WHERE), {"corr": 0.3}, lags(lambda k: np.where(k == 0, 1.0, 0.3))),
    "Toeplitz": (pmx.Toeplitz(**WHERE), {"pacf": PARTIAL}, lags(toeplitz)),
    "Unstructured": (
        pmx.Unstructured(**WHERE), {"corr_cholesky": np.linalg.cholesky(ANY)},
        np.where(SERIES[:, None] == SERIES, ANY[np.ix_(TIME.astype(int), TIME.astype(int))], 0.0),
    ),
}  # fmt: skip
CODES = np.unique(STRATUM, return_inverse=True)[1]
VARIANCES: dict[str, tuple[Any, dict[str, Any], np.ndarray]] = {
    "none": (None, {}, np.ones(N)),
    "VarIdent": (pmx.VarIdent("stratum"), {"ratio": [0.5, 3.0]}, np.array([1.0, 0.5, 3.0])[CODES]),
    "VarPower": (pmx.VarPower("level"), {"power": 1.5}, LEVEL**1.5),
    "VarExp": (pmx.VarExp("level"), {"exponent": -0.8}, np.exp(-0.8 * LEVEL)),
}
EFFECTS = [(GROUP, 5, 1.3), (CROSSED, 4, 0.8)]  # one in whose levels the series lie, one that crosses them


def program_of(structure: Any, variance: Any, effects: int) -> Callable[[Any], None]:
    family = pmx.Gaussian(residual=structure, variance=variance)
    made = [pmx.RandomEffect(f"g{k}", pmx.IID(), levels=EFFECTS[k][1]) for k in range(effects)]
    linear = pmx.LinearEffect("beta")

    def program(y: Any) -> None:
        eta = linear(X)
        for k, effect in enumerate(made):
            eta = eta + effect(EFFECTS[k][0])
        pmx.observe("y", family, eta, y, columns=COLUMNS)

    return program


def bind(program: Callable[[Any], None], y: torch.Tensor, coefficients: str = "keep") -> Any:
    return pmx.Exact(coefficients).bind(program, (y,), make_plan(program, (y,)))


def values_of(theta: dict[str, Any], effects: int) -> dict[str, torch.Tensor]:
    def tensor(value: Any) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float64)

    values = {f"y.{name}": tensor(value) for name, value in theta.items()}
    values |= {f"g{k}.sd": tensor(EFFECTS[k][2]) for k in range(effects)}
    return {**values, "y.sigma": tensor(0.9), "beta": tensor([0.4, -0.6])}


def dense(correlations: np.ndarray, scale: np.ndarray, effects: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariances of the residuals, and of the response."""
    residual = 0.81 * correlations * np.outer(scale, scale)
    total = residual.copy()
    for index, _, sd in EFFECTS[:effects]:
        total += sd**2 * (index[:, None] == index).numpy()
    return residual, total


def gaussian(residual: np.ndarray, covariance: np.ndarray) -> float:
    return float(-0.5 * (len(residual) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1]
                         + residual @ np.linalg.solve(covariance, residual)))  # fmt: skip


CASES = [(s, v, e) for s in STRUCTURES for v, e in (("none", 1), ("VarIdent", 0))] + [
    ("AR1", "VarPower", 2),
    ("OU", "VarExp", 2),
    ("ARMA(1, 1)", "VarIdent", 2),
]


@pytest.mark.parametrize(("structure", "variance", "effects"), CASES)
def test_log_marginal_and_its_gradient(structure: str, variance: str, effects: int) -> None:
    (chosen, theta, correlations), (weights, more, scale) = STRUCTURES[structure], VARIANCES[variance]
    program, values = program_of(chosen, weights, effects), values_of({**theta, **more}, effects)
    residual = (Y - X @ values["beta"]).numpy()
    _, covariance = dense(correlations, scale, effects)
    bound = bind(program, Y)
    moving = {name: value.clone().requires_grad_(True) for name, value in values.items()}
    found = bound.log_marginal(run(program, (Y,), moving))
    assert found.item() == pytest.approx(gaussian(residual, covariance), abs=1e-9)

    found.backward()
    for name, value in moving.items():
        direction = torch.as_tensor(np.random.default_rng(3).normal(size=value.shape))
        direction = direction.tril() if value.dim() == 2 else direction
        step = 1e-5
        ends = [
            float(bound.log_marginal(run(program, (Y,), {**values, name: values[name] + d * direction})).detach())
            for d in (-step, step)
        ]
        expected = (ends[1] - ends[0]) / (2 * step)
        assert float((value.grad * direction).sum()) == pytest.approx(expected, rel=2e-6, abs=2e-6), name


@pytest.mark.parametrize(("structure", "variance", "effects"), CASES)
def test_restricted_likelihood_modes_and_coefficients(structure: str, variance: str, effects: int) -> None:
    (chosen, theta, correlations), (weights, more, scale) = STRUCTURES[structure], VARIANCES[variance]
    program, values = program_of(chosen, weights, effects), values_of({**theta, **more}, effects)
    _, covariance = dense(correlations, scale, effects)
    x, y = X.numpy(), Y.numpy()
    gram = x.T @ np.linalg.solve(covariance, x)
    beta = np.linalg.solve(gram, x.T @ np.linalg.solve(covariance, y))
    expected = gaussian(y - x @ beta, covariance) - 0.5 * np.linalg.slogdet(gram)[1] + np.log(2 * np.pi)
    bound = bind(program, Y, "integrate")
    record = run(program, (Y,), values)
    assert float(bound.log_marginal(record)) == pytest.approx(expected, abs=1e-9)
    estimate, variances = bound.coefficients_at(record)["beta"]
    assert estimate.numpy() == pytest.approx(beta, abs=1e-9)
    assert variances.numpy() == pytest.approx(np.linalg.inv(gram), abs=1e-9)

    kept = bind(program, Y).conditional(record)
    solved = np.linalg.solve(covariance, y - x @ values["beta"].numpy())
    for k in range(effects):
        index, levels, sd = EFFECTS[k]
        z = (index[:, None] == torch.arange(levels)).numpy().astype(float)
        assert kept.mode[f"g{k}"][:, 0].numpy() == pytest.approx(sd**2 * z.T @ solved, abs=1e-9)
        spread = sd**2 - sd**4 * np.diag(z.T @ np.linalg.solve(covariance, z))
        assert kept.spread()[f"g{k}"][:, 0].numpy() == pytest.approx(np.sqrt(spread), abs=1e-9)


@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_the_joint_density_that_samplers_see(structure: str) -> None:
    chosen, theta, correlations = STRUCTURES[structure]
    program, values = program_of(chosen, None, 1), values_of(theta, 1)
    effects = torch.as_tensor(np.random.default_rng(5).normal(size=(5, 1)))
    trace = poutine.trace(poutine.condition(program, {**values, "g0": effects})).get_trace(Y)
    rows = trace.nodes["y"]["fn"].log_prob(Y)
    residual, _ = dense(correlations, np.ones(N), 1)
    expected = gaussian((Y - X @ values["beta"] - effects[GROUP, 0]).numpy(), residual)
    assert float(rows.sum()) == pytest.approx(expected, abs=1e-9)


def test_masked_rows_break_no_series() -> None:
    """A row that does not count is passed over: the others are as far apart as their times say."""
    keep = torch.ones(N, dtype=torch.bool)
    keep[[3, 10]] = False
    family = pmx.Gaussian(residual=pmx.AR1(**WHERE))
    values = {"y.rho": torch.tensor(0.7, dtype=torch.float64), "y.sigma": torch.tensor(0.9, dtype=torch.float64)}

    def program(y: torch.Tensor) -> None:
        pmx.observe("y", family, X @ torch.tensor([0.4, -0.6], dtype=torch.float64), y, mask=keep, columns=COLUMNS)

    filled = torch.where(keep, Y, torch.full_like(Y, 1e3))
    found = float(bind(program, filled).log_marginal(run(program, (filled,), values)))
    rows = keep.numpy()
    covariance = 0.81 * STRUCTURES["AR1"][2][np.ix_(rows, rows)]
    residual = (Y - X @ torch.tensor([0.4, -0.6], dtype=torch.float64)).numpy()[rows]
    assert found == pytest.approx(gaussian(residual, covariance), abs=1e-9)


def test_rows_of_no_weight_break_no_series() -> None:
    """Frequency weights of zero leave rows out, and what they hold says nothing of those that follow them."""
    df = sleepstudy()
    weights = np.ones(len(df))
    weights[[4, 57]] = 0
    family = pmx.Gaussian(residual=AR1("Days", within="Subject"))
    spoilt = df.assign(Reaction=np.where(weights > 0, df["Reaction"], 1e4))
    weighted = pmx.model("Reaction ~ Days", spoilt, family, frequency_weights=weights).fit(progress=False)
    without = pmx.model("Reaction ~ Days", df[weights > 0], family).fit(progress=False)
    assert weighted.log_likelihood == pytest.approx(without.log_likelihood, abs=1e-6)
    assert float(weighted.estimate.point["Reaction.rho"]) == pytest.approx(
        float(without.estimate.point["Reaction.rho"]), abs=1e-5
    )


def test_draws_have_the_covariance() -> None:
    """Covariances of 40,000 draws within 5 standard errors: one of 300 pairs fails by chance in 6,000 runs."""
    family = pmx.Gaussian(
        sigma=0.9, residual=pmx.ARMA(1, 1, pacf_ar=0.6, pacf_ma=0.4, **WHERE), variance=VARIANCES["VarPower"][0]
    )
    values = {"y.power": torch.tensor(1.5, dtype=torch.float64)}

    def program() -> torch.Tensor:
        return pmx.observe("y", family, X[:, 1], None, columns=COLUMNS)

    with torch.random.fork_rng():
        torch.manual_seed(8)
        fn = poutine.trace(poutine.condition(program, values)).get_trace().nodes["y"]["fn"]
        draws = fn.sample((40_000,)) - X[:, 1]
    expected, _ = dense(STRUCTURES["ARMA(1, 1)"][2], LEVEL**1.5, 0)
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / 40_000)
    assert (np.abs(draws.T.numpy() @ draws.numpy() / 40_000 - expected) < 5 * error).all()


# -- what a fit gives -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted() -> pmx.Fit:
    model = pmx.model(f"{MARE} + (1 | Mare)", ovary(), pmx.Gaussian(residual=AR1(within="Mare")))
    return model.fit(progress=False)


def test_predictions_are_of_rows_by_themselves(fitted: pmx.Fit) -> None:
    df = ovary()
    beta = fitted.fixed_effects()["estimate"].to_numpy()
    effects = fitted.random_effects("Mare")["Intercept"]
    expected = np.column_stack([np.ones(len(df)), df["s"], df["c"]]) @ beta + effects.loc[df["Mare"]].to_numpy()
    np.testing.assert_allclose(fitted.predict(), expected, atol=1e-10)
    np.testing.assert_allclose(fitted.predict(df.drop(columns="follicles")), expected, atol=1e-10)
    np.testing.assert_allclose(fitted.residuals("response"), df["follicles"] - expected, atol=1e-10)
    normalized = fitted.residuals("normalized")
    start = df["Mare"].ne(df["Mare"].shift()).to_numpy()
    sigma, rho = (float(fitted.estimate.point[f"follicles.{name}"]) for name in ("sigma", "rho"))
    raw = (df["follicles"] - expected).to_numpy()
    before = np.where(start, 0.0, np.roll(raw, 1))
    by_hand = (raw - rho * before) / (sigma * np.where(start, 1.0, np.sqrt(1 - rho**2)))
    np.testing.assert_allclose(normalized, by_hand, atol=1e-10)


def test_replicates_are_as_correlated_as_the_data(fitted: pmx.Fit) -> None:
    """Lag-one correlation of replicated residuals; its Monte Carlo error over 400 draws of 297 pairs is below 0.004."""
    df = ovary()
    inner = ~df["Mare"].ne(df["Mare"].shift()).to_numpy()
    drawn = fitted.idata.posterior_predictive["follicles"].to_numpy().reshape(-1, len(df))[:400]
    drawn = drawn - fitted.predict()
    products = (drawn[:, 1:] * drawn[:, :-1])[:, inner[1:]].mean() / (drawn**2).mean()
    rho, total = float(fitted.estimate.point["follicles.rho"]), float(fitted.estimate.point["follicles.sigma"]) ** 2
    shared = (drawn**2).mean() - total  # what draws of coefficients and effects add to both
    expected = (rho * total + shared) / (total + shared)
    assert products == pytest.approx(expected, abs=0.03)


def test_summary_priors_and_source(fitted: pmx.Fit) -> None:
    assert "follicles.rho" in str(fitted.summary())
    family = pmx.Gaussian(
        residual=pmx.Toeplitz("hom" == "hom", time="Days", within="Subject"), variance=pmx.VarIdent("half")
    )
    df = sleepstudy()
    df["half"] = np.where(df["Days"] < 5, "early", "late")
    model = pmx.model(f"{DAYS} + (1 | Subject)", df, family, priors={"Reaction.ratio": dist.LogNormal(0.0, 0.3)})
    table = model.priors().frame if hasattr(model.priors(), "frame") else str(model.priors())
    assert "Reaction.pacf" in str(table) and "LogNormal(0, 0.3)" in str(table) and "late" in str(table)
    space: dict[str, Any] = {}
    exec(model.source(), space)  # noqa: S102
    values = {
        name: site.value for name, site in run(model.program, (model.design,), hypers="moderate", seed=1).hypers.items()
    }
    ours, theirs = (data_of(run(program, (model.design,), values)) for program in (model.program, space["program"]))
    assert torch.equal(ours.eta, theirs.eta) and torch.equal(ours.dispersion["sigma"], theirs.dispersion["sigma"])


@pytest.mark.parametrize(
    "family", [{"residual": AR1("Time", within="Mare", rho=0.5)}, {"variance": pmx.VarPower("level")}]
)
def test_saved_and_loaded(tmp_path: Path, family: dict[str, Any]) -> None:
    df = ovary().assign(Time=lambda d: d.groupby("Mare").cumcount(), level=lambda d: 1.0 + d["Time"])
    fit = pmx.model(f"{MARE} + (1 | Mare)", df, pmx.Gaussian(**family)).fit(progress=False)
    fit.save(tmp_path / "fit")
    again = pmx.load(tmp_path / "fit")
    np.testing.assert_array_equal(again.predict(df), fit.predict(df))
    np.testing.assert_array_equal(again.residuals("normalized"), fit.residuals("normalized"))
    assert again.log_likelihood == fit.log_likelihood


def test_intervals_follow_the_strata() -> None:
    df = orthodont()
    fit = pmx.model(DIST, df, pmx.Gaussian(variance=pmx.VarIdent("Sex"))).fit(progress=False)
    rows = df.groupby("Sex", observed=True).head(1)
    interval = fit.predict(rows, kind="interval")
    width = (interval["upper"] - interval["lower"]).to_numpy()
    by_sex = dict(zip(rows["Sex"], width, strict=True))
    assert by_sex["Male"] > 1.5 * by_sex["Female"]
    with pytest.raises(ConfigError, match=r"reads column 'Sex', which is not there"):
        pmx.model("distance ~ age8 + (1 | Subject)", df, pmx.Gaussian(variance=pmx.VarIdent("Sex"))).fit(
            progress=False
        ).predict(df.drop(columns="Sex"))


# -- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pmx.Gaussian(residual=pmx.IID()), ConfigError, "cannot describe residuals; pass AR1"),
        (lambda: pmx.Gaussian(residual="ar1"), ConfigError, "cannot describe residuals"),
        (lambda: pmx.Gaussian(residual=AR1("Days", sd=2.0)), ConfigError, r"that of a residual is .*sigma"),
        (lambda: pmx.Gaussian(variance="Sex"), ConfigError, "pass VarIdent, VarPower or VarExp"),
        (lambda: pmx.Gaussian("log", residual=AR1("Days")), ConfigError, "need the identity link"),
        (lambda: AR1(3), ConfigError, r"AR1\(time=3\): pass the name of a column"),
        (lambda: pmx.VarIdent("Sex", strata=["a"]), ConfigError, "two or more that differ"),
        (lambda: pmx.VarPower(""), ConfigError, "pass the name of a column"),
        (lambda: pmx.VarIdent("Sex", ratio=-1.0), ConfigError, "ratio"),
    ],
)  # fmt: skip
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made = make()
        made.parameters()


@pytest.mark.parametrize(
    ("family", "change", "error", "message"),
    [
        ({"residual": AR1("day", within="Subject")}, {}, FormulaError, "no column 'day'"),
        ({"residual": AR1("Days", within="Subject")}, {"Days": lambda d: d["Days"] // 2}, StructureError,
         "'row 0' and 'row 1' are both at time 0"),
        ({"residual": AR1("Days", within="Subject")}, {"Days": lambda d: d["Days"] / 2}, StructureError, "whole steps"),
        ({"residual": AR1("Subject")}, {"Subject": lambda d: "s" + d["Subject"].astype(str)}, StructureError,
         "is no number"),
        ({"variance": pmx.VarPower("Days")}, {}, DataError, "is zero at row 0"),
        ({"variance": pmx.VarPower("text")}, {"text": "a"}, DataError, "not made of numbers"),
        ({"variance": pmx.VarIdent("one")}, {"one": 1}, ConfigError, "two or more that differ"),
        ({"variance": pmx.VarIdent("Days", strata=[0, 1])}, {}, DataError, "row 2: 2 is no stratum; there are 0, 1"),
    ],
)  # fmt: skip
def test_bad_data(family: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pmx.model("Reaction ~ 1 + (1 | Subject)", sleepstudy().assign(**change), pmx.Gaussian(**family)).fit(
            progress=False
        )


def test_what_correlated_residuals_do_not_have(fitted: pmx.Fit) -> None:
    with pytest.raises(UnsupportedError, match=r"logo\(\): the residuals of 'follicles' are correlated"):
        fitted.logo()
    new = ovary().assign(Mare=lambda d: d["Mare"] + 100)
    with pytest.raises(UnsupportedError, match="condition_on: the residuals"):
        fitted.predict(new, condition_on=new)
    weighted = pmx.model(
        "follicles ~ 1 + (1 | Mare)",
        ovary(),
        pmx.Gaussian(residual=AR1(within="Mare")),
        frequency_weights=np.full(308, 2.0),
    )
    with pytest.raises(UnsupportedError, match="frequency weights beside residual="):
        weighted.fit(progress=False)
    with pytest.raises(UnsupportedError, match="at most 20 rows back"):
        residual = pmx.CompoundSymmetry(within="Mare")
        rows = ovary().assign(k=lambda d: d.groupby("Mare").cumcount() % 5)
        pmx.model("follicles ~ 1 + (1 | k)", rows, pmx.Gaussian(residual=residual)).fit(progress=False)


def test_nothing_is_left_in_pyro() -> None:
    assert not list(pyro.get_param_store().keys())


def test_a_residual_beside_an_effect_a_row_runs_to_zero() -> None:
    """stats::arima(LakeHuron, c(1, 0, 0)), R 4.2.2: log-likelihood -106.60, ar1 0.8375, intercept 579.1153 (0.4240)."""
    df = pmx.datasets.load("LakeHuron")
    with pytest.warns(SingularFitWarning, match=r"level\.sigma .* It ran towards zero"):
        effect = pmx.model("level ~ 1 + ar1(1 | year)", df).fit(progress=False)
    residual = pmx.model("level ~ 1", df, pmx.Gaussian(residual=AR1("year"))).fit(progress=False)
    assert effect.status.name == "SINGULAR" and residual.status.name == "CONVERGED"
    for fit, rho in ((effect, "year.rho"), (residual, "level.rho")):
        assert fit.log_likelihood == pytest.approx(-106.60, abs=0.005)
        assert float(fit.estimate.point[rho]) == pytest.approx(0.8375, abs=3e-4)
        row = fit.fixed_effects().iloc[0]
        assert row["estimate"] == pytest.approx(579.1153, abs=2e-3) and row["se"] == pytest.approx(0.4240, abs=3e-3)
