"""Parts of variational inference against dense algebra and PyTorch's own distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import torch

import pyromix as pmx
from pyromix.backends.svi import SVI
from pyromix.backends.variational.blocks import BlockRows
from pyromix.backends.variational.findings import Slope
from pyromix.backends.variational.gaussian import DenseGaussian, DiagonalGaussian, LowRankGaussian
from pyromix.backends.variational.local import Free, Sites, site_posterior
from pyromix.backends.variational.rows import Rows
from pyromix.backends.variational.schedule import Settings
from pyromix.backends.variational.small import inverse_factor
from pyromix.sites import Data
from tests.backends.svi_programs import fixed_gaussian, grouped_data

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def positive(*shape: int) -> torch.Tensor:
    root = normal(*shape, shape[-1])
    return root @ root.mT + 0.5 * torch.eye(shape[-1], dtype=torch.float64)


@pytest.mark.parametrize("q", [1, 2, 3, 4, 6])
def test_factors_of_many_small_matrices(q: int) -> None:
    matrix = positive(5, q).requires_grad_(True)
    inverse, logdet = inverse_factor(matrix)
    assert torch.allclose(inverse.mT @ inverse, torch.linalg.inv(matrix))
    assert torch.allclose(logdet, torch.logdet(matrix))
    (found,) = torch.autograd.grad(logdet.sum() + inverse.square().sum(), matrix)
    (expected,) = torch.autograd.grad(
        torch.logdet(matrix).sum() + torch.linalg.inv(matrix).diagonal(dim1=-2, dim2=-1).sum(), matrix
    )
    assert torch.allclose(found + found.mT, expected + expected.mT)


def _filled(guide: DenseGaussian | LowRankGaussian) -> None:
    with torch.no_grad():
        for value in guide.parameters.values():
            value += 0.3 * normal(*value.shape)


@pytest.mark.parametrize("dense", [0, 2, 5])
def test_density_of_a_dense_guide(dense: int) -> None:
    guide = DenseGaussian(5, dense)
    _filled(guide)
    root = guide.draw(torch.eye(5, dtype=torch.float64)).detach().T - guide.loc.detach()[:, None]
    x = normal(5)
    expected = torch.distributions.MultivariateNormal(guide.loc.detach(), root @ root.T).log_prob(x)
    assert float(guide.log_density(x)) == pytest.approx(float(expected))
    assert torch.equal(root[dense:, :dense], torch.zeros(5 - dense, dense, dtype=torch.float64))


def test_density_of_a_low_rank_guide() -> None:
    guide = LowRankGaussian(6, 2)
    _filled(guide)
    root = guide.draw(torch.eye(8, dtype=torch.float64)).detach().T - guide.loc.detach()[:, None]
    x = normal(6)
    expected = torch.distributions.MultivariateNormal(guide.loc.detach(), root @ root.T).log_prob(x)
    assert float(guide.log_density(x)) == pytest.approx(float(expected))


@pytest.mark.parametrize("guide", [DenseGaussian(3), DiagonalGaussian(3), LowRankGaussian(3, 1)])
def test_only_the_path_through_the_draw_has_gradients(guide: DenseGaussian) -> None:
    noise = normal(guide.noise_size)
    (-0.5 * guide.draw(noise).square().sum() - guide.log_density(guide.draw(noise))).backward()
    if not isinstance(guide, LowRankGaussian):  # it starts at the standard normal, where the estimator has no noise
        assert all(float(p.grad.abs().max()) < 1e-12 for p in guide.parameters.values() if p.numel())


def test_a_stand_in_times_the_prior() -> None:
    factor = torch.linalg.cholesky(positive(2))
    quadratic, linear = positive(4, 2), normal(4, 2)
    found = site_posterior(quadratic, linear, factor)
    prior = torch.linalg.inv(factor @ factor.T)
    covariance = torch.linalg.inv(prior + quadratic)
    assert torch.allclose(found.factor @ found.factor.mT, covariance)
    assert torch.allclose(found.mean, torch.einsum("gqr,gr->gq", covariance, linear))
    for g in range(4):
        p = torch.distributions.MultivariateNormal(torch.zeros(2).double(), factor @ factor.T)
        q = torch.distributions.MultivariateNormal(found.mean[g], covariance[g])
        expected = torch.distributions.kl_divergence(q, p)
        assert float(found.divergence[g]) == pytest.approx(float(expected))


def test_a_zero_sd_is_an_ordinary_value() -> None:
    found = site_posterior(positive(3, 1), normal(3, 1), torch.zeros(1, 1, dtype=torch.float64))
    assert torch.equal(found.mean, torch.zeros(3, 1, dtype=torch.float64)) and float(found.divergence.abs().max()) == 0


def test_divergence_of_free_normals() -> None:
    local = Free(3, 2, 0)
    local.tables["quadratic"][:] = positive(3, 2)
    local.tables["linear"][:] = normal(3, 2)
    local.tables["count"][:] = 1
    factor = torch.linalg.cholesky(positive(2))
    at = local.posterior(torch.arange(3), factor, torch.zeros(0, dtype=torch.float64))
    for g in range(3):
        sd = local.tables["quadratic"][g].diagonal().rsqrt()
        mean = torch.linalg.solve(local.tables["quadratic"][g], local.tables["linear"][g])
        q = torch.distributions.MultivariateNormal(mean, torch.diag(sd**2))
        p = torch.distributions.MultivariateNormal(torch.zeros(2).double(), factor @ factor.T)
        assert float(at.divergence[g]) == pytest.approx(float(torch.distributions.kl_divergence(q, p)))


def test_updates_that_are_not_finite_are_left_out() -> None:
    local = Sites(2, 1, 0)
    at = local.posterior(torch.arange(2), torch.eye(1, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    gram = torch.tensor([[[1.0]], [[torch.nan]]], dtype=torch.float64)
    target = local.target(gram, torch.ones(2, 1).double(), torch.zeros(2, 1, 0).double(), at, torch.eye(1).double())
    local.move(torch.arange(2), [(target, torch.zeros(0, dtype=torch.float64))])
    assert local.tables["quadratic"].flatten().tolist() == [1.0, 0.0]
    assert local.tables["count"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("m", [1, 2])
def test_row_maps_of_blocks(m: int) -> None:
    """Against the dense matrix of the map; with two memberships some rows hold the same level twice."""
    index = torch.randint(0, 4, (30, m), generator=GENERATOR)
    index[:4] = index[:4, :1]
    levels, compact = torch.unique(index, return_inverse=True)
    rows = BlockRows(levels, compact, normal(30, m, 2))
    g = len(levels)
    z = torch.zeros(30, g, 2, dtype=torch.float64)
    for n in range(30):
        for k in range(m):
            z[n, compact[n, k]] += rows.design[n, k]
    u, factor, weight, score = normal(g, 2), normal(g, 2, 2), normal(30).abs(), normal(30)
    assert torch.allclose(rows.mean(u), torch.einsum("ngq,gq->n", z, u))
    expected = torch.einsum("ngq,gqr->ngr", z, factor).square().sum((1, 2))
    assert torch.allclose(rows.variance(factor), expected)
    assert torch.allclose(rows.gather(score), torch.einsum("ngq,n->gq", z, score))
    gram = torch.einsum("ngq,n,ngr->gqr", z, weight, z)
    assert torch.allclose(rows.gram(weight), gram)
    slope = normal(g, 2, 3)
    assert torch.allclose(rows.columns(slope), torch.einsum("ngq,gqk->nk", z, slope))


@pytest.mark.parametrize(("family", "y"), [(pmx.Binomial(), 1.0), (pmx.Poisson(), 3.0)])
def test_expected_log_likelihood_by_adaptive_integration(family: pmx.families.AbstractFamily, y: float) -> None:
    role = Data(family, torch.zeros(1).double(), torch.tensor([y]).double())
    rows = Rows(role, family.prepare(role.obs))
    mean, sd = 0.4, 1.2

    def integrand(eta: float) -> float:
        log_prob = float(family.log_prob(torch.tensor([eta]).double(), role.obs))
        return log_prob * np.exp(-0.5 * ((eta - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))

    expected = scipy.integrate.quad(integrand, -9, 10)[0]
    at = (torch.tensor([mean]).double(), torch.tensor([sd**2]).double())
    assert float(rows.expected(*at)) == pytest.approx(expected, abs=1e-3)
    moments = rows.moments(*at, ())
    step = 1e-4
    up, down = (float(rows.expected(at[0] + d, at[1])) for d in (step, -step))
    # Bonnet: the expected score is the derivative in the mean; Price: half the expected curvature that in the variance
    assert float(moments.score) == pytest.approx((up - down) / (2 * step), rel=1e-6)
    up, down = (float(rows.expected(at[0], at[1] + d)) for d in (step, -step))
    assert float(moments.weight) == pytest.approx(-(up - down) / step, rel=5e-2)


def test_slopes() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=1000)
    assert not Slope.of(list(flat)).rising(0.1)
    rising = Slope.of(list(flat + np.linspace(0, 40, 1000)))
    assert rising.rising(0.1) and rising.rise == pytest.approx(4.0, abs=5 * rising.error)
    assert not Slope.of(list(np.linspace(0, 0.1, 1000))).rising(0.1)  # a rise of 0.01 nats is of no consequence


def test_the_schedule_ends_low() -> None:
    settings = Settings(100, 0.05, "adam", None, None, 0.1)
    assert [settings.rate(k, -1) for k in (0, 99)] == [1.0, 1.0]
    rates = [settings.rate(k, 50) for k in range(50, 100)]
    assert rates[0] == 1.0 and rates[-1] < 0.03 and rates == sorted(rates, reverse=True)
    assert [k for k in range(100) if settings.averages(k, 50)] == list(range(76, 100))
    assert settings.done(100, 50) and not settings.done(99, 50)
    long = Settings(1000, 0.05, "adam", None, None, 0.1)
    assert (
        long.done(400, 200)
        and not long.done(399, 200)
        and long.done(250, 100)
        and not long.done(249, 100)
        and not long.done(999, -1)
    )


def test_a_guide_that_stands_still_ends_early() -> None:
    """The start is the mode, so a long schedule is cut; one that moves all the time is not."""
    data = grouped_data(12, 5, seed=1)
    fit = pmx.fit(fixed_gaussian, data, SVI(steps=3000, draws=20), progress=False)
    assert fit.estimate.settings["steps_done"] < 600 and fit.status is pmx.Status.CONVERGED
