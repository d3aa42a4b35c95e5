"""Wrappers of random terms from formula to likelihood: against dense covariances written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.errors import ConfigError, DataError, UnseenLevelError
from pyromix.marginal.plan import make_plan
from pyromix.running import run

N = 48
RNG = np.random.default_rng(4)
IDS = [f"i{k}" for k in range(8)]
DATA = pd.DataFrame(
    {
        "y": RNG.normal(size=N),
        "a": RNG.uniform(0, 1, N).round(1),
        "b": RNG.uniform(0, 1, N).round(1),
        "z": RNG.normal(size=N),
        "g": np.repeat(["p", "q", "r", "s"], 12),
        "half": np.tile(np.repeat(["u", "v"], 6), 4),
        "t": np.tile(np.arange(12), 4),
        "id": RNG.choice(IDS, N),
        "one": 1,
        "m1": RNG.choice(list("abcd"), N),
        "m2": RNG.choice(list("abce"), N),
        "v1": RNG.uniform(1, 2, N),
        "v2": RNG.uniform(0, 1, N),
    }
).sample(frac=1, random_state=1, ignore_index=True)
ROOT = RNG.normal(size=(8, 20))
K = pd.DataFrame(ROOT @ ROOT.T / 20, index=IDS, columns=IDS)
PEDIGREE = pd.DataFrame(
    {
        "id": IDS,
        "sire": [None, None, None, "i0", "i0", "i3", "i3", "i1"],
        "dam": [None, None, None, "i1", "i2", "i4", "i1", "i4"],
    }
)
EDGES = [(IDS[k], IDS[k + 1]) for k in range(7)] + [("i0", "i4")]
MESH = pmx.Mesh.from_points(
    np.stack(np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5)), -1).reshape(-1, 2), edge=0.25
)


def same(*names: str) -> np.ndarray:
    out = np.ones((N, N), dtype=bool)
    for name in names:
        out &= DATA[name].to_numpy()[:, None] == DATA[name].to_numpy()
    return out


def lag() -> np.ndarray:
    return np.abs(DATA["t"].to_numpy()[:, None] - DATA["t"].to_numpy())


def distance(*names: str) -> np.ndarray:
    x = DATA[list(names)].to_numpy()
    return np.sqrt(((x[:, None] - x) ** 2).sum(-1))


def of_id(matrix: pd.DataFrame) -> np.ndarray:
    return matrix.loc[DATA["id"], DATA["id"]].to_numpy()


def matern32(r: np.ndarray, length: float) -> np.ndarray:
    return (1 + np.sqrt(3) * r / length) * np.exp(-np.sqrt(3) * r / length)


def additive() -> pd.DataFrame:
    """Henderson's tabular method."""
    a = np.eye(8)
    for i, row in PEDIGREE.iterrows():
        parents = [IDS.index(p) for p in (row["sire"], row["dam"]) if isinstance(p, str)]
        for j in range(i):
            a[i, j] = a[j, i] = 0.5 * sum(a[j, p] for p in parents)
        a[i, i] = 1 + (0.5 * a[parents[0], parents[1]] if len(parents) == 2 else 0)
    return pd.DataFrame(a, index=IDS, columns=IDS)


def besag() -> pd.DataFrame:
    """The graph's Laplacian, inverted on vectors that sum to zero, scaled to a geometric mean variance of one."""
    laplacian = np.zeros((8, 8))
    for p, q in EDGES:
        i, j = IDS.index(p), IDS.index(q)
        laplacian[[i, j], [i, j]] += 1
        laplacian[[i, j], [j, i]] -= 1
    inverse = np.linalg.pinv(laplacian)
    return pd.DataFrame(inverse / np.exp(np.log(np.diag(inverse)).mean()), index=IDS, columns=IDS)


def members(weights: np.ndarray) -> np.ndarray:
    z = np.zeros((N, 5))
    for column, weight in zip(("m1", "m2"), weights.T, strict=True):
        z[np.arange(N), ["abcde".index(label) for label in DATA[column]]] += weight
    return z @ z.T


def share(normalised: bool) -> np.ndarray:
    weights = np.column_stack([DATA["v1"], 2 * DATA["v2"]])
    return weights / weights.sum(1, keepdims=True) if normalised else weights


