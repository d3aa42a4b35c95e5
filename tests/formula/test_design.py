"""What a design holds: model matrices against the builder run directly, codes against hand counts, transforms."""

from __future__ import annotations

import copy
import pickle
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import patsy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyromix import datasets
from pyromix.errors import DataError, PyromixError, PyromixWarning
from pyromix.formula import Design, parse

N = 60


@pytest.fixture
def data(rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "y": rng.normal(size=N),
            "x": rng.normal(size=N),
            "z": rng.uniform(1, 3, size=N),
            "k": rng.integers(1, 4, size=N),
            "b": rng.integers(0, 2, size=N).astype(bool),
            "f": rng.permutation(list("abc") * 20),
            "h": pd.Categorical(rng.permutation(["lo", "hi", "mid"] * 20), categories=["lo", "mid", "hi"]),
            "g": rng.permutation(np.repeat(np.arange(10), 6)),
            "p": rng.permutation(list("uvwxyz") * 10),
        },
        index=[f"r{i}" for i in range(N)],
    )


def quiet(formula: str, data: object, **arguments: object) -> Design:
    return Design.from_formula(formula, data, quiet=True, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rhs",
    [
        "1", "0", "x", "0 + x", "x - 1", "x + z", "f", "0 + f", "h", "b", "x + f", "f + x", "x:z", "x * z", "f * h",
        "x * f",
        "x:f", "f:h", "x + x:f", "(x + z + f)**2", "f / x", "x / f", "0 + x:f", "f * h - f:h", "C(f)", "C(k)",
        "x + C(k)", "C(f, Sum)", "C(f, Helmert)", "C(f, Poly)", "C(f, Diff)", "C(f, Treatment('b'))",
        "C(f, levels=['c', 'b', 'a'])",
        "C(k, Treatment(reference=2))", "I(x**2)", "I(x + z)", "I(x / z)", "log(z)", "exp(x)", "sqrt(z)", "abs(x)",
        "log1p(z)", "center(x)", "standardize(x)", "bs(x, df=4)", "bs(x, df=5, degree=2)", "cr(x, df=4)", "k + C(k)",
        "b:x",
        "bs(x, df=4):f", "center(x) * f", "C(b)", "I(b * x)", "cr(z, df=3, constraints='center')",
    ],
)  # fmt: skip
def test_matrix_and_names_equal_the_builder_run_directly(rhs: str, data: pd.DataFrame) -> None:
    space = {name: getattr(np, name) for name in ("log", "exp", "sqrt", "abs", "log1p")}
    expected = patsy.dmatrix(rhs, data, eval_env=patsy.EvalEnvironment([space]))
    design = quiet(f"y ~ {rhs}", data, proper_priors=True)
    assert list(design.columns) == expected.design_info.column_names
    np.testing.assert_allclose(design.x.numpy(), np.asarray(expected), rtol=0, atol=1e-12)
    assert dict(design.factors) == dict(expected.design_info.term_name_slices)
    assert design.x.dtype == torch.float64


def test_types_of_predictors_do_not_matter(data: pd.DataFrame) -> None:
    expected = quiet("y ~ x + k + b + f + h + (1|g)", data)
    other = data.copy()
    other["x"], other["k"] = other["x"].astype("Float64"), other["k"].astype("Int16")
    other["b"], other["f"] = other["b"].astype("boolean"), other["f"].astype(object)
    other["g"] = other["g"].astype(float)
    design = quiet("y ~ x + k + b + f + h + (1|g)", other)
    assert design.columns == expected.columns
    assert torch.equal(design.x, expected.x)
    assert torch.equal(design.terms[0].index, expected.terms[0].index)


def test_numbers_in_object_columns(data: pd.DataFrame) -> None:
    expected = quiet("y ~ k", data).x
    for values in ([Decimal(int(k)) for k in data["k"]], data["k"].tolist()):
        assert torch.equal(quiet("y ~ k", data.assign(k=pd.Series(values, index=data.index, dtype=object))).x, expected)
    holes = pd.Series([pd.NA, *data["k"].tolist()[1:]], index=data.index, dtype=object)
    assert torch.equal(quiet("y ~ k", data.assign(k=holes), missing="drop").x, expected[1:])


