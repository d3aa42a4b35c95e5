"""Gradients of every marginal against central differences, and limits in which marginals coincide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyromix as pmx
from pyromix.running import run
from tests.marginal.programs import Case, grouped, tensor

STEP = 1e-4  # central differences with Richardson extrapolation: error O(step^4), rounding 1e-12


def value_at(bound, case, name, entry, delta):
    values = {k: v.clone() for k, v in case.values.items()}
    values[name].reshape(-1)[entry] += delta
    with torch.no_grad():
        return bound.log_marginal(run(case.program, case.args, values)).item()


def check(marginal, case: Case, skip=()):
    bound = marginal.prepare(case.program, case.args)
    values = {k: v.clone().requires_grad_(True) for k, v in case.values.items()}
    bound.log_marginal(run(case.program, case.args, values)).backward()
    scale = max(float(v.grad.abs().max()) for k, v in values.items() if v.grad is not None)
    for name, value in values.items():
        if name in skip:
            assert value.grad is None or not value.grad.abs().any()
            continue
        for entry in range(value.numel()):
            if name.endswith("corr_cholesky") and not value.detach().reshape(-1)[entry]:
                continue  # above the diagonal
            wide = (value_at(bound, case, name, entry, 2 * STEP) - value_at(bound, case, name, entry, -2 * STEP)) / (
                4 * STEP
            )
            near = (value_at(bound, case, name, entry, STEP) - value_at(bound, case, name, entry, -STEP)) / (2 * STEP)
            expected = (4 * near - wide) / 3
            got = float(value.grad.reshape(-1)[entry])
            assert abs(got - expected) < 1e-6 * scale, (name, entry, got, expected)


FAMILIES = [
    pmx.Gaussian(),
    pmx.Gaussian("log"),
    pmx.Poisson(),
    pmx.Binomial(),
    pmx.Binomial("probit"),
    pmx.Binomial("cloglog"),
]


@pytest.mark.parametrize("kind", ["intercept", "slope", "three", "split", "crossed"])
@pytest.mark.parametrize("coefficients", ["keep", "profile", "integrate"])
def test_exact(kind, coefficients):
    skip = () if coefficients == "keep" else ("beta",)
    check(pmx.Exact(coefficients), grouped(pmx.Gaussian(), kind, weights=True), skip)


@pytest.mark.parametrize("coefficients", ["profile", "integrate"])
def test_exact_at_a_zero_sd(coefficients):
    """On the boundary the factor is singular; the gradient in the other parameters must still be right."""
    case = grouped(pmx.Gaussian(), "crossed")
    case.values["a.sd"][0] = 0.0
    case.values["b.sd"].fill_(0.0)
    check(pmx.Exact(coefficients), case, ("beta",))


@pytest.mark.parametrize("kind", ["slope", "crossed"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_laplace(family, kind):
    check(pmx.Laplace(), grouped(family, kind, weights=True))


@pytest.mark.parametrize("kind", ["intercept", "slope", "split"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("nodes", [1, 5])
def test_quadrature(family, kind, nodes):
    check(pmx.GaussHermite(nodes), grouped(family, kind, weights=True))


def test_quadrature_on_the_prior():
    check(pmx.GaussHermite(9, adaptive=False), grouped(pmx.Poisson(), "slope"))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("kind", ["intercept", "slope", "three", "split"])
def test_one_node_is_laplace(family, kind):
    case = grouped(family, kind, weights=True)
    record = run(case.program, case.args, case.values)
    one = pmx.GaussHermite(1).prepare(case.program, case.args).log_marginal(record).item()
    laplace = pmx.Laplace().prepare(case.program, case.args).log_marginal(record).item()
    assert abs(one - laplace) < 1e-8


@pytest.mark.parametrize("kind", ["slope", "crossed"])
def test_laplace_is_exact_for_gaussian_responses(kind):
    case = grouped(pmx.Gaussian(), kind, weights=True)
    record = run(case.program, case.args, case.values)
    exact = pmx.Exact().prepare(case.program, case.args).log_marginal(record).item()
    laplace = pmx.Laplace().prepare(case.program, case.args).log_marginal(record).item()
    assert abs(exact - laplace) < 1e-9


def inside_network(seed=3):
    """A random effect that enters through a tanh layer, with a random slope outside it."""
    case = grouped(pmx.Binomial(), "slope", seed)
    x = case.args[0]["x"]

    def program(data):
        u = pmx.RandomEffect("a", pmx.Unstructured(), levels=8)(data["a"], data["z"][:, :2])
        hidden = torch.tanh(pmx.LinearEffect("beta")(data["x"]) + u)
        eta = 1.5 * hidden + 0.3 * u**2 - 0.2
        pmx.observe("y", pmx.Binomial(), eta, data["y"], trials=data["trials"])

    assert x.shape[1] == 2
    return Case(program, case.args, case.values)


def test_generic_laplace_gradient():
    case = inside_network()
    assert not pmx.Laplace().prepare(case.program, case.args).plan.affine
    check(pmx.Laplace(), case)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_generic_path_equals_the_affine_one(family):
    """The same model forced down the generic path."""
    from pyromix.marginal.generic import BoundGeneric

    case = grouped(family, "slope", weights=True)
    affine = pmx.Laplace().prepare(case.program, case.args)
    generic = BoundGeneric(case.program, case.args, affine.plan)
    record = run(case.program, case.args, case.values)
    assert abs(affine.log_marginal(record).item() - generic.log_marginal(record).item()) < 1e-9
    one, two = affine.conditional(record), generic.conditional(record)
    np.testing.assert_allclose(one.mode["a"], two.mode["a"], atol=1e-8)
    np.testing.assert_allclose(one.sd["a"], two.sd["a"], rtol=1e-7)


def test_gradient_in_a_learned_row_design():
    """NGMM's g(z): the scale of the effect is itself a function with weights."""
    case = grouped(pmx.Poisson(), "intercept")
    case.values["gamma"] = tensor([0.2, -0.3])
    case.values["a.sd"] = tensor(1.0)

    def program(data):
        scale = torch.exp(pmx.LinearEffect("gamma")(data["x"]))
        eta = pmx.LinearEffect("beta")(data["x"])
        eta = eta + pmx.RandomEffect("a", pmx.IID(), levels=8)(data["a"], scale[:, None])
        eta = eta + pmx.RandomEffect("b", pmx.IID(sd=0.4), levels=8)(data["b"])
        pmx.observe("y", pmx.Poisson(), eta, data["y"])

    check(pmx.Laplace(), Case(program, case.args, case.values))
