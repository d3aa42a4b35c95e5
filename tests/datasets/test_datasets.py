"""The data sets: sizes and group counts as published, labels in the order of their source."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from pyromix import datasets
from pyromix.errors import ConfigError

# rows, columns, levels of the grouping factors: counts given with the sources
SIZES = {
    "cbpp": (56, 4, {"herd": 15, "period": 4}),
    "co2": (468, 2, {}),
    "Contraception": (1934, 6, {"district": 60, "woman": 1934, "livch": 4}),
    "Dyestuff": (30, 2, {"Batch": 6}),
    "Dyestuff2": (30, 2, {"Batch": 6}),
    "grouseticks": (403, 7, {"BROOD": 118, "LOCATION": 63, "INDEX": 403, "YEAR": 3}),
    "InstEval": (73421, 7, {"s": 2972, "d": 1128, "dept": 14, "studage": 4, "lectage": 6}),
    "Machines": (54, 3, {"Worker": 6, "Machine": 3}),
    "LakeHuron": (98, 2, {}),
    "meuse": (155, 11, {"ffreq": 3, "soil": 3, "lime": 2}),
    "meuse_grid": (3103, 5, {"ffreq": 3, "soil": 3}),
    "nc_sids": (100, 7, {"county": 100}),
    "Orthodont": (108, 4, {"Subject": 27, "Sex": 2}),
    "Oxboys": (234, 4, {"Subject": 26, "Occasion": 9}),
    "Pastes": (60, 4, {"batch": 10, "cask": 3, "sample": 30}),
    "Penicillin": (144, 3, {"plate": 24, "sample": 6}),
    "sleepstudy": (180, 3, {"Subject": 18}),
    "toenail": (1908, 5, {"patientID": 294, "outcome": 2, "treatment": 2}),
    "VerbAgg": (7584, 9, {"id": 316, "item": 24, "Gender": 2, "btype": 3, "situ": 2, "mode": 2, "resp": 3}),
}


def test_names() -> None:
    assert datasets.names() == sorted(SIZES, key=str.lower)


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_types_and_descriptions(name: str) -> None:
    rows, columns, factors = SIZES[name]
    frame = datasets.load(name)
    assert frame.shape == (rows, columns)
    assert not frame.isna().any().any()
    for column, levels in factors.items():
        assert isinstance(frame[column].dtype, pd.CategoricalDtype)
        assert len(frame[column].cat.categories) == frame[column].nunique() == levels
        assert all(isinstance(level, str) for level in frame[column].cat.categories)
    about = datasets.describe(name)
    assert about.rows == rows and list(about.columns) == list(frame.columns)
    assert all(len(text) > 5 for text in about.columns.values())
    assert about.source and about.licence.startswith(("GPL", "CC0"))
    for text in (name, about.licence, *frame.columns):
        assert text in str(about)


def test_sums_of_the_responses() -> None:
    """Totals as the files' packages give them."""
    for name, column, total in [
        ("sleepstudy", "Reaction", 53731.42), ("Dyestuff", "Yield", 45825.0), ("cbpp", "incidence", 99.0),
        ("cbpp", "size", 842.0), ("Penicillin", "diameter", 3308.0), ("grouseticks", "TICKS", 2567.0),
    ]:  # fmt: skip
        assert datasets.load(name)[column].sum() == pytest.approx(total, abs=0.005)
    assert (datasets.load("Contraception")["use"] == "Y").sum() == 759
    assert (datasets.load("VerbAgg")["r2"] == "Y").sum() == 3611


def test_level_orders() -> None:
    verbagg, contraception = datasets.load("VerbAgg"), datasets.load("Contraception")
    assert list(verbagg["mode"].cat.categories) == ["want", "do"]
    assert list(verbagg["resp"].cat.categories) == ["no", "perhaps", "yes"] and verbagg["resp"].cat.ordered
    assert list(verbagg["id"].cat.categories[:11]) == [str(i) for i in range(1, 12)]
    assert list(contraception["livch"].cat.categories) == ["0", "1", "2", "3+"]
    assert set(contraception["use"]) == {"N", "Y"} and set(verbagg["r2"]) == {"N", "Y"}
    assert list(datasets.load("toenail")["outcome"].cat.categories) == ["none or mild", "moderate or severe"]
    assert set(datasets.load("InstEval")["service"]) == {0, 1}


def test_names_in_any_case_and_a_fresh_frame_each_time() -> None:
    frame = datasets.load("SLEEPSTUDY")
    frame["Reaction"] = 0.0
    assert datasets.load("sleepstudy")["Reaction"].iloc[0] == 249.56
    assert datasets.describe("verbagg").name == "VerbAgg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sleepstdy", "'sleepstdy'; did you mean 'sleepstudy'.*Available: cbpp"),
        ("zzzzqqq", "'zzzzqqq'.*Available: cbpp"),
        (3, "3 is a int"),
        ("../catalog", "no data set"),
    ],
)
def test_unknown_names(name: object, message: str) -> None:
    for function in (datasets.load, datasets.describe):
        with pytest.raises(ConfigError, match=message):
            function(name)  # type: ignore[arg-type]


def test_loading_needs_no_torch() -> None:
    code = "import sys; from pyromix import datasets; datasets.load('cbpp'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
