"""What rounding costs where the residual is tiny: the general way knows, the rotation does not lose it."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.rotated import BoundRotated
from pyromix.running import run

LEVELS, REPEATS = 30, 3


def relationship() -> np.ndarray:
    z = np.random.default_rng(1).normal(size=(LEVELS, 90))
    return z @ z.T / 90 + 0.1 * np.eye(LEVELS)


def rows(sigma: float) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    u = np.linalg.cholesky(relationship()) @ rng.normal(size=LEVELS)
    at = np.tile(np.arange(LEVELS), REPEATS)
    y = 2.0 + u[at] + sigma * rng.normal(size=len(at))
    return pd.DataFrame({"id": at, "herd": [f"h{k % 7}" for k in range(len(at))], "y": y})


def model(sigma: float, formula: str) -> pmx.model.Model:
    structure = pmx.Kinship((relationship(), range(LEVELS)))
    return pmx.model(formula, rows(sigma), pmx.Gaussian(sigma=sigma), covariances={"id": structure})


@pytest.mark.parametrize("sigma", [1e-3, 1e-5, 1e-6, 1e-7])
def test_the_estimate_of_rounding_is_of_the_size_of_the_error(sigma: float) -> None:
    """The rotation is right to eleven digits here (test_rotated.py, against 60 digits), so it tells the error."""
    chosen = model(sigma, "y ~ 1 + (1 | id)")
    bound = pmx.Exact("integrate").prepare(chosen.program, (chosen.design,))
    assert isinstance(bound, BoundRotated)
    general = bound.general()
    assert isinstance(general, BoundCorrelated)
    record = run(chosen.program, (chosen.design,), {"id.sd": torch.ones(1, dtype=torch.float64)})
    truth = float(bound.log_marginal(record))
    error = abs(float(general._by_effects(record)) - truth)
    estimate = 0.5 * general.point(record).factor.rounding
    assert error <= 30 * estimate + 1e-13 * abs(truth)
    assert estimate <= 1e-2 * (1e-6 / sigma) ** 2


@pytest.mark.parametrize(("sigma", "lost"), [(1e-3, False), (1e-7, True)])
def test_a_fit_says_that_rounding_matters(sigma: float, lost: bool) -> None:
    chosen = model(sigma, "y ~ 1 + (1 | id) + (1 | herd)")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = chosen.fit(pmx.MaximumLikelihood(criterion="reml"), progress=False)
    assert any(r.code == "precision" and r.parameter == "y.sigma" for r in fit.health) is lost
    assert any("precision: y.sigma" in str(w.message) for w in caught) is lost


def test_the_rotation_has_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.SingularFitWarning)
        fit = model(1e-6, "y ~ 1 + (1 | id)").fit(pmx.MaximumLikelihood(criterion="reml"), progress=False)
    assert not any(record.code == "precision" for record in fit.health)
    assert float(fit.estimate.point["id.sd"]) == pytest.approx(1.0, abs=0.5)
