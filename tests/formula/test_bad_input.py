"""Bad data and arguments: the class of the error, what it names, and that the caller's objects stay as they were."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyromix.errors import (
    ConfigError,
    DataError,
    DataTypeError,
    DataWarning,
    FewGroupsWarning,
    FormulaError,
    RankWarning,
    ScaleWarning,
)
from pyromix.formula import Design

N = 24


def frame(**changes: Any) -> pd.DataFrame:
    """24 rows labelled r0 ... r23, 6 groups, with some columns replaced."""
    rng = np.random.default_rng(1)
    data: dict[str, Any] = {
        "y": rng.normal(size=N),
        "x": rng.normal(size=N),
        "z": rng.normal(size=N),
        "e": rng.uniform(1, 2, size=N),
        "f": np.tile(["a", "b", "c"], N // 3),
        "g": np.repeat(list("pqrstu"), N // 6),
    }
    data.update(changes)
    return pd.DataFrame(data, index=[f"r{i}" for i in range(N)])


def put(column: str, value: Any, *rows: int, dtype: Any = None) -> pd.DataFrame:
    """The frame with a value in some rows of one column."""
    data = frame()
    values = data[column].astype(dtype) if dtype else data[column].copy()
    values.iloc[list(rows)] = value
    data[column] = values
    return data


class Counts:
    """A family without a residual."""

    has_residual = False


@dataclass
class Case:
    """A bad input and what the error must say."""

    data: Any
    error: type[Exception]
    says: tuple[str, ...]
    formula: str = "y ~ x + (1|g)"
    arguments: dict[str, Any] = field(default_factory=dict)


def series(values: Any, rows: Any = None) -> pd.Series:
    return pd.Series(values, index=[f"r{i}" for i in range(N)] if rows is None else rows)


def multi_header() -> pd.DataFrame:
    return pd.DataFrame(np.zeros((2, 2)), columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))


def duplicated() -> pd.DataFrame:
    data = frame()
    data.columns = ["y", "x", "x", "e", "f", "g"]
    return data


ONES = np.ones(N)
CASES: dict[str, Case] = {
    "absent column": Case(frame(), FormulaError, ("'zz'", "Columns: .*'x'"), "y ~ zz + (1|g)"),
    "absent column, near": Case(frame(dose=ONES), FormulaError, ("'dos'", "mean 'dose'"), "y ~ dos"),
    "absent group": Case(frame(), FormulaError, ("'gg'", "mean 'g'"), "y ~ x + (1|gg)"),
    "absent response": Case(frame(), FormulaError, ("'yy'", "mean 'y'"), "yy ~ x"),
    "absent offset": Case(frame(), FormulaError, ("'ee'",), "y ~ offset(log(ee))"),
    "no rows": Case(frame().iloc[:0], DataError, ("data", "0 rows")),
    "no columns": Case({}, DataError, ("data", "0 rows")),
    "all rows missing": Case(
        frame(x=np.where(np.arange(N) % 2, np.nan, 1.0), z=np.where(np.arange(N) % 2, 1.0, np.nan)),
        DataError, ("all 24 rows", "'x': 12", "'z': 12"), "y ~ x + z", {"missing": "drop"},
    ),
    "duplicate column": Case(duplicated(), DataError, ("'x'", "positions 1, 2", "Rename")),
    "offset labels differ": Case(
        frame(), DataError, ("offset", "'r0', 'r1', 'r2', 'r3', 'r4' and 19 more", "Align"),
        arguments={"offset": series(ONES, [f"s{i}" for i in range(N)])},
    ),
    "extra offset label": Case(
        frame(), DataError, ("offset", "not in the data", "'new'"),
        arguments={"offset": series(np.ones(N + 1), [f"r{i}" for i in range(N)] + ["new"])},
    ),
    "weights with repeated labels": Case(
        frame(), DataError, ("precision_weights", "labels repeat", "to_numpy"),
        arguments={"precision_weights": series(ONES, ["r0"] * N)},
    ),
    "array too short": Case(
        frame(), DataError, ("frequency_weights", r"\(23,\)", "24 rows"),
        arguments={"frequency_weights": np.ones(N - 1)},
    ),
    "array of two columns": Case(
        frame(), DataError, ("offset", r"\(24, 2\)", "24 rows"), arguments={"offset": np.ones((N, 2))}
    ),
    "offset frame": Case(frame(), DataError, ("offset", "DataFrame"), arguments={"offset": frame()}),
    "offset of text": Case(
        frame(), DataError, ("offset", "'a'", "'r0'"), arguments={"offset": np.array(["a"] * N, dtype=object)}
    ),
    "offset text column": Case(frame(), DataError, ("offset='f'", "'a'", "row 'r0'"), arguments={"offset": "f"}),
    "mapping lengths": Case(
        {"y": np.ones(4), "x": np.ones(3)}, DataError, ("'x' has 3", "'y' has 4"), "y ~ x"
    ),
    "4x among text numbers": Case(
        frame(x=["1", "2", "3", "4x"] + [str(i) for i in range(20)]),
        DataError, ("'x'", "'4x'", "row 'r3' \\(position 3\\)", "to_numeric"),
    ),
    "4x among numbers": Case(
        put("x", "4x", 7, dtype=object), DataError, ("'x'", "'4x'", "row 'r7'", "astype")
    ),
    "numbers as text": Case(
        frame(x=[str(i / 2) for i in range(N)]), DataError, ("'x'", "text that looks numeric", "'0.0'", "to_numeric")
    ),
    "date predictor": Case(
        frame(x=pd.date_range("2020-01-01", periods=N)), DataError, ("'x'", "datetime64", "Convert", "'r0'")
    ),
    "timedelta predictor": Case(
        frame(x=pd.to_timedelta(np.arange(N), unit="D")), DataError, ("'x'", "timedelta64", "Convert")
    ),
    "date objects": Case(
        frame(x=pd.Series([pd.Timestamp("2020-01-01").date()] * N, dtype=object).to_numpy()),
        DataError, ("'x'", "date", "'r0'"),
    ),
    "complex predictor": Case(frame(x=ONES * 1j), DataError, ("'x'", "complex", "'r0'")),
    "list cells": Case(
        frame(x=pd.Series([[1, 2]] * N, dtype=object).to_numpy()), DataError, ("'x'", "list", "row 'r0'")
    ),
    "dict cells in a group": Case(
        frame(g=pd.Series(["a"] * 5 + [{"k": 1}] * 19, dtype=object).to_numpy()), DataError, ("'g'", "dict", "row 'r5'")
    ),
    "tuple cells in a group": Case(
        frame(g=pd.Series([(1, 2)] * N, dtype=object).to_numpy()), DataError, ("'g'", "tuple", "row 'r0'")
    ),
    "mixed group ids": Case(
        frame(g=pd.Series([1, "1", 2, "2"] * 6, dtype=object).to_numpy()),
        DataError, ("'g'", "int 1 at row 'r0'", "'1' at row 'r1'"),
    ),
    "unsupported frame": Case([[1, 2]], DataTypeError, ("list", "DataFrame")),
    "no frame": Case(None, DataTypeError, ("NoneType", "DataFrame")),
    "array as frame": Case(np.ones((3, 2)), DataTypeError, ("ndarray", "DataFrame")),
    "several header rows": Case(multi_header(), DataTypeError, ("MultiIndex", "2 levels", "Flatten"), "y ~ x"),
    "NaN predictor": Case(
        put("x", np.nan, 3, 5), DataError,
        ("'x'", "fixed effects", "2 missing values", r"row 'r3' \(position 3\), row 'r5' \(position 5\)", "'drop'"),
    ),
    "NaN response": Case(put("y", np.nan, 4), DataError, ("'y'", "response", "1 missing value", "row 'r4'")),
    "NA in nullable": Case(
        frame(x=pd.array([1, 2, None] * 8, dtype="Int64")), DataError, ("'x'", "8 missing values", "row 'r2'")
    ),
    "NA in nullable bool": Case(
        frame(x=pd.array([True, False, None] * 8, dtype="boolean")), DataError, ("'x'", "8 missing values", "row 'r2'")
    ),
    "None in text predictor": Case(put("f", None, 6), DataError, ("'f'", "1 missing value", "'r6'"), "y ~ f"),
    "None group": Case(put("g", None, 2), DataError, ("'g'", "grouping factor", "1 missing value", "row 'r2'")),
    "NaN group": Case(
        frame(g=np.r_[np.nan, np.repeat(np.arange(6.0), 4)[1:]]), DataError, ("'g'", "1 missing value", "row 'r0'")
    ),
    "NA group": Case(
        frame(g=pd.array([1, 2, None] * 8, dtype="Int64")), DataError, ("'g'", "8 missing values", "row 'r2'")
    ),
    "NaT group": Case(
        frame(g=pd.to_datetime(["2020-01-01", None, "2020-01-02"] * 8)), DataError, ("'g'", "8 missing values", "'r1'")
    ),
    "missing category in a group": Case(
        frame(g=pd.Categorical(["a", None, "b"] * 8)), DataError, ("'g'", "8 missing values", "row 'r1'")
    ),
    "missing in half an interaction": Case(
        put("f", None, 6), DataError, ("'f'", "1 missing value", "'r6'"), "y ~ x + (1|g:f)"
    ),
    "inf predictor": Case(put("x", np.inf, 9), DataError, ("'x'", "inf at row 'r9'")),
    "minus inf response": Case(put("y", -np.inf, 9), DataError, ("'y'", "response", "-inf at row 'r9'")),
    "log of zero exposure": Case(
        put("e", 0.0, 16), DataError,
        (r"offset\(log\(e\)\)", "-inf", r"row 'r16' \(position 16\)", "e = 0", "positive"), "y ~ x + offset(log(e))",
    ),
    "log of negative exposure": Case(
        put("e", -1.0, 16), DataError, (r"offset\(log\(e\)\)", "nan", "row 'r16'", "e = -1"), "y ~ offset(log(e))"
    ),
    "log of zero predictor": Case(
        put("e", 0.0, 3), DataError, (r"'log\(e\)'", "-inf", "row 'r3'"), "y ~ log(e)"
    ),
    "log of zero in a random term": Case(
        put("e", 0.0, 3), DataError, (r"'log\(e\)'", "random effects of 'g'", "row 'r3'"), "y ~ x + (log(e)|g)"
    ),
    "log of zero response": Case(
        frame(y=np.arange(N) * 1.0), DataError, (r"'log\(y\)'", "response", "-inf", "row 'r0'"), "log(y) ~ x"
    ),
    "NaN offset": Case(
        frame(), DataError, ("offset", "1 missing value", "row 'r2'"),
        arguments={"offset": np.r_[1, 2, np.nan, np.ones(21)]},
    ),
    "inf offset": Case(
        frame(), DataError, ("offset", "1 infinite value", "row 'r2'"),
        arguments={"offset": np.r_[1, 2, np.inf, np.ones(21)]},
    ),
    "NaN weight": Case(
        frame(), DataError, ("precision_weights", "nan", "row 'r1'"),
        arguments={"precision_weights": np.r_[1, np.nan, np.ones(22)]},
    ),
    "negative weight": Case(
        frame(), DataError, ("frequency_weights", "1 negative value", "-2.0 at row 'r1'"),
        arguments={"frequency_weights": np.r_[1, -2, np.ones(22)]},
    ),
    "zero weights": Case(
        frame(), DataError, ("precision_weights", "all 24 values are 0", "'r0'"),
        arguments={"precision_weights": 0 * ONES},
    ),
    "constant response": Case(frame(y=ONES), DataError, ("response 'y' is constant", r"= 1\.0", "24 rows", "prior")),
    "no success": Case(
        frame(s=0 * ONES, n=ONES), DataError, ("'s' is constant", "no success"), "cbind(s, n) ~ x + (1|g)"
    ),
    "only successes": Case(
        frame(s=np.arange(1, N + 1), n=0 * ONES), DataError, ("'s' is constant", "every trial"), "cbind(s, n) ~ x"
    ),
    "two-valued text response": Case(
        frame(y=["N", "Y"] * 12), DataError, ("'y'", "'N', 'Y'", r"data\['y'\] == 'Y'")
    ),
    "categorical response": Case(
        frame(y=pd.Categorical(["lo", "mid", "hi"] * 8)), DataError, ("'y'", "3 values", "'hi', 'lo', 'mid'", "numeric")
    ),
    "more successes than trials": Case(
        frame(s=ONES * 3, n=np.r_[5, 2, 4 * np.ones(22)]), DataError,
        (r"cbind\(s, n - s\)", "s = 3", "n - s = -1", "row 'r1'"), "cbind(s, n - s) ~ x",
    ),
    "no trials": Case(
        frame(s=np.r_[0, ONES[1:]], n=np.r_[0, ONES[1:]]), DataError,
        (r"cbind\(s, n\)", "no trials", "row 'r0'"), "cbind(s, n) ~ x",
    ),
    "fractional successes": Case(
        frame(s=np.r_[0.5, ONES[1:]], n=ONES), DataError, ("whole", r"s = 0\.5", "row 'r0'"), "cbind(s, n) ~ x"
    ),
    "column array response": Case(
        {"y": np.ones((4, 1)), "x": np.ones(4)}, DataError, ("'y'", r"\(4, 1\)", r"\(n,\)", "ravel"), "y ~ x"
    ),
    "more columns than rows": Case(
        frame(k=[f"k{i:02d}" for i in range(N)]), DataError, ("25 columns \\(p\\)", "24 rows \\(n\\)"), "y ~ x + k"
    ),
    "one level": Case(frame(f="a"), DataError, ("'f'", "one level", "'a'", "24 rows", "Drop"), "y ~ f + (1|g)"),
    "one level of a flag": Case(frame(f=[True] * N), DataError, ("'f'", "one level", "True"), "y ~ f"),
    "one level in C": Case(frame(f=3), DataError, ("'f'", "one level", "3"), "y ~ C(f)"),
    "one group": Case(frame(g="a"), DataError, ("'g'", "1 level", "Drop the term")),
    "as many groups as rows": Case(
        frame(g=np.arange(N)), DataError, ("'g'", "24 levels for 24 observations", "coarser")
    ),
    "as many effects as rows": Case(
        frame(), DataError, ("'g'", "4 effects for each of 6 levels", "24 random effects for 24 observations"),
        "y ~ x + (x + z + e|g)",
    ),
    "response on the right": Case(frame(), FormulaError, ("'y'", "right of"), "y ~ y + x"),
    "labels in arithmetic": Case(frame(), DataError, ("'f'", "labels", "arithmetic"), "y ~ offset(log(f))"),
    "labels in a transform": Case(frame(), DataError, (r"log\(f\)", "could not convert|float"), "y ~ log(f)"),
    "text weights column": Case(
        frame(), FormulaError, ("'ww'",), arguments={"precision_weights": "ww"}
    ),
    "degree beyond the data": Case(
        frame(x=np.repeat([1.0, 2.0, 3.0], 8)), DataError, (r"poly\(x, 3\)", "3 distinct values"), "y ~ poly(x, 3)"
    ),
    "degree of no number": Case(frame(), DataError, ("poly", "degree", "0"), "y ~ poly(x, 0)"),
    "scale of a constant": Case(frame(x=ONES), DataError, ("scale", "24 values are equal"), "y ~ scale(x)"),
    "unknown contrast level": Case(
        frame(), DataError, ("C\\(f, Treatment\\('q'\\)\\)", "q"), "y ~ C(f, Treatment('q'))"
    ),
    "intercept in a product": Case(frame(), FormulaError, (r"'x \* 1'", "intercept"), "y ~ x * 1"),
    "a term with a minus": Case(frame(), FormulaError, ("'-x'", "minus"), "y ~ -x"),
    "a minus in a product": Case(frame(), FormulaError, ("'x \\* -z'", "minus"), "y ~ x * -z"),
    "mixed types": Case(
        frame(g=pd.Series([1, pd.Timestamp("2020-01-01")] * 12, dtype=object).to_numpy()),
        DataError, ("'g'", "Timestamp, int"),
    ),
    "weights of mixed cells": Case(
        frame(), DataError, ("offset", "'b'", "row 'r1'"),
        arguments={"offset": np.array([1.0, "b"] + [2.0] * 22, dtype=object)},
    ),
    "matrix in scale": Case(
        frame(), DataError, (r"scale\(\.\.\.\): shape \(24, 2\)",), "y ~ scale(poly(x, 2))"
    ),
    "unknown missing option": Case(
        frame(), ConfigError, ("missing='skip'", "'error', 'drop'"), arguments={"missing": "skip"}
    ),
    "too many levels to hold": Case(
        pd.DataFrame({"y": np.arange(400_000.0), "k": np.arange(400_000).astype(str) + np.array("k")}),
        DataError, ("'k'", "400000 levels", "GB", r"\(1 \| k\)"), "y ~ k", {"family": Counts()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_bad_input(case: Case) -> None:
    before = copy.deepcopy((case.data, case.arguments.get("offset")))
    with pytest.raises(case.error) as caught:
        Design.from_formula(case.formula, case.data, **case.arguments)
    for text in case.says:
        assert re.search(text, str(caught.value)), f"{text!r} not in {caught.value}"
    after = (case.data, case.arguments.get("offset"))
    for old, new in zip(before, after, strict=True):
        if isinstance(old, (pd.DataFrame, pd.Series)):
            (pd.testing.assert_frame_equal if isinstance(old, pd.DataFrame) else pd.testing.assert_series_equal)(
                old, new
            )


def test_a_family_is_asked_and_can_name_rows() -> None:
    class Positive:
        has_residual = True

        def check_response(
            self, y: np.ndarray, trials: np.ndarray | None, describe: Callable[[int], str], name: str
        ) -> None:
            at = int(np.argmax(y < 0))
            raise DataError(f"{name}: {y[at]:.3f} at {describe(at)}; trials {trials}")

    data = frame(y=np.r_[1.0, 2.0, -3.0, np.arange(21)])
    with pytest.raises(DataError, match=r"y: -3\.000 at row 'r2' \(position 2\); trials None"):
        Design.from_formula("y ~ x", data, family=Positive())
    data = frame(y=np.r_[np.nan, 2.0, -3.0, np.arange(21)])
    with pytest.raises(DataError, match=r"row 'r2' \(position 2\)"):
        Design.from_formula("y ~ x", data, family=Positive(), missing="drop")


@dataclass
class Doubt:
    """A doubtful input and what the warning must say."""

    data: Any
    warning: type[Warning]
    says: tuple[str, ...]
    formula: str = "y ~ x + (1|g)"
    aliased: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


def empty_cell() -> pd.DataFrame:
    data = frame(h=np.repeat(["u", "v"], N // 2))
    return data[~((data.f == "c") & (data.h == "v"))]


def nested() -> pd.DataFrame:
    """Pupils 1 to 5 in each of 6 schools, measured four times."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "y": rng.normal(size=120),
            "school": np.repeat(list("ABCDEF"), 20),
            "pupil": np.tile(np.repeat(range(1, 6), 4), 6),
        }
    )


