"""Areas and their neighbours: against dense algebra, closed forms of simple graphs, and on North Carolina."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import pyromix as pmx
from pyromix import BYM2, Besag
from pyromix.covariances import Coords, from_config
from pyromix.errors import ConfigError, DataError, StructureError, UnsupportedError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_gaussian_fit, number, program, simulate

Theta = Mapping[str, torch.Tensor]
DATA = Path(__file__).resolve().parents[1] / "reference" / "data"
GRAPH = {
    "a": ["b", "c"],
    "b": ["a", "c", "d"],
    "c": ["a", "b", "d"],
    "d": ["b", "c", "e"],
    "e": ["d", "f"],
    "f": ["e"],
}


def intrinsic(graph: Mapping[str, list[str]]) -> tuple[list[str], np.ndarray]:
    """Labels and the scaled covariance, by a pseudo-inverse component by component."""
    labels = list(graph)
    r = np.zeros((len(labels),) * 2)
    for a, neighbours in graph.items():
        for b in neighbours:
            i, j = labels.index(a), labels.index(b)
            r[i, i] += 1.0
            r[i, j] -= 1.0
    out, left = np.zeros_like(r), set(labels)
    while left:
        reached, front = set(), {min(left)}
        while front:
            reached |= front
            front = {b for a in front for b in graph[a]} - reached
        left -= reached
        at = [labels.index(a) for a in sorted(reached)]
        s = np.linalg.pinv(r[np.ix_(at, at)], hermitian=True) if len(at) > 1 else np.ones((1, 1))
        out[np.ix_(at, at)] = s / np.exp(np.log(s.diagonal()).mean())
    return labels, out


def besag(graph: Mapping[str, list[str]]):
    labels, s = intrinsic(graph)

    def dense(theta: Theta, coords: Coords) -> torch.Tensor:
        at = [labels.index(level) for level in coords.levels]
        return torch.kron(torch.from_numpy(s[np.ix_(at, at)]), torch.diag(theta["sd"] ** 2))

    return dense


def bym2(graph: Mapping[str, list[str]]):
    labels, s = intrinsic(graph)

    def dense(theta: Theta, coords: Coords) -> torch.Tensor:
        at = [labels.index(level) for level in coords.levels]
        shared = torch.from_numpy(s[np.ix_(at, at)])
        mixed = (1 - theta["phi"]) * torch.eye(len(at), dtype=torch.float64) + theta["phi"] * shared
        return torch.kron(mixed, torch.diag(theta["sd"] ** 2))

    return dense


class TestBesag(CovarianceSuite):
    """Over all areas but one, where the covariance is definite; over all of them it is not: see below."""

    def make(self) -> Besag:
        return Besag(GRAPH)

    def coords(self) -> Coords:
        return Coords(("d", "a", "f", "c", "b"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7], dtype=torch.float64)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return besag(GRAPH)(theta, coords)


class TestBesagWithASlope(TestBesag):
    def coords(self) -> Coords:
        return Coords(("d", "a", "f", "c"), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7, 1.3], dtype=torch.float64)}


class TestBYM2(TestBesag):
    def make(self) -> BYM2:
        return BYM2(GRAPH)

    def coords(self) -> Coords:
        return Coords(tuple("dafcbe"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7], dtype=torch.float64), "phi": number(0.6)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return bym2(GRAPH)(theta, coords)


class TestBYM2WithASlope(TestBYM2):
    def coords(self) -> Coords:
        return Coords(("d", "a", "f", "c"), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.7, 1.3], dtype=torch.float64), "phi": number(0.3)}


def covariance(graph: object, levels: tuple, **rest: object) -> np.ndarray:
    structure = Besag(graph, sd=1.0, **rest)
    return (
        structure.operator({"sd": torch.ones(1, dtype=torch.float64)}, Coords(levels, ("Intercept",))).dense().numpy()
    )


# -- closed forms ----------------------------------------------------------------------------------------------------
def test_a_ring() -> None:
    """Areas k apart on a ring of n correlate by ``1 - 6k(n - k) / (n^2 - 1)``."""
    n = 11
    found = covariance([(i, (i + 1) % n) for i in range(n)], tuple(range(n)))
    k = abs(np.subtract.outer(np.arange(n), np.arange(n)))
    np.testing.assert_allclose(found, 1 - 6 * k * (n - k) / (n**2 - 1), atol=1e-12)


def test_everybody_a_neighbour() -> None:
    """Exchangeable areas that sum to zero."""
    found = covariance(np.ones((6, 6)) - np.eye(6), tuple(range(6)))
    np.testing.assert_allclose(found, np.where(np.eye(6) == 1, 1.0, -1 / 5), atol=1e-12)


def test_a_path_is_a_random_walk_about_its_mean() -> None:
    """Scaled: variances in the proportions of a walk with independent steps, less its mean."""
    n = 9
    found = covariance([(i, i + 1) for i in range(n - 1)], tuple(range(n)))
    centred = np.tril(np.ones((n, n - 1)), -1) - np.tril(np.ones((n, n - 1)), -1).mean(0)
    walk = centred @ centred.T
    np.testing.assert_allclose(found, walk / np.exp(np.log(walk.diagonal()).mean()), atol=1e-12)


def test_weights_of_a_matrix_count() -> None:
    """Two areas and their weight, which the scale takes out; three, where it does not."""
    w = np.array([[0.0, 5.0, 0.0], [5.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    r = np.diag(w.sum(0)) - w
    s = np.linalg.pinv(r)
    np.testing.assert_allclose(covariance(w, (0, 1, 2)), s / np.exp(np.log(s.diagonal()).mean()), atol=1e-12)


# -- what is singular ------------------------------------------------------------------------------------------------
TWO = {"a": ["b"], "b": ["a", "c"], "c": ["b"], "x": ["y"], "y": ["x"], "island": []}


def test_components_sum_to_zero_and_islands_are_independent() -> None:
    levels = ("a", "x", "b", "island", "c", "y")
    operator = Besag(TWO).operator({"sd": torch.tensor([2.0]).double()}, Coords(levels, ("Intercept",)))
    drawn = operator.factor(torch.randn((1000, 6, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    close(drawn[:, [0, 2, 4]].sum(1), torch.zeros(1000, 1).double(), 0.0, 1e-12)
    close(drawn[:, [1, 5]].sum(1), torch.zeros(1000, 1).double(), 0.0, 1e-12)
    close(operator.dense(), besag(TWO)({"sd": torch.tensor([2.0]).double()}, Coords(levels, ("Intercept",))))
    assert float(operator.dense()[3, 3]) == 4.0
    for part in ([0, 2, 4], [1, 5]):
        assert float(operator.dense().diagonal()[part].log().mean()) == pytest.approx(np.log(4.0))


def test_all_areas_have_no_density() -> None:
    operator = Besag(GRAPH).operator({"sd": torch.ones(1).double()}, Coords(tuple(GRAPH), ("Intercept",)))
    assert operator.logdet_factor() == -torch.inf
    assert operator.log_prob(torch.zeros(6, 1, dtype=torch.float64)) == -torch.inf


# -- fits ------------------------------------------------------------------------------------------------------------
def board(m: int) -> dict[str, list[str]]:
    """Cells of a square board and those that share a side."""
    cells = [(i, j) for i in range(m) for j in range(m)]
    moves = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return {f"{i},{j}": [f"{i + a},{j + b}" for a, b in moves if (i + a, j + b) in cells] for i, j in cells}


BOARD = board(6)
CELLS = Coords(tuple(BOARD), ("Intercept",))


def test_fit() -> None:
    """Every area has rows, and the covariance of their effects is singular."""
    check_gaussian_fit(Besag(BOARD), CELLS, besag(BOARD), {"sd": torch.tensor([0.8]).double()})


def test_fit_of_bym2() -> None:
    theta = {"sd": torch.tensor([1.0]).double(), "phi": number(0.5)}
    check_gaussian_fit(BYM2(BOARD), CELLS, bym2(BOARD), theta, 216, seed=1)


def counts(dense: object, theta: Theta) -> dict[str, torch.Tensor]:
    data = simulate(dense, theta, CELLS, 108, 1)
    rate = (1.5 + 0.3 * data["x"][:, 1] + data["signal"]).exp()
    return {**data, "y": torch.poisson(rate, generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize(
    ("structure", "dense", "theta"),
    [
        (Besag(BOARD), besag(BOARD), {"sd": torch.tensor([0.6]).double()}),
        (BYM2(BOARD), bym2(BOARD), {"sd": torch.tensor([0.6]).double(), "phi": number(0.7)}),
    ],
    ids=["besag", "bym2"],
)
def test_backends_agree_on_counts(structure: pmx.Besag, dense: object, theta: Theta) -> None:
    """Laplace's likelihood is that of dense algebra; nested Laplace and NUTS find the same posterior."""
    data = counts(dense, theta)
    made = program(structure, CELLS, pmx.Poisson(), data)
    fit = pmx.fit(made, data, pmx.MaximumLikelihood(), progress=False)
    assert fit.log_likelihood == pytest.approx(dense_laplace(dense, fit.estimate.point, data), abs=1e-7)
    nested = pmx.fit(made, data, pmx.NestedLaplace(draws=2000), seed=0, progress=False).draws()
    sampled = pmx.fit(made, data, pmx.NUTS(draws=300, tune=300, chains=2), seed=0, progress=False).draws()
    for draws in (nested, sampled):
        if isinstance(structure, Besag):
            close(torch.as_tensor(draws["g"]).sum(1), torch.zeros(len(draws["g"]), 1).double(), 0.0, 1e-9)
    a, b = (torch.as_tensor(draws["g.sd"]).reshape(-1).log() for draws in (nested, sampled))
    assert abs(float(a.mean() - b.mean())) < 0.2 * float(b.std())
    # given the hyper-parameters Laplace's effects are at the mode, above the mean by some 1 / (2 counts)
    a, b = (torch.as_tensor(d["g"])[..., 0] + torch.as_tensor(d["beta"])[:, :1] for d in (nested, sampled))
    assert float(((a.mean(0) - b.mean(0)) / b.std(0)).abs().mean()) < 0.25