def test_signs_and_constants_in_row_by_row_expressions(data: pd.DataFrame) -> None:
    design = quiet("I(-y + 2) ~ x + offset(-(+z)) + offset(I(x * 2 - 1))", data)
    np.testing.assert_allclose(design.y.numpy(), 2 - data["y"])  # type: ignore[union-attr]
    np.testing.assert_allclose(design.offset.numpy(), -data["z"] + 2 * data["x"] - 1)  # type: ignore[union-attr]


def test_mappings_and_objects_with_to_pandas(data: pd.DataFrame) -> None:
    class Table:
        def to_pandas(self) -> pd.DataFrame:
            return data

    expected = quiet("y ~ x + f + (1|g)", data)
    mapping = {name: data[name].to_numpy() for name in ("y", "f", "g")} | {"x": torch.tensor(data["x"].to_numpy())}
    for form in (mapping, Table()):
        design = quiet("y ~ x + f + (1|g)", form)
        assert torch.equal(design.x, expected.x) and torch.equal(design.y, expected.y)
    assert quiet("y ~ x", mapping).index.equals(pd.RangeIndex(N))


def test_powers_of_whole_numbers_do_not_overflow(data: pd.DataFrame) -> None:
    data["big"] = np.arange(N, dtype=np.int32) * 1_000_000
    design = quiet("y ~ I(big**4)", data)
    np.testing.assert_allclose(design.x[:, 1].numpy(), (np.arange(N) * 1e6) ** 4)


def test_poly_equals_qr(data: pd.DataFrame) -> None:
    x = data["z"].to_numpy()
    q, r = np.linalg.qr(np.vander(x - x.mean(), 5, increasing=True))
    expected = (q * np.sign(np.diag(r)))[:, 1:]
    design = quiet("y ~ poly(z, 4)", data)
    np.testing.assert_allclose(design.x[:, 1:].numpy(), expected, atol=1e-12)
    assert design.columns == ("Intercept", *(f"poly(z, 4)[{j}]" for j in range(4)))
    new = pd.DataFrame({"z": np.linspace(0.5, 3.5, 9)})
    for j in range(4):
        through = np.polynomial.Polynomial.fit(x, expected[:, j], j + 1)
        np.testing.assert_allclose(design.new(new).x[:, j + 1].numpy(), through(new["z"].to_numpy()), atol=1e-10)


def test_poly_of_a_year_keeps_its_digits() -> None:
    year = np.repeat(np.arange(1990.0, 2020.0), 2)
    data = pd.DataFrame({"y": np.sin(year), "year": year, "near": year - 2004.5})
    far, near = quiet("y ~ poly(year, 3)", data).x, quiet("y ~ poly(near, 3)", data).x
    np.testing.assert_allclose(far.numpy(), near.numpy(), atol=1e-12)
    np.testing.assert_allclose((far[:, 1:].T @ far[:, 1:]).numpy(), np.eye(3), atol=1e-12)


def test_raw_poly_scale_standardize_center(data: pd.DataFrame) -> None:
    x = data["x"].to_numpy()
    design = quiet("y ~ 0 + poly(x, 2, raw=True) + scale(x) + standardize(x) + center(x)", data, proper_priors=True)
    expected = [x, x**2, (x - x.mean()) / x.std(ddof=1), (x - x.mean()) / x.std(ddof=0), x - x.mean()]
    np.testing.assert_allclose(design.x.numpy(), np.stack(expected, axis=1), atol=1e-12)


