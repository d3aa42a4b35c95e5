"""Effects over times and places: what is drawn, against the effects themselves and against kriging."""

from __future__ import annotations

from pathlib import Path

import gpytorch
import numpy as np
import pandas as pd
import pytest

import pyromix as pmx
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.results.field import _between, field_of

RNG = np.random.default_rng(6)
TIMES = pd.DataFrame({"t": np.arange(30), "y": np.sin(np.arange(30) / 4) + 0.3 * RNG.normal(size=30)})
PLACES = pd.DataFrame({"a": RNG.uniform(0, 1, 40), "b": RNG.uniform(0, 2, 40)})
PLACES["y"] = np.sin(4 * PLACES["a"]) + PLACES["b"] + 0.2 * RNG.normal(size=40)


@pytest.fixture(scope="module")
def walk() -> pmx.Fit:
    fixed = {"t.sd": 0.8, "t.rho": 0.8, "y.sigma": 0.3}
    return pmx.model("y ~ 1 + ar1(1 | t)", TIMES, priors=fixed).fit(progress=False)


@pytest.fixture(scope="module")
def surface() -> pmx.Fit:
    fixed = {"a:b.sd": 1.0, "a:b.lengthscale": 0.6, "y.sigma": 0.2}
    return pmx.model("y ~ 1 + gp(a, b)", PLACES, priors=fixed).fit(progress=False)


def test_a_curve_and_its_forecast(walk: pmx.Fit) -> None:
    """Known times have the fit's own draws; ahead, means shrink by rho a step. 2,000 draws: errors of 0.02 SD."""
    field = field_of(walk, walk.record.latents["t"], 0, [30, 31, 5], 2000)
    assert field.kind == "curve" and field.labels == (*range(30), 30, 31)
    draws = walk.draws(2000, 0)["t"][:, :, 0].numpy()
    np.testing.assert_array_equal(field.draws[:, :30], draws)
    last = draws[:, 29]
    assert field.draws[:, 30].mean() == pytest.approx(0.8 * last.mean(), abs=0.08)
    expected = 0.64 * last.var() + 0.64 * (1 - 0.64)
    assert field.draws[:, 30].var() == pytest.approx(expected, rel=0.15)
    mode = walk.estimate.latents["t"][:, 0].numpy()
    np.testing.assert_allclose(field.mean, [*mode, 0.8 * mode[29], 0.64 * mode[29]], rtol=1e-10)
    given_the_last = np.sqrt([0.64 * last.var() + 0.64 * (1 - 0.64), 0.64**2 * last.var() + 0.64 * (1 - 0.64**2)])
    np.testing.assert_allclose(field.sd[30:], given_the_last, rtol=1e-6)


def test_gaps_are_filled_where_the_structure_goes_on() -> None:
    """A band as narrow as beside the data would claim to know what lies between."""
    data = TIMES[(TIMES["t"] < 10) | (TIMES["t"] > 20)]
    fit = pmx.model("y ~ 1 + ar1(1 | t)", data, priors={"t.sd": 0.8, "t.rho": 0.8, "y.sigma": 0.3}).fit(progress=False)
    field = field_of(fit, fit.record.latents["t"], 0, [40], 50)
    assert sorted(field.labels) == [*range(30), 40]
    sd = dict(zip(field.labels, field.sd, strict=True))
    assert sd[15] > 1.5 * sd[5] and sd[15] > sd[11] and max(sd.values()) < 1.0
    assert _between((0, 1, 2, 100), "curve") == [*range(7, 98, 5)]
    pairs = (("a", 0), ("a", 0.5), ("a", 1.0), ("a", 3), ("b", 2))
    assert _between(pairs, "series") == [("a", 1.5), ("a", 2), ("a", 2.5)]
    assert _between((0.0, 1.0, 2.3, 6.4), "curve") == [*np.round(2.3 + 4.1 / 5 * np.arange(1, 5), 9)]


