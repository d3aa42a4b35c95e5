"""Proposals and importance draws, against densities whose integrals are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import gammaln

from pyromix.backends.boundary import Boundary, boundaries
from pyromix.backends.importance import sample
from pyromix.backends.mode_proposal import Conditional, proposal_at
from pyromix.backends.proposals import Mixture, SplitStudent


def funnel(t: np.ndarray) -> tuple[float, np.ndarray]:
    """A coefficient whose spread follows a variance parameter: b ~ N(a, exp(a)^2), a ~ N(0, 0.4^2); normalised."""
    a, b = t
    value = stats.norm.logpdf(a, 0, 0.4) + stats.norm.logpdf(b, a, np.exp(a))
    z = (b - a) / np.exp(a)
    return value, np.array([-a / 0.16 + z**2 - 1 + z / np.exp(a), -z / np.exp(a)])


def many(density, points: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    return np.array([density(t)[0] for t in points])


@pytest.fixture
def skewed(rng: np.random.Generator) -> SplitStudent:
    root = rng.normal(size=(2, 2)) + 2 * np.eye(2)
    return SplitStudent(np.array([1.0, -2.0]), root, below=np.array([0.5, 1.0]), above=np.array([1.7, 0.8]))


def grid_integral(proposal, half: float = 90.0, cells: int = 1500) -> float:  # type: ignore[no-untyped-def]
    """Integral of the density over a wide square, by the trapezoid rule on a sinh grid."""
    u = np.linspace(-np.arcsinh(half), np.arcsinh(half), cells)
    x, weight = np.sinh(u), np.cosh(u) * (u[1] - u[0])
    points = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(np.concatenate([proposal.log_density(part) for part in np.array_split(points, 20)]))
    return float(weight @ density.reshape(cells, cells) @ weight)


def test_split_student_is_a_density(skewed: SplitStudent) -> None:
    assert grid_integral(skewed) == pytest.approx(1.0, abs=2e-3)


def test_split_student_draws_have_its_density(skewed: SplitStudent, rng: np.random.Generator) -> None:
    # mean of h(t) / q(t) over draws of q is the integral of h, here a normal density: |z| < 5, once in 2 million
    draws = skewed.draw(40_000, rng)
    inside = stats.multivariate_normal(skewed.centre, 0.5 * skewed.root @ skewed.root.T)
    ratio = inside.pdf(draws) / np.exp(skewed.log_density(draws))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 200
    assert (ratio.std() < 3).all()


def test_conditional_follows_a_funnel(rng: np.random.Generator) -> None:
    mode = np.array([-0.16 * 1.0, -0.16 * 1.0])  # where both gradients vanish: z = 0, a = -0.16
    hessian = np.array([[1 / 0.16 + np.exp(0.32), -np.exp(0.32)], [-np.exp(0.32), np.exp(0.32)]])
    root = np.linalg.cholesky(np.linalg.inv(hessian))
    proposal = proposal_at(funnel, mode, root, funnel(mode)[0], np.array([1]))
    base, wide = proposal.parts  # both parameters' tails are short: no third part
    assert isinstance(base, Conditional)
    assert grid_integral(base) == pytest.approx(1.0, abs=2e-3)
    draws = proposal.draw(1000, rng)
    both = 0.85 * np.exp(base.log_density(draws)) + 0.15 * np.exp(wide.log_density(draws))
    assert_allclose(np.exp(proposal.log_density(draws)), both)
    assert draws[850:, 0].std() > 1.5 * draws[:850, 0].std()
    found = sample(lambda t: many(funnel, t), proposal, root, 2000, 1000, rng, 2000)
    assert found.smoothed.effective_size > 1400
    assert abs(found.log_evidence) < 5 * found.evidence_error  # of a normalised density; false alarm 1 in 2 million
    plain = sample(lambda t: many(funnel, t), SplitStudent.symmetric(mode, root), root, 2000, 0, rng, 2000)
    assert plain.smoothed.effective_size < found.smoothed.effective_size


def vanishing(t: np.ndarray) -> tuple[float, np.ndarray]:
    """a = log of a Gamma(0.3) variable, b ~ N(a / (1 + e^-a), 1): to the left, a falls off as e^{0.3 a}; normalised."""
    a, b = t
    share = 1 / (1 + np.exp(-a))
    centre, slope = a * share, share + a * share * (1 - share)
    value = 0.3 * a - np.exp(a) - gammaln(0.3) + stats.norm.logpdf(b, centre)
    return value, np.array([0.3 - np.exp(a) + (b - centre) * slope, centre - b])


@pytest.fixture
def at_vanishing() -> tuple[np.ndarray, np.ndarray, float]:
    """Mode, root of the inverse of minus the Hessian (by differences), and log density there."""
    a = np.log(0.3)
    mode = np.array([a, a / (1 + 1 / 0.3)])
    steps = 1e-5 * np.eye(2)
    hessian = np.array([(vanishing(mode - e)[1] - vanishing(mode + e)[1]) / 2e-5 for e in steps])
    return mode, np.linalg.cholesky(np.linalg.inv(hessian)), vanishing(mode)[0]


def test_a_long_tail_gets_a_proposal_of_its_own(at_vanishing, rng: np.random.Generator) -> None:  # type: ignore
    mode, root, top = at_vanishing
    assert_allclose(vanishing(mode)[1], 0, atol=1e-12)
    proposal = proposal_at(vanishing, mode, root, top, np.array([1]))
    edge = proposal.parts[2]
    assert isinstance(edge, Boundary)
    assert (edge.k, edge.sign) == (0, -1)
    assert edge.out == pytest.approx(0.7 * 0.3, rel=0.05)  # the tail's rate is 0.3
    assert grid_integral(edge) == pytest.approx(1.0, abs=2e-3)
    found = sample(lambda t: many(vanishing, t), proposal, root, 4000, 0, rng, 4000)
    assert abs(found.log_evidence) < 5 * found.evidence_error  # of a normalised density; false alarm 1 in 2 million
    assert found.smoothed.khat < 0.4
    without = Mixture(proposal.parts[:2], (0.85, 0.15))
    other = sample(lambda t: many(vanishing, t), without, root, 4000, 0, rng, 4000)
    assert other.smoothed.effective_size < found.smoothed.effective_size


def test_a_tail_on_the_right(at_vanishing, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    mode, root, top = at_vanishing

    def mirrored(t: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = vanishing(-t)
        return value, -gradient

    (edge,) = boundaries(mirrored, -mode, root, top, np.array([0]))
    assert (edge.k, edge.sign) == (0, 1)
    draws = edge.draw(20_000, rng)
    assert (draws[:, 0] > edge.edge).mean() == pytest.approx(edge.back / (edge.back + edge.out), abs=0.02)
    # the mean of h / q over draws of q is the integral of h: here a normal density inside it
    inside = stats.norm(edge.edge, 0.5).logpdf(draws[:, 0]) + stats.norm(edge.others.centre[0], 0.5).logpdf(draws[:, 1])
    ratio = np.exp(inside - edge.log_density(draws))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(20_000)


def test_a_gaussian_has_no_long_tail() -> None:
    def density(t: np.ndarray) -> tuple[float, np.ndarray]:
        return -0.5 * float(t @ t), -t

    assert not list(boundaries(density, np.zeros(3), np.eye(3), 0.0, np.arange(3)))


def test_a_poor_proposal_is_refitted(rng: np.random.Generator) -> None:
    target = stats.multivariate_normal([4.0, -3.0], [[1.0, 0.7], [0.7, 1.0]])
    first = SplitStudent.symmetric(np.zeros(2), np.eye(2))
    found = sample(target.logpdf, first, np.eye(2), 1000, 500, rng, 8000)
    assert 1000 < len(found.t) <= 8000
    assert found.smoothed.effective_size >= 500
    weights = np.exp(found.smoothed.log_weights)
    assert_allclose(weights @ found.t, [4.0, -3.0], atol=0.25)  # five standard errors of 500 effective draws
    assert abs(found.log_evidence) < 5 * found.evidence_error


def test_resampling_keeps_proportions(rng: np.random.Generator) -> None:
    target = stats.norm(0, 0.5)
    wide = SplitStudent.symmetric(np.zeros(1), np.eye(1))
    found = sample(lambda t: target.logpdf(t[:, 0]), wide, np.eye(1), 4000, 0, rng, 4000)
    chosen = found.resample(2000, rng)
    assert len(chosen) == 2000
    assert (np.diff(chosen) < 0).any()  # not in the order of the draws
    counts = np.bincount(chosen, minlength=4000)
    # systematic resampling: every count is its expectation rounded up or down
    expected = 2000 * np.exp(found.smoothed.log_weights)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()


def test_points_without_density_weigh_nothing(rng: np.random.Generator) -> None:
    def half(t: np.ndarray) -> np.ndarray:
        return np.where(t[:, 0] > 0, stats.norm.logpdf(t[:, 0]), -np.inf)

    found = sample(half, SplitStudent.symmetric(np.zeros(1), np.eye(1)), np.eye(1), 3000, 0, rng, 3000)
    assert (found.t[found.resample(500, rng), 0] > 0).all()
    assert found.log_evidence == pytest.approx(np.log(0.5), abs=5 * found.evidence_error)