def test_user_functions_in_every_part(data: pd.DataFrame) -> None:
    functions = {"half": lambda v: v / 2}
    design = quiet("half(y) ~ half(x) + offset(half(z)) + (0 + half(x)|g)", data, functions=functions)
    for values, column in ((design.y, "y"), (design.x[:, 1], "x"), (design.offset, "z")):
        np.testing.assert_array_equal(values.numpy(), data[column].to_numpy() / 2)  # type: ignore[union-attr]
    assert design.terms[0].terms == ("half(x)",)


def test_a_user_function_that_fails_is_named(data: pd.DataFrame) -> None:
    def broken(v: object) -> object:
        raise RuntimeError("no luck")

    for formula in ("y ~ broken(x)", "broken(y) ~ x", "y ~ offset(broken(x))", "y ~ (broken(x)|g)"):
        with pytest.raises(DataError, match=r"broken\([xy]\).*RuntimeError.*no luck"):
            quiet(formula, data, functions={"broken": broken})
    with pytest.raises(DataError, match=r"response 'short\(y\)': shape \(2,\), expected \(60,\)"):
        quiet("short(y) ~ x", data, functions={"short": lambda v: v[:2]})


def test_response_names(data: pd.DataFrame) -> None:
    data["a b"], data["n-1"] = data["z"], data["z"]
    for formula, name in {
        "y ~ x": "y", "log(z) ~ x": "log_z", "I(z**2) ~ x": "I_z_2", "`a b` ~ x": "a b", "`n-1` ~ x": "n-1",
        "z / k ~ x": "z_k",
        "log(`a b`) ~ x": "log_a_b",
    }.items():  # fmt: skip
        assert quiet(formula, data).response == name


def test_cbind_holds_successes_and_trials() -> None:
    cbpp = datasets.load("cbpp")
    design = quiet("cbind(incidence, size - incidence) ~ period + (1|herd)", cbpp)
    assert design.response == "incidence"
    np.testing.assert_array_equal(design.y.numpy(), cbpp["incidence"])  # type: ignore[union-attr]
    np.testing.assert_array_equal(design.trials.numpy(), cbpp["size"])  # type: ignore[union-attr]
    assert design.columns == ("Intercept", "period[T.2]", "period[T.3]", "period[T.4]")


def test_random_terms_of_sleepstudy() -> None:
    data = datasets.load("sleepstudy")
    (term,) = quiet("Reaction ~ Days + (Days | Subject)", data).terms
    assert (term.name, term.group, term.structure, term.terms) == ("Subject", "Subject", "us", ("Intercept", "Days"))
    assert term.levels == tuple(sorted(data["Subject"].unique()))
    assert term.index.dtype == torch.int64
    assert [term.levels[i] for i in term.index] == data["Subject"].tolist()
    np.testing.assert_array_equal(term.design.numpy(), np.c_[np.ones(180), data["Days"]])  # type: ignore[union-attr]


def test_names_structures_and_designs_of_random_terms(data: pd.DataFrame) -> None:
    design = quiet("y ~ 1 + (x||g) + (1|g:p) + diag(0 + f|p)", data, family=type("F", (), {"has_residual": False})())
    first, second, cross, last = design.terms
    assert [t.name for t in design.terms] == ["g", "g.1", "g:p", "p"]
    assert [t.group for t in design.terms] == ["g", "g", "g:p", "p"]
    assert [t.structure for t in design.terms] == ["iid", "iid", "iid", "diag"]
    assert first.design is None and second.terms == ("x",)
    np.testing.assert_array_equal(second.design[:, 0].numpy(), data["x"])  # type: ignore[index]
    pairs = sorted({(g, p) for g, p in zip(data["g"], data["p"], strict=True)})
    assert cross.levels == tuple(f"{g}:{p}" for g, p in pairs)
    assert [cross.levels[i] for i in cross.index] == [f"{g}:{p}" for g, p in zip(data["g"], data["p"], strict=True)]
    assert last.terms == ("f[a]", "f[b]", "f[c]")
    np.testing.assert_array_equal(last.design.numpy(), pd.get_dummies(data["f"]).to_numpy(dtype=float))  # type: ignore


