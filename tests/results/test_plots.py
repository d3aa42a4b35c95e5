"""Plots: what they show, that they draw, and that they leave no state behind."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib._pylab_helpers
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import pyromix as pmx
from pyromix.errors import ConfigError, DataError
from pyromix.formula.design import Design
from pyromix.results import Fit
from pyromix.results.plots import _column_count
from tests.results.models import (
    BETA,
    MODES,
    glmm_fit,
    sleepstudy,
    sleepstudy_estimate,
    sleepstudy_fit,
    slope_program,
    tensor,
)


def _visible(figure: Figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def _png(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_fitted_lines_show_data_modes_and_population(tmp_path: Path) -> None:
    figure = sleepstudy_fit().plot_fitted(groups=["308", "335"])
    axes = _visible(figure)
    assert [axis.get_title(loc="left") for axis in axes] == ["308", "335"]
    population, line, points = axes[0].get_lines()
    days = np.arange(10.0)
    assert population.get_ydata() == pytest.approx(BETA[0] + BETA[1] * days)
    assert line.get_ydata() == pytest.approx(BETA[0] + MODES[0][0] + (BETA[1] + MODES[0][1]) * days)
    assert points.get_ydata() == pytest.approx(sleepstudy()["Reaction"].to_numpy()[:10])
    assert figure.get_supxlabel() == "Days" and figure.get_supylabel() == "Reaction"
    _png(figure, tmp_path / "fitted.png")


def test_a_formula_fit_draws_smooth_curves_with_other_columns_held(rng: np.random.Generator) -> None:
    frame = sleepstudy().assign(age=rng.normal(size=180), sex=pd.Categorical(np.where(rng.random(180) < 0.7, "f", "m")))
    frame["z"] = rng.integers(0, 3, size=180)
    formula = "Reaction ~ Days + I(Days**2) + age + sex + z + (Days | Subject)"
    design = Design.from_formula(formula, frame, family=pmx.Gaussian())
    beta = tensor([BETA[0], 3.0, BETA[1], 0.5, 2.0, -1.0])
    names = dict(zip(design.columns, beta.tolist(), strict=True))
    point = {**sleepstudy_fit().estimate.point, "beta": beta}
    fit = Fit(sleepstudy_estimate(point=point, draw=lambda n, s: {k: v.expand(n, *v.shape) for k, v in
              {**point, "Subject": tensor(MODES)}.items()}), slope_program(pmx.Gaussian()), (design,), design=design,
              new_design=design.new)  # fmt: skip
    (axis,) = _visible(fit.plot_fitted("Days", groups=["308"]))
    population, line, points = axis.get_lines()
    days = np.linspace(0, 9, 60)
    mine = frame.iloc[:10]
    sex = mine["sex"].mode()[0]
    z = np.unique(mine["z"], return_counts=True)
    held = names["age"] * mine["age"].median() + names.get(f"sex[T.{sex}]", 0.0) + names["z"] * z[0][z[1].argmax()]
    expected = names["Intercept"] + names["Days"] * days + names["I(Days ** 2)"] * days**2 + held
    assert population.get_ydata() == pytest.approx(expected)
    assert line.get_ydata() == pytest.approx(expected + MODES[0][0] + MODES[0][1] * days)
    assert len(points.get_ydata()) == 10


def test_a_count_of_groups_spans_their_range() -> None:
    titles = [axis.get_title(loc="left") for axis in _visible(sleepstudy_fit().plot_fitted(groups=3))]
    assert (titles[0], titles[-1]) == ("309", "337"), "lowest and highest intercept"
    assert len(_visible(sleepstudy_fit().plot_fitted(groups=50))) == 18


def test_binomial_data_are_shown_as_proportions() -> None:
    fit = glmm_fit(pmx.Binomial(), trials=True)
    (axis,) = _visible(fit.plot_fitted(groups=["a"]))
    points = axis.get_lines()[-1].get_ydata()
    assert sorted(points) == pytest.approx(sorted((fit.args[0].y / fit.args[0].trials)[:5].tolist()))


def test_caterpillar_is_sorted_with_its_intervals(tmp_path: Path) -> None:
    figure = sleepstudy_fit().plot_caterpillar("Subject", "Days")
    (axis,) = _visible(figure)
    dots = axis.collections[1].get_offsets()
    assert dots[:, 0].tolist() == sorted(mode[1] for mode in MODES)
    ends = np.array([segment[:, 0] for segment in axis.collections[0].get_segments()])
    assert np.diff(ends, axis=1).ravel() == pytest.approx([2 * 1.96 * 2.30483708127945] * 18)
    assert axis.get_yticklabels()[0].get_text() == "335"
    assert len(_visible(sleepstudy_fit().plot_caterpillar())) == 2
    _png(figure, tmp_path / "caterpillar.png")


def test_residual_panels(tmp_path: Path) -> None:
    fit = sleepstudy_fit()
    figure = fit.plot_residuals()
    left, right = _visible(figure)
    assert np.asarray(left.collections[0].get_offsets())[:, 1] == pytest.approx(fit.residuals("pearson"))
    dots = np.asarray(right.collections[0].get_offsets())
    assert dots[:, 1] == pytest.approx(np.sort(fit.residuals("pearson")))
    assert dots[0, 0] == pytest.approx(-2.7729, abs=1e-4)  # qnorm(0.5 / 180)
    _png(figure, tmp_path / "residuals.png")


def test_no_global_state_is_left() -> None:
    before, figures = dict(matplotlib.rcParams), list(matplotlib._pylab_helpers.Gcf.figs)
    for figure in (sleepstudy_fit().plot_caterpillar(), sleepstudy_fit().plot_residuals()):
        assert isinstance(figure, Figure)
    assert dict(matplotlib.rcParams) == before
    assert list(matplotlib._pylab_helpers.Gcf.figs) == figures


def test_what_is_not_there_is_named() -> None:
    fit = sleepstudy_fit()
    with pytest.raises(ConfigError, match="x='Hours'.*there are: 'Days'"):
        fit.plot_fitted(x="Hours")
    with pytest.raises(DataError, match="no level '999'"):
        fit.plot_fitted(groups=["999"])
    with pytest.raises(ConfigError, match="groups=0"):
        fit.plot_fitted(groups=0)
    with pytest.raises(ConfigError, match="term='Hours'.*it has: 'Intercept', 'Days'"):
        fit.plot_caterpillar("Subject", "Hours")


def test_programs_without_a_line_to_draw() -> None:
    index = torch.tensor([[0, 1], [1, 0]])

    def program(y: torch.Tensor) -> None:
        eta = pmx.RandomEffect("g", pmx.IID(), levels=2)(index)
        pmx.observe("y", pmx.Poisson(), eta + pmx.LinearEffect("b")(tensor([[1.0], [2.0]])), y)

    point, latents = {"g.sd": tensor(1.0), "b": tensor([0.1])}, {"g": tensor([[0.1], [0.2]])}
    estimate = glmm_fit(pmx.Poisson(), point=point, latents=latents, covariance={}).estimate
    with pytest.raises(DataError, match="group='g'.*several levels at once"):
        Fit(estimate, program, (tensor([1.0, 2.0]),)).plot_fitted()

    def plain(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Poisson(), pmx.LinearEffect("b")(tensor([[1.0], [2.0]])), y)

    estimate = glmm_fit(pmx.Poisson(), point={"b": tensor([0.1])}, latents={}, covariance={}).estimate
    with pytest.raises(DataError, match="no random effects to plot"):
        Fit(estimate, plain, (tensor([1.0, 2.0]),)).plot_caterpillar()


def test_grids_leave_few_panels_empty() -> None:
    assert [_column_count(k) for k in (1, 2, 3, 4, 6, 12, 18)] == [1, 2, 3, 2, 3, 4, 6]
