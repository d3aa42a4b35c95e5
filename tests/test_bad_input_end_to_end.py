"""Bad input through the facade: refused before any fitting, by a message with the place, the value and the remedy."""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx

N = 24


def frame(**changes: Any) -> pd.DataFrame:
    """24 rows r0, r1, ... in 6 groups, some columns replaced."""
    rng = np.random.default_rng(1)
    data: dict[str, Any] = {
        "y": rng.normal(size=N),
        "count": rng.poisson(3.0, size=N),
        "hit": np.tile([0, 1, 1], N // 3),
        "s": rng.integers(1, 3, size=N),
        "f": rng.integers(1, 3, size=N),
        "x": rng.normal(size=N),
        "z": rng.normal(size=N),
        "e": rng.uniform(1, 2, size=N),
        "c": np.tile(["a", "b", "c"], N // 3),
        "g": np.repeat(list("pqrstu"), N // 6),
    }
    data.update(changes)
    return pd.DataFrame(data, index=[f"r{i}" for i in range(N)])


def put(column: str, value: Any, *rows: int) -> pd.DataFrame:
    """The frame with a value in some rows of one column."""
    data = frame()
    values = data[column].astype(float if isinstance(value, int | float) else object)
    for row in rows:
        values.iat[row] = value
    data[column] = values
    return data


@dataclass(frozen=True)
class Case:
    """A model that must be refused: the error, and what its message must say."""

    data: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]
    formula: str = "y ~ x + (1 | g)"
    family: Any = None
    arguments: Callable[[], dict[str, Any]] = field(default=dict)


POISSON, BINOMIAL = pmx.Poisson(), pmx.Binomial()
DATA, TYPE, FORMULA = pmx.DataError, pmx.DataTypeError, pmx.FormulaError
REFUSED = {
    "1 absent column": Case(frame, FORMULA, ("'xx'", "'x'"), "y ~ xx + (1 | g)"),
    "1 absent group": Case(frame, FORMULA, ("'gg'", "'g'"), "y ~ x + (1 | gg)"),
    "2 no rows": Case(lambda: frame().iloc[:0], DATA, ("0 rows",)),
    "3 all rows missing": Case(lambda: frame(x=np.nan), DATA, ("'x'", "24"), arguments=lambda: {"missing": "drop"}),
    "4 columns twice": Case(
        lambda: pd.concat([frame(), frame()[["x"]]], axis=1), DATA, ("'x'", "2 times", "positions 5, 10")
    ),
    "6 other labels": Case(
        frame,
        DATA,
        ("precision_weights", "'r0'", "19 more", "to_numpy"),
        arguments=lambda: {"precision_weights": pd.Series(1.0, index=[f"q{i}" for i in range(N)])},
    ),
    "7 other length": Case(frame, DATA, ("offset", "23", "24"), arguments=lambda: {"offset": np.zeros(23)}),
    "8 a cell of text": Case(lambda: put("x", "4x", 5), DATA, ("'x'", "'4x'", "'r5'")),
    "9 numbers as text": Case(lambda: frame(x=[str(i) for i in range(N)]), DATA, ("'x'", "numeric", "to_numeric")),
    "10 dates": Case(lambda: frame(x=pd.date_range("2020", periods=N)), DATA, ("'x'", "datetime64")),
    "11 complex": Case(lambda: frame(x=np.arange(N) * 1j), DATA, ("'x'", "complex")),
    "11 lists": Case(lambda: frame(x=[[1, 2]] * N), DATA, ("'x'", "list", "'r0'")),
    "12 ids of two types": Case(lambda: frame(g=[1, "1", 2, "q"] * 6), DATA, ("'g'", "1", "'1'")),
    "15 not a frame": Case(lambda: 3, TYPE, ("int", "DataFrame")),
    "15 columns of two levels": Case(
        lambda: pd.concat({"a": frame()}, axis=1), TYPE, ("MultiIndex", "2 levels", "Flatten")
    ),
    "16 missing predictor": Case(lambda: put("x", np.nan, 3, 7), DATA, ("'x'", "2 missing", "'r3'", "drop")),
    "17 missing response": Case(lambda: put("y", np.nan, 4), DATA, ("'y'", "1 missing", "'r4'")),
    "18 missing group": Case(lambda: put("g", None, 2), DATA, ("'g'", "1 missing", "'r2'")),
    "19 infinite": Case(lambda: put("x", np.inf, 6), DATA, ("'x'", "inf", "'r6'")),
    "20 log of zero": Case(
        lambda: put("e", 0.0, 9), DATA, ("offset", "log", "'r9'"), "count ~ x + offset(log(e)) + (1 | g)", POISSON
    ),
    "21 negative weight": Case(
        lambda: put("e", -1.0, 9),
        DATA,
        ("precision_weights", "-1", "'r9'"),
        arguments=lambda: {"precision_weights": "e"},
    ),
    "21 weights all zero": Case(
        frame, DATA, ("frequency_weights", "all 24 values are 0"), arguments=lambda: {"frequency_weights": np.zeros(N)}
    ),
    "24 constant": Case(lambda: frame(y=1.0), DATA, ("'y'", "constant", r"1\.0")),
    "24 no counts": Case(lambda: frame(count=0), DATA, ("'count'", "constant"), "count ~ x + (1 | g)", POISSON),
    "24 one class": Case(lambda: frame(hit=1), DATA, ("'hit'", "constant"), "hit ~ x + (1 | g)", BINOMIAL),
    "25 negative count": Case(
        lambda: put("count", -1, 16), DATA, ("'count'", "-1", "'r16'", "position 16"), "count ~ x + (1 | g)", POISSON
    ),
    "26 fraction of a count": Case(
        lambda: put("count", 1.5, 3), DATA, ("'count'", r"1\.5", "'r3'"), "count ~ x + (1 | g)", POISSON
    ),
    "27 classes 1 and 2": Case(
        lambda: frame(hit=np.tile([1, 2], N // 2)),
        DATA,
        ("'hit'", "values 1, 2", "== 2", "'r1'"),
        "hit ~ x + (1 | g)",
        BINOMIAL,
    ),
    "28 no trials": Case(
        lambda: put("s", 0, 4).assign(f=lambda d: d["f"].where(d.index != "r4", 0)),
        DATA,
        ("s = 0 and f = 0", "'r4'"),
        "cbind(s, f) ~ x + (1 | g)",
        BINOMIAL,
    ),
    "28 more successes than trials": Case(
        lambda: put("f", -1, 4), DATA, ("s = 1 and f = -1|f = -1", "'r4'"), "cbind(s, f) ~ x + (1 | g)", BINOMIAL
    ),
    "35 two columns": Case(
        lambda: {**{name: col.to_numpy() for name, col in frame().items()}, "y": np.zeros((N, 1))},
        DATA,
        ("'y'", r"\(24, 1\)"),
    ),
    "39 more columns than rows": Case(
        lambda: frame(k=pd.Categorical(range(N))), DATA, ("26 columns", "24 rows", "p > n"), "y ~ x + z + k + (1 | g)"
    ),
    "42 one level": Case(lambda: frame(c="a"), DATA, ("'c'", "'a'"), "y ~ c + (1 | g)"),
    "46 one group": Case(lambda: frame(g="p"), DATA, ("'g'", "1 level", "[Dd]rop")),
    "47 a group a row": Case(lambda: frame(g=[f"i{k}" for k in range(N)]), DATA, ("'g'", "24")),
    "50 more effects than rows": Case(
        lambda: frame(g=np.repeat([f"i{k}" for k in range(12)], 2)),
        DATA,
        ("'g'", "24 random effects", "24 observations"),
        "y ~ x + (x | g)",
    ),
    "a family's class": Case(frame, pmx.ConfigError, ("family", "instance"), family=pmx.Poisson),
    "code in a formula": Case(frame, FORMULA, ("__import__", "underscores"), "y ~ I(__import__('os')) + (1 | g)"),
    "an attribute": Case(frame, FORMULA, ("attributes",), "y ~ x.mean() + (1 | g)"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case: Case) -> None:
    data = case.data()
    before = copy.deepcopy(data)
    arguments = case.arguments()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.PyromixWarning)
        with pytest.raises(case.error) as caught:
            pmx.model(case.formula, data, case.family, **arguments)
    message = str(caught.value)
    for pattern in case.says:
        assert re.search(pattern, message), f"{pattern} is not in: {message}"
    assert isinstance(caught.value, pmx.PyromixError)
    same(data, before)


def same(data: Any, before: Any) -> None:
    """The caller's object is as it was."""
    if isinstance(data, pd.DataFrame):
        pd.testing.assert_frame_equal(data, before)
    elif isinstance(data, dict):
        for name in before:
            np.testing.assert_array_equal(data[name], before[name])
    else:
        assert data == before


# -- doubtful ----------------------------------------------------------------------------------------------------------
BLANKS = np.repeat(["A", "A ", "b", "c", "d", "e"], 4)
AGAIN = np.tile([1, 1, 2, 2], 6)
DOUBTFUL = {
    "13 blanks": (lambda: frame(g=BLANKS), "y ~ x + (1 | g)", pmx.DataWarning, "'A '"),
    "36 constant column": (lambda: frame(k=2.0), "y ~ x + k + (1 | g)", pmx.RankWarning, "'k' is constant"),
    "37 multiple": (lambda: frame(w=2 * frame()["x"]), "y ~ x + w + (1 | g)", pmx.RankWarning, "w ~ x"),
    "40 scales": (lambda: frame(w=1e6 * frame()["z"]), "y ~ x + w + (1 | g)", pmx.ScaleWarning, "'w' 1.22e"),
    "49 few groups": (lambda: frame(g=[*"pqr"] * 8), "y ~ x + (1 | g)", pmx.FewGroupsWarning, "'g': 3 levels"),
    "51 ids used again": (lambda: frame(h=AGAIN), "y ~ x + (1 | g) + (1 | h)", pmx.DataWarning, "g/h"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "formula", "category", "says"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_doubtful_input_is_fitted_with_a_warning(
    data: Callable[[], pd.DataFrame], formula: str, category: type[Warning], says: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = pmx.model(formula, data()).fit(progress=False)
    told = [w for w in caught if issubclass(w.category, category)]
    assert any(re.search(says, str(w.message)) for w in told), [str(w.message) for w in caught]
    assert all(w.filename == __file__ for w in told)
    assert np.isfinite(fit.log_likelihood)
    if category is pmx.RankWarning:
        table = fit.fixed_effects()
        assert np.isfinite(table["estimate"].drop(list(fit.design.aliased))).all()
        assert len(fit.design.aliased) == 1


def test_odd_names_and_labels_are_accepted() -> None:
    """Blanks, other alphabets, keywords and numbers as names; row labels that occur twice."""
    data = frame().rename(columns={"x": "my x", "z": "größe", "g": "class", "e": 3})
    data.index = ["same"] * N
    fit = pmx.model("y ~ `my x` + größe + `3` + (1 | class)", data).fit(progress=False)
    assert list(fit.fixed_effects().index) == ["Intercept", "my x", "größe", "3"]
    assert list(fit.predict(kind="interval").index) == ["same"] * N


# -- at prediction -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted() -> pmx.Fit:
    """A fit with a factor, a number and a group, integer ids."""
    ids = np.repeat(np.arange(6), 4)
    data = frame(i=ids, y=frame()["y"].to_numpy() + ids)
    return pmx.model("y ~ x + c + (1 | i)", data).fit(progress=False)


def test_unseen_groups_are_named_with_the_ways_on(fitted: pmx.Fit) -> None:
    new = frame(i=np.repeat([0, 1, 77, 3, 88, 5], 4))
    with pytest.raises(pmx.UnseenLevelError, match=r"'i'.*2 levels.*77.*88.*'r8'.*'zero'.*'marginal'.*'conditional'"):
        fitted.predict(new)
    marginal = fitted.predict(new, new_groups="marginal")
    known = frame(i=np.repeat(np.arange(6), 4))
    seen = ~new["i"].isin([77, 88]).to_numpy()
    np.testing.assert_array_equal(marginal[seen], fitted.predict(known)[seen])


@pytest.mark.parametrize("policy", ["error", "zero", "marginal", "conditional"])
def test_unseen_categories_are_refused_under_every_policy(fitted: pmx.Fit, policy: str) -> None:
    new = frame(i=np.repeat(np.arange(6), 4), c=np.tile(["a", "b", "zz"], N // 3))
    with pytest.raises(pmx.UnseenLevelError, match=r"'c'.*'zz'.*'r2'"):
        fitted.predict(new, new_groups=policy)


def test_levels_are_matched_by_value(fitted: pmx.Fit) -> None:
    ids = np.repeat(np.arange(6), 4)
    expected = fitted.predict(frame(i=ids))
    other = frame(
        i=pd.Categorical(ids, categories=[5, 3, 1, 0, 2, 4]), c=pd.Categorical(frame()["c"], categories=list("cba"))
    )
    np.testing.assert_array_equal(fitted.predict(other), expected)
    np.testing.assert_array_equal(fitted.predict(frame(i=ids.astype(float))), expected)
    with pytest.raises(pmx.DataError, match=r"'i'.*(text|str|object).*int"):
        fitted.predict(frame(i=[str(k) for k in ids]))


def test_a_missing_value_costs_its_own_row(fitted: pmx.Fit) -> None:
    new = frame(i=np.repeat(np.arange(6), 4))
    expected = fitted.predict(new)
    new["x"] = new["x"].mask(new.index == "r5")
    found = fitted.predict(new)
    assert np.isnan(found[5])
    np.testing.assert_array_equal(np.delete(found, 5), np.delete(expected, 5))


def test_the_response_of_new_data_is_never_read(fitted: pmx.Fit) -> None:
    new = frame(i=np.repeat(np.arange(6), 4))
    np.testing.assert_array_equal(fitted.predict(new.assign(y="no number")), fitted.predict(new.drop(columns="y")))


# -- networks and backends ---------------------------------------------------------------------------------------------
class Broken(torch.nn.Module):
    """A network that answers what it is told to."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(x[:, 0] * self.weight)


def fit_network(answer: Callable[[torch.Tensor], torch.Tensor]) -> pmx.Fit:
    """A fit around such a network."""
    training = pmx.Training(epochs=2)
    model = pmx.model("y ~ x + (1 | g)", frame(), mean=Broken(answer))
    return model.fit(pmx.MaximumLikelihood(training=training), progress=False)


def test_a_network_that_returns_nan_is_named() -> None:
    with pytest.raises(pmx.NumericalError, match=r"(?s)mean.*(NaN|nan|not finite).*row"):
        fit_network(lambda eta: torch.where(torch.arange(len(eta)) == 3, torch.full_like(eta, torch.nan), eta))


def test_a_network_whose_output_has_another_shape_is_not_broadcast() -> None:
    with pytest.raises(pmx.DataError, match=r"Broken returned shape \(24, 2\), expected \(24,\)"):
        fit_network(lambda eta: torch.stack([eta, eta], dim=1))
    with pytest.raises(pmx.DataError, match=r"shape \(24, 1\), expected \(24,\); end it with torch.nn.Flatten\(0\)"):
        fit_network(lambda eta: eta[:, None])


SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "link": (lambda: pmx.Binomial("loggit"), r"'loggit'.*logit.*probit.*cloglog"),
    "gaussian link": (lambda: pmx.Gaussian("inverse"), r"'inverse'.*identity.*log"),
    "sigma": (lambda: pmx.Gaussian(sigma=0.0), r"sigma.*0\.0"),
    "sigma below zero": (lambda: pmx.Gaussian(sigma=-1.0), r"sigma.*-1\.0"),
    "sd": (lambda: pmx.IID(sd=-2.0), r"sd.*-2\.0"),
    "correlation": (lambda: pmx.Unstructured(corr=1.5), r"1\.5"),
    "learning rate": (lambda: pmx.Training(lr=float("nan")), r"lr=nan.*finite"),
    "optimizer": (lambda: pmx.Training(optimizer="sgd"), r"'sgd'.*'adam', 'adamw'"),
    "epochs": (lambda: pmx.Training(epochs=0), r"epochs=0.*positive"),
    "nodes": (lambda: pmx.GaussHermite(0), r"nodes=0.*from 1"),
    "nodes as text": (lambda: pmx.GaussHermite("7"), r"nodes='7'.*integer"),  # type: ignore[arg-type]
    "coefficients": (lambda: pmx.Exact("drop"), r"'drop'.*'keep', 'profile', 'integrate'"),
    "criterion": (lambda: pmx.MaximumLikelihood(criterion="bayes"), r"'bayes'.*'ml', 'reml', 'map'"),
    "data set": (lambda: pmx.datasets.load("sleepstudi"), r"sleepstudi.*sleepstudy"),
}


@pytest.mark.parametrize(("make", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_outside_their_set(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert isinstance(caught.value, pmx.PyromixError)


def test_a_backend_that_cannot_take_the_model_says_which_can() -> None:
    model = pmx.model(
        "count ~ x + (1 | g) + (1 | c)", frame(c=np.random.default_rng(0).choice(list("abcdef"), N)), POISSON
    )
    with pytest.raises(pmx.UnsupportedError, match=r"GaussHermite\(\).*g, c.*Laplace\(\)") as caught:
        model.fit(pmx.MaximumLikelihood(pmx.GaussHermite(5)), progress=False)
    assert isinstance(caught.value, NotImplementedError)


def test_a_million_rows_are_refused_within_seconds() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {"y": rng.poisson(2.0, size=n).astype(float), "x": rng.normal(size=n), "g": rng.integers(0, 999, n)}
    )
    data.loc[n - 1, "y"] = -1.0
    start = time.perf_counter()
    with pytest.raises(pmx.DataError, match=f"-1 at row {n - 1} "):
        pmx.model("y ~ x + (1 | g)", data, POISSON)
    assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize("seed", ["a", 1.5, -1, True, None, 2**63])
def test_a_seed_that_is_no_integer(seed: Any) -> None:
    model = pmx.model("Reaction ~ Days + (1 | Subject)", pmx.datasets.load("sleepstudy"))
    with pytest.raises(pmx.ConfigError, match=r"fit\(seed=.*must be an integer"):
        model.fit(None, seed)
