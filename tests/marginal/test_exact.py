"""The exact marginal against dense multivariate normal algebra and Chib's identity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.running import run
from tests.marginal.programs import KINDS, grouped, tensor


def dense(case, values=None, sd=None):
    """y - X beta, V, X, from explicit matrices; frequency weights by repeating rows."""
    values = values or case.values
    data = case.args[0]
    record = run(case.program, case.args, values)
    n = len(data["y"])
    z = []
    for site in record.latents.values():
        levels, q = site.fn.event_shape
        rows = torch.zeros(n, levels, q, dtype=torch.float64)
        latent = site.role.rows
        design = torch.ones(n, 1, dtype=torch.float64) if latent.design is None else latent.design
        rows[torch.arange(n), latent.index] = design
        z.append(rows.reshape(n, -1) @ torch.linalg.cholesky(site.fn.operator.dense() + 1e-300 * torch.eye(levels * q)))
    z = torch.cat(z, 1).detach().numpy()
    repeat = np.ones(n, int) if data["weight"] is None else data["weight"].numpy().astype(int)
    z = np.repeat(z, repeat, 0)
    noise = np.full(len(z), float(values["y.sigma"]) ** 2) if sd is None else np.repeat(sd**2, repeat)
    v = z @ z.T + np.diag(noise)
    return np.repeat(data["y"].numpy(), repeat), np.repeat(data["x"].numpy(), repeat, 0), v


def log_normal(r, v):
    return -0.5 * (len(r) * math.log(2 * math.pi) + np.linalg.slogdet(v)[1] + r @ np.linalg.solve(v, r))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_dense(kind, weights):
    case = grouped(pmx.Gaussian(), kind, weights=weights)
    y, x, v = dense(case)
    record = run(case.program, case.args, case.values)
    keep = pmx.Exact().prepare(case.program, case.args)
    assert_allclose(keep.log_marginal(record).item(), log_normal(y - x @ case.values["beta"].numpy(), v), rtol=1e-11)
    profile = pmx.Exact("profile").prepare(case.program, case.args)
    information = x.T @ np.linalg.solve(v, x)
    beta = np.linalg.solve(information, x.T @ np.linalg.solve(v, y))
    assert_allclose(profile.log_marginal(record).item(), log_normal(y - x @ beta, v), rtol=1e-11)
    estimate, covariance = profile.coefficients_at(record)["beta"]
    assert_allclose(estimate.numpy(), beta, rtol=1e-9)
    assert_allclose(covariance.numpy(), np.linalg.inv(information), rtol=1e-9)
    reml = pmx.Exact("integrate").prepare(case.program, case.args)
    expected = log_normal(y - x @ beta, v) + math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(information)[1]
    assert_allclose(reml.log_marginal(record).item(), expected, rtol=1e-11)


def test_chibs_identity():
    """log p(y|u) + log p(u) - log p(u|y) is the marginal at any u (Chib, 1995)."""
    case = grouped(pmx.Gaussian(), "crossed")
    bound = pmx.Exact().prepare(case.program, case.args)
    record = run(case.program, case.args, case.values)
    marginal = bound.log_marginal(record).item()
    names = list(bound.plan.latents)
    conditional = bound.conditional(record)
    sizes = [conditional.mode[n].numel() for n in names]
    precision = _precision(case, record)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        u = {n: torch.randn(conditional.mode[n].shape, generator=generator, dtype=torch.float64) for n in names}
        joint = run(case.program, case.args, {**case.values, **u})
        role = joint.data["y"].role
        log_y = role.family.log_prob(role.eta, role.obs, **role.dispersion).sum().item()
        log_u = sum(record.latents[n].fn.log_prob(u[n]).item() for n in names)
        gap = torch.cat([(u[n] - conditional.mode[n]).reshape(-1) for n in names]).numpy()
        log_u_y = (
            0.5 * np.linalg.slogdet(precision)[1]
            - 0.5 * gap @ precision @ gap
            - 0.5 * sum(sizes) * math.log(2 * math.pi)
        )
        assert_allclose(log_y + log_u - log_u_y, marginal, rtol=1e-11)


def _precision(case, record):
    n = len(case.args[0]["y"])
    z, prior = [], []
    for site in record.latents.values():
        levels, q = site.fn.event_shape
        rows = torch.zeros(n, levels, q, dtype=torch.float64)
        design = torch.ones(n, 1, dtype=torch.float64) if site.role.rows.design is None else site.role.rows.design
        rows[torch.arange(n), site.role.rows.index] = design
        z.append(rows.reshape(n, -1))
        prior.append(torch.linalg.inv(site.fn.operator.dense()))
    z = torch.cat(z, 1)
    return (z.T @ z / case.values["y.sigma"] ** 2 + torch.block_diag(*prior)).numpy()


def test_conditional_is_the_posterior():
    case = grouped(pmx.Gaussian(), "crossed")
    record = run(case.program, case.args, case.values)
    bound = pmx.Exact().prepare(case.program, case.args)
    conditional = bound.conditional(record)
    covariance = np.linalg.inv(_precision(case, record))
    sd = np.concatenate([conditional.sd[n].reshape(-1).numpy() for n in bound.plan.latents])
    assert_allclose(sd, np.sqrt(np.diag(covariance)), rtol=1e-10)
    draws = conditional.draw(20000, torch.Generator().manual_seed(1), {})
    flat = np.concatenate([draws[n].reshape(20000, -1).numpy() for n in bound.plan.latents], 1)
    mode = np.concatenate([conditional.mode[n].reshape(-1).numpy() for n in bound.plan.latents])
    z = (flat.mean(0) - mode) / (sd / math.sqrt(20000))
    assert np.abs(z).max() < 5  # 31 means: false alarm below 2e-5
    assert np.abs(np.cov(flat.T) - covariance).max() < 6 * sd.max() ** 2 * math.sqrt(2 / 20000)


def test_row_wise_sd():
    """A residual SD per row (precision weights) through the program."""
    case = grouped(pmx.Gaussian(), "crossed", weights=True)
    spread = tensor(np.random.default_rng(5).uniform(0.5, 2, 72))

    def program(data):
        eta = pmx.LinearEffect("beta")(data["x"]) + pmx.RandomEffect("a", pmx.Unstructured(), levels=8)(
            data["a"], data["z"][:, :2]
        )
        eta = (
            eta
            + pmx.RandomEffect("b", pmx.IID(), levels=8)(data["b"])
            + pmx.RandomEffect("c", pmx.IID(), levels=8)(data["c"])
        )
        pmx.observe("y", pmx.Gaussian(), eta, data["y"], weights=data["weight"], sigma=spread)

    record = run(program, case.args, case.values)
    case_rows = type(case)(program, case.args, case.values)
    y, x, v = dense(case_rows, sd=spread.numpy())
    got = pmx.Exact().prepare(program, case.args).log_marginal(record)
    assert_allclose(got.item(), log_normal(y - x @ case.values["beta"].numpy(), v), rtol=1e-11)


def test_refusals():
    case = grouped(pmx.Poisson(), "intercept")
    with pytest.raises(UnsupportedError, match="Gaussian response with identity link; 'y' is Poisson"):
        pmx.Exact().prepare(case.program, case.args)
    with pytest.raises(ConfigError, match="coefficients='none'"):
        pmx.Exact("none")
