"""The printed summary against lme4's own print."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pyromix as pmx
from pyromix.errors import Status
from pyromix.results.summary import formatted
from tests.results.models import glmm_fit, sleepstudy_fit, warning

# print(summary(lmer(Reaction ~ Days + (Days | Subject))), lme4 1.1-31 with tight tolerances (its default ones stop at
# 612.10 and 24.741), with this package's header and names
LMER = """\
Linear mixed model fit by REML, Exact
Formula: Reaction ~ Days + (Days | Subject)

REML criterion at convergence: 1743.6

Scaled residuals:
    Min      1Q  Median      3Q     Max
-3.9536 -0.4634  0.0231  0.4634  5.1793

Random effects:
 Groups   Name      Variance Std.Dev. Corr
 Subject  Intercept   612.09   24.740
          Days         35.07    5.922  0.07
 Residual             654.94   25.592
Number of obs: 180, groups: Subject, 18

Fixed effects:
          Estimate Std. Error t value
Intercept  251.405      6.825  36.838
Days        10.467      1.546   6.771

Correlation of Fixed Effects:
     (Intr)
Days -0.138"""


def test_sleepstudy_prints_as_lme4_does() -> None:
    assert str(sleepstudy_fit().summary()) == LMER


def test_a_summary_shows_itself() -> None:
    text = sleepstudy_fit().summary()
    assert repr(text) == LMER
    assert "<pre>Linear mixed model" in text._repr_html_()


def test_maximum_likelihood_prints_its_criteria() -> None:
    # lmer(..., REML = FALSE) prints: AIC 1763.9, BIC 1783.1, logLik -876.0, deviance 1751.9, df.resid 174
    fit = sleepstudy_fit(log_likelihood=-875.969672, inference="ML, Exact", settings={"criterion": "ml"})
    lines = str(fit.summary()).splitlines()
    assert "     AIC      BIC   logLik deviance df.resid" in lines
    assert "  1763.9   1783.1   -876.0   1751.9      174" in lines


def test_generalized_model_prints_family_z_and_p() -> None:
    text = str(glmm_fit(pmx.Poisson()).summary())
    assert text.startswith("Generalized linear mixed model fit by ML, Laplace\n Family: Poisson (log)\n")
    assert "Residual" not in text and "Corr\n" not in text
    # 0.3 / 0.2 and -0.5 / sqrt(0.02); p from tables of the normal distribution
    assert "Intercept   0.3000     0.2000   1.500    0.134" in text
    assert "x          -0.5000     0.1414  -3.536 0.000407" in text


def test_findings_come_first() -> None:
    text = str(sleepstudy_fit(health=(warning("warn"), warning("error", "gradient"))).summary())
    first, second, *_ = text.splitlines()
    assert first == f"Status: {Status.CONVERGED.value}"
    assert second == "Health: NOT ok (1 error, 1 warn)"
    assert text.index("gradient") < text.index("singular") < text.index("Linear mixed model")


def test_remarks_come_last() -> None:
    text = str(sleepstudy_fit(health=(warning("info", "laplace"),)).summary())
    assert text.startswith("Linear mixed model") and text.index("laplace") > text.index("Correlation of Fixed Effects")


def test_without_convergence_numbers_are_hidden_and_said_to_be() -> None:
    fit = sleepstudy_fit(status=Status.NOT_CONVERGED)
    text = str(fit.summary())
    assert text.startswith("Status: not converged")
    assert "are NaN; fit.force() shows them" in text
    assert "REML criterion at convergence: nan" in text
    assert "6.825" not in text
    assert "6.825" in str(fit.force().summary())


def test_singular_correlation_prints_as_nan() -> None:
    fit = sleepstudy_fit()
    fit.estimate.point["Subject.sd"][1] = 0.0
    assert re.search(r"\n +Days +0\.0 +0\.00 +NaN\n", str(fit.summary()))


# R: format(x, digits = 4)
R_FORMATS = [
    ([612.0999, 35.07166, 654.9410], ["612.10", "35.07", "654.94"]),
    ([24.7404, 5.922133, 25.59182], ["24.740", "5.922", "25.592"]),
    ([36.838, 6.771], ["36.838", "6.771"]),
    ([0.5, 100.0], ["0.5", "100.0"]),
    ([1e-5, 123.0], ["0.00001", "123.00000"]),
    ([3.0, 7.0], ["3", "7"]),
    ([0.0], ["0"]),
    ([np.nan, 1.5], ["NaN", "1.5"]),
    ([1.23456e-12, 1.0], ["1.235e-12", "1.000e+00"]),
]


@pytest.mark.parametrize(("values", "printed"), R_FORMATS)
def test_columns_are_formatted_as_r_does(values: list[float], printed: list[str]) -> None:
    assert formatted(values) == printed