def test_nesting_is_the_interaction() -> None:
    pastes = datasets.load("Pastes")
    batch, both = quiet("strength ~ 1 + (1|batch/cask)", pastes).terms
    assert (batch.name, both.name) == ("batch", "batch:cask")
    assert len(batch.levels), len(both.levels) == (10, 30)
    assert [label.replace(":", "") for label in both.levels] == [
        s.replace(":", "") for s in sorted(pastes["sample"].unique())
    ]
    with_sample = quiet("strength ~ 1 + (1|sample)", pastes).terms[0]
    assert torch.equal(both.index, with_sample.index)


def test_labels_with_colons_do_not_merge_groups() -> None:
    data = pd.DataFrame({"y": np.arange(8.0), "a": ["u", "u:v"] * 4, "b": ["v:w", "w"] * 4})
    term = quiet("y ~ 1 + (1|a:b)", data).terms[0]
    assert len(term.levels) == 2 and term.index.tolist() == [0, 1] * 4


def test_order_of_levels(data: pd.DataFrame) -> None:
    data["c"] = pd.Categorical(["hi", "lo"] * 30, categories=["none", "lo", "hi"])
    data["d"] = pd.Categorical(data["p"], categories=[*"zyxwvu", "never"])
    design = quiet("y ~ c + (1|d) + (1|g)", data)
    assert design.levels["c"] == ("lo", "hi")
    assert design.columns == ("Intercept", "c[T.hi]")
    assert design.term("d").levels == tuple("zyxwvu")
    assert design.term("g").levels == tuple(range(10))
    assert all(isinstance(level, int) for level in design.term("g").levels)
    assert dict(design.unused_levels) == {"c": ("none",), "d": ("never",)}
    with pytest.raises(KeyError, match="no random term 'q'; there are d, g"):
        design.term("q")


def test_group_ids_of_many_types(data: pd.DataFrame) -> None:
    days = pd.date_range("2024-01-01", periods=10)
    for ids in (data["g"].astype(str), data["g"] + 0.5, days[data["g"]], data["g"].astype("Int64"), data["g"] > 4):
        data["ids"] = np.asarray(ids) if isinstance(ids, pd.DatetimeIndex) else ids
        term = quiet("y ~ 1 + (1|ids)", data).terms[0]
        order = np.unique(np.asarray(data["ids"]), return_inverse=True)[1]
        np.testing.assert_array_equal(term.index.numpy(), order)


def test_names_in_backquotes_and_numbers_as_names(data: pd.DataFrame) -> None:
    data = data.rename(columns={"x": "my x", "g": "größe", "f": "class", "z": 2020})
    design = quiet("y ~ `my x` * `class` + `2020` + (`my x` | größe)", data)
    assert design.columns == (
        "Intercept", "class[T.b]", "class[T.c]", "my x", "my x:class[T.b]", "my x:class[T.c]", "2020",
    )  # fmt: skip
    assert design.terms[0].name == "größe" and design.terms[0].terms == ("Intercept", "my x")
    assert set(design.factors) == {"Intercept", "my x", "class", "my x:class", "2020"}
    again = design.new(data.iloc[3:9])
    assert torch.equal(again.x, design.x[3:9])


def test_offsets_add_up_and_align(data: pd.DataFrame) -> None:
    given = pd.Series(np.arange(N) * 1.0, index=data.index)
    expected = np.log(data["z"].to_numpy()) + data["x"].to_numpy() + np.arange(N)
    for offset in (given, given.sample(frac=1, random_state=1), given.to_numpy(), list(given)):
        design = quiet("y ~ k + offset(log(z)) + offset(x)", data, offset=offset)
        np.testing.assert_allclose(design.offset.numpy(), expected, rtol=1e-14)  # type: ignore[union-attr]
    data["o"] = given
    design = quiet("y ~ k + offset(log(z)) + offset(x)", data, offset="o")
    np.testing.assert_allclose(design.offset.numpy(), expected, rtol=1e-14)  # type: ignore[union-attr]


