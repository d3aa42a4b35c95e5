"""Fits with known relationship matrices against fits made by other code: R's eigen and BFGS with rrBLUP and lme4 as
witnesses (wheat), dense NumPy with Newton steps (mice, milk); see README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pyromix as pmx
from pyromix.covariances import vanraden

HERE = Path(__file__).parent


def reference(name: str) -> dict[str, Any]:
    return json.loads((HERE / "kinship" / f"{name}.json").read_text())


def table(name: str) -> pd.DataFrame:
    text = {column: str for column in ("line", "id", "herd", "cage", "label", "sire", "dam", "markers")}
    return pd.read_csv(HERE / "data" / f"{name}.csv.xz", dtype=text)


def genotypes(strings: pd.Series) -> np.ndarray:
    return np.stack([np.frombuffer(text.encode(), dtype=np.uint8) - ord("0") for text in strings]).astype(float)


@cache
def wheat() -> tuple[pd.DataFrame, pmx.Kinship]:
    """K as the reference has it: ZZ' / (2 sum p (1 - p)) with p the mean of markers of 0 and 1."""
    data = table("wheat")
    m = genotypes(data["markers"])
    p = m.mean(0)
    k = (m - p) @ (m - p).T / (2 * (p * (1 - p)).sum())
    check = reference("kin_wheat_env1_reml")["K_check"]
    assert [k.trace(), k[0, 0], k[0, 1], (k**2).sum()] == pytest.approx(
        [check[name] for name in ("trace", "K11", "K12", "sumsq")], rel=1e-10
    )
    return data.drop(columns="markers"), pmx.Kinship((k, data["line"]))


@cache
def mice() -> tuple[pd.DataFrame, pmx.Kinship]:
    data = table("mice")
    k, ids = vanraden((genotypes(data["markers"]), data["id"]))
    check = reference("kin_mice_K_reml")["K_check"]
    assert [k.trace(), k[0, 0], k[0, 1]] == pytest.approx([check[name] for name in ("trace", "K11", "K12")], rel=1e-10)
    male = (data["gender"] == "M").astype(float)
    return data.assign(male=male).drop(columns="markers"), pmx.Kinship((k, ids))


@cache
def milk() -> tuple[pd.DataFrame, pmx.Kinship]:
    data = table("milk")
    return data.assign(y=np.log(data["milk"]), ldim=np.log(data["dim"]), cow=data["id"]), pmx.Kinship(
        pedigree=table("cows")
    )


def fitted(formula: str, data: pd.DataFrame, kinship: pmx.Kinship, group: str, criterion: str) -> pmx.Fit:
    model = pmx.model(formula, data, covariances={group: kinship})
    return model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)


def unit_variance(fit: pmx.Fit, group: str) -> float:
    """Where K has a one on its diagonal."""
    return float(fit.estimate.point[f"{group}.sd"]) ** 2


