"""Maximum likelihood: what must not change a fit, what a fit must notice, and what the backend refuses."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import pyromix as pmx

QUIET: dict[str, Any] = {"progress": False}
FAMILIES = {"gaussian": ("y", pmx.Gaussian()), "poisson": ("count", pmx.Poisson()), "binomial": ("hit", pmx.Binomial())}
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # shrinking a failing fit takes minutes
each_family = pytest.mark.parametrize(("response", "family"), FAMILIES.values(), ids=FAMILIES)


def frame(seed: int, groups: int = 9, per: int = 8) -> pd.DataFrame:
    """Responses of three kinds with intercepts and slopes by group."""
    rng = np.random.default_rng(seed)
    n = groups * per
    x, e = rng.normal(size=n), rng.uniform(1, 3, size=n)
    spread = np.linspace(-1, 1, groups)
    eta = 0.4 + 0.5 * x + np.repeat(rng.permutation(spread), per) + np.repeat(rng.permutation(spread), per) * x
    return pd.DataFrame(
        {
            "y": eta + 0.7 * rng.normal(size=n),
            "count": rng.poisson(np.exp(eta)),
            "hit": (rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int),
            "x": x,
            "e": e,
            "g": np.repeat([f"g{k}" for k in range(groups)], per),
            "h": np.tile(["a", "b"], n // 2),
        }
    )


def fit(formula: str, data: pd.DataFrame, family: Any = None, backend: Any = None, **arguments: Any) -> pmx.Fit:
    """A fit of small simulated data, where singular fits are no news."""
    with warnings.catch_warnings():
        for category in (pmx.SingularFitWarning, pmx.ApproximationWarning, pmx.ScaleWarning, pmx.DataWarning):
            warnings.simplefilter("ignore", category)
        return pmx.model(formula, data, family, **arguments).fit(backend, **QUIET)


def same(one: pmx.Fit, other: pmx.Fit, shift: float = 0.0) -> None:
    """Log-likelihoods equal to 1e-8 relative."""
    assert_allclose(other.log_likelihood, one.log_likelihood + shift, rtol=1e-8)


# -- what must not change a fit ----------------------------------------------------------------------------------------
@each_family
@few
@given(seed=SEEDS)
def test_order_of_rows_and_names_of_groups(response: str, family: Any, seed: int) -> None:
    df = frame(seed, per=30)
    base = fit(f"{response} ~ x + (x | g)", df, family)
    shuffled = df.sample(frac=1.0, random_state=seed)
    renamed = {name: f"z{(7 * k) % 9}" for k, name in enumerate(df["g"].unique())}
    moved = fit(f"{response} ~ x + (x | g)", shuffled.assign(g=shuffled["g"].map(renamed)), family)
    same(base, moved)
    modes, others = base.random_effects("g"), moved.random_effects("g")
    assert_allclose(others.loc[[renamed[name] for name in modes.index]], modes, atol=1e-4)
    assert_allclose(moved.predict(), base.predict()[shuffled.index], rtol=1e-4)


@each_family
@few
@given(seed=SEEDS, scale=st.sampled_from([-20.0, 0.03, 7.0]), shift=st.sampled_from([-2.0, 0.0, 1.5]))
def test_units_of_a_predictor(response: str, family: Any, seed: int, scale: float, shift: float) -> None:
    df = frame(seed, per=30)
    inner, outer = ("1", "1") if response == "hit" else ("x", "z")  # 0/1 data often put a correlation on its boundary
    base = fit(f"{response} ~ x + ({inner} | g)", df, family)
    moved = df.assign(z=scale * (shift + df["x"]))
    other = fit(f"{response} ~ z + ({outer} | g)", moved, family)
    same(base, other)
    assert_allclose(other.fixed_effects()["estimate"]["z"] * scale, base.fixed_effects()["estimate"]["x"], rtol=1e-3)


@few
@given(seed=SEEDS, scale=st.sampled_from([1e-4, 3.0, 1e5]), shift=st.sampled_from([0.0, 10.0]))
def test_units_of_the_response(seed: int, scale: float, shift: float) -> None:
    df = frame(seed)
    base = fit("y ~ x + (x | g)", df)
    other = fit("y ~ x + (x | g)", df.assign(y=shift + scale * df["y"]))
    same(base, other, -len(df) * np.log(scale))


@each_family
@few
@given(seed=SEEDS)
def test_an_unused_level(response: str, family: Any, seed: int) -> None:
    df = frame(seed)
    levels = ["ghost", *sorted(df["g"].unique())]
    with_ghost = df.assign(g=pd.Categorical(df["g"], categories=levels))
    same(fit(f"{response} ~ x + (1 | g)", df, family), fit(f"{response} ~ x + (1 | g)", with_ghost, family))


@few
@given(seed=SEEDS)
def test_an_offset_is_an_exposure(seed: int) -> None:
    """Counts over an exposure e: an offset log(e), or e copies of the intercept's exponential."""
    df = frame(seed).assign(e=2.0)
    with_offset = fit("count ~ x + offset(log(e)) + (1 | g)", df, pmx.Poisson())
    without = fit("count ~ x + (1 | g)", df, pmx.Poisson())
    same(without, with_offset)
    estimates = [found.fixed_effects()["estimate"]["Intercept"] for found in (without, with_offset)]
    assert_allclose(estimates[0] - estimates[1], np.log(2.0), rtol=1e-5)


