"""Programs as tensor functions: the same numbers in every mode, and a way on where a mode cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyromix as pmx
from pyromix import compile as compilation
from pyromix.compile import MODES, cheapest, compile_function, tensor_program
from pyromix.potential import log_density, log_joint

needs_compiler = pytest.mark.skipif(compilation.compiler_problem() is not None, reason="no C++ compiler")
needs_c = pytest.mark.skipif(compilation.compiler_problem("c") is not None, reason="no C compiler")
inductor_warns = pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::DeprecationWarning:torch")


def logistic() -> tuple[Any, tuple[Any, ...]]:
    """Crossed random intercepts of a part of the verbal aggression data."""
    frame = pmx.datasets.load("verbagg").iloc[::7].copy()
    frame["r2"] = (frame["r2"] == "Y").astype(float)
    model = pmx.model("r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", frame, family=pmx.Binomial())
    return model.program, (model.design,)


def sleep() -> tuple[Any, tuple[Any, ...]]:
    model = pmx.model("Reaction ~ Days + (Days | Subject)", pmx.datasets.load("sleepstudy"))
    return model.program, (model.design,)


def small(seed: int = 0) -> tuple[Any, tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    y, g = torch.from_numpy(rng.normal(size=6)), torch.tensor([0, 0, 1, 1, 2, 2])

    def program(y: torch.Tensor) -> None:
        eta = pmx.RandomEffect("g", pmx.IID(sd=dist.HalfNormal(2.0)), levels=3)(g)
        pmx.observe("y", pmx.Gaussian(sigma=dist.Exponential(1.5)), eta, y)

    return program, (y,)


# -- the joint density ------------------------------------------------------------------------------------------------
def test_potential_is_minus_the_density_with_its_jacobian() -> None:
    program, args = small()
    potential = log_joint(program, args)
    u = np.array([0.3, -0.2, 0.1])
    values = {
        "g.sd": torch.tensor(0.7, dtype=torch.float64),
        "y.sigma": torch.tensor(0.4, dtype=torch.float64),
        "g": torch.from_numpy(u)[:, None],
    }
    z = potential.flat(values)
    expected = (
        stats.halfnorm(scale=2.0).logpdf(0.7)
        + stats.expon(scale=1 / 1.5).logpdf(0.4)
        + stats.norm(0, 0.7).logpdf(u).sum()
        + stats.norm(u[[0, 0, 1, 1, 2, 2]], 0.4).logpdf(args[0].numpy()).sum()
        + np.log(0.7)
        + np.log(0.4)
    )
    assert float(potential(z)) == pytest.approx(-expected, rel=1e-12)
    assert {name: value.shape for name, value in potential.values(z).items()} == {
        name: value.shape for name, value in values.items()
    }


@pytest.mark.parametrize("case", [logistic, sleep, small])
def test_traced_value_and_gradient(case: Any) -> None:
    potential = log_joint(*case())
    generator = torch.Generator().manual_seed(1)
    eager = potential.value_and_gradient(mode="eager", evaluations=1)
    traced = potential.value_and_gradient(mode="traced", evaluations=1)
    assert (eager.mode, traced.mode, traced.reason) == ("eager", "traced", "")
    for _ in range(3):
        z = potential.example + 0.3 * torch.randn(potential.size, generator=generator, dtype=torch.float64)
        (value, gradient), (value_t, gradient_t) = eager(z), traced(z)
        torch.testing.assert_close(value_t, value, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(gradient_t, gradient, rtol=1e-10, atol=1e-9)
        step = 1e-6 * torch.randn(potential.size, generator=generator, dtype=torch.float64)
        difference = float(potential(z + step) - potential(z - step)) / 2
        assert float(gradient @ step) == pytest.approx(difference, rel=1e-4, abs=1e-9 * abs(float(value)))


@pytest.mark.parametrize("by", [pytest.param("c", marks=needs_c), pytest.param("inductor", marks=needs_compiler)])
@inductor_warns
def test_compiled_value_and_gradient(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "inductor":
        monkeypatch.setattr(compilation, "compiler_problem", lambda by="inductor": None if by == "inductor" else "none")
    potential = log_joint(*logistic())
    eager, compiled = (potential.value_and_gradient(mode=mode, evaluations=1) for mode in ("eager", "compiled"))
    assert (compiled.mode, compiled.by, compiled.reason) == ("compiled", by, "")
    assert (eager.mode, eager.by) == ("eager", "")
    z = potential.example + 0.1 * torch.sin(torch.arange(potential.size, dtype=torch.float64))
    (value, gradient), (value_c, gradient_c) = eager(z), compiled(z)
    torch.testing.assert_close(value_c, value, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(gradient_c, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [True, False])
def test_weights_and_masks_count(masked: bool) -> None:
    y = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    extra = {"mask": torch.tensor([True, False, True])} if masked else {"weights": torch.tensor([2.0, 0.0, 1.0])}

    def program(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Gaussian(), torch.zeros(3, dtype=torch.float64), y, sigma=1.0, **extra)

    counts = np.array([1.0, 0.0, 1.0] if masked else [2.0, 0.0, 1.0])
    assert float(log_density(program, (y,), {})) == pytest.approx(float(counts @ stats.norm.logpdf(y.numpy())))


def test_a_site_without_a_value_is_an_error() -> None:
    program, args = small()
    with pytest.raises(pmx.NumericalError, match="site 'g.sd' has no value"):
        log_density(program, args, {})


# -- what a marginaliser needs ----------------------------------------------------------------------------------------
def test_tensor_program_gives_predictor_factors_dispersion_and_prior() -> None:
    program, args = sleep()
    function = tensor_program(program, args)
    corr = torch.linalg.cholesky(torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64))
    values = {
        "beta": torch.tensor([250.0, 10.0], dtype=torch.float64),
        "Subject.sd": torch.tensor([24.0, 6.0], dtype=torch.float64),
        "Subject.corr_cholesky": corr,
        "Reaction.sigma": torch.tensor(25.0, dtype=torch.float64),
    }
    flat = function.flat(values)
    outputs = dict(zip(function.outputs, function(flat), strict=True))
    assert list(outputs) == ["eta", "Subject.L", "Reaction.sigma", "log_prior"]
    days = torch.tensor(pmx.datasets.load("sleepstudy")["Days"].to_numpy(dtype=float))
    torch.testing.assert_close(outputs["eta"], 250 + 10 * days)
    torch.testing.assert_close(outputs["Subject.L"], torch.diag(values["Subject.sd"]) @ corr)
    assert float(outputs["Reaction.sigma"]) == 25.0
    assert torch.equal(function.values(flat)["Subject.corr_cholesky"], corr)


@pytest.mark.parametrize("mode", ["traced", pytest.param("compiled", marks=needs_compiler)])
@inductor_warns
def test_gradients_flow_through_a_tensor_program(mode: str) -> None:
    function = tensor_program(*sleep())
    made = compile_function(function, [function.example], mode=mode, evaluations=1)
    assert made.mode == mode, made.reason
    point = function.example * 1.1
    found = []
    for call in (function, made):
        flat = point.clone().requires_grad_(True)
        eta, factor, sigma, log_prior = call(flat)
        loss = eta.square().mean() + factor.sum() * sigma + log_prior
        found.append((loss.detach(), *torch.autograd.grad(loss, flat)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("names", [("beta",), ("beta", "other")])
def test_names_must_be_those_of_the_program(names: tuple[str, ...]) -> None:
    with pytest.raises(pmx.ConfigError, match=r"tensor_program\(names=...\).*name each of them once"):
        tensor_program(*sleep(), names)


# -- the rule ---------------------------------------------------------------------------------------------------------
def test_more_evaluations_never_choose_a_simpler_mode() -> None:
    chosen = [MODES.index(cheapest(10**k)) for k in range(8)]
    assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[-1] == 2
    assert [cheapest(n) for n in (30, 300, 1000, 100_000)] == ["eager", "traced", "compiled", "compiled"]
    slow = [cheapest(n, costs=compilation.INDUCTOR_COSTS) for n in (30, 300, 1000, 100_000)]
    assert slow == ["eager", "traced", "traced", "compiled"]


def test_auto_follows_the_rule_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    example = [torch.ones(3, dtype=torch.float64)]
    assert compile_function(torch.sin, example, evaluations=10).mode == "eager"
    assert compile_function(torch.sin, example, evaluations=1000).mode == "traced"
    monkeypatch.setattr(compilation, "compiler_problem", lambda by: "none here")
    made = compile_function(torch.sin, example, evaluations=10**6, differentiable=False)
    assert (made.mode, made.reason) == ("traced", "")


@needs_c
def test_auto_compiles_c_for_few_evaluations_and_inductor_for_many() -> None:
    """Sorting is not known in C; that is no reason to wait for Inductor unless it pays."""
    example = [torch.arange(3, dtype=torch.float64)]
    made = compile_function(torch.sin, example, evaluations=2000, differentiable=False)
    assert (made.mode, made.by) == ("compiled", "c")
    made = compile_function(lambda x: x.sort().values, example, evaluations=2000, differentiable=False)
    assert made.mode == "traced" and made.by == "" and "aten.sort" in made.reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "jit", "evaluations": 1}, "mode='jit'.*'auto', 'eager', 'traced', 'compiled'"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"evaluations": True}, "evaluations=True"),
    ],
)
def test_settings_outside_their_set_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        compile_function(torch.sin, [torch.ones(1)], **settings)


# -- fallbacks --------------------------------------------------------------------------------------------------------
def test_without_a_compiler_the_graph_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.INFO, logger="pyromix.compile"):
        made = compile_function(torch.sin, [torch.ones(2)], mode="compiled", evaluations=1)
    assert made.mode == "traced" and "no C++ compiler was found" in made.reason
    assert "not compiled: no C++ compiler was found" in caplog.text
    assert torch.equal(made(torch.tensor([0.5, 2.0])), torch.sin(torch.tensor([0.5, 2.0])))
    monkeypatch.delenv("CC", raising=False)
    made = compile_function(torch.sin, [torch.ones(2)], mode="compiled", evaluations=1, differentiable=False)
    assert made.mode == "traced" and "no C compiler was found" in made.reason and "no C++" in made.reason


def test_a_named_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    monkeypatch.setenv("CC", "nor-this-one")
    assert compilation.compiler_problem() == "CXX=no-such-compiler -O2 is not there"
    assert compilation.compiler_problem("c") == "CC=nor-this-one is not there"


def test_a_broken_compiler_leaves_the_graph() -> None:
    """In a process of its own, for Inductor remembers the compilers it has tried."""
    script = (
        "import torch\nfrom pyromix.compile import compile_function\n"
        "made = compile_function(lambda x: torch.sin(x) + 1, [torch.ones(9)], mode='compiled', evaluations=1)\n"
        "assert made.mode == 'traced' and made.reason, (made.mode, made.reason)\n"
        "assert torch.equal(made(torch.zeros(9)), torch.ones(9))\n"
    )
    environment = {**os.environ, "CXX": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_branch_on_the_inputs_is_evaluated_eagerly() -> None:
    def bent(x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else 2 * x

    made = compile_function(bent, [torch.ones(2)], mode="traced", evaluations=1)
    assert made.mode == "eager" and made.reason.startswith("RuntimeError")
    assert made(-torch.ones(2)).tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("mode", ["traced", pytest.param("compiled", marks=needs_c)])
def test_a_program_may_write_to_blank_tensors(mode: str) -> None:
    """What is made to be written to is no constant, though it does not depend on the inputs."""

    def program() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        mean = torch.zeros(2, 3, dtype=torch.float64)
        mean[:, 0] = a
        mean[:, 1:] += a.exp()[:, None]
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=torch.ones(2, 3, dtype=torch.float64))

    potential = log_joint(program, ())
    made = potential.value_and_gradient(mode=mode, evaluations=1)
    assert (made.mode, made.reason) == (mode, "")
    a = np.array([0.3, -0.7])
    value, gradient = made(torch.from_numpy(a))
    mean = np.column_stack([a, np.exp(a), np.exp(a)])
    assert float(value) == pytest.approx(-stats.norm.logpdf(a).sum() - stats.norm.logpdf(1.0, mean).sum(), rel=1e-7)
    expected = a - (1 - a) - 2 * np.exp(a) * (1 - np.exp(a))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)


def test_a_graph_that_disagrees_is_not_used() -> None:
    calls = iter(range(100))

    def counting(x: torch.Tensor) -> torch.Tensor:
        return x + next(calls)

    made = compile_function(counting, [torch.ones(2, dtype=torch.float64)], mode="traced", evaluations=1)
    assert made.mode == "eager" and "its result differs from the function's" in made.reason


def test_other_shapes_are_refused() -> None:
    made = compile_function(torch.sin, [torch.ones(2)], mode="traced", evaluations=1)
    with pytest.raises(pmx.DataError, match=r"prepared for inputs \['\[2\] torch.float32'\], got \['\[3\]"):
        made(torch.ones(3))


def test_a_prior_that_checks_its_arguments_can_be_traced() -> None:
    """Validation is a branch on the value; it is off inside, and the user's object stays as it was."""
    prior = dist.Normal(0.0, 1.0, validate_args=True)

    def program(y: torch.Tensor) -> None:
        beta = pyro.sample("b", prior)
        pmx.observe("y", pmx.Gaussian(), beta + torch.zeros(3, dtype=torch.float64), y, sigma=1.0)

    potential = log_joint(program, (torch.ones(3, dtype=torch.float64),))
    assert potential.value_and_gradient(mode="traced", evaluations=1).mode == "traced"
    assert prior._validate_args is True