DOUBTS: dict[str, Doubt] = {
    "blanks": Doubt(
        frame(g=["A", "A ", "b", "B", "c", "d"] * 4), DataWarning, ("'g'", r"\('A', 'A '\)", r"\('B', 'b'\)")
    ),
    "constant column": Doubt(frame(k=2.0), RankWarning, ("'k'", r"constant \(= 2\)", "NaN"), "y ~ x + k", ("k",)),
    "copied column": Doubt(
        frame(k=frame().x * 2), RankWarning, ("'k'", "k ~ x",), "y ~ x + z + k", ("k",)
    ),
    "sum of columns": Doubt(
        frame(k=frame().x + 3 - frame().z), RankWarning, (r"k ~ x \+ z",), "y ~ x + z + k", ("k",)
    ),
    "sum of columns without intercept": Doubt(
        frame(k=frame().x - frame().z), RankWarning, (r"k ~ x \+ z",), "y ~ 0 + x + z + k", ("k",)
    ),
    "empty cell": Doubt(
        empty_cell(), RankWarning, ("'f\\[T.c\\]:h\\[T.v\\]'", "cell f = 'c', h = 'v'"), "y ~ f * h",
        ("f[T.c]:h[T.v]",),
    ),
    "scales": Doubt(
        frame(k=frame().z * 1e4), ScaleWarning, ("'x'", "'k'", "sd"), "y ~ x + k"
    ),
    "many levels": Doubt(
        pd.DataFrame({"y": np.arange(2200.0) % 7, "k": [f"k{i % 1100}" for i in range(2200)]}),
        DataWarning, ("'k'", "1100 levels", r"\(1 \| k\)"), "y ~ k",
    ),
    "few groups": Doubt(frame(g=list("abcd") * 6), FewGroupsWarning, ("'g'", "4 levels", "5")),
    "one group with priors": Doubt(
        frame(g="a"), FewGroupsWarning, ("'g'", "1 level"), arguments={"proper_priors": True}
    ),
    "constant response with priors": Doubt(
        frame(y=1.0), DataWarning, ("'y' is constant",), arguments={"proper_priors": True}
    ),
    "ids that restart": Doubt(
        nested(), DataWarning, ("'school' and 'pupil'", r"\(1 \| school/pupil\)"), "y ~ 1 + (1|school) + (1|pupil)"
    ),
    "ids that restart, parts missing": Doubt(
        nested().iloc[:-4], DataWarning, ("'school' and 'pupil'",), "y ~ 1 + (1|school) + (1|pupil)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=list(DOUBTS))
def test_doubtful_input(doubt: Doubt) -> None:
    before = copy.deepcopy(doubt.data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        design = Design.from_formula(doubt.formula, doubt.data, **doubt.arguments)
    texts = [str(item.message) for item in caught if item.category is doubt.warning]
    assert texts, [str(item.message) for item in caught]
    assert all(item.filename == __file__ for item in caught)
    for text in doubt.says:
        assert any(re.search(text, found) for found in texts), f"{text!r} not in {texts}"
    assert design.aliased == doubt.aliased
    assert np.linalg.matrix_rank(design.x.numpy()) == design.x.shape[1]
    assert [note[1] for note in design.notes] == [str(item.message) for item in caught]
    pd.testing.assert_frame_equal(before, doubt.data)


def test_a_warning_names_the_line_outside_the_package() -> None:
    inside: dict[str, Any] = {"__name__": "pyromix.facade", "Design": Design}
    exec("def model(data): return Design.from_formula('y ~ x + (1|g)', data)", inside)
    with pytest.warns(FewGroupsWarning) as caught:
        inside["model"](frame(g=list("abcd") * 6))
    assert [item.filename for item in caught] == [__file__]


FINE: dict[str, Doubt] = {
    "duplicate row labels": Doubt(frame().set_axis(["r"] * N), DataWarning, ()),
    "some singleton groups": Doubt(frame(g=["solo", *("pqrst" * 5)[:23]]), DataWarning, ()),
    "crossed, one row a cell": Doubt(
        pd.DataFrame({"y": np.arange(144.0) % 11, "plate": np.repeat(range(24), 6), "sample": np.tile(range(6), 24)}),
        DataWarning, (), "y ~ 1 + (1|plate) + (1|sample)",
    ),
    "crossed with their interaction": Doubt(
        nested(), DataWarning, (), "y ~ 1 + (1|school) + (1|pupil) + (1|school:pupil)"
    ),
    "nested": Doubt(nested(), DataWarning, (), "y ~ 1 + (1|school/pupil)"),
    "an effect a row for counts": Doubt(frame(g=np.arange(N)), DataWarning, (), arguments={"family": Counts()}),
    "a calendar year": Doubt(frame(year=2.0e9 + np.arange(N)), DataWarning, (), "y ~ year"),
    "huge counts": Doubt(frame(y=10.0 ** np.arange(N)), DataWarning, ()),
    "frequency weights make repeats": Doubt(
        frame(g=np.arange(N)), DataWarning, (), arguments={"frequency_weights": 2 * ONES}
    ),
    "one row label": Doubt(frame(), DataWarning, (), arguments={"precision_weights": np.r_[0, np.ones(23)]}),
    "category with plus": Doubt(frame(f=["0", "1", "3+"] * 8), DataWarning, (), "y ~ f"),
    "ids of digits": Doubt(frame(g=["01", "1", "2"] * 8), DataWarning, (), "y ~ x + (1|g) + (1|f)",
                           arguments={"quiet": True}),
    "labels of digits inside C": Doubt(frame(f=["1", "2", "3"] * 8), DataWarning, (), "y ~ C(f)"),
    "categorical of digits": Doubt(frame(f=pd.Categorical(["1", "2", "3"] * 8)), DataWarning, (), "y ~ f"),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE.values(), ids=list(FINE))
def test_legal_input_gives_no_warning(case: Doubt) -> None:
    design = Design.from_formula(case.formula, case.data, **case.arguments)
    assert design.n == len(case.data)
    assert design.index.equals(case.data.index)
    assert np.isfinite(design.x.numpy()).all()
    for term in design.terms:
        assert 0 <= int(term.index.min()) and int(term.index.max()) == len(term.levels) - 1


def test_proper_priors_allow_more_columns_than_rows() -> None:
    data = frame(k=[f"k{i:02d}" for i in range(N)])
    assert Design.from_formula("y ~ x + k", data, proper_priors=True).x.shape == (N, N + 1)


def test_one_bad_value_in_a_million_rows_is_named() -> None:
    n = 1_000_000
    x = np.ones(n)
    x[-1] = np.nan
    data = pd.DataFrame({"y": np.arange(n) % 7.0, "x": x, "g": np.arange(n) // 10})
    with pytest.raises(DataError, match=r"'x'.*1 missing value.*position 999999"):
        Design.from_formula("y ~ x + (1|g)", data)