def dense_laplace(dense: object, point: Theta, data: Mapping[str, torch.Tensor]) -> float:
    """Newton over the effects by a root of their covariance: ``u = R b``, b standard normal."""
    values, vectors = torch.linalg.eigh(dense({k: point[f"g.{k}"] for k in ("sd", "phi") if f"g.{k}" in point}, CELLS))
    z = data["z"] @ (vectors * values.clamp(min=0).sqrt())
    b = torch.zeros(z.shape[1], dtype=torch.float64)
    for _ in range(50):
        mean = (data["x"] @ point["beta"] + z @ b).exp()
        hessian = z.T @ (mean[:, None] * z) + torch.eye(len(b), dtype=torch.float64)
        b = b + torch.linalg.solve(hessian, z.T @ (data["y"] - mean) - b)
    fitted = torch.distributions.Poisson((data["x"] @ point["beta"] + z @ b).exp()).log_prob(data["y"]).sum()
    return float(fitted - 0.5 * b @ b - 0.5 * torch.logdet(hessian))


def test_an_area_without_rows_is_predicted_from_its_neighbours() -> None:
    """Declared areas without rows: the conditional mean of dense algebra."""
    data = simulate(besag(BOARD), {"sd": torch.tensor([1.0]).double()}, CELLS, 108, 3)
    kept = data["index"] != 14
    rows = {k: v[kept] for k, v in data.items()}
    rows["y"] = rows["signal"] + 0.3 * rows["noise"]
    fit = pmx.fit(program(Besag(BOARD), CELLS, pmx.Gaussian(), rows), rows, pmx.MaximumLikelihood(), progress=False)
    point = fit.estimate.point
    s = besag(BOARD)({"sd": point["g.sd"]}, CELLS)
    v = rows["z"] @ s @ rows["z"].T + point["y.sigma"] ** 2 * torch.eye(len(rows["y"]), dtype=torch.float64)
    expected = s @ rows["z"].T @ torch.linalg.solve(v, rows["y"] - rows["x"] @ point["beta"])
    np.testing.assert_allclose(fit.random_effects("g").to_numpy()[:, 0], expected, atol=1e-6)


