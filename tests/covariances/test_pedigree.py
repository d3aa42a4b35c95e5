"""Relationships by descent against the tabular method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyromix.covariances import Coords, Kinship, from_config, relationship
from pyromix.errors import ConfigError, StructureError
from pyromix.linalg.known import KnownOperator
from pyromix.linalg.operators import PrecisionOperator
from pyromix.testing import CovarianceSuite
from tests.covariances.fits import check_gaussian_fit

# offspring before their parents; g is of half sibs, h of a father and his daughter, i of one plant
ROWS = [
    ("h", "d", "b"),
    ("i", "g", "g"),
    ("g", "d", "e"),
    ("d", "b", "c"),
    ("e", "b", "a"),
    ("f", "b", None),
    ("b", None, None),
    ("c", "", np.nan),
]
FRAME = pd.DataFrame(ROWS, columns=["id", "sire", "dam"])
ALL = tuple("abcdefghi")


def tabular(rows: list[tuple[Any, Any, Any]]) -> pd.DataFrame:
    """a_ij is the mean of a_j with the parents of i; a_ii is 1 + half of that of the parents with each other."""
    parents = {animal: [p for p in pair if isinstance(p, str) and p] for animal, *pair in rows}
    for pair in list(parents.values()):
        for p in pair:
            parents.setdefault(p, [])
    order: list[Any] = []
    while len(order) < len(parents):
        order += [x for x in parents if x not in order and all(p in order for p in parents[x])]
    a = pd.DataFrame(0.0, index=order, columns=order)
    for k, i in enumerate(order):
        for j in order[:k]:
            a.loc[i, j] = a.loc[j, i] = sum(0.5 * a.loc[p, j] for p in parents[i])
        a.loc[i, i] = 1.0 + (0.5 * a.loc[parents[i][0], parents[i][1]] if len(parents[i]) == 2 else 0.0)
    return a


A = tabular(ROWS)


class TestKinshipByDescent(CovarianceSuite):
    """Every animal is a level: the sparse inverse."""

    def make(self) -> Kinship:
        return Kinship(pedigree=FRAME)

    def coords(self) -> Coords:
        return Coords(ALL[::-1], ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.8, 1.7], dtype=torch.float64)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        part = torch.from_numpy(A.loc[list(coords.levels), list(coords.levels)].to_numpy().copy())
        return torch.kron(part, torch.diag(theta["sd"] ** 2))


class TestKinshipOfSomeAnimals(TestKinshipByDescent):
    """Their parents have no records: a dense root."""

    def coords(self) -> Coords:
        return Coords(tuple("ifhae"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([1.3], dtype=torch.float64)}


def _operator(levels: Any, table: Any = FRAME) -> Any:
    one = torch.ones(1, dtype=torch.float64)
    return Kinship(pedigree=table).operator({"sd": one}, Coords(tuple(levels), ("Intercept",)))


def test_the_tabular_method_knows_the_textbook() -> None:
    """A father and his daughter: F = 1/4. Half sibs: 1/8. A selfed plant: (1 + F) / 2."""
    assert A.loc["h", "h"] == 1.25 and A.loc["g", "g"] == 1.125 and A.loc["i", "i"] == 1 + 1.125 / 2


def test_closed_sets_of_levels_are_sparse_and_others_dense() -> None:
    everyone, some = _operator(ALL), _operator("ifhae")
    assert isinstance(everyone, PrecisionOperator) and isinstance(some, KnownOperator)
    assert isinstance(_operator("dbc"), PrecisionOperator)  # founders and their offspring
    precision = everyone.separable().precision
    inverse = np.linalg.inv(A.loc[list(ALL), list(ALL)].to_numpy())
    np.testing.assert_allclose(precision.dense().numpy(), inverse, atol=1e-12)
    assert len(precision.values) == (np.abs(np.tril(inverse)) > 1e-12).sum()


@pytest.mark.parametrize("seed", range(3))
def test_random_pedigrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        (f"x{i}", *(f"x{rng.integers(i)}" if i > 4 and rng.random() < 0.9 else None for _ in "sd")) for i in range(60)
    ]
    expected = tabular(rows)
    found, ids = relationship(pd.DataFrame(rows, columns=["id", "father", "mother"]).sample(frac=1, random_state=seed))
    np.testing.assert_allclose(found, expected.loc[ids, ids].to_numpy(), atol=1e-13)
    dense = _operator(expected.index, rows).separable().precision.dense().numpy()
    np.testing.assert_allclose(dense @ expected.to_numpy(), np.eye(60), atol=1e-10)


def test_lines_inbred_to_the_end_have_no_inverse() -> None:
    """Thirty generations of selfing: the last plants differ by less than rounding can tell."""
    rows = [("p0", None, None), *((f"p{i}", f"p{i - 1}", f"p{i - 1}") for i in range(1, 60))]
    levels = tuple(f"p{i}" for i in range(60))
    operator = _operator(levels, rows)
    expected = [[2 - 0.5 ** min(i, j) for j in range(60)] for i in range(60)]
    np.testing.assert_allclose(operator.dense().numpy(), expected, atol=1e-10)


def test_zero_is_an_unknown_parent_unless_it_is_an_animal() -> None:
    found, ids = relationship([(1, 0, 0), (2, 1, 0)])
    assert ids == [1, 2] and found.tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert relationship([(0, None, None), (1, 0, None)])[0].tolist() == [[1.0, 0.5], [0.5, 1.0]]


def test_long_lines_are_no_recursion() -> None:
    rows = [(f"a{i}", f"a{i - 1}" if i else None, None) for i in range(3000)]
    assert Kinship(pedigree=rows[::-1]).K.ids == tuple(f"a{i}" for i in range(3000))


def test_it_is_saved_in_plain_values() -> None:
    config = Kinship(pedigree=FRAME, sd=2.0).config()
    again = from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    one = {"sd": torch.ones(1, dtype=torch.float64)}
    dense = again.operator(one, Coords(ALL, ("Intercept",))).dense().numpy()
    np.testing.assert_allclose(dense, A.loc[list(ALL), list(ALL)].to_numpy(), atol=1e-12)


BAD = [
    ([("a", "b", None), ("b", "a", None)], StructureError, r"'a' is its own ancestor"),
    ([("a", "a", None)], StructureError, r"'a' is its own ancestor"),
    ([("a", "b", None), ("a", None, None)], StructureError, r"id 'a' has more than one row"),
    ([(None, "b", "c")], StructureError, r"the row of parents \['b', 'c'\] has no id"),
    (FRAME.rename(columns={"dam": "x"}), ConfigError, r"0 of its columns are called dam or mother; .* id, sire, x"),
    (5, ConfigError, r"got a int; pass a pandas DataFrame with columns id, sire, dam"),
]


@pytest.mark.parametrize(("table", "error", "message"), BAD)
def test_refused(table: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Kinship(pedigree=table)


def test_animals_that_the_pedigree_lacks_are_named() -> None:
    with pytest.raises(StructureError, match=r"Kinship\(pedigree=\.\.\.\): 1 of 2 levels .* \('z'\)"):
        _operator("az")
    with pytest.raises(ConfigError, match="a pedigree has nothing to repair"):
        Kinship(pedigree=FRAME, repair="nearest")


@pytest.mark.parametrize("levels", [ALL, tuple("ifhae")], ids=["sparse", "dense"])
def test_maximum_likelihood_is_that_of_the_dense_normal(levels: tuple[str, ...]) -> None:
    theta = {"sd": torch.tensor([1.3], dtype=torch.float64)}
    check_gaussian_fit(Kinship(pedigree=FRAME), Coords(levels, ("Intercept",)), TestKinshipByDescent().dense, theta)
