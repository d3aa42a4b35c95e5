"""The examples: small versions run with every change, the full ones on demand."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

import pyromix as pmx

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_of_the_simulation() -> None:
    example = load("ngmm_simulation")
    y, mean = np.array([0.0, 1.0]), np.array([0.25, 0.5])
    assert example.rmse(y, mean) == pytest.approx(np.sqrt((0.0625 + 0.25) / 2))
    assert example.log_loss(y, mean) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
    assert example.poisson_deviance(y, mean) == pytest.approx(0.25 + np.log(2.0) - 0.5)


def test_simulated_rows_are_split_by_group_and_within() -> None:
    train, old, new = load("ngmm_simulation").simulate("poisson", 0.5, seed=0)
    assert (len(train), len(old), len(new)) == (160 * 24, 160 * 6, 40 * 30)
    assert set(train["group"]) == set(old["group"]) and not set(train["group"]) & set(new["group"])


@pytest.mark.parametrize("response", ["gaussian", "bernoulli", "poisson"])
def test_neural_means_win_on_a_small_simulation(response: str) -> None:
    training = pmx.Training(lr=0.01, epochs=20, batch_groups=16)
    losses = load("ngmm_simulation").compare(response, 0.5, 0, training, groups=60, new_groups=15)
    for linear, neural in losses.values():
        assert neural < linear


@pytest.mark.slow
def test_neural_means_win_on_new_rows_and_new_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("ngmm_simulation").main(["--reps", "1"])
    changes = re.findall(r"([+-]\d+\.\d)%", capsys.readouterr().out)
    assert len(changes) == 18 and all(float(change) < 0 for change in changes)


def test_sleepstudy_neural_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("sleepstudy_neural")
    example.held_out = lambda mean, data, folds: 0.0
    results = example.main([])
    assert results["linear"][0] == pytest.approx(-875.9697, abs=1e-3)  # lme4
    assert results["linear"][0] < results["neural"][0] < results["a mean per day"][0]
    assert "fits better, and does not predict new subjects better" in capsys.readouterr().out


def test_held_out_score_is_the_density_of_new_subjects() -> None:
    """Against a formula fit to the other subjects and a dense Gaussian density."""
    example = load("sleepstudy_neural")
    frame = pmx.datasets.load("sleepstudy")
    fold_of = np.random.default_rng(0).permutation(18) % 2
    fold = fold_of[frame["Subject"].astype("category").cat.codes.to_numpy()]
    z = np.column_stack([np.ones(10), np.arange(10)])
    expected = 0.0
    for held in range(2):
        fit = pmx.model("Reaction ~ Days + (Days | Subject)", frame[fold != held]).fit(progress=False)
        sd = fit.variance_components().set_index(["group", "name"])["sd"].to_numpy()
        rho = float(fit.correlations("Subject").iloc[0, 1])
        between = np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
        covariance = z @ between @ z.T + sd[2] ** 2 * np.eye(10)
        mean = z @ fit.fixed_effects()["estimate"].to_numpy()
        for _, rows in frame[fold == held].groupby("Subject", observed=True):
            expected += stats.multivariate_normal(mean, covariance).logpdf(rows["Reaction"].to_numpy())
    assert example.held_out("linear", example.load(), 2) == pytest.approx(expected, abs=1e-3)


def test_backends_are_compared_by_arviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    example = load("backends_compared")
    quick = {"ML": pmx.MaximumLikelihood(), "MAP": pmx.MaximumLikelihood(criterion="map")}
    monkeypatch.setattr(example, "backends", lambda draws: quick)
    fits = example.main(["--out", str(tmp_path)])
    assert fits["ML"].log_likelihood == pytest.approx(-92.02628, abs=1e-4)  # lme4
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{k}{end}" for k in ("ml", "map") for end in (".nc", "_trace.png", "_ppc.png")} | {"forest.png"}
    out = capsys.readouterr().out
    assert "period[T.2]" in out and "elpd_loo" in out and "ML" in out


@pytest.mark.slow
def test_every_backend_is_compared(tmp_path: Path) -> None:
    """Posterior means of every backend within half a posterior SD of NUTS's (the point estimates are modes)."""
    fits = load("backends_compared").main(["--draws", "500", "--out", str(tmp_path)])
    reference = fits["NUTS"].fixed_effects()
    for fit in fits.values():
        difference = fit.fixed_effects()["estimate"] - reference["estimate"]
        assert (difference.abs() < 0.5 * reference["se"]).all()
    assert len(list(tmp_path.glob("*.nc"))) == 6