# -- the forms of a graph --------------------------------------------------------------------------------------------
EDGES = [(a, b) for a, near in GRAPH.items() for b in near if a < b]
FRAME = pd.DataFrame([[float(b in GRAPH[a]) for b in GRAPH] for a in GRAPH], index=list(GRAPH), columns=list(GRAPH))
FORMS = {
    "pairs": (EDGES, None),
    "both ways": (EDGES + [(b, a) for a, b in EDGES], None),
    "array of pairs": (np.array(EDGES), None),
    "frame of pairs": (pd.DataFrame(EDGES, columns=["from", "to"]), None),
    "frame": (FRAME, None),
    "frame, columns shuffled": (FRAME[list("fbdaec")], None),
    "matrix": (FRAME.to_numpy(), list("abcdef")),
    "sparse": (sp.csr_array(FRAME.to_numpy()), list("abcdef")),
    "tuples": ({a: tuple(near) for a, near in GRAPH.items()}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_graph(form: str) -> None:
    graph, nodes = FORMS[form]
    levels = tuple("cafbed")
    found = covariance(graph, levels, nodes=nodes)
    expected = besag(GRAPH)({"sd": torch.ones(1).double()}, Coords(levels, ("Intercept",)))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_nodes_name_islands() -> None:
    np.testing.assert_allclose(covariance([(0, 1)], (0, 1, 2), nodes=range(3)), [[1, -1, 0], [-1, 1, 0], [0, 0, 1]])


def test_a_saved_structure_is_the_same() -> None:
    weighted = np.array([[0.0, 5.0, 0.0], [5.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    for made, levels in ((Besag(TWO, sd=2.0), tuple(TWO)), (BYM2(weighted, phi=0.5), (0, 1, 2))):
        again = from_config(made.config())
        theta = {"sd": torch.tensor([2.0]).double(), "phi": number(0.5)}
        coords = Coords(levels, ("Intercept",))
        assert torch.equal(made.operator(theta, coords).dense(), again.operator(theta, coords).dense())


REFUSED = [
    ({"a": ["a"]}, {}, StructureError, r"Besag: area 'a' is its own neighbour; leave that out"),
    ({"a": ["b"], "b": []}, {}, StructureError, "'b' is a neighbour of 'a', but not the other way; list both ways"),
    ({"a": ["z"]}, {}, StructureError, "neighbour 'z' is no area of the graph"),
    ({"a": "bc"}, {}, StructureError, "the neighbours of 'a' are 'bc'; pass a list of labels"),
    ([(0, 1), (1, 1)], {}, StructureError, "area 1 is its own neighbour"),
    ([(0, 1, 2)], {}, StructureError, "got a list; pass a dict of neighbours, pairs of neighbours, or an adjacency"),
    (3, {}, StructureError, "got a int; pass a dict"),
    ([(0, 1)], {"nodes": [0]}, StructureError, "neighbour 1 is no area of the graph"),
    ([(0, 1)], {"nodes": [0, 1, 1]}, StructureError, "area 1 is there more than once"),
    ([], {}, StructureError, "Besag: no areas"),
    (np.triu(np.ones((3, 3)), 1), {}, StructureError, r"not symmetric, 0 and 1 have weights 1 and 0"),
    (-np.ones((3, 3)), {}, DataError, "weight -1 of 0 and 0; weights are zero or positive"),
    (np.full((3, 3), np.nan), {}, DataError, "weight nan of 0 and 0"),
    (np.array([["a"] * 3] * 3), {}, DataError, "entries that are no numbers"),
    (np.ones((3, 3)), {"nodes": "ab"}, StructureError, r"an adjacency matrix of shape \(3, 3\) for 2 areas"),
    (np.ones((3, 3)), {}, StructureError, "area 0 is its own neighbour"),
    ([(i, i + 1) for i in range(4000)], {}, ConfigError, "4001 areas, and a dense factor is made of at most 4000"),
    (GRAPH, {"sd": -1.0}, ConfigError, r"Besag\(sd=\.\.\.\): -1\.0 is not allowed"),
]


@pytest.mark.parametrize(("graph", "rest", "error", "message"), REFUSED)
def test_refused(graph: object, rest: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Besag(graph, **rest)


@pytest.mark.parametrize("phi", [-0.1, 0.0, 1.0])
def test_a_share_is_between_zero_and_one(phi: float) -> None:
    with pytest.raises(ConfigError, match=r"BYM2\(phi=\.\.\.\): .* must be between 0 and 1, ends excluded"):
        BYM2(GRAPH, phi=phi)


def test_levels_are_areas() -> None:
    theta = {"sd": torch.ones(1).double(), "phi": number(0.5)}
    for structure, name in ((Besag(GRAPH), "Besag"), (BYM2(GRAPH), "BYM2")):
        with pytest.raises(StructureError, match=rf"{name}: 1 of 2 levels are not among its ids \('z'\)"):
            structure.operator(theta, Coords(("a", "z"), ("Intercept",)))
    with pytest.raises(StructureError, match="levels are str, its ids int: convert one of them"):
        Besag([(0, 1)]).operator(theta, Coords(("0", "1"), ("Intercept",)))


def test_north_carolina() -> None:
    """Sudden infant deaths in 100 counties, 1974: dense algebra has the same likelihood, and the same maximum."""
    rows = pd.read_csv(DATA / "nc_sids.csv")
    graph = (pd.read_csv(DATA / "nc_sids_edges.csv") - 1).to_numpy()
    near = {i: [] for i in range(100)}
    for a, b in graph.tolist():
        near[a].append(b)
        near[b].append(a)
    y = torch.tensor(rows["SID74"].to_numpy(), dtype=torch.float64)
    rate = float(rows["SID74"].sum() / rows["BIR74"].sum())
    offset = torch.tensor(np.log(rows["BIR74"].to_numpy() * rate))
    effect = pmx.RandomEffect("county", BYM2(graph, nodes=range(100)), 100)
    linear = pmx.LinearEffect("beta")

    def program(data: object) -> None:
        eta = linear(torch.ones(100, 1, dtype=torch.float64)) + effect(torch.arange(100))
        pmx.observe("y", pmx.Poisson(), eta, y, offset=offset)

    fit = pmx.fit(program, None, pmx.MaximumLikelihood(), progress=False)
    point = fit.estimate.point
    dense = bym2(near)

    def value(sd: float, phi: float, beta: float) -> float:
        theta = {"sd": torch.tensor([sd]).double(), "phi": number(phi)}
        values, vectors = torch.linalg.eigh(dense(theta, Coords(tuple(range(100)), ("Intercept",))))
        root, b = vectors * values.clamp(min=0).sqrt(), torch.zeros(100, dtype=torch.float64)
        for _ in range(50):
            mean = (offset + beta + root @ b).exp()
            hessian = root.T @ (mean[:, None] * root) + torch.eye(100, dtype=torch.float64)
            b = b + torch.linalg.solve(hessian, root.T @ (y - mean) - b)
        fitted = torch.distributions.Poisson((offset + beta + root @ b).exp()).log_prob(y).sum()
        return float(fitted - 0.5 * b @ b - 0.5 * torch.logdet(hessian))

    at = [float(point[name].reshape(())) for name in ("county.sd", "county.phi", "beta")]
    best = value(*at)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-7)
    for k in range(3):
        for step in (-0.02, 0.02):
            moved = [v + step * (j == k) for j, v in enumerate(at)]
            assert value(*moved) < best


def test_sampling_centred_is_refused_where_there_is_no_density() -> None:
    data = counts(besag(BOARD), {"sd": torch.tensor([0.6]).double()})
    made = program(Besag(BOARD), CELLS, pmx.Poisson(), data)
    with pytest.raises(UnsupportedError, match="the covariance of g is singular.*take 'auto' or 'noncentered'"):
        pmx.fit(made, data, pmx.NUTS(parametrisation="centered", draws=10, tune=10, chains=1), progress=False)


def test_taken_apart_and_made_again() -> None:
    """What traced programs do: the same covariance of other values of what hyper-parameters move."""
    coords = Coords(tuple("dafcbe"), ("Intercept",))
    one, other = ({"sd": torch.tensor([sd]).double(), "phi": number(phi)} for sd, phi in ((0.7, 0.6), (1.3, 0.2)))
    for structure in (BYM2(GRAPH), Besag(GRAPH)):
        made = structure.operator(one, coords).parts().make(structure.operator(other, coords).parts().tensors)
        noise = torch.randn((6, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        close(made.factor(noise), structure.operator(other, coords).factor(noise), 0.0, 0.0)
        close(made.solve_factor(noise), structure.operator(other, coords).solve_factor(noise), 0.0, 0.0)