@each_family
@few
@given(seed=SEEDS)
def test_nested_groups_are_interactions(response: str, family: Any, seed: int) -> None:
    df = frame(seed)
    nested = fit(f"{response} ~ x + (1 | g / h)", df, family)
    spelt = fit(f"{response} ~ x + (1 | g) + (1 | g:h)", df, family)
    pasted = fit(f"{response} ~ x + (1 | g) + (1 | gh)", df.assign(gh=df["g"] + "/" + df["h"]), family)
    same(nested, spelt)
    same(nested, pasted)


@few
@given(seed=SEEDS)
def test_binomial_counts_are_bernoulli_rows(seed: int) -> None:
    """Trials that share a predictor: the sum's density has a binomial coefficient more."""
    from scipy.special import gammaln

    df = frame(seed).assign(x=lambda d: d["x"].round())
    counts = df.groupby(["g", "x"], as_index=False).agg(s=("hit", "sum"), m=("hit", "size"))
    counts["f"] = counts["m"] - counts["s"]
    coefficient = (gammaln(counts["m"] + 1) - gammaln(counts["s"] + 1) - gammaln(counts["f"] + 1)).sum()
    rows = fit("hit ~ x + (1 | g)", df, pmx.Binomial())
    same(rows, fit("cbind(s, f) ~ x + (1 | g)", counts, pmx.Binomial()), coefficient)


@pytest.mark.parametrize("marginal", [pmx.Laplace(), pmx.GaussHermite(5)])
def test_approximations_are_exact_for_gaussian_responses(marginal: Any) -> None:
    df = frame(1)
    exact = fit("y ~ x + (x | g)", df)
    other = fit("y ~ x + (x | g)", df, backend=pmx.MaximumLikelihood(marginal))
    same(exact, other)
    assert_allclose(other.fixed_effects()["estimate"], exact.fixed_effects()["estimate"], rtol=1e-5)


def test_a_column_far_from_zero_is_its_centred_self() -> None:
    """Time stamps as they are, and as differences from their mean."""
    df = frame(2).assign(year=lambda d: 3e7 + 3.0 * d["x"].round(2))
    df = df.assign(centred=df["year"] - 3e7)
    for family, response in ((None, "y"), (pmx.Poisson(), "count"), (pmx.Binomial(), "hit")):
        far = fit(f"{response} ~ year + (1 | g)", df, family)
        near = fit(f"{response} ~ centred + (1 | g)", df, family)
        assert_allclose(far.log_likelihood, near.log_likelihood, rtol=1e-8)
        slope = far.fixed_effects().loc["year", ["estimate", "se"]]
        expected = near.fixed_effects().loc["centred", ["estimate", "se"]]
        assert_allclose(slope.to_numpy(), expected.to_numpy(), rtol=1e-4)