def test_weights_are_aligned_by_label(data: pd.DataFrame) -> None:
    weights = pd.Series(np.arange(N) + 1.0, index=data.index)
    shuffled = weights.sample(frac=1, random_state=2)
    design = quiet("y ~ x", data, precision_weights=shuffled, frequency_weights=shuffled * 2)
    np.testing.assert_array_equal(design.precision_weights.numpy(), np.arange(N) + 1.0)  # type: ignore[union-attr]
    np.testing.assert_array_equal(design.frequency_weights.numpy(), 2 * np.arange(N) + 2.0)  # type: ignore[union-attr]


def test_repeated_labels_with_the_same_index(data: pd.DataFrame) -> None:
    data.index = ["a", "b"] * 30
    weights = pd.Series(np.arange(N) + 1.0, index=data.index)
    np.testing.assert_array_equal(
        quiet("y ~ x", data, precision_weights=weights).precision_weights.numpy(),  # type: ignore[union-attr]
        np.arange(N) + 1.0,
    )


def test_dropping_missing_rows_is_leaving_them_out(data: pd.DataFrame) -> None:
    holes = data.copy()
    holes.iloc[3, holes.columns.get_loc("x")] = np.nan
    holes["p"] = holes["p"].astype(object)
    holes.iloc[7, holes.columns.get_loc("p")] = None
    holes["solo"] = ["only"] + ["rest", "other"] * 29 + ["rest"]
    holes.iloc[0, holes.columns.get_loc("y")] = np.nan
    keep = np.setdiff1d(np.arange(N), [0, 3, 7])
    weights = pd.Series(np.arange(N) + 1.0, index=data.index)
    formula = "y ~ center(x) + solo + (1|p)"
    dropped = quiet(formula, holes, missing="drop", precision_weights=weights)
    direct = quiet(formula, holes.iloc[keep], precision_weights=weights.iloc[keep])
    assert dropped.n_dropped == 3 and dropped.n == N - 3
    for name in ("x", "y", "precision_weights"):
        assert torch.equal(getattr(dropped, name), getattr(direct, name))
    assert dropped.columns == direct.columns
    assert dropped.terms[0].levels == direct.terms[0].levels
    assert torch.equal(dropped.terms[0].index, direct.terms[0].index)
    assert dropped.index.equals(data.index[keep])
    assert dropped.unused_levels["solo"] == ("only",)
    assert dropped.describe_row(0) == "row 'r1' (position 1)"


def test_rows_keep_their_order_and_permute(data: pd.DataFrame, rng: np.random.Generator) -> None:
    formula = "y ~ bs(x, df=4) + f + (x|g) + (1|g:p)"
    family = type("F", (), {"has_residual": False})()
    design = quiet(formula, data, family=family)
    order = rng.permutation(N)
    other = quiet(formula, data.iloc[order], family=family)
    np.testing.assert_allclose(other.x.numpy(), design.x.numpy()[order], atol=1e-12)
    for a, b in zip(design.terms, other.terms, strict=True):
        assert a.levels == b.levels
        assert torch.equal(b.index, a.index[order])


def test_the_frame_is_not_touched(data: pd.DataFrame) -> None:
    before = copy.deepcopy(data)
    design = quiet("y ~ x + (1|g)", data, offset="z")
    design.y.zero_()  # type: ignore[union-attr]
    design.x.zero_()
    design.offset.zero_()  # type: ignore[union-attr]
    design.terms[0].index.zero_()
    pd.testing.assert_frame_equal(before, data)


def test_inputs_of_a_neural_mean(data: pd.DataFrame) -> None:
    inputs = quiet("y ~ x + f + b + I(z**2) + (1|g)", data).inputs()
    assert inputs["names"] == ("f[T.b]", "f[T.c]", "b[T.True]", "x", "I(z ** 2)")
    assert inputs["is_numeric"] == (False, False, False, True, True)
    np.testing.assert_array_equal(inputs["numeric"][:, 3].numpy(), data["x"])
    assert inputs["levels"] == {"f": ("a", "b", "c"), "b": (False, True)}
    assert [inputs["levels"]["f"][i] for i in inputs["codes"]["f"]] == data["f"].tolist()
    assert inputs["codes"]["b"].dtype == torch.int64
    assert quiet("y ~ 0 + x", data).inputs()["names"] == ("x",)


