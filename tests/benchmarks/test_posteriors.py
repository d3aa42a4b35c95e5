"""The posterior benchmarks: targets, the densities they stand for, effective sizes, agreement, verdicts. No timing."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st
import torch

from benchmarks import joint_gradient, posterior_accuracy, posterior_report, posterior_side
from benchmarks.harness import PEERS, Failed
from benchmarks.posterior_report import Side
from benchmarks.posteriors import (
    EXACT,
    FASTEST,
    LAPLACE,
    NESTED,
    NUMPYRO,
    NUTS,
    POSTERIORS,
    RSTANARM,
    MixedModel,
    PosteriorCase,
    Prior,
    Requirement,
    write_target,
)
from pyromix.potential import Potential
from pyromix.running import run

ROWS = {"verbagg_posterior": 7584, "radon_posterior": 919, "toenail_posterior": 1908, "three_level_posterior": 403}
LEVELS = {
    "verbagg_posterior": {"person": 316, "item": 24},
    "radon_posterior": {"county": 85},
    "toenail_posterior": {"patient": 294},
    "three_level_posterior": {"location": 63, "brood": 118, "chick": 403},
}


def written(name: str, tmp_path: Path) -> dict:
    path = tmp_path / "target.json"
    write_target(POSTERIORS[name].target(), path, draws=10, tune=10, chains=2, cores=1, seed=1, double=True)
    return json.loads(path.read_text(encoding="utf-8"))


# -- targets ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ROWS)
def test_mixed_models_have_the_published_sizes_and_centred_columns(name: str) -> None:
    target = POSTERIORS[name].target()
    assert len(target.y) == ROWS[name]
    for column in target.columns.values():
        assert len(column) == ROWS[name]
        assert abs(np.mean(column)) < 1e-12
    assert {group: len(set(index)) for group, index in target.groups.items()} == LEVELS[name]
    assert all(set(index) == set(range(max(index) + 1)) for index in target.groups.values())


def test_broods_are_nested_in_locations() -> None:
    groups = POSTERIORS["three_level_posterior"].target().groups
    assert len(set(zip(groups["brood"], groups["location"], strict=True))) == 118


@pytest.mark.parametrize("case", POSTERIORS.values(), ids=lambda case: case.name)
def test_every_script_and_command_exists_and_requirements_name_sides(case: PosteriorCase) -> None:
    assert all((PEERS / script).is_file() for script in case.peers.values())
    assert (PEERS.parent / f"{case.name}.py").is_file()
    for requirement in case.required:
        assert requirement.method in (*case.methods, FASTEST)
        assert requirement.against in (*case.peers, "best")


# -- pyromix's side is the model that is stated -----------------------------------------------------------------------
def stated_density(target: dict, values: dict[str, np.ndarray]) -> float:
    """Log joint density of a mixed target by SciPy, straight from its fields."""
    prior, beta = target["prior"], values["beta"]
    total = st.norm.logpdf(beta[0], 0, prior["intercept"]) + st.norm.logpdf(beta[1:], 0, prior["slope"]).sum()
    eta = beta[0] + np.column_stack(list(target["columns"].values())) @ beta[1:]
    family = st.expon if prior["sd_family"] == "exponential" else st.halfnorm
    for group, index in target["groups"].items():
        sd, u = values[f"{group}.sd"], values[group].ravel()
        total += family.logpdf(sd, scale=prior["sd"]) + st.norm.logpdf(u, 0, sd).sum()
        eta = eta + u[np.array(index)]
    y = np.array(target["y"])
    if target["family"] == "binomial":
        return float(total + st.bernoulli.logpmf(y, 1 / (1 + np.exp(-eta))).sum())
    if target["family"] == "poisson":
        return float(total + st.poisson.logpmf(y, np.exp(eta)).sum())
    sigma = values["y.sigma"]
    return float(total + st.halfnorm.logpdf(sigma, scale=prior["sigma"]) + st.norm.logpdf(y, eta, sigma).sum())


@pytest.mark.parametrize("name", ROWS)
def test_density_of_a_mixed_model_is_the_stated_one(name: str, tmp_path: Path) -> None:
    target = written(name, tmp_path)
    model = posterior_side.mixed_model(target)
    rng = np.random.default_rng(5)
    record = run(model.program, (model.design,), hypers="moderate", latents="prior", seed=3)
    values = {site: found.value.numpy() for site, found in {**record.hypers, **record.latents}.items()}
    values["beta"] = 0.3 * rng.standard_normal(values["beta"].shape)
    potential = Potential(model.program, (model.design,))
    z = potential.flat({site: torch.as_tensor(value) for site, value in values.items()})
    scales = [site for site in values if site.endswith((".sd", ".sigma"))]
    jacobian = sum(math.log(float(values[site])) for site in scales)
    assert -float(potential(z)) - jacobian == pytest.approx(stated_density(target, values), rel=1e-10)


def test_network_side_evaluates_the_function_of_its_weights(tmp_path: Path) -> None:
    target = written("bayesian_network_posterior", tmp_path)
    rng = np.random.default_rng(2)
    hidden, shapes = target["hidden"], posterior_side._module(target).state_dict()
    draws = {f"mean.{key}": torch.as_tensor(rng.standard_normal((3, *value.shape))) for key, value in shapes.items()}
    found = posterior_side.named(target, {**draws, "y.sigma": torch.ones(3, dtype=torch.float64)})
    w1, b1, w2, b2 = (draws[f"mean.{key}"].numpy() for key in ("0.weight", "0.bias", "2.weight", "2.bias"))
    assert w1.shape == (3, hidden, 2)
    for s in range(3):
        expected = np.tanh(np.array(target["grid"]) @ w1[s].T + b1[s]) @ w2[s, 0] + b2[s, 0]
        got = [float(found[f"f[{i}]"][s]) for i in range(len(expected))]
        assert got == pytest.approx(expected.tolist(), rel=1e-12)


# -- what the report says ---------------------------------------------------------------------------------------------
def side(ess: float = 1000.0, seconds: float = 10.0, mean: float = 0.0, sd: float = 1.0) -> Side:
    error = sd / math.sqrt(ess)
    return Side(ess, "a", 1.0, seconds, {"a": mean}, {"a": sd}, {"a": error})


def test_effective_size_is_the_smallest_over_parameters_per_second() -> None:
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((4, 1000))
    slow = np.empty_like(noise)  # AR(1) with coefficient 0.9: effective size n (1 - 0.9) / (1 + 0.9)
    slow[:, 0] = noise[:, 0]
    for t in range(1, 1000):
        slow[:, t] = 0.9 * slow[:, t - 1] + math.sqrt(1 - 0.81) * noise[:, t]
    result = {"draws": {"fast": rng.standard_normal((4, 1000)), "slow": slow}, "seconds": 2.0}
    found = posterior_report.digest(result)
    # the estimate of 210 has a relative standard error near 0.1; four of them: false alarm below 1e-3, seed fixed
    assert found.worst == "slow"
    assert found.ess == pytest.approx(4000 * 0.1 / 1.9, rel=0.4)
    assert found.rate == found.ess / 2.0
    assert found.error["fast"] == pytest.approx(1 / math.sqrt(4000), rel=0.2)


def test_importance_draws_bring_their_effective_size() -> None:
    draws = {"a": np.random.default_rng(1).standard_normal((1, 400))}
    found = posterior_report.digest({"draws": draws, "seconds": 2.0, "ess": 100.0})
    assert (found.ess, found.rate) == (100.0, 50.0)
    assert found.error["a"] == pytest.approx(draws["a"].std() / 10)
    assert math.isnan(found.rhat)


@pytest.mark.parametrize(
    ("label", "mean", "same"), [(NUTS, 0.17, True), (NUTS, 0.19, False), (LAPLACE, 0.27, True), (LAPLACE, 0.29, False)]
)
def test_sides_agree_within_monte_carlo_error_and_approximations_within_a_tenth_of_an_sd(
    label: str, mean: float, same: bool
) -> None:
    # both errors are 1 / sqrt(1000), so four of their hypot are 0.179
    _, different = posterior_report.agreement({label: side(mean=mean), NUMPYRO: side()}, NUMPYRO)
    assert different == ([] if same else [label])


def test_reference_is_the_best_peer_else_an_exact_method() -> None:
    ours = {NESTED: side(ess=9e3), NUTS: side(ess=2e3), EXACT: side(ess=3e3)}
    assert posterior_report.reference_of({**ours, NUMPYRO: side(), RSTANARM: side(ess=10.0)}, [NUMPYRO, RSTANARM]) == (
        NUMPYRO
    )
    assert posterior_report.reference_of(ours, [NUMPYRO]) == EXACT


CASE = PosteriorCase(
    "c",
    lambda: None,
    (NESTED, NUTS),
    {NUMPYRO: "n.py", RSTANARM: "r.R"},
    (Requirement(NESTED, floor=100.0), Requirement(NUTS, ratio=2.0), Requirement(NUTS, ratio=5.0, against=RSTANARM)),
)


@pytest.mark.parametrize(
    ("nested", "nuts", "met"), [(10.0, 5.0, True), (10.1, 5.0, False), (10.0, 5.1, False), (5.0, 2.0, True)]
)
def test_requirements_are_held_against_floor_best_peer_and_named_peer(nested: float, nuts: float, met: bool) -> None:
    sides = {NESTED: side(seconds=nested), NUTS: side(seconds=nuts), NUMPYRO: side(), RSTANARM: side(seconds=25.0)}
    lines, outcome = posterior_report.verdicts(CASE, sides, [NUMPYRO, RSTANARM])
    assert outcome is met
    assert f"{NUTS} / {NUMPYRO}: {10 / nuts:.2f}" in lines
    assert any("NOT MET" in line for line in lines) is not met


def test_a_faster_but_different_posterior_meets_nothing() -> None:
    sides = {NESTED: side(seconds=1.0), NUTS: side(seconds=1.0), NUMPYRO: side(), RSTANARM: side()}
    lines, met = posterior_report.verdicts(CASE, sides, [NUMPYRO, RSTANARM], [NUTS])
    assert not met
    assert sum("not by the same posterior" in line for line in lines) == 2


@pytest.mark.parametrize(("excluded", "meets"), [((), True), ((NESTED,), False)])
def test_the_fastest_method_counts_if_it_is_reliable(excluded: tuple[str, ...], meets: bool) -> None:
    case = replace(CASE, required=(Requirement(FASTEST, ratio=1.0),))
    sides = {NESTED: side(seconds=1.0), NUTS: side(seconds=20.0), NUMPYRO: side(seconds=10.0)}
    assert posterior_report.fastest(case, sides, excluded) == (NUTS if excluded else NESTED)
    assert posterior_report.verdicts(case, sides, [NUMPYRO], unreliable=excluded)[1] is meets


def test_a_side_of_our_own_that_fails_does_not_pass_the_check(monkeypatch, capsys) -> None:
    def fails(*args: object) -> dict:
        raise Failed("no")

    monkeypatch.setattr(posterior_report, "run_side", fails)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--sides", NUTS, "--check"])
    assert posterior_report.main("eight_schools_posterior") == 1
    assert f"{NUTS}: FAILED: no" in capsys.readouterr().out


def test_a_peer_that_was_not_run_leaves_its_requirement_open() -> None:
    lines, met = posterior_report.verdicts(CASE, {NUTS: side()}, [NUMPYRO, RSTANARM])
    assert met
    assert f"required of {NUTS} against best: peer not run" in lines


def test_missing_peers_are_reported_and_do_not_fail(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(posterior_report, "ROOT", tmp_path)
    monkeypatch.setattr(posterior_report.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--sides", "peers", "--check"])
    assert posterior_report.main("verbagg_posterior") == 0
    out = capsys.readouterr().out
    for label in POSTERIORS["verbagg_posterior"].peers:
        assert f"{label}: not run: " in out
    assert "nothing was run" in out


def test_an_unknown_side_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--sides", "Stan"])
    with pytest.raises(SystemExit):
        posterior_report.main("verbagg_posterior")
    assert "no side 'Stan'" in capsys.readouterr().err


# -- the other commands -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ours", "met"), [(100.0, True), (101.0, False)])
def test_gradients_are_held_against_the_faster_precision_called_alike(ours: float, met: bool) -> None:
    times = {
        "pyromix, call": [ours],
        "NumPyro, float64, call": [100.0],
        "NumPyro, float32, call": [130.0],
        "NumPyro, float64, loop": [50.0],
    }
    assert joint_gradient.verdict(times) is met


def test_common_point_has_a_place_for_every_unknown() -> None:
    target = MixedModel("binomial", [0.0, 1.0], {"x": [0.0, 1.0]}, {"g": [0, 1]}, Prior(1.0, 1.0, 1.0))
    found = joint_gradient.point(target)
    assert {name: np.size(value) for name, value in found.items()} == {"beta": 2, "g.sd": 1, "g": 2}


def test_accuracy_is_in_posterior_sds_and_ratios() -> None:
    rng = np.random.default_rng(3)
    reference = {"a": 2.0 + 3.0 * rng.standard_normal((4, 500))}
    (found,) = posterior_accuracy.compare("m", NESTED, {"a": 1.2 * reference["a"] + 0.5}, reference, 500.0)
    sd = reference["a"].std()
    assert found.mean == pytest.approx((0.2 * reference["a"].mean() + 0.5) / sd)
    assert found.ratio == pytest.approx(1.2)
    assert not posterior_accuracy.within([found])


@pytest.mark.parametrize(
    ("mean", "ratio", "ok"),
    [(0.099, 1.099, True), (-0.099, 0.92, True), (0.101, 1.0, False), (0.0, 1.101, False), (0.0, 0.905, False)],
)
def test_accuracy_limits_are_a_tenth_of_an_sd_and_ten_per_cent(mean: float, ratio: float, ok: bool) -> None:
    found = posterior_accuracy.Comparison("m", NESTED, "a", mean, 0.01, ratio)
    quiet = posterior_accuracy.Comparison("m", NESTED, "b", 0.0, 0.01, 1.0)
    assert posterior_accuracy.within([found, quiet]) is ok


def test_page_of_results_names_the_worst_parameter_of_every_method() -> None:
    found = [
        posterior_accuracy.Comparison("cbpp", NESTED, "a", 0.02, 0.01, 1.01),
        posterior_accuracy.Comparison("cbpp", NESTED, "b", -0.3, 0.01, 0.95),
    ]
    notes = {"cbpp": {NESTED: {"seconds": 1.5, "ess": 700.0, "khat": 0.2}}}
    page = posterior_accuracy.document(found, notes, argparse.Namespace(long=5000))
    assert f"| cbpp | {NESTED} | -0.300 ± 0.010 | b | 0.950 | b | NO | 1.5 |" in page
    assert f"| cbpp | {NESTED} | a | +0.020 ± 0.010 | 1.010 |" in page
    assert f"| cbpp | {NESTED} | 700 | 1.5 |  | 0.20 |" in page