def spde(alpha: int = 2, reach: float = 0.4) -> np.ndarray:
    """Lindgren, Rue and Lindstroem (2011) from the mesh's elements, factored densely."""
    elements = MESH.elements()
    c, g = np.diag(np.asarray(elements.mass)), np.asarray(elements.stiffness.todense())
    nu = alpha - 1
    kappa = np.sqrt(8 * nu) / reach
    tau2 = 1 / (4 * np.pi * nu * kappa ** (2 * nu))
    precision = tau2 * (kappa**4 * c + 2 * kappa**2 * g + g @ np.linalg.inv(c) @ g)
    index, weight = MESH.projector(DATA[["a", "b"]].to_numpy())
    z = np.zeros((N, MESH.size))
    np.add.at(z, (np.arange(N)[:, None], index.numpy()), weight.numpy())
    return z @ np.linalg.inv(precision) @ z.T


# formula's term, what is handed over, values of its sites but the SDs, its covariance over rows at SD one
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[], np.ndarray]]] = {
    "ar1(1 | t)": ({}, {"t.rho": 0.6}, lambda: 0.6 ** lag()),
    "ar1(1 | g:t)": ({}, {"g:t.rho": 0.6}, lambda: same("g") * 0.6 ** lag()),
    "ar1(1 | g:half:t)": ({}, {"g:half:t.rho": 0.6}, lambda: same("g", "half") * 0.6 ** lag()),
    "ou(1 | g:t)": ({}, {"g:t.rate": 0.3}, lambda: same("g") * np.exp(-0.3 * lag())),
    "arma(1 | g:t, p=1, q=1)": (
        {}, {"g:t.pacf_ar": [0.6], "g:t.pacf_ma": [0.4]},
        lambda: same("g") * np.where(lag() == 0, 1.0, (1.24 * 1.0 / 1.64) * 0.6 ** np.maximum(lag() - 1, 0)),
    ),
    "gp(a, b)": ({}, {"a:b.lengthscale": 0.5}, lambda: matern32(distance("a", "b"), 0.5)),
    "gp(a, kernel=rbf)": ({}, {"a.lengthscale": 0.5}, lambda: np.exp(-0.5 * (distance("a") / 0.5) ** 2)),
    "gp(1 | a:b, kernel=k)": (
        {"k": gpytorch.kernels.MaternKernel(nu=0.5)}, {"a:b.lengthscale": 0.5},
        lambda: np.exp(-distance("a", "b") / 0.5),
    ),
    "spde(a, b, mesh=M)": ({"M": MESH}, {"a:b.range": 0.4}, spde),
    "propto(1 | id, K)": ({"K": K}, {}, lambda: of_id(K)),
    "propto(0 + id | one, K)": ({"K": K}, {}, lambda: of_id(K)),
    "propto(0 + id | g, K)": ({"K": K}, {}, lambda: same("g") * of_id(K)),
    "ped(1 | id, P)": ({"P": PEDIGREE}, {}, lambda: of_id(additive())),
    "kron(1 | id:t, K, ar1)": ({"K": K}, {"id:t.second.rho": 0.6}, lambda: of_id(K) * 0.6 ** lag()),
    "kron(1 | g:t, iid, C)": ({"C": pmx.AR1()}, {"g:t.second.rho": 0.6}, lambda: same("g") * 0.6 ** lag()),
    "besag(id, G)": ({"G": EDGES}, {}, lambda: of_id(besag())),
    "bym2(1 | id, G)": ({"G": EDGES}, {"id.phi": 0.3}, lambda: 0.3 * of_id(besag()) + 0.7 * same("id")),
    "(1 | mm(m1, m2))": ({}, {}, lambda: members(np.full((N, 2), 0.5))),
    "(1 | mm(m1, m2, weights = cbind(v1, 2 * v2)))": ({}, {}, lambda: members(share(True))),
    "(1 | mm(m1, m2, weights = cbind(v1, 2 * v2), scale = FALSE))": ({}, {}, lambda: members(share(False))),
}  # fmt: skip
NUGGET = {"gp(a, b)": 1e-6, "gp(a, kernel=rbf)": 1e-6, "gp(1 | a:b, kernel=k)": 1e-6}  # of every place, in the kernel