# -- what a fit must notice --------------------------------------------------------------------------------------------
def test_a_zero_variance_is_flagged_and_costs_no_other_standard_error() -> None:
    rng = np.random.default_rng(0)
    df = frame(3).assign(y=lambda d: 1 + 0.5 * d["x"] + rng.permutation(np.tile([-1.0, 1.0], len(d) // 2)))
    df["y"] -= df.groupby("g")["y"].transform("mean")  # less variation between groups than chance gives
    with pytest.warns(pmx.SingularFitWarning, match=r"g\.sd = .*estimated at zero; the term can be dropped"):
        found = pmx.model("y ~ x + (1 | g)", df).fit(**QUIET)
    assert found.status is pmx.Status.SINGULAR and found.status.ok
    assert found.health.ok
    assert [record.code for record in found.health] == ["singular"]
    assert np.isfinite(found.log_likelihood)
    assert np.isfinite(found.fixed_effects().to_numpy()).all()
    assert found.variance_components()["sd"].iloc[0] < 1e-10
    plain = pmx.model("y ~ x", df).fit(**QUIET)
    assert_allclose(found.log_likelihood, plain.log_likelihood, rtol=1e-10)
    assert_allclose(found.fixed_effects()["se"], plain.fixed_effects()["se"], rtol=1e-6)
    assert np.isfinite(found.predict()).all()


def test_perfect_correlation_is_flagged() -> None:
    rng = np.random.default_rng(400)
    df = frame(4)
    u = np.repeat(np.linspace(-2, 2, 9), 8)
    df["y"] = 1 + df["x"] + u * (1 + df["x"]) + 0.5 * rng.normal(size=len(df))
    with pytest.warns(pmx.SingularFitWarning, match=r"g\.corr = (1\.0|0\.9999).*correlation matrix is singular"):
        found = pmx.model("y ~ x + (x | g)", df).fit(**QUIET)
    assert found.status is pmx.Status.SINGULAR
    assert np.isfinite(found.fixed_effects().to_numpy()).all()


@pytest.mark.parametrize("formula", ["y ~ x", "y ~ x + (1 | g)"])
def test_a_response_without_a_residual(formula: str) -> None:
    df = frame(5).assign(y=lambda d: 2.0 + 3.0 * d["x"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pmx.model(formula, df).fit(**QUIET)
    told = [str(w.message) for w in caught if issubclass(w.category, pmx.ConvergenceWarning)]
    assert len(told) == 1 and "y.sigma" in told[0] and "lower bound" in told[0]
    assert_allclose(found.fixed_effects()["estimate"], [2.0, 3.0], rtol=1e-6)
    assert np.isfinite(found.predict()).all()


def test_separated_classes_are_named() -> None:
    df = frame(6).assign(hit=lambda d: (d["x"] > 0).astype(int))
    with pytest.warns(pmx.SeparationWarning, match="x = .*separates the classes.*criterion='map'"):
        found = fit("hit ~ x + (1 | g)", df, pmx.Binomial())
    assert np.isfinite(found.fixed_effects()["estimate"]).all()


def test_a_level_that_is_separated_is_named() -> None:
    df = frame(7)
    df["level"] = np.tile(["p", "q", "r", "s"], len(df) // 4)
    df.loc[df["level"] == "r", "hit"] = 1
    with pytest.warns(pmx.SeparationWarning, match=r"level\[T\.r\]"):
        fit("hit ~ level + (1 | g)", df, pmx.Binomial())


@each_family
def test_groups_whose_response_is_all_zero(response: str, family: Any) -> None:
    df = frame(8)
    df.loc[df["g"] == "g3", ["count", "hit"]] = 0
    found = fit(f"{response} ~ x + (1 | g)", df, family)
    assert np.isfinite(found.random_effects("g").to_numpy()).all()
    assert found.status.ok


@pytest.mark.parametrize("shift", [7.0, -100.0])
def test_a_slope_whose_predictor_is_far_from_zero(shift: float) -> None:
    df = frame(0)
    same(fit("y ~ x + (x | g)", df), fit("y ~ z + (z | g)", df.assign(z=df["x"] + shift)))


def test_an_origin_far_away_is_no_boundary() -> None:
    df = frame(0)
    assert fit("y ~ z + (z | g)", df.assign(z=df["x"] + 100)).status is pmx.Status.CONVERGED


@pytest.mark.parametrize("seed", [0, 1])
def test_perfect_correlation_in_binary_data_is_a_singular_fit(seed: int) -> None:
    found = fit("hit ~ x + (x | g)", frame(seed), pmx.Binomial())
    assert found.status is pmx.Status.SINGULAR


HUGE = [1e6, 1e12]


@pytest.mark.parametrize("size", HUGE)
def test_huge_counts(size: float) -> None:
    rng = np.random.default_rng(900)
    df = frame(9)
    df["count"] = np.floor(size * np.exp(0.3 * df["x"] + 0.1 * rng.normal(size=len(df))))
    found = fit("count ~ x + (1 | row)", df.assign(row=range(len(df))), pmx.Poisson())
    assert np.isfinite(found.log_likelihood)
    assert_allclose(found.fixed_effects()["estimate"]["x"], 0.3, atol=0.05)


def test_the_search_can_be_cut_short_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyromix.backends.maximum_likelihood.polish", lambda objective, optimum: optimum)
    df = frame(10)
    with pytest.warns(pmx.ConvergenceWarning, match="max_evaluations"):
        found = fit("y ~ x + (x | g)", df, backend=pmx.MaximumLikelihood(max_evaluations=1))
    assert found.status is pmx.Status.ITERATION_LIMIT
    assert np.isnan(found.log_likelihood) and np.isnan(found.fixed_effects()["se"]).all()
    assert np.isfinite(found.force().log_likelihood)
    assert not found.health.ok


# -- what the backend refuses ------------------------------------------------------------------------------------------
REFUSED = {
    "criterion": ({"criterion": "aic"}, r"criterion='aic'.*'ml', 'reml', 'map'"),
    "marginal as text": ({"marginal": "laplace"}, r"marginal='laplace'.*instance of Exact, Laplace or GaussHermite"),
    "marginal as class": ({"marginal": pmx.Laplace}, r"marginal=.*Laplace.*instance"),
    "evaluations": ({"max_evaluations": 0}, r"max_evaluations=0.*positive integer"),
    "tolerance": ({"tolerance": 0.0}, r"tolerance=0.0.*between 0 and 1"),
    "tolerance nan": ({"tolerance": float("nan")}, r"tolerance=nan.*between 0 and 1"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_outside_their_set(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        pmx.MaximumLikelihood(**arguments)


def test_exact_is_for_gaussian_responses() -> None:
    with pytest.raises(pmx.UnsupportedError, match=r"Exact\(\).*'count' is Poisson.*Laplace\(\)"):
        fit("count ~ x + (1 | g)", frame(0), pmx.Poisson(), pmx.MaximumLikelihood(pmx.Exact()))


@pytest.mark.parametrize("formula", ["count ~ x + (1 | g) + (1 | row)", "count ~ x + (1 | g / h)"])
def test_quadrature_is_for_one_grouping_factor(formula: str) -> None:
    df = frame(0).assign(row=lambda d: range(len(d)))
    names = "g, row" if "row" in formula else "g, g:h"
    with pytest.raises(pmx.UnsupportedError, match=rf"GaussHermite\(\).*one grouping factor; {names}.*Laplace\(\)"):
        fit(formula, df, pmx.Poisson(), pmx.MaximumLikelihood(pmx.GaussHermite(5)))


@pytest.mark.filterwarnings("ignore::pyromix.errors.SingularFitWarning")
def test_an_effect_of_no_variance_leaves_the_other_standard_errors() -> None:
    """Its correlation then means nothing; coefficients have the errors of the model without the effect."""
    rng = np.random.default_rng(7)
    df = pd.DataFrame({"t": np.tile(np.arange(8), 12), "x": rng.normal(size=96)})
    df["y"] = (rng.random(96) < 1 / (1 + np.exp(-0.3 - 0.5 * df["x"]))).astype(int)
    with_effect = pmx.model("y ~ x + ar1(1 | t)", df, pmx.Binomial()).fit(progress=False)
    without = pmx.model("y ~ x", df, pmx.Binomial()).fit(progress=False)
    assert with_effect.status.name == "SINGULAR"
    found, expected = with_effect.fixed_effects()["se"], without.fixed_effects()["se"]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert float(with_effect.draws()["beta"].std(0)[1]) > 0.5 * expected.iloc[1]
