"""Published deviances (-2 log-likelihood) of well-known models, as MixedModels.jl and lme4 test them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import pyromix as pmx
from tests.reference.cases import data


@dataclass(frozen=True)
class Answer:
    """A model and its deviance."""

    dataset: str
    formula: str
    deviance: float
    family: Any = None
    criterion: str = "ml"
    marginal: Any = None
    tolerance: float = 1e-4
    theta: tuple[float, ...] = ()
    slow: bool = False
    singular: bool = False

    def fit(self) -> pmx.Fit:
        backend = pmx.MaximumLikelihood(self.marginal, self.criterion)
        return pmx.model(self.formula, data(self.dataset), self.family).fit(backend, progress=False)


CONTRACEPTION = "use ~ age + I(age**2) + urban + livch + (1 | urban:district)"
ANSWERS = {
    "dyestuff": Answer("dyestuff", "Yield ~ 1 + (1 | Batch)", 327.327060, theta=(0.752581,)),
    "dyestuff reml": Answer("dyestuff", "Yield ~ 1 + (1 | Batch)", 319.654277, criterion="reml"),
    "dyestuff2": Answer("dyestuff2", "Yield ~ 1 + (1 | Batch)", 162.873037, theta=(0.0,), singular=True),
    "penicillin": Answer("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)", 332.188349),
    "pastes": Answer("pastes", "strength ~ 1 + (1 | batch / cask)", 247.994466),
    "sleepstudy": Answer(
        "sleepstudy", "Reaction ~ Days + (Days | Subject)", 1751.939344, theta=(0.92923, 0.018165, 0.22265)
    ),
    "sleepstudy ||": Answer("sleepstudy", "Reaction ~ Days + (Days || Subject)", 1752.003255),
    "InstEval": Answer("insteval", "y ~ service + (1|s) + (1|d) + (1|dept)", 237721.768775, tolerance=1e-3),
    "InstEval *": Answer("insteval", "y ~ service * dept + (1|s) + (1|d)", 237585.553415, tolerance=1e-3, slow=True),
    "Contraception": Answer("contraception", CONTRACEPTION, 2361.545769, pmx.Binomial(), tolerance=1e-3),
    "Contraception 7": Answer(
        "contraception", CONTRACEPTION, 2360.876088, pmx.Binomial(), marginal=pmx.GaussHermite(7), tolerance=1e-3
    ),
    "cbpp": Answer(
        "cbpp", "cbind(incidence, size - incidence) ~ period + (1|herd)", 184.052564, pmx.Binomial(), tolerance=1e-3
    ),
    "VerbAgg": Answer(
        "verbagg",
        "y ~ Anger + Gender + btype + situ + (1|id) + (1|item)",
        8151.40,
        pmx.Binomial(),
        tolerance=8151.40e-5,
    ),
}


@pytest.mark.parametrize(
    "answer", [pytest.param(a, id=name, marks=[pytest.mark.slow] if a.slow else []) for name, a in ANSWERS.items()]
)
def test_deviance_is_the_published_one(answer: Answer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.DataWarning)
        if answer.singular:
            with pytest.warns(pmx.SingularFitWarning, match="Batch.sd = "):
                fit = answer.fit()
        else:
            fit = answer.fit()
    assert abs(-2 * fit.log_likelihood - answer.deviance) < answer.tolerance
    assert (fit.status is pmx.Status.SINGULAR) == answer.singular
    if answer.theta:
        assert_allclose(relative_factor(fit), answer.theta, atol=1e-4)


def relative_factor(fit: pmx.Fit) -> np.ndarray:
    """lme4's theta: the lower triangle, column by column, of the root of the covariance over the residual variance."""
    ((sd, corr),) = fit.covariances().values()
    table = fit.variance_components().set_index("group")
    covariance = np.outer(sd, sd) * corr / table.loc["Residual", "variance"]
    root = np.linalg.cholesky(covariance) if covariance.any() else covariance
    return np.concatenate([root[k:, k] for k in range(len(sd))])


def test_one_node_is_laplace() -> None:
    model = pmx.model(CONTRACEPTION, data("contraception"), pmx.Binomial())
    laplace = model.fit(pmx.MaximumLikelihood(pmx.Laplace()), progress=False)
    one = model.fit(pmx.MaximumLikelihood(pmx.GaussHermite(1)), progress=False)
    assert abs(one.log_likelihood - laplace.log_likelihood) < 1e-8
    assert_allclose(one.fixed_effects()["estimate"], laplace.fixed_effects()["estimate"], rtol=1e-5)


def test_higher_than_a_reference_that_stopped_early_by_dense_algebra() -> None:
    """lme4's value for this model is 2.0 lower: recompute ours from the covariance matrix of each school."""
    formula = (
        "langPOST ~ ses * IQ_verb + sch_ses * sch_iqv + ses:sch_ses + ses:sch_iqv + sch_ses:IQ_verb + IQ_verb:sch_iqv"
        " + (ses + IQ_verb | schoolnr)"
    )
    with pytest.warns(pmx.SingularFitWarning, match="schoolnr"):
        fit = pmx.model(formula, data("mlbook_red")).fit(progress=False)
    (term,) = fit.design.terms
    sd, corr = fit.covariances()["schoolnr"]
    x, z, y = fit.design.x.numpy(), term.design.numpy(), fit.design.y.numpy()
    residual = y - x @ fit.fixed_effects()["estimate"].to_numpy()
    noise = fit.variance_components().set_index("group").loc["Residual", "variance"]
    total = 0.0
    for level in range(len(term.levels)):
        rows = term.index.numpy() == level
        v = z[rows] @ (np.outer(sd, sd) * corr) @ z[rows].T + noise * np.eye(rows.sum())
        total -= 0.5 * (np.linalg.slogdet(2 * np.pi * v)[1] + residual[rows] @ np.linalg.solve(v, residual[rows]))
    assert abs(fit.log_likelihood - total) < 1e-7
    assert total > -12311.98 + 1.99
