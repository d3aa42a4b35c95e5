"""Matern fields on grids and meshes: against dense algebra, and against the Matern covariance itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import gamma, kv

import pyromix as pmx
from pyromix import SPDE, Grid, Mesh
from pyromix.covariances import Coords, from_config
from pyromix.errors import ConfigError, DataError, StructureError
from pyromix.linalg import fields
from pyromix.linalg.sparse import ComplementPlan
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import number

Theta = Mapping[str, torch.Tensor]


def matern(r: np.ndarray, reach: float, nu: float) -> np.ndarray:
    """Correlation at distances r: the textbook formula."""
    x = math.sqrt(8 * nu) / reach * np.where(r == 0, 1.0, r)
    return np.where(r == 0, 1.0, 2 ** (1 - nu) / gamma(nu) * x**nu * kv(nu, x))


def triangle_elements(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mass and stiffness, triangle by triangle, from gradients of the three barycentric coordinates."""
    n = len(vertices)
    c, g = np.zeros(n), np.zeros((n, n))
    for t in triangles:
        affine = np.linalg.inv(np.column_stack([np.ones(3), vertices[t]]))  # columns: coefficients of each psi
        area = abs(np.linalg.det(np.column_stack([np.ones(3), vertices[t]]))) / 2
        c[t] += area / 3
        g[np.ix_(t, t)] += area * affine[1:].T @ affine[1:]
    return c, g


