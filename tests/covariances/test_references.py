"""Structures against fits by R: glmmTMB 1.1.5, nlme 3.1-162, stats::arima and lme4 1.1-31 under R 4.2.2, all by ML.

Where R has no residual beside the structure, the residual's SD is fixed at less than a hundredth of the structure's,
which changes the log-likelihood by less than the tolerance. Data: tests/reference/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx

DATA = Path(__file__).parents[1] / "reference" / "data"
NONE = 1e-3  # of a residual that R's model does not have


def fit(x: np.ndarray, y: np.ndarray, effects: list[tuple[pmx.RandomEffect, Any, Any]], sigma: float | None) -> pmx.Fit:
    """Maximum likelihood; an effect with the level of each row, and its design."""
    linear = pmx.LinearEffect("beta")
    data = {"x": torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)), "y": torch.from_numpy(y.astype(float))}
    rows = [
        (effect, torch.from_numpy(index.astype(np.int64)), None if design is None else torch.from_numpy(design))
        for effect, index, design in effects
    ]

    def program(data: Any) -> None:
        eta = linear(data["x"])
        for effect, index, design in rows:
            eta = eta + effect(index, design)
        pmx.observe("y", pmx.Gaussian(sigma=sigma), eta, data["y"])

    return pmx.fit(program, data, pmx.MaximumLikelihood(), progress=False)


def check(found: pmx.Fit, log_likelihood: float, **values: float | list[float]) -> None:
    """Names with two underscores for the dot of a site."""
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-3)
    for name, expected in values.items():
        site = name.replace("__", ".")
        got = found.estimate.point[site]
        assert np.asarray(got).reshape(-1) == pytest.approx(np.atleast_1d(expected), rel=1e-3, abs=1e-6), site


def pairs(series: pd.Series, times: pd.Series) -> tuple[tuple[Any, Any], ...]:
    return tuple(zip(series.tolist(), times.tolist(), strict=True))


@pytest.mark.parametrize("over", ["levels", "terms"])
def test_ar1_of_sleepstudy(over: str) -> None:
    """glmmTMB(Reaction ~ Days + ar1(fD + 0 | Subject), dispformula = ~0)"""
    df = pmx.datasets.load("sleepstudy")
    x = np.column_stack([np.ones(180), df["Days"]])
    if over == "levels":
        effect = pmx.RandomEffect("g", pmx.AR1(), pairs(df["Subject"], df["Days"]))
        effects = [(effect, np.arange(180), None)]
    else:
        codes, subjects = pd.factorize(df["Subject"])
        effect = pmx.RandomEffect("g", pmx.AR1(over="terms"), tuple(subjects), terms=[f"day {k}" for k in range(10)])
        effects = [(effect, codes, np.eye(10)[df["Days"].astype(int)])]
    found = fit(x, df["Reaction"].to_numpy(), effects, 30 * NONE)
    check(
        found,
        -874.056908588326,
        beta=[253.671696346253, 10.4667581525848],
        g__sd=48.4428573161989,
        g__rho=1857.79993395832 / 2346.7104249576,
    )


def orthodont() -> tuple[pd.DataFrame, np.ndarray]:
    df = pd.read_csv(DATA / "orthodont.csv")
    age, female = df["age"] - 8.0, (df["Sex"] == "Female").astype(float)
    return df, np.column_stack([np.ones(108), age, female, age * female])


def test_ar1_of_orthodont() -> None:
    """glmmTMB(distance ~ age8 * Sex + ar1(fage + 0 | Subject), dispformula = ~0); ages two years apart, one step"""
    df, x = orthodont()
    effect = pmx.RandomEffect("g", pmx.AR1(), pairs(df["Subject"], (df["age"] / 2).astype(int)))
    found = fit(x, df["distance"].to_numpy(), [(effect, np.arange(108), None)], NONE)
    check(
        found,
        -220.340502989646,
        beta=[22.7485692253215, 0.76957410063284, -1.55697408139006, -0.285848495239318],
        g__sd=2.21151056844704,
        g__rho=0.60711667586246,
    )


def test_compound_symmetry_of_orthodont() -> None:
    """lmer(distance ~ age8 * Sex + (1 | Subject)): a shared intercept plus a residual"""
    df, x = orthodont()
    codes, subjects = pd.factorize(df["Subject"])
    design = np.eye(4)[((df["age"] - 8) / 2).astype(int)]
    effect = pmx.RandomEffect("g", pmx.CompoundSymmetry(), tuple(subjects), terms=["8", "10", "12", "14"])
    found = fit(x, df["distance"].to_numpy(), [(effect, codes, design)], NONE)
    shared, residual = 1.74085089190126**2, 1.36915909888566**2
    check(
        found,
        -214.319529009755,
        beta=[22.615625, 0.784375, -1.4065340909091, -0.304829545454548],
        g__sd=(shared + residual) ** 0.5,
        g__corr=shared / (shared + residual),
    )


def test_ou_of_bodyweight() -> None:
    """lme(weight ~ Time * Diet, random = ~ Time | Rat, correlation = corExp(form = ~ Time | Rat))"""
    df = pd.read_csv(DATA / "bodyweight.csv")
    time, second, third = df["Time"].to_numpy(float), df["Diet"] == 2, df["Diet"] == 3
    x = np.column_stack([np.ones(176), time, second, third, time * second, time * third])
    codes, rats = pd.factorize(df["Rat"])
    slopes = pmx.RandomEffect("rat", pmx.Unstructured(), tuple(rats), terms=["Intercept", "Time"])
    serial = pmx.RandomEffect("g", pmx.OU(), pairs(df["Rat"], df["Time"]))
    effects = [(slopes, codes, np.column_stack([np.ones(176), time])), (serial, np.arange(176), None)]
    found = fit(x, df["weight"].to_numpy(), effects, 10 * NONE)
    check(
        found,
        -573.080438033035,
        rat__sd=[33.3022809251827, 0.216805563519119],
        g__sd=4.54860706261374,
        g__rate=1 / 3.64143283146989,
    )


def ovary() -> tuple[pd.DataFrame, np.ndarray, tuple[Any, ...]]:
    df = pd.read_csv(DATA / "ovary.csv")
    angle = 2 * np.pi * df["Time"]
    x = np.column_stack([np.ones(308), np.sin(angle), np.cos(angle)])
    return df, x, pairs(df["Mare"], df.groupby("Mare").cumcount())


def test_second_order_autoregression_of_ovary() -> None:
    """gls(follicles ~ s + c, correlation = corARMA(form = ~ 1 | Mare, p = 2, q = 0))"""
    df, x, levels = ovary()
    effect = pmx.RandomEffect("g", pmx.ARMA(2), levels)
    found = fit(x, df["follicles"].to_numpy(), [(effect, np.arange(308), None)], NONE)
    second = 0.202923866698467
    check(
        found,
        -776.420903595377,
        beta=[12.1140951158189, -2.8303677814374, -0.839586544997683],
        g__sd=4.50857800470598,
        g__pacf_ar=[0.590904283741587 / (1 - second), second],
    )


def test_arma_of_ovary() -> None:
    """lme(follicles ~ s + c, random = ~ 1 | Mare, correlation = corARMA(form = ~ 1 | Mare, p = 1, q = 1))"""
    df, x, levels = ovary()
    codes, mares = pd.factorize(df["Mare"])
    effects = [
        (pmx.RandomEffect("mare", pmx.IID(), tuple(mares)), codes, None),
        (pmx.RandomEffect("g", pmx.ARMA(1, 1), levels), np.arange(308), None),
    ]
    found = fit(x, df["follicles"].to_numpy(), effects, NONE)
    check(
        found,
        -773.507031554096,
        beta=[12.1239631337379, -2.90176155099658, -0.847684104327159],
        mare__sd=2.4039118860378,
        g__sd=3.79536340500326,
        g__pacf_ar=0.793162325796541,
        g__pacf_ma=-0.276550890017527,
    )


def test_ar1_with_a_nugget_of_ovary() -> None:
    """glmmTMB(follicles ~ s + c + (1 | Mare) + ar1(k + 0 | Mare)): with a residual of its own"""
    df, x, levels = ovary()
    codes, mares = pd.factorize(df["Mare"])
    effects = [
        (pmx.RandomEffect("mare", pmx.IID(), tuple(mares)), codes, None),
        (pmx.RandomEffect("g", pmx.AR1(), levels), np.arange(308), None),
    ]
    found = fit(x, df["follicles"].to_numpy(), effects, None)
    check(
        found,
        -773.507031554412,
        beta=[12.1239671404306, -2.90176059782771, -0.847683293000905],
        mare__sd=2.40390387112519,
        g__sd=3.38881283482728,
        g__rho=9.10871955140179 / 11.4840524294901,
        y__sigma=1.70902672070077,
    )


def test_moving_average_of_lake_huron() -> None:
    """arima(level, order = c(0, 0, 2), xreg = year - 1920, method = "ML")"""
    df = pd.read_csv(DATA / "lakehuron.csv")
    x = np.column_stack([np.ones(98), df["year"] - 1920])
    effect = pmx.RandomEffect("g", pmx.ARMA(0, 2), tuple(df["year"].tolist()))
    found = fit(x, df["level"].to_numpy(), [(effect, np.arange(98), None)], NONE)
    first, second = 0.955988556182272, 0.448250667726749
    check(
        found,
        -104.875755829584,
        beta=[579.092840886182, -0.022686528812736],
        g__sd=(0.492642172241248 * (1 + first**2 + second**2)) ** 0.5,
        g__pacf_ma=[first / (1 + second), second],
    )


def test_autoregression_of_lake_huron() -> None:
    """arima(level, order = c(1, 0, 0), xreg = year - 1920, method = "ML")"""
    df = pd.read_csv(DATA / "lakehuron.csv")
    x = np.column_stack([np.ones(98), df["year"] - 1920])
    effect = pmx.RandomEffect("g", pmx.AR1(), tuple(df["year"].tolist()))
    found = fit(x, df["level"].to_numpy(), [(effect, np.arange(98), None)], NONE)
    rho = 0.783475291013921
    check(
        found,
        -105.225073246626,
        beta=[579.155604253793, -0.02038445184647],
        g__rho=rho,
        g__sd=(0.496517951365902 / (1 - rho**2)) ** 0.5,
    )


def test_weeks_shared_by_all_pigs() -> None:
    """glmmTMB(Weight ~ Time + (Time | Pig) + ar1(week + 0 | one)): an AR1 effect crossed with lines.

    Its standard errors are of the joint information, a tenth larger than those of generalised least squares here.
    """
    df = pd.read_csv(DATA / "dietox.csv.gz", dtype={"Pig": str})
    df["week"] = df["Time"]
    found = pmx.model("Weight ~ Time + (Time | Pig) + ar1(1 | week)", df).fit(progress=False)
    beta, pig = [17.4358342525676, 6.78345270952234], [4.48744127643383, 0.65288786410797]
    check(found, -2100.67051402792, beta=beta, Pig__sd=pig, week__sd=1.5680520, week__rho=0.7979691)


def test_lip_cancer_in_scotland() -> None:
    """glmmTMB(cases ~ aff + offset(log(expected)) + exp(pos + 0 | grp), family = poisson), distances in 100 km."""
    df = pd.read_csv(DATA / "scotland_lip.csv")
    df = df.assign(aff=10 * df["AFF"], east=df["x"] / 100, north=df["y"] / 100)
    process = pmx.GP(gpytorch.kernels.MaternKernel(nu=0.5), nugget=1e-8)
    model = pmx.model(
        "cases ~ aff + offset(log(expected)) + (1 | east:north)", df, pmx.Poisson(), covariances={"east:north": process}
    )
    values = {"east:north__sd": 0.595247248, "east:north__lengthscale": 0.863185572}
    found = model.fit(progress=False)
    check(found, -160.768692550604, beta=[0.392111298, 0.304275301], **values)
    assert found.fixed_effects()["se"].to_numpy() == pytest.approx([0.307626389, 0.127691460], rel=1e-3)