def test_aliased_columns_leave_the_inputs_too(data: pd.DataFrame) -> None:
    data["copy"] = 2 * data["x"]
    design = quiet("y ~ x + copy + f", data)
    assert design.aliased == ("copy",)
    assert design.columns == ("Intercept", "f[T.b]", "f[T.c]", "x")
    assert design.inputs()["is_numeric"] == (False, False, True)
    assert design.factors["copy"] == slice(4, 4) and design.factors["x"] == slice(3, 4)
    assert design.new(data.iloc[:5]).x.shape == (5, 4)


def test_rank_is_judged_as_lme4_does() -> None:
    x = np.linspace(0, 1, 50)
    noise = np.cos(40 * x)
    data = pd.DataFrame({"y": noise, "x": x, "near": x + 1e-5 * noise, "same": x + 1e-9 * noise})
    assert quiet("y ~ x + near", data).aliased == ()
    assert quiet("y ~ x + same", data).aliased == ("same",)


def test_a_saved_frame_rebuilds_the_design(data: pd.DataFrame) -> None:
    data["h"] = data["h"].cat.add_categories("never")
    data["2020"] = data["k"].astype("Int64")
    formula = "y ~ poly(x, 2) + h + C(k) + b + `2020` + offset(z) + (x|g) + (1|p)"
    weights = np.arange(N) + 1.0
    design = quiet(formula, data, precision_weights=weights, offset="z")
    columns = design.frame()
    assert set(columns) == {"y", "x", "h", "k", "b", "2020", "z", "g", "p"}
    assert not any(values.dtype == object for values in columns.values())
    again = Design.from_frame(
        formula, columns, design.categories, index=data.index, precision_weights=weights, offset="z"
    )
    for name in ("y", "x", "offset", "precision_weights"):
        assert torch.equal(getattr(again, name), getattr(design, name))
    assert again.columns == design.columns and again.unused_levels == design.unused_levels
    for a, b in zip(design.terms, again.terms, strict=True):
        assert a.levels == b.levels and torch.equal(a.index, b.index)
    assert torch.equal(again.new(data.iloc[:7]).x, design.new(data.iloc[:7]).x)


def test_copies_and_pickles_work_on(data: pd.DataFrame) -> None:
    design = quiet("y ~ center(x) + poly(z, 2) + f + (center(x)|g) + (1|p)", data, offset="z")
    expected = design.new(data.iloc[:9])
    for other in (copy.deepcopy(design), pickle.loads(pickle.dumps(design)), copy.deepcopy(design.new(data))):
        got = other.new(data.iloc[:9])
        assert torch.equal(got.x, expected.x) and torch.equal(got.offset, expected.offset)  # type: ignore[arg-type]
        assert torch.equal(got.terms[0].design, expected.terms[0].design)  # type: ignore[arg-type]


def test_series_in_a_mapping_need_one_index(data: pd.DataFrame) -> None:
    design = quiet("y ~ x", {"y": data["y"], "x": data["x"].to_numpy()})
    assert design.index.equals(data.index)
    with pytest.raises(DataError, match="'y' and 'x' are Series with different indexes.*'r0'"):
        quiet("y ~ x", {"y": data["y"], "x": data["x"].sample(frac=1, random_state=0)})


def test_later_changes_to_arrays_do_not_reach_the_design(data: pd.DataFrame) -> None:
    arrays = {"y": data["y"].to_numpy(copy=True), "x": data["x"].to_numpy(copy=True)}
    design = quiet("y ~ x", arrays)
    for values in arrays.values():
        values[:] = 0.0
    np.testing.assert_array_equal(design.y.numpy(), data["y"])  # type: ignore[union-attr]
    np.testing.assert_array_equal(design.frame()["x"], data["x"])