def grid_elements(shape: tuple[int, ...], steps: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mass and stiffness, edge by edge: an edge weighs what lies across it over its length."""
    places = list(np.ndindex(*shape))
    at = {p: i for i, p in enumerate(places)}

    def share(p: tuple[int, ...], axes: list[int]) -> float:
        return math.prod(steps[k] * (0.5 if p[k] in (0, shape[k] - 1) else 1.0) for k in axes)

    c = np.array([share(p, list(range(len(shape)))) for p in places])
    g = np.zeros((len(places),) * 2)
    for p in places:
        for k in range(len(shape)):
            q = (*p[:k], p[k] + 1, *p[k + 1 :])
            if q in at:
                weight = share(p, [j for j in range(len(shape)) if j != k]) / steps[k]
                i, j = at[p], at[q]
                g[[i, j], [i, j]] += weight
                g[[i, j], [j, i]] -= weight
    return c, g


def dense_field(c: np.ndarray, g: np.ndarray, alpha: int, dimension: int):
    """Covariance over the levels, whose labels are vertices, with several terms."""

    def dense(theta: Theta, coords: Coords) -> torch.Tensor:
        mass, stiffness = torch.from_numpy(np.diag(c)), torch.from_numpy(g)
        nu = alpha - dimension / 2
        kappa = math.sqrt(8 * nu) / theta["range"]
        k = kappa**2 * mass + stiffness
        p = k
        for _ in range(alpha - 1):
            p = p @ torch.linalg.inv(mass) @ k
        # the variance of the field with tau = 1 on the whole space
        variance = math.gamma(nu) / (math.gamma(alpha) * (4 * math.pi) ** (dimension / 2) * kappa ** (2 * nu))
        whole = torch.linalg.inv(p) / variance
        at = list(coords.levels)
        return torch.kron(whole[at][:, at].contiguous(), torch.diag(theta["sd"] ** 2))

    return dense


SQUARE = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, 0.0], [0.2, 1.0], [1.1, 0.9], [2.1, 1.2], [0.9, 2.0]])
TRIANGLES = np.array([[0, 1, 3], [1, 4, 3], [1, 2, 4], [2, 5, 4], [3, 4, 6], [4, 5, 6]])


class TestSPDE(CovarianceSuite):
    """A triangulation that is handed over."""

    def make(self) -> SPDE:
        return SPDE(Mesh(SQUARE, TRIANGLES))

    def coords(self) -> Coords:
        return Coords(tuple(range(7)), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7], dtype=torch.float64), "range": number(1.3)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_field(*triangle_elements(SQUARE, TRIANGLES), 2, 2)(theta, coords)


class TestSPDEOnAGrid(TestSPDE):
    """In a plane, with different steps and a slope beside the intercept; smoother than usual."""

    def make(self) -> SPDE:
        return SPDE(Grid([[0.0, 0.0], [2.0, 1.0]], spacing=[1.0, 0.5], padding=0.0), alpha=3)

    def coords(self) -> Coords:
        return Coords(tuple(range(9)), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7, 1.2], dtype=torch.float64), "range": number(2.0)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_field(*grid_elements((3, 3), (1.0, 0.5)), 3, 2)(theta, coords)


class TestSPDEOnALine(TestSPDE):
    def make(self) -> SPDE:
        return SPDE(Grid([0.0, 2.0], spacing=0.5, padding=0.5), alpha=1)

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_field(*grid_elements((7,), (0.5,)), 1, 1)(theta, coords)


class TestSPDEInSpace(TestSPDE):
    def make(self) -> SPDE:
        return SPDE(Grid([[0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], spacing=1.0, padding=0.0))

    def coords(self) -> Coords:
        return Coords(tuple(range(12)), ("Intercept",))

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_field(*grid_elements((2, 3, 2), (1.0, 1.0, 1.0)), 2, 3)(theta, coords)


class TestSPDEBySparseFactors(TestSPDE):
    """As beyond the sizes at which the determinant comes from eigenvalues."""

    @pytest.fixture(autouse=True)
    def sparse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fields, "SPECTRAL", 0)


# -- the identity: the field is a Matern field -----------------------------------------------------------------------
def covariance_at(mesh: Grid | Mesh, reach: float, alpha: int, points: np.ndarray) -> np.ndarray:
    """Of the field at places, sd one."""
    theta = {"sd": torch.ones(1, dtype=torch.float64), "range": number(reach)}
    p = SPDE(mesh, alpha).operator(theta, Coords(tuple(range(mesh.size)), ("Intercept",))).separable().precision
    index, weight = (part.numpy() for part in mesh.projector(points))
    a = np.zeros((mesh.size, len(points)))
    for row in range(len(points)):
        np.add.at(a[:, row], index[row], weight[row])
    return a.T @ ComplementPlan(p.rows, p.cols, p.size).factor(p.values.numpy()).solve(a)


def around(dimension: int, seed: int) -> np.ndarray:
    """Places within half a range of the origin."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (40, dimension)) / math.sqrt(dimension)


FINE = {
    "line, nu 1/2": (lambda: Grid([-0.5, 0.5], 1 / 100, padding=1.5), 1, 1),
    "line, nu 3/2": (lambda: Grid([-0.5, 0.5], 1 / 30, padding=1.5), 2, 1),
    "plane, nu 1": (lambda: Grid([[-0.5, -0.5], [0.5, 0.5]], 1 / 20, padding=1.5), 2, 2),
    "plane, nu 2": (lambda: Grid([[-0.5, -0.5], [0.5, 0.5]], 1 / 15, padding=1.5), 3, 2),
    "mesh, nu 1": (lambda: Mesh.from_points(np.vstack([around(2, 1), [[-0.5, -0.5], [0.5, 0.5]]]), 1 / 20, 1.5), 2, 2),
}


@pytest.mark.parametrize("name", FINE)
def test_a_fine_mesh_carries_the_matern_covariance(name: str) -> None:
    """Marginal variance and correlation within 2 %, away from the boundary."""
    make, alpha, dimension = FINE[name]
    points = around(dimension, 0)
    found = covariance_at(make(), 1.0, alpha, points)
    sd = np.sqrt(found.diagonal())
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    assert abs(sd - 1.0).max() < 0.02
    assert abs(found / sd / sd[:, None] - matern(distance, 1.0, alpha - dimension / 2)).max() < 0.02


def test_in_space_the_covariance_is_near_matern_between_distant_places() -> None:
    """Smoothness 1/2 in three dimensions converges slowly: a tenth of the range apart the mesh still shows."""
    grid = Grid(np.array([[-0.3] * 3, [0.3] * 3]), 1 / 8, padding=1.2)
    points = grid.vertices[np.abs(grid.vertices).max(1) < 0.3]
    found = covariance_at(grid, 1.0, 2, points)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    apart = distance > 0.3
    assert abs(found - matern(distance, 1.0, 0.5))[apart].max() < 0.04


def test_the_error_falls_with_the_square_of_the_spacing() -> None:
    errors = [abs(covariance_at(Grid([-1.0, 1.0], h, padding=2.0), 1.0, 2, np.zeros(1))[0, 0] - 1) for h in (0.1, 0.05)]
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_the_edge_reflects() -> None:
    """Without padding the variance doubles at a side and is four times that in a corner: images beyond the edge."""
    grid = Grid(np.array([[0.0, 0.0], [5.0, 5.0]]), 0.1, padding=0.0)
    corner, side, inside = covariance_at(grid, 1.0, 2, np.array([[0.0, 0.0], [2.5, 0.0], [2.5, 2.5]])).diagonal()
    assert side / inside == pytest.approx(2.0, rel=0.01)
    assert corner / inside == pytest.approx(4.0, rel=0.01)


# -- fits ------------------------------------------------------------------------------------------------------------
def simulated(points: np.ndarray, reach: float, sd: float, seed: int) -> torch.Tensor:
    """A draw of the Matern field itself, smoothness one, not of its approximation."""
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    root = np.linalg.cholesky(sd**2 * matern(distance, reach, 1.0) + 1e-10 * np.eye(len(points)))
    return torch.from_numpy(root @ np.random.default_rng(seed).standard_normal(len(points)))


def field_data(mesh: Grid | Mesh, points: np.ndarray, **rest: torch.Tensor) -> dict[str, torch.Tensor]:
    index, weight = mesh.projector(points)
    return {"index": index, "weight": weight, **rest}


def field_program(mesh: Grid | Mesh, family: object, levels: object = None):
    effect = pmx.RandomEffect("field", SPDE(mesh), mesh.size if levels is None else levels)
    linear = pmx.LinearEffect("beta")

    def program(data: Mapping[str, torch.Tensor]) -> None:
        eta = linear(torch.ones(len(data["index"]), 1, dtype=torch.float64))
        eta = eta + effect(data["index"], weight=data["weight"])
        pmx.observe("y", family, eta, data["y"])

    return program


PLACES = np.random.default_rng(7).uniform(0, 1, (150, 2))


def coarse(points: np.ndarray = PLACES) -> Mesh:
    return Mesh.from_points(np.vstack([points, [[0, 0], [0, 1], [1, 0], [1, 1]]]), edge=0.12, padding=0.3)


def gaussian(mesh: Mesh, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(len(PLACES)))
    return field_data(mesh, PLACES, y=2.0 + simulated(PLACES, 0.5, 1.2, seed) + 0.3 * noise)


def dense_density(mesh: Mesh, data: Mapping[str, torch.Tensor], point: Theta) -> torch.distributions.MultivariateNormal:
    """Of the response, from the elements triangle by triangle and inverses."""
    c, g = triangle_elements(mesh.vertices, mesh.triangles)
    theta = {"sd": point["field.sd"], "range": point["field.range"]}
    whole = dense_field(c, g, 2, 2)(theta, Coords(tuple(range(mesh.size)), ("Intercept",)))
    a = torch.zeros(len(data["y"]), mesh.size, dtype=torch.float64)
    a.scatter_add_(1, data["index"], data["weight"])
    spread = a @ whole @ a.T + point["y.sigma"] ** 2 * torch.eye(len(a), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(point["beta"].expand(len(a)), spread)


@pytest.mark.parametrize("spectral", [0, 10_000])
def test_maximum_likelihood_is_that_of_dense_algebra(spectral: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "SPECTRAL", spectral)
    mesh = coarse()
    data = gaussian(mesh)
    fit = pmx.fit(field_program(mesh, pmx.Gaussian()), data, pmx.MaximumLikelihood(), progress=False)
    point = {name: value.clone().requires_grad_(True) for name, value in fit.estimate.point.items()}
    expected = dense_density(mesh, data, point).log_prob(data["y"])
    assert fit.log_likelihood == pytest.approx(float(expected.detach()), abs=1e-7)
    wanted = [point[name] for name in ("beta", "field.sd", "field.range", "y.sigma")]
    for value, slope in zip(wanted, torch.autograd.grad(expected, wanted), strict=True):
        assert float((slope * value.detach()).abs().max()) < 1e-2
    # a draw of the Matern field at 150 places: the truth (0.5, 1.2, 0.3) within a factor of 2
    for name, truth in (("field.range", 0.5), ("field.sd", 1.2), ("y.sigma", 0.3)):
        assert 0.5 < float(point[name].detach().reshape(())) / truth < 2.0


def test_new_places_need_no_new_levels() -> None:
    """Prediction by a projector is kriging: the conditional mean of dense algebra."""
    mesh = coarse()
    data = gaussian(mesh)
    fit = pmx.fit(field_program(mesh, pmx.Gaussian()), data, pmx.MaximumLikelihood(), progress=False)
    point = {name: value.detach() for name, value in fit.estimate.point.items()}
    new = np.random.default_rng(8).uniform(0.05, 0.95, (30, 2))
    found = fit.predict(field_data(mesh, new, y=torch.zeros(30, dtype=torch.float64)), kind="linear")
    joint = field_data(mesh, np.vstack([PLACES, new]), y=torch.zeros(180, dtype=torch.float64))
    c, g = triangle_elements(mesh.vertices, mesh.triangles)
    theta = {"sd": point["field.sd"], "range": point["field.range"]}
    whole = dense_field(c, g, 2, 2)(theta, Coords(tuple(range(mesh.size)), ("Intercept",)))
    a = torch.zeros(180, mesh.size, dtype=torch.float64)
    a.scatter_add_(1, joint["index"], joint["weight"])
    spread = a @ whole @ a.T
    known = spread[:150, :150] + point["y.sigma"] ** 2 * torch.eye(150, dtype=torch.float64)
    expected = point["beta"] + spread[150:, :150] @ torch.linalg.solve(known, data["y"] - point["beta"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def counts(mesh: Mesh) -> dict[str, torch.Tensor]:
    rate = (1.0 + simulated(PLACES, 0.5, 0.8, 3)).exp()
    return field_data(mesh, PLACES, y=torch.poisson(rate, generator=torch.Generator().manual_seed(2)))


def test_nested_laplace_and_nuts_agree_on_counts() -> None:
    """Posterior means of the hyper-parameters and the field, in units of posterior SDs."""
    mesh = Mesh.from_points(PLACES, edge=0.25, padding=0.25)
    data = counts(mesh)
    program = field_program(mesh, pmx.Poisson())
    laplace = pmx.fit(program, data, pmx.NestedLaplace(draws=2000), seed=0, progress=False).draws()
    sampled = pmx.fit(program, data, pmx.NUTS(draws=300, tune=300, chains=2), seed=0, progress=False).draws()
    for name in ("field.range", "field.sd"):
        a, b = (torch.as_tensor(draws[name]).reshape(-1).log() for draws in (laplace, sampled))
        assert abs(float(a.mean() - b.mean())) < 0.25 * float(b.std())
    # the level of the field and the intercept are hardly told apart, so the predictor is compared; given the
    # hyper-parameters Laplace's is at the mode, above the mean of a log rate by some 1 / (2 counts)
    a, b = (predictor(draws, data) for draws in (laplace, sampled))
    assert float(((a.mean(0) - b.mean(0)) / b.std(0)).abs().mean()) < 0.25
    assert float((a.std(0) / b.std(0)).mean()) == pytest.approx(1.0, abs=0.1)
    truth = 1.0 + simulated(PLACES, 0.5, 0.8, 3)
    assert float((b.mean(0) - truth).square().mean().sqrt()) < 0.5 * float(truth.std())


def predictor(draws: Mapping[str, torch.Tensor], data: Mapping[str, torch.Tensor]) -> torch.Tensor:
    field = (torch.as_tensor(draws["field"])[:, data["index"], 0] * data["weight"]).sum(-1)
    return torch.as_tensor(draws["beta"]) + field


def test_a_saved_structure_is_the_same() -> None:
    for mesh in (coarse(), Grid(PLACES, 0.13), Grid([0.0, 1.0, 4.0])):
        made = SPDE(mesh, range=dist.InverseGamma(number(1.0), number(0.5)), sd=2.0)
        again = from_config(made.config())
        coords = Coords(tuple(range(mesh.size)), ("Intercept",))
        theta = {"sd": torch.tensor([2.0]).double(), "range": number(0.4)}
        a, b = (s.operator(theta, coords).separable().precision for s in (made, again))
        assert torch.equal(a.values, b.values) and again.mesh.extent == mesh.extent
        points = mesh.vertices[:5] * 0.9 + mesh.vertices[-5:] * 0.1
        assert all(torch.equal(x, y) for x, y in zip(mesh.projector(points), again.mesh.projector(points), strict=True))


# -- bad input -------------------------------------------------------------------------------------------------------
LINE = Grid([0.0, 1.0])
PLANE = Grid([[0.0, 0.0], [1.0, 1.0]])
REFUSED = [
    (lambda: SPDE("mesh"), ConfigError, r"SPDE\(mesh=\.\.\.\): got a str; pass a pyromix\.Grid or a pyromix\.Mesh"),
    (lambda: SPDE(PLANE, alpha=1.5), ConfigError, r"alpha=1\.5\): only integers have a sparse precision; choose 2"),
    (lambda: SPDE(PLANE, alpha=True), ConfigError, "only integers"),
    (lambda: SPDE(PLANE, alpha=1), ConfigError, r"in 2 dimensions its variance is infinite .* alpha=1 is for a line"),
    (lambda: SPDE(LINE, alpha=0), ConfigError, r"alpha=0\): choose an integer from 1 to 4"),
    (lambda: SPDE(LINE, range=-1.0), ConfigError, r"SPDE\(range=\.\.\.\): -1\.0 is not allowed; it must be positive"),
    (lambda: SPDE(LINE, sd=-1.0), ConfigError, r"SPDE\(sd=\.\.\.\): -1\.0 is not allowed"),
    (lambda: Grid([[0.0, np.nan]]), DataError, r"Grid: point 0 is at \(0, nan\); give it finite coordinates"),
    (lambda: Grid(["a"]), DataError, "Grid: points are not numbers"),
    (lambda: Grid(np.zeros((3, 4))), DataError, r"shape \(3, 4\); pass \(n, dimension\)"),
    (lambda: Grid([1.0, 1.0]), DataError, r"all points are at \(1\)"),
    (lambda: Grid(np.zeros((0, 2))), DataError, "Grid: no points"),
    (lambda: Grid([0.0, 1.0], spacing=0.0), ConfigError, r"Grid\(spacing=\.\.\.\): 0\.0 is not allowed"),
    (lambda: Grid([0.0, 1.0], spacing="fine"), ConfigError, "'fine' is no length"),
    (lambda: Grid([0.0, 1.0], spacing=[1.0, 1.0]), ConfigError, "2 steps for 1 dimensions"),
    (lambda: Grid([0.0, 1.0], padding=-1), ConfigError, "-1 is not allowed; it must be zero or positive"),
    (lambda: Grid([[0.0, 0.0], [1.0, 1.0]], spacing=1e-4), ConfigError, "more than 5,000,000"),
    (lambda: Grid([0.0, 1.0], spacing=1e-300), ConfigError, "more than 5,000,000"),
    (lambda: Mesh.from_points([0.0, 1.0]), DataError, "points have 1 coordinates, a mesh has two"),
    (lambda: Mesh.from_points([[0.0, 0], [1, 1], [2, 2]]), DataError, "lie on a line"),
    (lambda: Mesh.from_points([[0.0, 0], [1, 1], [0, 2]], edge=1e-5), ConfigError, "edge=1e-05"),
    (lambda: Mesh(SQUARE[:, :1], TRIANGLES), DataError, r"a mesh of triangles is of \(n, 2\)"),
    (lambda: Mesh(SQUARE, TRIANGLES + 1), DataError, "triangle 4 has corners .*, of 7 vertices"),
    (lambda: Mesh(SQUARE, TRIANGLES + 0.5), DataError, "pass integers"),
    (lambda: Mesh(SQUARE, TRIANGLES[:4]), DataError, r"vertex 6 is in no triangle \(1 are not\)"),
    (lambda: Mesh(SQUARE, [*TRIANGLES.tolist(), [1, 1, 3]]), DataError, r"triangle 6, of vertices \[1, 1, 3\], has no"),
    (lambda: Mesh([*SQUARE.tolist(), [0.0, 0.0]], [*TRIANGLES.tolist(), [7, 1, 4]]), DataError, "vertices 0 and 7 are"),
    (lambda: PLANE.projector([[0.5, 0.5], [9.0, 0.0]]), DataError, r"1 of 2 points lie outside .* row 1, \(9, 0\)"),
    (lambda: PLANE.projector([0.5]), DataError, "points have 1 coordinates, the mesh has 2"),
    (lambda: Mesh(SQUARE, TRIANGLES).projector([[2.0, 2.0]]), DataError, "1 of 1 points lie outside the mesh"),
    (lambda: Mesh(SQUARE, TRIANGLES).projector([[-50.0, 2.0]]), DataError, "with more padding"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_refused(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (tuple("abcdefg"), "level 'a' is no vertex of its <mesh of 7 vertices and 6 triangles>"),
        ((0, 1, 2, 3, 4, 5, 7), "level 7 is no vertex"),
        ((0, 1, 2), r"3 levels for <mesh of 7 .*; pass RandomEffect\(levels=mesh\.size\)"),
    ],
)
def test_levels_are_vertices(levels: tuple, message: str) -> None:
    theta = {"sd": torch.ones(1).double(), "range": number(1.0)}
    with pytest.raises(StructureError, match=message):
        SPDE(Mesh(SQUARE, TRIANGLES)).operator(theta, Coords(levels, ("Intercept",)))


def test_the_default_prior_follows_the_unit_of_length() -> None:
    for unit in (1.0, 1000.0):
        prior = SPDE(Mesh.from_points(unit * PLACES)).parameters(Coords((), ("Intercept",)))[1].prior
        assert float(prior.icdf(number(0.5))) == pytest.approx(unit * np.ptp(PLACES, axis=0).max() / 5, rel=1e-9)


# -- meshes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0.0, 5e6])
def test_projectors_reproduce_linear_functions(offset: float) -> None:
    """What piecewise linear interpolation does exactly, also far from the origin, as map coordinates are."""
    points = PLACES * 1000 + offset
    for mesh in (Mesh.from_points(points), Grid(points, 47.0), Mesh.from_points(points, padding=0.0)):
        index, weight = mesh.projector(points)
        assert index.shape == (150, 4 if isinstance(mesh, Grid) else 3) and bool((weight >= 0).all())
        close(weight.sum(1), torch.ones(150, dtype=torch.float64), 0.0, 1e-12)
        carried = (torch.from_numpy(mesh.vertices)[index] * weight[..., None]).sum(1)
        close(carried, torch.from_numpy(points), 0.0, 1e-6)


def test_a_mesh_has_its_sites_as_vertices_and_merges_those_at_one_place() -> None:
    doubled = np.vstack([PLACES, PLACES[:20]])
    mesh = Mesh.from_points(doubled, cutoff=0.0)
    nearest = np.linalg.norm(mesh.vertices[:, None] - PLACES, axis=2).min(0)
    assert nearest.max() < 1e-12 and len(np.unique(mesh.vertices, axis=0)) == mesh.size
    merged = Mesh.from_points(doubled, edge=0.1, cutoff=0.05)
    gaps = np.linalg.norm(merged.vertices[:, None] - merged.vertices, axis=2)
    assert gaps[gaps > 0].min() > 0.0499


def test_a_mesh_is_fine_inside_and_coarser_around() -> None:
    mesh = Mesh.from_points(PLACES, edge=0.1, padding=0.6)
    middle = mesh.vertices[mesh.triangles].mean(1)
    sides = mesh.vertices[mesh.triangles] - np.roll(mesh.vertices[mesh.triangles], 1, axis=1)
    longest = np.linalg.norm(sides, axis=2).max(1)
    inside = (abs(middle - 0.5) < 0.4).all(1)
    assert longest[inside].max() < 0.2 and longest[~inside].max() > 0.2
    assert mesh.vertices.min() == pytest.approx(PLACES.min() - 0.6, abs=0.05)


def test_a_thousand_triangles_are_found_as_by_trying_all() -> None:
    mesh = Mesh.from_points(np.random.default_rng(1).uniform(0, 1, (400, 2)), edge=0.06)
    points = np.random.default_rng(2).uniform(0.0, 1.0, (200, 2))
    index, weight = mesh.projector(points)
    for row, x in enumerate(points):
        shares = np.stack(
            [np.linalg.solve(np.vstack([np.ones(3), mesh.vertices[t].T]), [1.0, *x]) for t in mesh.triangles]
        )
        best = shares.min(1).argmax()
        assert set(mesh.triangles[best]) == set(index[row].tolist())
        at = [mesh.triangles[best].tolist().index(v) for v in index[row].tolist()]
        np.testing.assert_allclose(weight[row], shares[best][at], atol=1e-9)
