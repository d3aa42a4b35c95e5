"""Marginalised programs are Pyro programs: Pyro's own tools run on them."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

import pyromix as pmx
from pyromix.errors import DataError, UnsupportedError
from pyromix.running import run
from tests.marginal.programs import grouped, tensor


@pytest.mark.parametrize(
    ("family", "marginal"),
    [
        (pmx.Gaussian(), pmx.Exact()),
        (pmx.Gaussian(), pmx.Exact("integrate")),
        (pmx.Binomial(), pmx.Laplace()),
        (pmx.Poisson(), pmx.GaussHermite(5)),
    ],
    ids=repr,
)
def test_initialize_model(family, marginal):
    """Pyro's potential of the marginal program is minus (marginal + prior + Jacobian), with its gradient."""
    case = grouped(family, "slope")
    program = marginal(case.program)
    with torch.random.fork_rng(devices=[]):
        initial, potential, transforms, _ = initialize_model(program, model_args=case.args)
    assert not any(name in initial for name in ("a", "y"))
    point = {name: value.detach().clone().requires_grad_(True) for name, value in initial.items()}
    energy = potential(point)
    energy.backward()
    values = {name: value.detach() for name, value in point.items()}
    values |= {name: transform.inv(values[name]) for name, transform in transforms.items()}
    record = run(case.program, case.args, values)
    expected = marginal.prepare(case.program, case.args).log_marginal(record) + record.log_prior()
    for name, transform in transforms.items():
        jacobian = transform.inv.log_abs_det_jacobian(point[name].detach(), values[name])
        expected = expected + jacobian.sum()
    assert energy.item() == pytest.approx(-expected.item(), rel=1e-10)
    name, step = "beta", 1e-5
    for entry in range(2):
        moved = []
        for sign in (1, -1):
            shifted = {key: value.detach().clone() for key, value in point.items()}
            shifted[name][entry] += sign * step
            moved.append(potential(shifted).item())
        assert float(point[name].grad[entry]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5, abs=1e-6)


def test_sites_of_a_marginal_program():
    case = grouped(pmx.Poisson(), "crossed")
    program = pmx.Laplace()(case.program)
    with torch.random.fork_rng(devices=[]):
        trace = poutine.trace(poutine.condition(program, data=case.values)).get_trace(*case.args)
    assert not {"a", "b", "c", "y"} & set(trace.nodes)
    factor = trace.nodes["y.marginal"]
    record = run(case.program, case.args, case.values)
    expected = pmx.Laplace().prepare(case.program, case.args).log_marginal(record)
    assert factor["fn"].log_prob(factor["value"]).item() == pytest.approx(expected.item(), rel=1e-12)


def test_reinstate_draws_the_conditional():
    case = grouped(pmx.Gaussian(), "intercept")
    program = pmx.Exact()(case.program)
    conditional = program.bound(case.args).conditional(run(case.program, case.args, case.values))
    draws = torch.stack([program.reinstate(case.args, case.values, seed)["a"] for seed in range(400)])
    z = (draws.mean(0) - conditional.mode["a"]) / (conditional.sd["a"] / 20)
    assert float(z.abs().max()) < 5  # eight means: false alarm below 5e-6
    ratio = draws.std(0) / conditional.sd["a"]
    assert float((ratio - 1).abs().max()) < 0.2  # five standard errors of an SD from 400 draws
    again = program.reinstate(case.args, case.values, 7)["a"]
    np.testing.assert_array_equal(again, draws[7])


def test_global_state_is_left_alone():
    case = grouped(pmx.Poisson(), "slope")
    pyro.get_param_store().clear()
    before = torch.random.get_rng_state(), torch.get_default_dtype()
    pmx.Laplace().prepare(case.program, case.args)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_default_dtype() == before[1]
    assert not list(pyro.get_param_store().keys())


def test_programs_that_cannot_be_marginalised():
    case = grouped(pmx.Poisson(), "slope")

    def two_responses(data):
        case.program(data)
        pmx.observe("other", pmx.Poisson(), torch.zeros(72, dtype=torch.float64), data["y"])

    def plain_site(data):
        pyro.sample("free", pyro.distributions.Normal(tensor(0.0), tensor(1.0)))
        case.program(data)

    def nothing(data):
        pmx.LinearEffect("beta")(data["x"])

    def no_response(data):
        pmx.observe("y", pmx.Poisson(), pmx.LinearEffect("beta")(data["x"]), None)

    def inside_and_crossed(data):
        u = pmx.RandomEffect("a", pmx.IID(), levels=8)(data["a"])
        v = pmx.RandomEffect("b", pmx.IID(), levels=8)(data["b"])
        pmx.observe("y", pmx.Poisson(), torch.tanh(u + v), data["y"])

    for program, error, message in (
        (two_responses, UnsupportedError, "observes 2 responses"),
        (plain_site, UnsupportedError, r"sites without a pyromix role \(free\)"),
        (nothing, DataError, "observes nothing"),
        (no_response, DataError, "obs is None"),
        (inside_and_crossed, UnsupportedError, "more than one grouping factor"),
    ):
        with pytest.raises(error, match=message):
            pmx.Laplace().prepare(program, case.args)


def test_quadrature_refusals():
    crossed, three = grouped(pmx.Poisson(), "crossed"), grouped(pmx.Poisson(), "three")
    with pytest.raises(UnsupportedError, match="needs one grouping factor; a, b, c"):
        pmx.GaussHermite(5).prepare(crossed.program, crossed.args)

    def program(data):
        z = torch.cat([data["z"], data["z"][:, :1] ** 2], 1)
        eta = pmx.RandomEffect("a", pmx.Diagonal(), levels=8)(data["a"], z)
        pmx.observe("y", pmx.Poisson(), eta, data["y"])

    with pytest.raises(UnsupportedError, match="4 effects a group"):
        pmx.GaussHermite(5).prepare(program, three.args)

    def inside(data):
        pmx.observe("y", pmx.Poisson(), torch.tanh(pmx.RandomEffect("a", pmx.IID(), levels=8)(data["a"])), data["y"])

    with pytest.raises(UnsupportedError, match="not affine in a"):
        pmx.GaussHermite(5).prepare(inside, three.args)
    for nodes in (0, 1.5, True, 10_000):
        with pytest.raises(pmx.ConfigError, match="nodes must be an integer"):
            pmx.GaussHermite(nodes)