def check(fit: pmx.Fit, expected: dict[str, Any], variances: dict[str, float], scale: float) -> None:
    """Likelihood within 1e-3, parameters within 1e-3 of their size (coefficients: of a standard error or of it)."""
    assert fit.log_likelihood == pytest.approx(expected["loglik"], abs=1e-3)
    se = np.array(expected["fixed"]["se"])
    found = fit.fixed_effects()
    np.testing.assert_allclose(found["estimate"], expected["fixed"]["estimate"], rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(found["se"], se, rtol=1e-3)
    for group, value in variances.items():
        residual = fit.variance_components().set_index("group")["variance"].get(group)
        got = residual if group == "Residual" else unit_variance(fit, group)
        assert got == pytest.approx(value, rel=1e-3), group


@pytest.mark.parametrize("criterion", ["reml", "ml"])
@pytest.mark.parametrize("trait", ["env1", "env2"])
def test_wheat(trait: str, criterion: str) -> None:
    data, kinship = wheat()
    expected = reference(f"kin_wheat_{trait}_{criterion}")
    fit = fitted(f"{trait} ~ 1 + (1 | line)", data, kinship, "line", criterion)
    check(fit, expected, {"line": expected["var_u"], "Residual": expected["residual_var"]}, data[trait].std())
    effects = fit.random_effects("line").loc[data["line"], "Intercept"].to_numpy()
    np.testing.assert_allclose(effects[:10], expected["u_first10"], atol=1e-4)  # the response has an SD of one
    assert (effects**2).sum() == pytest.approx(expected["u_sumsq"], rel=1e-4)
    share = fit.heritability("line", scaled=False)["estimate"][0]
    assert share == pytest.approx(expected["h2_genomic"], rel=1e-4)
    # rrBLUP maximises on a grid-started line search: five digits
    assert unit_variance(fit, "line") == pytest.approx(expected["checks"]["rrBLUP"]["Vu"], rel=1e-4)


def test_lines_that_were_left_out_are_predicted() -> None:
    data, kinship = wheat()
    expected = reference("krig_wheat_env1_fold1")
    held = (data["set"] == 1).to_numpy()
    assert [k + 1 for k in np.flatnonzero(held)] == expected["test_rows"]
    fit = fitted("env1 ~ 1 + (1 | line)", data[~held], kinship, "line", "reml")
    check(fit, {**expected, "fixed": {**expected["fixed"], "se": [fit.fixed_effects()["se"].iloc[0]]}}, {}, 1.0)
    assert unit_variance(fit, "line") == pytest.approx(expected["var_u"], rel=1e-3)
    predicted = fit.predict(data[held], new_groups="conditional")
    np.testing.assert_allclose(predicted, expected["pred_mean"], atol=1e-4)
    assert np.corrcoef(predicted, data["env1"][held])[0, 1] == pytest.approx(expected["cor_pred_obs"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["reml", "ml"])
@pytest.mark.parametrize("residual", ["Rdiag", "Runs"])
def test_two_traits_of_wheat(residual: str, criterion: str) -> None:
    """Genetic covariance of two environments, K (x) G; that of the residuals is diagonal, or unstructured.

    The two plots of a line sharing a variance, beside one of their own each, is any matrix with a positive covariance.
    """
    data, kinship = wheat()
    expected = reference(f"kron_wheat_env12_{residual}_{criterion}")
    long = data.melt(["line"], ["env1", "env2"], "env", "y").assign(plots=lambda d: d["line"])
    formula = "y ~ 0 + env + (0 + env | line)" + (" + (1 | plots)" if residual == "Runs" else "")
    structure = pmx.Kinship(kinship.K, terms=pmx.Unstructured())
    model = pmx.model(formula, long, pmx.Gaussian(variance=pmx.VarIdent("env")), covariances={"line": structure})
    fit = model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)
    assert fit.log_likelihood == pytest.approx(expected["loglik"], abs=1e-3)
    root = fit.estimate.point["line.sd"][:, None] * fit.estimate.point["line.corr_cholesky"]
    np.testing.assert_allclose((root @ root.T).numpy(), expected["G"], rtol=1e-3)
    ratio = float(fit.estimate.point["y.ratio"][0])
    own = float(fit.estimate.point["y.sigma"]) ** 2 * np.array([1.0, ratio**2])
    shared = float(fit.estimate.point["plots.sd"]) ** 2 if residual == "Runs" else 0.0
    np.testing.assert_allclose(np.diag(own) + shared, expected["R"], rtol=1e-3)
    effects = fit.random_effects("line").loc[data["line"][:6]]
    np.testing.assert_allclose(effects, expected["U_first6"], atol=1e-4)


@pytest.mark.parametrize("criterion", ["reml", "ml"])
def test_mice(criterion: str) -> None:
    data, kinship = mice()
    expected = reference(f"kin_mice_K_{criterion}")
    fit = fitted("bmi ~ male + (1 | id)", data, kinship, "id", criterion)
    variances = {"id": expected["variances"]["K"], "Residual": expected["variances"]["residual"]}
    check(fit, expected, variances, data["bmi"].std())
    effects = fit.random_effects("id").loc[data["id"][:10], "Intercept"]
    np.testing.assert_allclose(effects, expected["row_effects_first10"]["K"], atol=1e-4 * data["bmi"].std())


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["reml", "ml"])
def test_mice_in_cages(criterion: str) -> None:
    data, kinship = mice()
    expected = reference(f"kin_mice_K_cage_{criterion}")
    fit = fitted("bmi ~ male + (1 | id) + (1 | cage)", data, kinship, "id", criterion)
    parts = expected["variances"]
    check(fit, expected, {"id": parts["K"], "cage": parts["cage"], "Residual": parts["residual"]}, data["bmi"].std())
    for name, effect, column in (("K", "id", "id"), ("cage", "cage", "cage")):
        found = fit.random_effects(effect).loc[data[column][:10], "Intercept"]
        np.testing.assert_allclose(found, expected["row_effects_first10"][name], atol=1e-4 * data["bmi"].std())


@pytest.mark.parametrize("name", ["reml", "ml", pytest.param("pe_reml", marks=pytest.mark.slow)])
def test_milk_of_related_cows(name: str) -> None:
    data, kinship = milk()
    expected = reference(f"kin_pedigree_milk_{name}")
    formula = "y ~ lact + ldim + (1 | id) + (1 | herd)" + (" + (1 | cow)" if name == "pe_reml" else "")
    fit = fitted(formula, data, kinship, "id", name.removeprefix("pe_"))
    parts = expected["variances"]
    variances = {"id": parts["animal_A"], "herd": parts["herd"], "Residual": parts["residual"]}
    check(fit, expected, variances | ({"cow": parts["perm_env"]} if "perm_env" in parts else {}), data["y"].std())
    for effect, column in (("animal_A", "id"), ("herd", "herd")):
        found = fit.random_effects(column).loc[data[column][:10], "Intercept"]
        np.testing.assert_allclose(found, expected["row_effects_first10"][effect], atol=1e-4 * data["y"].std())