def _nearly_singular(scale: torch.Tensor) -> torch.Tensor:
    """A solution that loses half of its digits."""
    x = torch.linspace(0, 1, 300, dtype=torch.float64)
    d = (x[:, None] - x).abs() * 5**0.5 / scale[0]
    matrix = (1 + d + d * d / 3) * (-d).exp() + 1e-7 * torch.eye(300, dtype=torch.float64)
    root = torch.linalg.cholesky_ex(matrix)[0]
    rough = torch.cos(torch.arange(300, dtype=torch.float64))
    return torch.linalg.solve_triangular(root, rough[:, None], upper=False)


@needs_c
def test_rounding_in_a_nearly_singular_matrix_is_no_disagreement() -> None:
    inputs = [torch.tensor([0.8], dtype=torch.float64)]
    graph = compilation.trace(_nearly_singular, inputs)
    found, expected = compilation.native.compile_graph(graph, inputs)(*inputs), _nearly_singular(*inputs)
    assert float((found - expected).abs().max()) > compilation.TOLERANCE * (1 + float(expected.max()))
    made = compile_function(_nearly_singular, inputs, mode="compiled", evaluations=1000, differentiable=False)
    assert made.by == "c"


def test_a_small_difference_in_a_well_conditioned_function_is_one() -> None:
    """Beyond what its own rounding explains, however little that is."""
    x = torch.arange(1.0, 5.0, dtype=torch.float64)
    assert not compilation._disagreement(torch.exp, torch.exp, [x])
    assert compilation._disagreement(torch.exp, lambda x: torch.exp(x) * (1 + 3e-9), [x])