@pytest.mark.parametrize("term", list(CASES))
def test_likelihood(term: str) -> None:
    known, theta, covariance = CASES[term]
    model = pmx.model(f"y ~ 1 + {term}", DATA, known=known)
    values = {}
    for name, site in run(model.program, (model.design,), hypers="moderate", seed=0).hypers.items():
        given = theta[name] if name in theta else 1.3 if name.endswith(".sd") else 0.7
        values[name] = torch.as_tensor(given, dtype=torch.float64).expand(site.value.shape)
    assert set(theta) <= set(values)
    rows = covariance()
    if term in NUGGET:
        rows = rows + NUGGET[term] * (rows == rows.max())
    total = 1.69 * rows + 0.49 * np.eye(N)
    residual = DATA["y"].to_numpy() - 0.7
    expected = -0.5 * (
        N * np.log(2 * np.pi) + np.linalg.slogdet(total)[1] + residual @ np.linalg.solve(total, residual)
    )
    plan = make_plan(model.program, (model.design,))
    bound = pmx.Exact().bind(model.program, (model.design,), plan)
    found = bound.log_marginal(run(model.program, (model.design,), values))
    assert float(found) == pytest.approx(expected, abs=2e-5 if term in NUGGET else 1e-7)


def test_slopes_over_places_and_members() -> None:
    model = pmx.model("y ~ 1 + gp(0 + z | a:b) + (0 + z | mm(m1, m2))", DATA)
    place, member = model.design.terms
    assert place.terms == member.terms == ("z",) and place.levels[0] == tuple(
        sorted(zip(DATA["a"], DATA["b"], strict=True))[0]
    )
    assert member.index.shape == member.weight.shape == (N, 2) and member.levels == tuple("abcde")
    fixed = {"a:b.sd": 0.4, "mm(m1, m2).sd": 0.3, "a:b.lengthscale": 0.5}
    model = pmx.model("y ~ 1 + gp(0 + z | a:b) + (0 + z | mm(m1, m2))", DATA, priors=fixed)
    assert np.isfinite(model.fit(progress=False).log_likelihood)


def test_source_runs() -> None:
    for term in ("(1 | mm(m1, m2))", "ar1(1 | g:t)", "spde(a, b, mesh=M)", "propto(1 | id, K)"):
        model = pmx.model(f"y ~ 1 + {term}", DATA, known=CASES[term][0])
        space: dict[str, Any] = {"K": K, "mesh": MESH}
        exec(model.source(), space)  # noqa: S102
        values = {n: s.value for n, s in run(model.program, (model.design,), hypers="moderate", seed=1).hypers.items()}
        found = [
            float(
                pmx.Exact()
                .bind(p, (model.design,), make_plan(p, (model.design,)))
                .log_marginal(run(p, (model.design,), values))
            )
            for p in (model.program, space["program"])
        ]
        assert found[0] == pytest.approx(found[1], abs=1e-12)


# -- new rows ---------------------------------------------------------------------------------------------------------
def test_new_places_of_a_mesh_are_no_new_levels() -> None:
    fit = pmx.model(
        "y ~ 1 + spde(a, b, mesh=M)", DATA, known={"M": MESH}, priors={"a:b.sd": 1.0, "a:b.range": 0.4}
    ).fit(progress=False)
    new = pd.DataFrame({"a": [0.123, 0.456], "b": [0.789, 0.5]})
    index, weight = MESH.projector(new.to_numpy())
    field = fit.estimate.latents["a:b"][:, 0]
    beta = float(fit.fixed_effects()["estimate"].iloc[0])
    np.testing.assert_allclose(fit.predict(new), beta + (weight * field[index]).sum(1).numpy(), atol=1e-12)
    outside = pd.DataFrame({"a": [9.0], "b": [0.1]})
    with pytest.raises(DataError, match="outside the mesh"):
        fit.predict(outside)


def test_new_members() -> None:
    fit = pmx.model("y ~ 1 + (1 | mm(m1, m2))", DATA.assign(y=DATA["y"] + 2 * (DATA["m1"] == "a"))).fit(progress=False)
    beta = float(fit.fixed_effects()["estimate"].iloc[0])
    effects = fit.random_effects("mm(m1, m2)")["Intercept"]
    new = pd.DataFrame({"m1": ["a", "new", "e"], "m2": ["e", "b", "newer"]})
    with pytest.raises(UnseenLevelError, match="2 levels not seen in the fit: 'new', 'newer'"):
        fit.predict(new)
    expected = beta + np.array([(effects["a"] + effects["e"]) / 2, effects["b"] / 2, effects["e"] / 2])
    np.testing.assert_allclose(fit.predict(new, new_groups="zero"), expected, atol=1e-12)
    np.testing.assert_allclose(fit.predict(new, new_groups="marginal"), expected, atol=1e-12)