def test_a_column_may_be_predictor_and_group(data: pd.DataFrame) -> None:
    design = quiet("y ~ k + g + (1|g) + (k|p)", data)
    np.testing.assert_array_equal(design.x[:, 2].numpy(), data["g"])
    assert design.terms[0].index.tolist() == data["g"].tolist()
    assert torch.equal(design.new(data.iloc[:5]).terms[0].index, design.terms[0].index[:5])


def test_a_parsed_formula_serves_as_well(data: pd.DataFrame) -> None:
    assert torch.equal(quiet(parse("y ~ x + f"), data).x, quiet("y ~ x + f", data).x)  # type: ignore[arg-type]


def test_reference_data_give_no_warning() -> None:
    counts = type("F", (), {"has_residual": False})()
    for name, formula, family in [
        ("sleepstudy", "Reaction ~ Days + (Days|Subject)", None),
        ("Dyestuff", "Yield ~ 1 + (1|Batch)", None),
        ("Penicillin", "diameter ~ 1 + (1|plate) + (1|sample)", None),
        ("Pastes", "strength ~ 1 + (1|batch/cask)", None),
        ("Oxboys", "height ~ age + I(age**2) + (age|Subject)", None),
        ("Machines", "score ~ Machine + (1|Worker) + (1|Worker:Machine)", None),
        ("Machines", "score ~ Machine + (Machine|Worker)", None),
        ("grouseticks", "TICKS ~ YEAR + cHEIGHT + (1|BROOD) + (1|INDEX) + (1|LOCATION)", counts),
        ("InstEval", "y ~ service + (1|s) + (1|d) + (1|dept)", None),
        ("cbpp", "cbind(incidence, size - incidence) ~ period + (1|herd)", counts),
    ]:
        design = Design.from_formula(formula, datasets.load(name), family=family)
        assert design.notes == ()


COLUMNS = st.sampled_from([
    np.arange(12.0), np.r_[np.nan, np.arange(11.0)], np.full(12, 2.0), np.array(list("abc") * 4, dtype=object),
    np.array(["a", None, 1] * 4, dtype=object), np.arange(12) % 2 == 0, np.r_[np.inf, np.zeros(11)], np.arange(12) // 3,
    np.array(["1", "2", "x"] * 4), pd.date_range("2020-01-01", periods=12), np.arange(12) * 1j, np.arange(12) // 2,
    pd.Categorical(["u", "v", "w"] * 4, categories=list("wvuz")), pd.array([1, None, 3] * 4, dtype="Int64"),
])  # fmt: skip
RIGHT = st.sampled_from([
    "a", "a + b", "a * b", "(1|b)", "a + (a|b)", "a + (1|b/c)", "log(a)", "poly(a, 2) + (1|b)", "C(a) + (0 + c|b)",
    "offset(a) + b", "bs(a, df=4)", "scale(a) * b", "0 + (a||b)", "center(a):b + (1|a:c)", "I(a / b)",
])  # fmt: skip


@given(y=COLUMNS, a=COLUMNS, b=COLUMNS, c=COLUMNS, right=RIGHT, missing=st.sampled_from(["error", "drop"]))
def test_random_frames_give_a_design_or_an_error_of_ours(
    y: object, a: object, b: object, c: object, right: str, missing: str
) -> None:
    frame = pd.DataFrame({"y": y, "a": a, "b": b, "c": c})
    before = frame.copy(deep=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyromixWarning)
        try:
            design = Design.from_formula(f"y ~ {right}", frame, missing=missing)
        except PyromixError as error:
            assert len(str(error)) > 20
        else:
            assert torch.isfinite(design.x).all() and torch.isfinite(design.y).all()  # type: ignore[arg-type]
            if missing == "error":  # rows left out may hold labels the design has never seen
                assert torch.equal(design.new(frame).x, design.x)
    pd.testing.assert_frame_equal(before, frame)
