"""The demonstration: quick, complete, and its integrals agree."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import arviz
import pandas as pd
import pytest
from matplotlib.image import imread

from pyromix import cli
from pyromix.cli.demo import FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the demonstration prints; its files are in `folder`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["demo", "--quick", "-o", str(folder)]) == 0
    return out.getvalue()


def test_it_prints_summary_table_prediction_and_paths(printed: str, folder: Path) -> None:
    assert "REML criterion at convergence: 1743.6" in printed  # lme4
    assert "\n               linear  Laplace              -875.969672   +0.000000           6  1763.9" in printed
    assert "new driver, day 10: 356 ms" in printed  # 251.405 + 10 * 10.467
    for name in FILES:
        assert f"\n{folder / name}" in printed
    assert printed.splitlines()[-1].endswith("seconds in all")


def test_integrals_agree(printed: str, folder: Path) -> None:
    table = pd.read_csv(folder / "agreement.csv").set_index(["data", "mean", "integral"])
    found = table["log_likelihood"]
    sleep, use = found["sleepstudy"]["linear"], found["Contraception"]["linear"]
    assert sleep["Exact"] == pytest.approx(-875.96967, abs=1e-5)  # lme4
    assert sleep["Laplace"] == pytest.approx(sleep["Exact"], abs=1e-6)
    assert use["GaussHermite(1)"] == pytest.approx(use["Laplace"], abs=1e-6)
    # more nodes converge, and Laplace is close but not the same
    assert abs(use["GaussHermite(7)"] - use["GaussHermite(25)"]) < 1e-4
    assert 0.05 < use["GaussHermite(25)"] - use["Laplace"] < 0.5
    assert {("sleepstudy", "neural", "Exact"), ("Contraception", "neural", "Laplace")} < set(table.index)


def test_files_can_be_opened(printed: str, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(FILES)
    sleep = arviz.from_netcdf(folder / "sleepstudy.nc")
    assert sleep.posterior["Subject"].dims == ("chain", "draw", "Subject_level", "Subject_term")
    assert arviz.from_netcdf(folder / "contraception.nc").observed_data["use"].shape == (1934,)
    picture = imread(folder / "demo.png")
    assert picture.shape[0] > 800 and picture.shape[1] > 1500
    ink = (picture[..., :3].min(-1) < 0.9).mean()
    assert 0.02 < ink < 0.5  # drawn, and not filled


def test_it_replaces_its_own_files_only(printed: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "thesis.txt").write_text("mine")
    assert cli.main(["demo", "--quick", "-o", str(folder)]) == 2
    assert capsys.readouterr().err == f"-o {folder}: the folder is not empty; name another.\n"
    (folder / "thesis.txt").unlink()
