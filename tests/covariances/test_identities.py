"""Structures that are one another in disguise, by the covariances they make and by the fits they give."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.covariances import Coords
from pyromix.marginal.plan import make_plan
from pyromix.running import run

RNG = np.random.default_rng(21)
TIMES = tuple(range(12))
ONE = Coords(TIMES, ("Intercept",))


def number(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def dense(structure: Any, theta: dict[str, Any], coords: Coords = ONE) -> torch.Tensor:
    return structure.operator({name: number(value) for name, value in theta.items()}, coords).dense()


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_unrelated_levels_are_independent_ones() -> None:
    unrelated = pmx.Kinship((np.eye(12), list(TIMES)))
    close(dense(unrelated, {"sd": [0.7]}), dense(pmx.IID(), {"sd": 0.7}))
    founders = pd.DataFrame({"id": TIMES, "sire": [None] * 12, "dam": [None] * 12})
    close(dense(pmx.Kinship(pedigree=founders), {"sd": [0.7]}), dense(pmx.IID(), {"sd": 0.7}))


def test_a_product_with_the_identity_is_a_copy_for_everyone() -> None:
    root = RNG.normal(size=(3, 8))
    k = pmx.Kinship((root @ root.T / 8, ["a", "b", "c"]))
    pairs = Coords(tuple((i, t) for i in "abc" for t in range(4)), ("Intercept",))
    found = dense(pmx.Kronecker(k, pmx.IID()), {"sd": [0.9]}, pairs)
    close(found, number(0.81 * np.kron(root @ root.T / 8, np.eye(4))))


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_autoregression_on_a_grid_is_decay_is_an_exponential_process(rho: float) -> None:
    ar1 = dense(pmx.AR1(), {"sd": 1.3, "rho": rho})
    if rho == 0:
        close(ar1, dense(pmx.IID(), {"sd": 1.3}))
        return
    close(ar1, dense(pmx.OU(), {"sd": 1.3, "rate": -np.log(rho)}))
    kernel = gpytorch.kernels.MaternKernel(nu=0.5)
    process = pmx.GP(kernel, nugget=1e-9)
    close(dense(process, {"sd": [1.3], "lengthscale": -1 / np.log(rho)}), ar1, 1e-8)
    close(dense(pmx.ARMA(1, 0), {"sd": 1.3, "pacf_ar": [rho]}), ar1)


def test_toeplitz_with_powers_is_autoregression() -> None:
    terms = Coords(("g",), tuple(map(str, range(5))))
    pacf = [0.6, 0.0, 0.0, 0.0]
    close(
        dense(pmx.Toeplitz(), {"sd": 1.1, "pacf": pacf}, terms),
        dense(pmx.AR1(over="terms"), {"sd": 1.1, "rho": 0.6}, terms),
    )


def test_compound_symmetry_is_an_intercept_and_a_residual() -> None:
    """Of the residuals, of effects of the terms, and as a random intercept: one log-likelihood."""
    df = pd.DataFrame({"g": np.repeat(list("abcdefgh"), 4), "t": np.tile(list("wxyz"), 8), "y": RNG.normal(size=32)})
    df["y"] += np.repeat(2 * RNG.normal(size=8), 4)
    intercept = pmx.model("y ~ 1 + (1 | g)", df).fit(progress=False)
    sd, sigma = (float(intercept.estimate.point[name]) for name in ("g.sd", "y.sigma"))
    residual = pmx.model("y ~ 1", df, pmx.Gaussian(residual=pmx.CompoundSymmetry(within="g"))).fit(progress=False)
    assert residual.log_likelihood == pytest.approx(intercept.log_likelihood, abs=1e-6)
    assert float(residual.estimate.point["y.sigma"]) == pytest.approx(np.hypot(sd, sigma), rel=1e-4)
    assert float(residual.estimate.point["y.corr"]) == pytest.approx(sd**2 / (sd**2 + sigma**2), rel=1e-3)


def test_an_effect_a_row_is_a_residual() -> None:
    """An AR1 effect with a level for every row, and no other noise, is AR1 residuals."""
    df = pd.DataFrame({"g": np.repeat(["a", "b", "c"], 8), "t": np.tile(np.arange(8), 3), "y": RNG.normal(size=24)})
    values = {"beta": number([0.1]), "y.rho": number(0.6), "y.sigma": number(1.2)}
    residual = pmx.model("y ~ 1", df, pmx.Gaussian(residual=pmx.AR1("t", within="g")))
    effect = pmx.model("y ~ 1 + ar1(1 | g:t)", df)
    theirs = {"beta": number([0.1]), "g:t.rho": number(0.6), "g:t.sd": number(1.2), "y.sigma": number(1e-6)}
    found = []
    for model, at in ((residual, values), (effect, theirs)):
        bound = pmx.Exact().bind(model.program, (model.design,), make_plan(model.program, (model.design,)))
        found.append(float(bound.log_marginal(run(model.program, (model.design,), at))))
    assert found[0] == pytest.approx(found[1], abs=1e-4)
