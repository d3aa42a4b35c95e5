"""Processes over the sites of meuse against dense R code: `gp_meuse_*` and `krig_meuse_*`, see README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gpytorch.kernels import MaternKernel

import pyromix as pmx

HERE = Path(__file__).parent
KERNELS = {"exp": 0.5, "matern32": 1.5}


def meuse() -> pd.DataFrame:
    """log zinc, the root of the distance to the river, a label for every site; coordinates in kilometres."""
    d = pmx.datasets.load("meuse")
    return pd.DataFrame(
        {"lz": np.log(d["zinc"]), "sd": np.sqrt(d["dist"]), "site": [f"s{k:03d}" for k in range(155)]}
    ).assign(x=d["x"] / 1000, y=d["y"] / 1000)


def reference(name: str) -> dict[str, Any]:
    return json.loads((HERE / "spatial" / f"{name}.json").read_text())


def fitted(d: pd.DataFrame, places: pd.DataFrame, kernel: str, **how: Any) -> pmx.Fit:
    sites = places.set_index("site")[["x", "y"]]
    process = pmx.GP(MaternKernel(nu=KERNELS[kernel]), nugget=0.0, sites=sites)
    model = pmx.model("lz ~ sd + (1 | site)", d, covariances={"site": process})
    return model.fit(pmx.MaximumLikelihood(**how), progress=False)


@pytest.mark.parametrize("criterion", ["ml", "reml"])
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_fit(kernel: str, criterion: str) -> None:
    d, expected = meuse(), reference(f"gp_meuse_{kernel}_{criterion}")
    found = fitted(d, d, kernel, criterion=criterion)
    assert found.log_likelihood == pytest.approx(expected["loglik"], abs=1e-4)
    fixed = found.fixed_effects()
    np.testing.assert_allclose(fixed["estimate"], expected["fixed"]["estimate"], rtol=1e-4)
    np.testing.assert_allclose(fixed["se"], expected["fixed"]["se"], rtol=1e-2)  # theirs at known variances
    point = {name: float(np.ravel(value)[0]) for name, value in found.estimate.point.items()}
    assert point["site.sd"] ** 2 == pytest.approx(expected["gp_var"], rel=1e-3)
    assert point["site.lengthscale"] == pytest.approx(expected["range_km"], rel=1e-3)
    assert point["lz.sigma"] ** 2 == pytest.approx(expected["nugget_var"], rel=1e-3)
    modes = found.random_effects("site").iloc[:10, 0]
    np.testing.assert_allclose(modes, expected["gp_mode_first10"], atol=1e-4)


def split() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """All rows, four fifths of them, and every fifth."""
    d = meuse()
    held = np.arange(1, 156) % 5 == 0
    return d, d[~held], d[held]


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_kriging(kernel: str) -> None:
    d, known, held = split()
    expected = reference(f"krig_meuse_{kernel}_ml")
    found = fitted(known, d, kernel)
    assert found.log_likelihood == pytest.approx(expected["loglik"], abs=1e-4)
    wanted, sd = np.array(expected["pred_mean"]), np.sqrt(expected["pred_var_latent_plugin"])
    error = found.predict(held, new_groups="conditional") - wanted
    assert np.abs(error / sd).max() < 1e-3  # the likelihood's maximum to that many digits
    at_theirs = _at_their_values(known, d, kernel, expected).predict(held, new_groups="conditional") - wanted
    assert np.abs(at_theirs / sd).max() < 1e-4


def _at_their_values(
    known: pd.DataFrame, places: pd.DataFrame, kernel: str, at: dict[str, Any], approximation: Any = None
) -> pmx.Fit:
    """Variances held at theirs, so that the algebra alone is compared."""
    sites = places.set_index("site")[["x", "y"]]
    priors = {"lengthscale": at["range_km"]}
    process = pmx.GP(
        MaternKernel(nu=KERNELS[kernel]),
        sd=at["gp_var"] ** 0.5,
        nugget=0.0,
        sites=sites,
        priors=priors,
        approximation=approximation,
    )
    family = pmx.Gaussian(sigma=at["nugget_var"] ** 0.5)
    return pmx.model("lz ~ sd + (1 | site)", known, family, covariances={"site": process}).fit(progress=False)


@pytest.mark.parametrize("approximation", [pmx.HilbertSpace(26, 1.3), pmx.InducingPoints(124)])
def test_kriging_by_approximations(approximation: Any) -> None:
    d, known, held = split()
    expected = reference("krig_meuse_matern32_ml")
    found = _at_their_values(known, d, "matern32", expected, approximation)
    assert found.log_likelihood == pytest.approx(expected["loglik"], abs=2.0)
    sd = np.sqrt(expected["pred_var_latent_plugin"])
    error = (found.predict(held, new_groups="conditional") - expected["pred_mean"]) / sd
    assert np.abs(error).max() < 1.0 and np.sqrt((error**2).mean()) < 0.3