def test_forecast_of_a_series() -> None:
    """The next step of an AR1 series is rho times its last effect; a new series starts at zero."""
    y = DATA["y"] + DATA["g"].map({"p": 2.0, "q": -2.0, "r": 1.0, "s": 0.0})
    fit = pmx.model(
        "y ~ 1 + ar1(1 | g:t)", DATA.assign(y=y), priors={"g:t.rho": 0.7, "g:t.sd": 1.5, "y.sigma": 0.5}
    ).fit(progress=False)
    effects = fit.random_effects("g:t")["Intercept"]
    beta = float(fit.fixed_effects()["estimate"].iloc[0])
    new = pd.DataFrame({"g": ["p", "q", "x"], "t": [12, 13, 3]})
    last = [effects[[level == (g, 11) for level in effects.index]].iloc[0] for g in "pq"]
    expected = beta + np.array([0.7 * last[0], 0.7**2 * last[1], 0.0])
    np.testing.assert_allclose(fit.predict(new, new_groups="conditional"), expected, atol=1e-9)


def test_labels_of_pairs_in_results() -> None:
    fit = pmx.model("y ~ 1 + ar1(1 | g:t)", DATA).fit(progress=False)
    assert "p:0" in fit.idata.posterior["g:t_level"].values.tolist()


# -- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("term", "known", "message"),
    [
        ("propto(1 | id, K)", {}, r"propto\(... \| id\): 'K' is not there; pass known=\{'K': a covariance matrix"),
        ("propto(1 | id)", {}, "needs a covariance matrix with labels"),
        ("propto(1 | id, 3)", {}, "K=3 is no name"),
        ("arma(1 | t, p=K)", {"K": K}, "p=K is no number"),
        ("gp(a, kernel=nonsense)", {}, "a GPyTorch kernel, or one of matern12"),
        ("kron(1 | id:t, K, nonsense)", {"K": K}, "a structure or a matrix, or one of iid, ar1"),
        ("(1 | id)", {"K": K}, "known: no random term of the formula names 'K'"),
        ("arma(1 | t, p=99)", {}, r"ARMA\(p=99\)"),
    ],
)
def test_what_is_missing(term: str, known: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pmx.model(f"y ~ 1 + {term}", DATA, known=known)


@pytest.mark.parametrize(
    ("change", "term", "message"),
    [
        ({"v1": -1.0}, "(1 | mm(m1, m2, weights = cbind(v1, v2)))", "negative or infinite weights"),
        ({"v1": 0.0, "v2": 0.0}, "(1 | mm(m1, m2, weights = cbind(v1, v2)))", "zero total weight"),
        ({"m2": 3}, "(1 | mm(m1, m2))", "labels of different types"),
    ],
)
def test_bad_memberships(change: dict[str, Any], term: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pmx.model(f"y ~ 1 + {term}", DATA.assign(**change))


def test_approximate_processes() -> None:
    values = {"a:b.sd": 0.8, "a:b.lengthscale": 0.2, "y.sigma": 0.7}
    for text, approximation in (("basis=6", pmx.HilbertSpace(6)), ("inducing=20", pmx.InducingPoints(20))):
        structure = pmx.GP(gpytorch.kernels.RBFKernel(), approximation=approximation)
        wrapped = pmx.model(f"y ~ 1 + gp(a, b, kernel=rbf, {text})", DATA, priors=values)
        given = pmx.model("y ~ 1 + (1 | a:b)", DATA, priors=values, covariances={"a:b": structure})
        found = [model.fit(progress=False).log_likelihood for model in (wrapped, given)]
        assert found[0] == pytest.approx(found[1], abs=1e-8)
    with pytest.raises(ConfigError, match="two approximations"):
        pmx.model("y ~ 1 + gp(a, b, basis=3, inducing=3)", DATA)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ rw(t)", r"rw\(...\) is a structure of random effects .* as in rw\(1 \| time\)"),
        ("y ~ x + cs(x)", r"cs\(...\) is a structure .* as in cs\(1 \| g\)"),
        ("y ~ mm(g, t)", r"mm\(...\) is a grouping factor .* \(1 \| mm\(a, b\)\)"),
    ],
)
def test_a_structure_without_a_bar(formula: str, message: str) -> None:
    data = pd.DataFrame({"y": np.arange(9.0), "x": np.arange(9.0) % 4, "t": range(9), "g": np.arange(9) % 3})
    with pytest.raises(pmx.FormulaError, match=message):
        pmx.model(formula, data)
