"""Results of real fits: from a formula to summary, predictions, ArviZ groups and a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.backends.training import Training
from tests.results.test_summary import LMER


@pytest.fixture(scope="module")
def reml() -> pmx.Fit:
    model = pmx.model("Reaction ~ Days + (Days | Subject)", pmx.datasets.load("sleepstudy"))
    return model.fit(pmx.MaximumLikelihood(criterion="reml"), progress=False)


@pytest.fixture(scope="module")
def binomial() -> pmx.Fit:
    formula = "cbind(incidence, size - incidence) ~ period + (1 | herd)"
    return pmx.model(formula, pmx.datasets.load("cbpp"), pmx.Binomial()).fit(progress=False)


def test_summary_of_sleepstudy_is_lme4s(reml: pmx.Fit) -> None:
    body = str(reml.summary()).split("\n", 1)[1]
    assert body == LMER.split("\n", 1)[1]
    assert str(reml.summary()).startswith("Linear mixed model fit by REML, Exact")


def test_draws_of_a_real_fit_spread_as_its_standard_errors_say(reml: pmx.Fit) -> None:
    draws = reml.draws(4000)
    found = np.cov(draws["beta"].numpy().T)
    expected = reml.estimate.covariance["beta"].numpy()
    # relative SD of a sample variance: sqrt(2 / 4000)
    assert np.diag(found) == pytest.approx(np.diag(expected), rel=5 * (2 / 4000) ** 0.5)
    assert reml.idata.posterior["Subject"].shape == (1, 500, 18, 2)
    assert reml.predict(kind="interval").shape == (180, 3)


def test_new_subjects_and_missing_values(reml: pmx.Fit) -> None:
    new = pd.DataFrame({"Days": [2.0, 2.0, np.nan], "Subject": ["308", "another", "308"]})
    with pytest.raises(pmx.UnseenLevelError, match="column 'Subject': 1 level not seen in the fit: 'another'"):
        reml.predict(new)
    found = reml.predict(new, new_groups="marginal")
    assert found[1] == pytest.approx(251.405105 + 2 * 10.467286, abs=1e-3)
    assert np.isnan(found[2])


def test_glmer_print_of_cbpp(binomial: pmx.Fit) -> None:
    # print(summary(glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), family = binomial))), lme4 1.1-31
    text = str(binomial.summary())
    assert "   194.1    204.2    -92.0    184.1       51" in text
    assert "Number of obs: 56, groups: herd, 15" in text
    table = binomial.fixed_effects()
    assert table["estimate"].to_numpy() == pytest.approx([-1.3983, -0.9919, -1.1282, -1.5797], abs=1e-3)
    assert table["se"].to_numpy() == pytest.approx([0.2312, 0.3032, 0.3228, 0.4220], rel=0.02)
    assert binomial.variance_components()["sd"].tolist() == pytest.approx([0.6421], abs=5e-4)


def test_a_network_mean_goes_the_same_way() -> None:
    torch.manual_seed(1)
    data = pmx.datasets.load("sleepstudy")
    net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    model = pmx.model("Reaction ~ Days + (1 | Subject)", data, mean=net.double())
    fit = model.fit(pmx.MaximumLikelihood(training=Training(epochs=50)), progress=False)
    assert "Network: mean, Sequential with 7 weights" in str(fit.summary())
    assert fit.idata.constant_data["inputs"].dims == ("obs_id", "inputs_column")
    (axis,) = [axis for axis in fit.plot_fitted("Days", groups=["308"]).axes if axis.get_visible()]
    population, line, _ = axis.get_lines()
    shift = fit.random_effects("Subject").iloc[0, 0]
    assert line.get_ydata() - population.get_ydata() == pytest.approx([shift] * 60)
    frame = data.iloc[:3].astype({"Days": float})
    frame.loc[1, "Days"] = np.nan
    assert fit.predict(frame)[[0, 2]] == pytest.approx(fit.predict()[[0, 2]], abs=1e-10)


def test_a_saved_fit_says_the_same(reml: pmx.Fit, binomial: pmx.Fit, tmp_path: Path) -> None:
    for fit in (reml, binomial):
        fit.save(tmp_path / "fit.pmx")
        back = pmx.load(tmp_path / "fit.pmx")
        assert np.array_equal(back.predict(), fit.predict())
        assert back.summary() == fit.summary()
        # the mode of the effects is found again from another start, so draws around it differ in the last digits
        np.testing.assert_allclose(back.predict(kind="draws"), fit.predict(kind="draws"), rtol=1e-7)
        for name, value in fit.idata.posterior.data_vars.items():
            np.testing.assert_allclose(back.idata.posterior[name], value, rtol=1e-6, atol=1e-8)
