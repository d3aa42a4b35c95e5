"""Designs of new data: transforms keep their training state, labels match by value, missing rows stay in place."""

from __future__ import annotations

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch

from pyromix.errors import ConfigError, DataError, DataTypeError, FormulaError, UnseenLevelError
from pyromix.formula import Design

N = 40


@pytest.fixture
def data(rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "y": rng.normal(size=N),
            "x": rng.uniform(1, 3, size=N),
            "z": rng.uniform(1, 3, size=N),
            "k": np.tile([1, 2], N // 2),
            "b": rng.permutation([True, False] * (N // 2)),
            "f": rng.permutation(list("abcd") * 10),
            "g": rng.permutation(np.repeat(np.arange(8), 5)),
            "h": rng.permutation(np.repeat(list("uvwxy"), 8)),
        },
        index=[f"r{i}" for i in range(N)],
    )


def fit(formula: str, data: pd.DataFrame, **arguments: object) -> Design:
    return Design.from_formula(formula, data, quiet=True, **arguments)  # type: ignore[arg-type]


TRANSFORMS = [
    "center(x)", "standardize(x)", "scale(x)", "poly(x, 3)", "bs(x, df=4)", "cr(x, df=4)", "I(x**2)", "log(x)", "x * f",
    "C(k)", "b + k", "C(f, Sum)", "center(x):f", "scale(log(x))", "bs(x, df=4, include_intercept=True)",
]  # fmt: skip


@pytest.mark.parametrize("term", TRANSFORMS)
def test_new_data_use_the_training_state_row_by_row(term: str, data: pd.DataFrame) -> None:
    design = fit(f"y ~ {term} + (0 + {term} | g)", data, family=type("F", (), {"has_residual": False})())
    whole = design.new(data)
    assert torch.equal(whole.x, design.x)
    for rows in ([5], [3, 17, 8], list(range(20))):
        part = design.new(data.iloc[rows])
        assert part.columns == design.columns
        assert part.index.equals(data.index[rows])
        torch.testing.assert_close(part.x, design.x[rows], rtol=0, atol=1e-14)
        for old, new in zip(design.terms, part.terms, strict=True):
            assert torch.equal(new.index, old.index[rows])
            assert new.levels == old.levels and new.terms == old.terms and new.structure == old.structure
            if old.design is not None:
                torch.testing.assert_close(new.design, old.design[rows], rtol=0, atol=1e-14)  # type: ignore[arg-type]


def test_the_mean_is_that_of_the_training_data(data: pd.DataFrame) -> None:
    new = data.assign(x=data["x"] + 100)
    got = fit("y ~ center(x) + (center(x)|g)", data).new(new)
    np.testing.assert_allclose(got.x[:, 1].numpy(), new["x"] - data["x"].mean())
    np.testing.assert_allclose(got.terms[0].design[:, 1].numpy(), new["x"] - data["x"].mean())  # type: ignore[index]


def test_the_response_is_not_read_unless_asked_for(data: pd.DataFrame) -> None:
    design = fit("log(z) ~ x + (1|g)", data)
    new = design.new(data.drop(columns=["y", "z"]))
    assert new.y is None and new.trials is None and new.response == "log_z"
    np.testing.assert_allclose(design.new(data, response=True).y.numpy(), np.log(data["z"]))  # type: ignore[union-attr]
    with pytest.raises(FormulaError, match="no column 'z' in the new data"):
        design.new(data.drop(columns="z"), response=True)


def test_trials_of_new_data(data: pd.DataFrame) -> None:
    data["s"], data["n"] = np.arange(N), np.arange(N) + 3
    design = fit("cbind(s, n - s) ~ x", data)
    got = design.new(data)  # trials are read where they are there; successes never are
    assert got.y is None and got.trials.tolist() == [k + 3 for k in range(N)]  # type: ignore[union-attr]
    assert design.new(data.drop(columns="n")).trials is None
    gone = data.assign(s=[np.nan, *range(1, N)])
    assert design.new(gone).trials is None and design.new(gone).missing is None
    new = design.new(data.iloc[:4], response=True)
    assert new.y.tolist() == [0, 1, 2, 3] and new.trials.tolist() == [3, 4, 5, 6]  # type: ignore[union-attr]


def test_missing_values_stay_in_their_rows(data: pd.DataFrame) -> None:
    design = fit("y ~ bs(x, df=4) + f + offset(z) + (x|g) + (1|h)", data)
    new = data.copy()
    new["g"], new["f"], new["h"] = new["g"].astype("Int64"), new["f"].astype(object), new["h"].astype(object)
    new.loc["r2", "x"], new.loc["r5", "f"], new.loc["r7", "g"], new.loc["r9", "z"] = np.nan, None, pd.NA, np.nan
    new.loc["r11", "h"] = None
    got = design.new(new)
    gone = np.isin(np.arange(N), [2, 5, 7, 9, 11])
    np.testing.assert_array_equal(got.missing.numpy(), gone)  # type: ignore[union-attr]
    assert torch.isnan(got.x[gone]).all() and torch.equal(got.x[~gone], design.x[~gone])
    assert torch.isnan(got.offset[gone]).all()  # type: ignore[index]
    assert torch.equal(got.offset[~gone], design.offset[~gone])  # type: ignore[index]
    assert torch.isnan(got.terms[0].design[gone]).all()  # type: ignore[index]
    assert all(int(term.index.min()) >= 0 for term in got.terms) and not got.unseen
    assert got.index.equals(data.index)
    with pytest.raises(DataError, match=r"'x'.*1 missing value in the new data.*row 'r2'.*propagate"):
        design.new(new, missing="error")


def test_all_rows_missing(data: pd.DataFrame) -> None:
    got = fit("y ~ x + offset(z) + (x|g)", data).new(data.assign(x=np.nan))
    assert torch.isnan(got.x).all() and got.x.shape == (N, 2)
    assert torch.isnan(got.terms[0].design).all()  # type: ignore[arg-type]


def test_missing_response_is_kept_as_nan(data: pd.DataFrame) -> None:
    design = fit("y ~ x", data)
    new = data.copy()
    new.loc["r3", "y"] = np.nan
    assert torch.isnan(design.new(new, response=True).y).nonzero().tolist() == [[3]]  # type: ignore[arg-type]
    assert design.new(new).missing is None


def test_unseen_groups_are_listed(data: pd.DataFrame) -> None:
    design = fit("y ~ x + (1|g) + (1|g:h)", data, family=type("F", (), {"has_residual": False})())
    seen = set(zip(data["g"], data["h"], strict=True))
    absent = next((g, h) for g in range(8) for h in "uvwxy" if (g, h) not in seen)
    new = pd.DataFrame(
        {
            "x": [1.0, 1, 1, 1],
            "g": [0, 99, absent[0], 98],
            "h": [data.loc[data.g == 0, "h"].iloc[0], "u", absent[1], "q"],
        }
    )
    got = design.new(new)
    assert got.terms[0].index.tolist() == [0, -2, absent[0], -1]  # -1 is the first unseen label, -2 the second
    assert got.unseen["g"] == (98, 99)
    labels = [got.unseen["g:h"][-1 - code] for code in got.terms[1].index[1:].tolist()]
    assert got.terms[1].index[0] >= 0 and labels == ["99:u", f"{absent[0]}:{absent[1]}", "98:q"]
    assert torch.equal(got.x[0], design.new(new.iloc[:1]).x[0])
    error = got.unseen_error("g")
    assert isinstance(error, UnseenLevelError)
    for text in ("'g'", "2 levels", "98, 99", r"row 1 \(position 1\)", "'zero'", "'marginal'", "'error'"):
        assert re.search(text, str(error))


def test_at_most_five_unseen_levels_are_spelt_out(data: pd.DataFrame) -> None:
    new = pd.DataFrame({"x": np.ones(9), "g": np.arange(100, 109)})
    text = str(fit("y ~ x + (1|g)", data).new(new).unseen_error("g"))
    assert "9 levels" in text and "100, 101, 102, 103, 104 and 4 more" in text


@pytest.mark.parametrize(
    ("formula", "column", "value", "says"),
    [
        ("y ~ x + f", "f", "q", r"'f'.*1 value .*'q', first at row 'r0'.*Known: 'a', 'b', 'c', 'd'"),
        ("y ~ x + C(f)", "f", "q", "'f'.*'q'"),
        ("y ~ C(k)", "k", 9, "'k'.*9"),
        ("y ~ k + C(k)", "k", 9, "'k'.*9"),
        ("y ~ x + (0 + f | g)", "f", "q", "'f'.*'q'"),
    ],
)
def test_unseen_predictor_categories_are_refused(
    formula: str, column: str, value: object, says: str, data: pd.DataFrame
) -> None:
    design = fit(formula, data, family=type("F", (), {"has_residual": False})())
    with pytest.raises(UnseenLevelError, match=says):
        design.new(data.assign(**{column: value}))


def test_levels_match_by_value_not_by_code(data: pd.DataFrame) -> None:
    design = fit("y ~ f + (1|h) + (1|g)", data)
    new = data.iloc[[4, 9, 11]].copy()
    new["f"] = pd.Categorical(new["f"], categories=list("dcba"))
    new["h"] = pd.Categorical(new["h"], categories=["never", *"yxwvu"], ordered=True)
    new["g"] = new["g"].astype(float)
    got = design.new(new)
    assert torch.equal(got.x, design.x[[4, 9, 11]])
    for old, now in zip(design.terms, got.terms, strict=True):
        assert torch.equal(now.index, old.index[[4, 9, 11]])
    assert got.unseen == {}


@pytest.mark.parametrize(
    ("formula", "change", "says"),
    [
        ("y ~ x + (1|g)", {"g": lambda d: d["g"].astype(str)}, r"'g'.*'0' \(str\).*0 \(int\).*astype\(int\)"),
        ("y ~ x + (1|h)", {"h": lambda d: 3}, None),
        ("y ~ C(k)", {"k": lambda d: d["k"].astype(str)}, r"'k'.*'1' \(str\).*1 \(int\)"),
        ("y ~ x", {"x": lambda d: "a"}, r"'x'.*labels.*'a'.*numbers \(float64\)"),
        ("y ~ x", {"x": lambda d: d["x"].astype(str)}, "'x'.*text that looks numeric"),
        ("y ~ b", {"b": lambda d: 3}, "'b'.*True/False in the fit.*row 'r0'"),
        ("y ~ x", {"x": lambda d: np.inf}, "'x'.*inf.*row 'r0'"),
        ("y ~ log(x)", {"x": lambda d: 0.0}, r"log\(x\).*-inf.*row 'r0'"),
        ("y ~ bs(x, df=4)", {"x": lambda d: 50.0}, r"bs\(x, df ?= ?4\).*outside the outermost knots"),
        ("y ~ offset(log(x))", {"x": lambda d: 0.0}, r"offset\(log\(x\)\).*-inf.*row 'r0'"),
        ("y ~ (1|g)", {"g": lambda d: pd.Series([1, "1"] * 20, index=d.index, dtype=object)}, "'g'.*mixes"),
    ],
)
def test_new_data_of_another_kind(formula: str, change: dict, says: str | None, data: pd.DataFrame) -> None:
    design = fit(formula, data)
    new = data.assign(**{name: make(data) for name, make in change.items()})
    before = copy.deepcopy(new)
    if says is None:
        assert design.new(new).unseen == {"h": (3,)}
    else:
        with pytest.raises(DataError, match=says):
            design.new(new)
    pd.testing.assert_frame_equal(before, new)


def test_flags_as_numbers(data: pd.DataFrame) -> None:
    design = fit("y ~ b", data)
    assert torch.equal(design.new(data.assign(b=data["b"].astype(int))).x, design.x)
    assert torch.equal(design.new(data[data["b"]]).x, design.x[np.flatnonzero(data["b"])])


def test_absent_columns_and_wrong_objects(data: pd.DataFrame) -> None:
    design = fit("y ~ x + (1|g)", data)
    with pytest.raises(FormulaError, match="no column 'x' in the new data"):
        design.new(data.drop(columns="x"))
    with pytest.raises(FormulaError, match="no column 'g' in the new data"):
        design.new(data.drop(columns="g"))
    with pytest.raises(DataTypeError, match="list"):
        design.new([1, 2])
    with pytest.raises(DataError, match="0 rows"):
        design.new(data.iloc[:0])
    with pytest.raises(ConfigError, match="missing='drop'; allowed: 'propagate', 'error'"):
        design.new(data, missing="drop")


def test_offsets_of_new_data(data: pd.DataFrame) -> None:
    named, given = fit("y ~ x + offset(k)", data, offset="z"), fit("y ~ x + offset(k)", data, offset=data["z"])
    new = data.iloc[:6]
    expected = (new["z"] + new["k"]).to_numpy()
    np.testing.assert_allclose(named.new(new).offset.numpy(), expected)  # type: ignore[union-attr]
    np.testing.assert_allclose(given.new(new, offset=new["z"]).offset.numpy(), expected)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="offset.*new data need theirs"):
        given.new(new)
    with pytest.raises(DataError, match="offset: 1 infinite value, first inf at row 'r1'"):
        given.new(new, offset=[1, np.inf, 1, 1, 1, 1])
    assert fit("y ~ x", data).new(new).offset is None


def test_new_data_carry_no_weights(data: pd.DataFrame) -> None:
    design = fit("y ~ x", data, precision_weights=np.ones(N), frequency_weights=np.ones(N))
    new = design.new(data)
    assert new.precision_weights is None and new.frequency_weights is None


def test_a_new_design_can_be_applied_again(data: pd.DataFrame) -> None:
    design = fit("y ~ center(x) + (1|g)", data)
    assert torch.equal(design.new(data.iloc[:9]).new(data).x, design.x)


def test_inputs_of_new_data(data: pd.DataFrame) -> None:
    design = fit("y ~ x + f", data)
    part, whole = design.new(data.iloc[7:12]).inputs(), design.inputs()
    assert part["levels"] == whole["levels"] and part["names"] == whole["names"]
    assert torch.equal(part["codes"]["f"], whole["codes"]["f"][7:12])
    assert torch.equal(part["numeric"], whole["numeric"][7:12])
