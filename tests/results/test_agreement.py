"""Fits side by side: numbers against hand computation and ArviZ, labels of evidence, refusals, the plot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import arviz
import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.errors import ConfigError, DataError, Status
from pyromix.results import Fit
from pyromix.results.agreement import Agreement, agreement
from pyromix.results.quantities import parameters
from tests.results.models import (
    corr_cholesky,
    sleepstudy_estimate,
    sleepstudy_fit,
    sleepstudy_rows,
    slope_program,
    tensor,
)

NAMES = [
    *("Intercept", "Days", "Subject.sd[Intercept]", "Subject.sd[Days]"),
    *("Subject.corr[Intercept, Days]", "Reaction.sigma"),
]


def posterior(shift: float = 0.0, seed: int = 0, chains: int = 4, **changes: Any) -> Fit:
    """A fit of 4 x 250 draws about the estimates, coefficients moved by this many SDs."""
    rng = np.random.default_rng(seed)
    base, n = sleepstudy_estimate(), 250 * chains
    beta = base.point["beta"].numpy() + shift * np.array([7.0, 1.5]) + rng.normal(size=(n, 2)) * [7.0, 1.5]
    rho = 0.2 + 0.2 * rng.uniform(-1, 1, size=n)
    draws = {
        "beta": tensor(beta),
        "Subject.sd": tensor(np.exp(rng.normal(size=(n, 2)) * 0.1) * [25.0, 6.0]),
        "Subject.corr_cholesky": torch.stack([corr_cholesky(float(r)) for r in rho]),
        "Reaction.sigma": tensor(rng.normal(25.0, 1.5, size=n)),
        "Subject": base.latents["Subject"] + 0.1 * tensor(rng.normal(size=(n, 18, 2))),
    }
    made = replace(
        base,
        kind="draws",
        inference="NUTS",
        settings={"sampling_time": 2.5, "setup_time": 0.5},
        draw=lambda count, seed: {name: value[:count] for name, value in draws.items()},
        n_draws=n,
        chains=chains,
        latent_sd={"Subject": torch.full((18, 2), 0.1, dtype=torch.float64)},
        sample_stats={"diverging": np.arange(n).reshape(chains, -1) < 3},
    )
    return sleepstudy_fit(**vars(replace(made, **changes)))


def draws_of(fit: Fit) -> dict[str, np.ndarray]:
    """Draws of the parameters by name, computed apart."""
    d = {name: value.numpy() for name, value in fit.draws().items()}
    corr = d["Subject.corr_cholesky"] @ d["Subject.corr_cholesky"].transpose(0, 2, 1)
    columns = [*d["beta"].T, *d["Subject.sd"].T, corr[:, 1, 0], d["Reaction.sigma"]]
    return dict(zip(NAMES, columns, strict=True))


def test_differences_are_in_the_references_sds() -> None:
    one, other, point = posterior(), posterior(0.5, seed=1), sleepstudy_fit()
    found = agreement({"nuts": one, "other": other, "reml": point})
    assert found.reference == "nuts" and found.table.index.tolist() == NAMES
    mine, its = draws_of(one), draws_of(other)
    for name in NAMES:
        row = found.table.loc[name]
        sd = mine[name].std(ddof=1)
        assert row["estimate", "nuts"] == pytest.approx(mine[name].mean())
        assert row["sd", "nuts"] == pytest.approx(sd)
        assert row["difference", "other"] == pytest.approx((its[name].mean() - mine[name].mean()) / sd)
        assert row["sd_ratio", "other"] == pytest.approx(its[name].std(ddof=1) / sd)
    sd = mine["Days"].std(ddof=1)
    days = found.table.loc["Days"]
    assert days["difference", "reml"] == pytest.approx((10.4672859595962 - mine["Days"].mean()) / sd)
    assert days["sd_ratio", "reml"] == pytest.approx(2.38946330859791**0.5 / sd)
    assert np.isnan(found.table.loc["Reaction.sigma"]["sd_ratio", "reml"]), "no standard error was given"
    turned = agreement({"nuts": one, "other": other}, reference="other").table
    expected = (mine["Days"].mean() - its["Days"].mean()) / its["Days"].std(ddof=1)
    assert turned.loc["Days"]["difference", "nuts"] == pytest.approx(expected)
    moved = sleepstudy_fit(latents={"Subject": point.estimate.latents["Subject"] + tensor([[0.02, -0.07]])})
    effects = agreement({"nuts": one, "moved": moved}).effects
    assert effects.loc["Subject", "moved"] == pytest.approx(0.07 / 0.1)


def test_what_each_fit_rests_on() -> None:
    laplace = {"khat": 0.31, "effective_size": 400.0, "evidence_error": 0.03, "exact": False, "sampling_time": 0.7}
    fits = {
        "nuts": posterior(),
        "laplace": posterior(settings=laplace, log_evidence=-880.5, sample_stats=None, chains=1),
        "svi": posterior(settings={"elbo": -882.0, "exact": False}, log_evidence=-882.0, sample_stats=None, chains=1),
        "reml": sleepstudy_fit(),
        "ml": sleepstudy_fit(settings={"criterion": "ml"}, inference="ML, Exact"),
        "map": sleepstudy_fit(settings={"criterion": "map"}, inference="MAP, Exact"),
    }
    found = agreement(fits)
    table = found.fits
    assert table["log_kind"].tolist() == [
        *("-", "evidence, +- 0.03", "ELBO, a lower bound"),
        *("restricted likelihood", "maximised likelihood", "likelihood at the mode"),
    ]
    assert np.isnan(table["log_value"]["nuts"]) and table["log_value"]["laplace"] == -880.5
    assert table["log_value"]["ml"] == pytest.approx(-871.814135979246)
    assert table["divergences"]["nuts"] == 3 and table["seconds"]["nuts"] == 3.0 and table["khat"]["laplace"] == 0.31
    assert table["ess"]["laplace"] == 400 and np.isnan(table["rhat"]["laplace"]) and np.isnan(table["ess"]["ml"])
    chained = {name: value.reshape(4, -1) for name, value in draws_of(fits["nuts"]).items()}
    assert table["ess"]["nuts"] == pytest.approx(min(arviz.ess(v) for v in chained.values()), rel=1e-6)
    assert table["rhat"]["nuts"] == pytest.approx(max(arviz.rhat(v) for v in chained.values()), rel=1e-6)
    text = repr(found)
    assert "maximised likelihoods are no evidence" in text and "an ELBO lies below it" in text
    alone = repr(agreement({"reml": fits["reml"], "ml": fits["ml"]}))
    assert "evidence" not in alone.replace("are no evidence", "") and "k-hat" not in alone and "divergent" not in alone


def test_the_text_is_aligned_and_says_the_largest_difference() -> None:
    found = agreement({"nuts": posterior(), "other": posterior(0.7, seed=2), "reml": sleepstudy_fit()})
    lines = repr(found).splitlines()
    assert lines[0].startswith("Agreement of 3 fits") and "'nuts'" in lines[0]
    start = next(k for k, line in enumerate(lines) if line.startswith("Intercept"))
    rows = lines[start : start + len(NAMES)]
    assert [row.split("  ")[0] for row in rows] == NAMES
    assert len({len(row) for row in rows}) == 1
    worst = found.table["difference"].abs()
    fit = worst.max().idxmax()
    said = next(line for line in lines if line.startswith("Largest difference:"))
    assert said == f"Largest difference: {worst.max(axis=None):.2f} SD, {worst[fit].idxmax()} of {fit!r}."
    ess = np.sort(found.fits["ess"].dropna())[:2]
    assert f"up to {np.sqrt((1 / ess).sum()):.2f} SD" in repr(found)
    assert found._repr_html_().count("<table") == 2


def _reduced() -> Fit:
    """The same data, uncorrelated effects: no correlation among its parameters."""
    base, rows = sleepstudy_estimate(), sleepstudy_rows()
    point = {name: value for name, value in base.point.items() if "corr" not in name}
    program = slope_program(pmx.Gaussian(), pmx.Diagonal())
    return Fit(replace(base, point=point), program, (rows,), design=rows, new_design=rows.new)


def test_parameters_that_only_some_fits_have() -> None:
    found = agreement({"us": sleepstudy_fit(), "diag": _reduced()})
    corr = "Subject.corr[Intercept, Days]"
    assert corr not in found.table.index and found.unshared == {"us": [corr]}
    assert f"Only in 'us' or not in the reference: {corr}." in repr(found)
    three = agreement({"us": sleepstudy_fit(), "diag": _reduced(), "nuts": posterior()})
    assert np.isnan(three.table.loc[corr]["estimate", "diag"]) and np.isfinite(
        three.table.loc[corr]["estimate", "nuts"]
    )


def test_standard_error_of_a_correlation_by_the_delta_method() -> None:
    """r = L_21 for two terms, with L_22 moving along."""
    covariance = torch.zeros(4, 4, dtype=torch.float64)
    covariance[2, 2] = 0.04
    fit = sleepstudy_fit(covariance={"Subject.corr_cholesky": covariance})
    found = parameters(fit)["Subject.corr[Intercept, Days]"]
    assert found.estimate == pytest.approx(0.0655512392395956) and found.sd == pytest.approx(0.2)
    assert found.upper - found.lower == pytest.approx(2 * 1.6448536 * 0.2)


def test_a_fit_that_did_not_converge_has_no_standard_errors() -> None:
    bad = sleepstudy_fit(status=Status.NOT_CONVERGED)
    found = agreement({"nuts": posterior(), "bad": bad})
    assert found.table["sd"]["bad"].isna().all() and found.fits["status"]["bad"] == "not converged"


def test_plain_programs_and_networks() -> None:
    import pyro
    import pyro.distributions as dist

    def program(d: dict) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", 3):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=d["y"])

    data = {"y": torch.arange(3.0)}
    rng = np.random.default_rng(0)
    draws = {"mu": tensor(rng.normal(size=100)), "theta": tensor(rng.normal(size=(100, 3)))}
    base = replace(
        sleepstudy_estimate(), kind="draws", n_draws=100, point={n: v.mean(0) for n, v in draws.items()}, latents={},
        latent_sd={}, draw=lambda count, seed: draws, settings={"exact": False},
    )  # fmt: skip
    one = Fit(base, program, (data,))
    found = agreement({"a": one, "b": Fit(base, program, (data,))})
    assert found.table.index.tolist() == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    assert (found.table["difference", "b"] == 0).all() and (found.table["sd_ratio", "b"] == 1).all()
    with pytest.raises(DataError, match="'b' was fitted to other values of 'y' than 'a' .3 rows."):
        agreement({"a": one, "b": Fit(base, program, ({"y": torch.ones(3)},))})


def _changed(**fields: Any) -> Fit:
    base, rows = sleepstudy_fit(), sleepstudy_rows()
    rows = replace(rows, **fields)
    return Fit(base.estimate, base.program, (rows,), design=rows)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: agreement({"a": sleepstudy_fit()}), ConfigError, "at least two fits by name"),
    (lambda: agreement([sleepstudy_fit()] * 2), ConfigError, "at least two fits by name"),
    (lambda: agreement({"a": sleepstudy_fit(), "b": 3}), ConfigError, "'b' is a int; pass fits"),
    (
        lambda: agreement({"a": sleepstudy_fit(), "b": posterior()}, "c"),
        ConfigError,
        "reference='c'.: the fits are 'a', 'b'",
    ),
    (
        lambda: agreement({"a": sleepstudy_fit(), "b": _changed(y=sleepstudy_rows().y + 1)}),
        DataError,
        "'b' was fitted to other values of 'Reaction' than 'a' .180 rows.; compare fits of the same rows",
    ),
    (
        lambda: agreement({"a": sleepstudy_fit(), "b": _changed(response="Time")}),
        DataError,
        "'b' observes Time, 'a' Reaction",
    ),
    (
        lambda: agreement({"a": sleepstudy_fit(), "b": _changed(trials=torch.ones(180, dtype=torch.float64))}),
        DataError,
        "'b' and 'a' differ in the trials, weights or mask of 'Reaction'",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_refusals(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_plot_shows_every_fit_where_it_lies(tmp_path: Any) -> None:
    found = agreement({"nuts": posterior(), "off": posterior(0.5, seed=1), "far": posterior(20.0, seed=3)})
    figure = found.plot()
    figure.savefig(tmp_path / "forest.png")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == NAMES
    lines = {line.get_label(): line for line in axis.lines if line.get_label().isdigit()}
    colours = {str(line.get_color()) for line in lines.values()}
    assert len(colours) == 3
    # the second fit's markers stand at its differences
    assert lines["1"].get_xdata() == pytest.approx(found.table["difference", "off"].to_numpy())
    assert lines["0"].get_xdata() == pytest.approx(np.zeros(6), abs=1e-12)
    assert len(lines["2"].get_xdata()) == 4, "two coefficients lie beyond the edge"
    edge = [line for line in axis.lines if line.get_marker() == ">" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in edge] == [[6.0, 6.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nuts", "off", "far"]
    assert isinstance(found, Agreement) and isinstance(found.table, pd.DataFrame)