def test_heritability_of_wheat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Against R's variances (tests/reference/kinship), K of which is half of that here; two folds in place of ten."""
    example = load("heritability")
    data, kinship = example.load()
    monkeypatch.setattr(example, "load", lambda: (data.assign(set=data["set"] % 2), kinship))
    shares = example.main(["--out", str(tmp_path / "h2.png")])
    expected = [v / (v + residual) for v, residual in ((1.205931 / 2, 0.540999), (1.070054 / 2, 0.565104))]
    assert shares["estimate"].tolist() == pytest.approx(expected, abs=1e-3)
    assert (shares["lower"] < shares["estimate"]).all() and (shares["estimate"] < shares["upper"]).all()
    assert 0.4 < float(re.findall(r"their yield (\d\.\d+)", capsys.readouterr().out)[0]) < 0.6
    assert (tmp_path / "h2.png").stat().st_size > 10_000


def test_carbon_dioxide_is_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small part of it; the season is in the forecast, whose error is a fraction of its amplitude of 6 ppm."""
    results = load("gp_time").main(["--since", "1982", "--until", "1990", "--out", str(tmp_path / "co2.png")])
    assert results["rmse"] < 1.5 and 0.2 < results["coverage"] <= 1
    assert (tmp_path / "co2.png").stat().st_size > 10_000
    assert "time.lengthscale_2" in capsys.readouterr().out


def test_a_map_by_a_field_on_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against glmmTMB's fit of the Matern covariance of smoothness one itself, without a mesh."""
    example = load("spatial_field")
    found = example.main(["--out", str(tmp_path)])
    assert found["fit"].log_likelihood == pytest.approx(-74.4558, abs=0.5)
    np.testing.assert_allclose(found["fit"].fixed_effects()["estimate"], [6.98103, -2.56275], atol=0.01)
    np.testing.assert_allclose(found["fit"].fixed_effects()["se"], [0.11833, 0.22571], rtol=0.02)
    assert len(found["mean"]) == 3103 and 0.05 < found["sd"].min() < found["sd"].max() < 0.45
    assert (tmp_path / "zinc.png").stat().st_size > 20_000
    assert "SD of log zinc on the map" in capsys.readouterr().out


def test_deaths_are_mapped_by_neighbours(tmp_path: Path) -> None:
    with pytest.warns(pmx.SingularFitWarning, match="county.phi"):
        fits = load("infant_deaths").main(["--out", str(tmp_path / "deaths.png"), "--draws", "200"])
    assert (tmp_path / "deaths.png").stat().st_size > 20_000
    point, posterior = (fit.fixed_effects()["estimate"] for fit in fits.values())
    assert posterior["share"] == pytest.approx(point["share"], abs=0.3) and posterior["share"] > 1
    rates = [1000 * fit.predict() / pmx.datasets.load("nc_sids")["births"] for fit in fits.values()]
    assert np.corrcoef(*rates)[0, 1] > 0.95


def test_growth_is_best_with_an_sd_for_each_sex() -> None:
    """nlme: lme(distance ~ age8 * Sex, random = ~ age8 | Subject, weights = varIdent(form = ~ 1 | Sex)), ML."""
    table = load("growth_curves").main([])
    assert table.index[0] == "intercept, an SD a sex"
    assert table.loc["line, an SD a sex", "log-likelihood"] == pytest.approx(-203.021194, abs=1e-3)
    assert table.loc["homcs(occasions)", "log-likelihood"] == pytest.approx(
        table.loc["intercept", "log-likelihood"], abs=0.01
    )


def test_the_lake_is_forecast(tmp_path: Path) -> None:
    """arima(LakeHuron, c(2, 0, 0)) has -103.63, c(1, 0, 1) -103.25; without the gauge's error of 0.05 feet."""
    table = load("lake_levels").main(["--out", str(tmp_path / "lake.png")])
    assert table.loc["AR(2)", "log-likelihood"] == pytest.approx(-103.63, abs=0.1)
    assert table.loc["ARMA(1, 1)", "log-likelihood"] == pytest.approx(-103.25, abs=0.1)
    assert table.loc["AR(1)", "log-likelihood"] == pytest.approx(table.loc["OU", "log-likelihood"], abs=1e-4)
    assert (tmp_path / "lake.png").stat().st_size > 20_000


def test_soil_and_relatives_rank_lines_better() -> None:
    found = load("field_trial").main([])["correlation with truth"]
    assert found["lines alone"] < found["lines, relatives and soil"] and found["lines, relatives and soil"] > 0.85


def test_pupils_who_changed_schools() -> None:
    example = load("changed_schools")
    alone, both = (fit.variance_components().iloc[0]["sd"] for fit in example.main([]).values())
    assert alone < both and both == pytest.approx(example.SD, abs=0.2)