def test_a_map_is_kriging(surface: pmx.Fit) -> None:
    """Against prediction on the same grid, and the textbook variance (fixed parameters, flat prior of the mean)."""
    field = field_of(surface, surface.record.latents["a:b"], 0, None, 400, grid=6)
    assert field.kind == "map" and field.draws.shape == (50, 36) and len(field.data) == 40
    new = pd.DataFrame(field.labels, columns=["a", "b"])
    beta = float(surface.fixed_effects()["estimate"].iloc[0])
    expected = surface.predict(new, new_groups="conditional") - beta
    np.testing.assert_allclose(field.mean, expected, atol=1e-8)
    # of 50 draws of the effects at the data and of the mean: 10 % of an SD, four times that allowed
    old, far = PLACES[["a", "b"]].to_numpy(), new.to_numpy()

    def kernel(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        d = np.sqrt(3) * np.linalg.norm(x[:, None] - z, axis=-1) / 0.6
        return (1 + d) * np.exp(-d)

    inverse = np.linalg.inv(kernel(old, old) + 0.04 * np.eye(40))
    across, ones = kernel(far, old), np.ones(40)
    tilt = -across @ inverse @ ones  # what the mean's error moves
    variance = 1 - np.einsum("ij,jk,ik->i", across, inverse, across) + tilt**2 / (ones @ inverse @ ones)
    assert np.abs(np.log(field.sd / np.sqrt(variance))).max() < 0.4


def test_a_field_on_a_mesh() -> None:
    fixed = {"a:b.sd": 1.0, "a:b.range": 0.8, "y.sigma": 0.2}
    fit = pmx.model("y ~ 1 + spde(a, b)", PLACES, priors=fixed).fit(progress=False)
    field = field_of(fit, fit.record.latents["a:b"], 0, None, 50, grid=5)
    assert field.kind == "map" and np.allclose(field.data, PLACES.drop_duplicates()[["a", "b"]].to_numpy())
    mesh = fit.program.covariances["a:b"].mesh
    index, weight = mesh.projector(np.array(field.labels))
    by_hand = (fit.draws(50, 0)["a:b"][:, index, 0] * weight).sum(-1)
    np.testing.assert_allclose(field.draws, by_hand.numpy())


def test_figures(walk: pmx.Fit, surface: pmx.Fit, tmp_path: Path) -> None:
    series = pd.concat([TIMES.assign(g=g, y=TIMES["y"] * k) for k, g in enumerate("pqr")], ignore_index=True)
    fixed = {"g:t.sd": 0.8, "g:t.rho": 0.8, "y.sigma": 0.3}
    several = pmx.model("y ~ 1 + ar1(1 | g:t)", series, priors=fixed).fit(progress=False)
    sines = pmx.GP(gpytorch.kernels.RBFKernel(), approximation=pmx.HilbertSpace(8))
    smooth = pmx.model("y ~ 1 + (1 | t)", TIMES, covariances={"t": sines}).fit(progress=False)
    for k, (fit, at, axes) in enumerate(
        [(walk, [30, 31], 1), (surface, None, 4), (several, [("p", 30)], 3), (smooth, [30.5], 1)]
    ):
        figure = fit.plot_field(at=at, draws=30)
        figure.savefig(tmp_path / f"{k}.png")
        assert len([axis for axis in figure.axes if axis.get_visible()]) == axes


def test_what_has_no_plot(walk: pmx.Fit) -> None:
    with pytest.raises(ConfigError, match="no such term"):
        walk.plot_field(term="slope")
    with pytest.raises(ConfigError, match="whole number"):
        walk.plot_field(draws=0)
    areas = pd.DataFrame({"g": np.repeat(list("uvwxyz"), 5), "y": RNG.normal(size=30)})
    fit = pmx.model(
        "y ~ 1 + besag(g, G)", areas, priors={"g.sd": 1.0}, known={"G": [*zip("uvwxy", "vwxyz", strict=True)]}
    ).fit(progress=False)
    with pytest.raises(UnsupportedError, match="no places in a plane; use plot_caterpillar"):
        fit.plot_field()
