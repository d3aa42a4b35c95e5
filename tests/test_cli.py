"""The command line: what it writes, what it refuses, and in which words."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import arviz
import numpy as np
import pandas as pd
import pytest

import pyromix as pmx
from pyromix import cli
from pyromix.cli import commands, reading
from pyromix.cli.columns import Dialect, like_frame, to_frame
from pyromix.cli.reading import read_table

ROOT = Path(__file__).resolve().parents[1]
FORMULA = "Reaction ~ Days + (Days | Subject)"
RESULTS = [
    *("fit.pyromix", "fitted.png", "fixed_effects.csv", "posterior.nc", "random_effects_Subject.csv"),
    *("residuals.png", "summary.txt", "variance_components.csv"),
]
# a CSV file of 12 rows: header on line 1, first row on line 2
HEADER = "Reaction,Days,Subject"
ROWS = [f"{7 * d + 3 * (s - 230) + (s * d) % 5},{d},{s}" for s in (308, 309, 310) for d in range(4)]


def text(rows: list[str], header: str = HEADER, end: str = "\n") -> bytes:
    return (end.join([header, *rows]) + end).encode()


def replaced(line: int, row: str) -> list[str]:
    """The rows with the one on a line of the file replaced."""
    return [row if k == line - 2 else given for k, given in enumerate(ROWS)]


@pytest.fixture
def sleepstudy(tmp_path: Path) -> Path:
    path = tmp_path / "sleepstudy.csv"
    assert cli.main(["datasets", "sleepstudy", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit saved by the library, not by the command."""
    path = tmp_path_factory.mktemp("saved") / "fit.pyromix"
    model = pmx.model(FORMULA, pmx.datasets.load("sleepstudy"))
    model.fit(pmx.MaximumLikelihood(criterion="reml"), progress=False).save(path)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be one line, and no traceback; nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    return err.rstrip("\n")


# -- start ------------------------------------------------------------------------------------------------------------
HEAVY = "{'torch', 'pyro', 'numpy', 'scipy', 'pandas', 'patsy', 'arviz', 'matplotlib', 'tqdm'}"
LIGHT = f"""
import sys
from pyromix.cli import main
codes = [main([word]) for word in ("--help", "--version")] + [main(["fit", "--help"])]
print(codes, sorted({HEAVY} & set(sys.modules)))
"""


def test_help_and_version_load_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] []"
    assert f"pyromix {pmx.__version__}" in done.stdout and "posterior.nc" in done.stdout


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyromix", "fit", "y ~ x"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "the following arguments are required: data, -o/--output" in done.stderr


USAGE = [
    ([], "pyromix: the following arguments are required: COMMAND"),
    (["fits"], "invalid choice: 'fits'"),
    (["fit", FORMULA, "d.csv", "-o", "out", "--missing", "omit"], "--missing: invalid choice: 'omit'"),
    (["fit", FORMULA, "d.csv", "-o", "out", "--sep", ";;"], "';;' is not one character"),
    (["fit", FORMULA, "d.csv", "-o", "out", "--nodes", "many"], "--nodes: invalid int value: 'many'"),
    (["predict", "f.pyromix", "d.csv", "--kind", "median"], "--kind: invalid choice: 'median'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert message in one_line(capsys)


# -- fit --------------------------------------------------------------------------------------------------------------
def test_fit_writes_what_the_library_finds(
    sleepstudy: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "results"
    assert cli.main(["fit", FORMULA, str(sleepstudy), "--criterion", "reml", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-8:] == [str(out / name) for name in RESULTS]
    assert sorted(os.listdir(out)) == RESULTS and os.listdir(tmp_path / "deep") == ["results"]
    expected = pmx.load(saved)
    assert (out / "summary.txt").read_text() == f"{expected.summary()}\n"
    assert printed.startswith(str(expected.summary()))
    fixed = pd.read_csv(out / "fixed_effects.csv", index_col="coefficient")
    pd.testing.assert_frame_equal(fixed, expected.fixed_effects(), check_names=False, check_index_type=False)
    components = pd.read_csv(out / "variance_components.csv")
    assert components["sd"].to_numpy() == pytest.approx([24.7405, 5.9221, 25.5918], abs=1e-3)  # lme4
    effects = pd.read_csv(out / "random_effects_Subject.csv", dtype={"level": str}, index_col="level")
    assert list(effects.columns) == ["Intercept", "Days", "Intercept.sd", "Days.sd"]
    assert effects.loc["308", "Days"] == pytest.approx(9.1990, abs=1e-3)  # lme4
    posterior = arviz.from_netcdf(out / "posterior.nc")
    assert posterior.posterior["Subject"].shape == (1, 500, 18, 2)
    assert list(posterior.observed_data["obs_id"][[0, -1]]) == [2, 181]  # lines of the file
    for name in ("fitted.png", "residuals.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    mode = out.stat().st_mode & 0o777
    assert mode == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_binomial_response_of_words_quadrature_and_categorical_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "c.csv.gz", tmp_path / "out"
    frame = pmx.datasets.load("Contraception")
    with gzip.open(data, "wt", encoding="utf-8") as stream:
        frame.to_csv(stream, index=False)
    arguments = ["fit", "use ~ age + livch + (1 | district)", str(data), "--family", "binomial", "-o", str(out)]
    assert cli.main(arguments) == 2
    assert one_line(capsys) == (
        f"{data}:2:use: the response holds labels, not numbers ('N', 'Y'); pass --success Y to count that label as 1."
    )
    method = ["--success", "Y", "--marginal", "gauss-hermite", "--nodes", "5", "--quiet"]
    assert cli.main([*arguments, *method]) == 0
    assert capsys.readouterr().out == ""
    frame["use"] = (frame["use"] == "Y").astype(float)
    model = pmx.model("use ~ age + livch + (1 | district)", frame, pmx.Binomial())
    expected = model.fit(pmx.MaximumLikelihood(pmx.GaussHermite(5)), progress=False)
    found = pmx.load(out / "fit.pyromix")
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-8)
    assert list(found.fixed_effects().index) == ["Intercept", "livch[T.1]", "livch[T.2]", "livch[T.3+]", "age"]
    # the levels in the order of their numbers
    assert list(pd.read_csv(out / "random_effects_district.csv")["level"][:3]) == [1, 2, 3]
    assert cli.main([*arguments, "--success", "yes", "--force"]) == 2
    assert one_line(capsys) == f"{data}:2:use: no cell is 'yes' (--success); there are 'N', 'Y'."


def test_intercept_model_has_no_line_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "d.csv", tmp_path / "out"
    assert cli.main(["datasets", "Pastes", "-o", str(data)]) == 0
    assert cli.main(["fit", "strength ~ 1 + (1 | batch/cask)", str(data), "-o", str(out)]) == 0
    assert "note: fitted.png is left out: plot_fitted" in capsys.readouterr().err
    names = os.listdir(out)
    assert "fitted.png" not in names and {"random_effects_batch.csv", "random_effects_batch-cask.csv"} < set(names)


def test_existing_folder(sleepstudy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fit = ["fit", "Reaction ~ Days + (1 | Subject)", str(sleepstudy), "-o", str(out), "--quiet"]
    assert cli.main(fit) == 0  # empty
    (out / "random_effects_old.csv").write_text("of an earlier fit")
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert cli.main(fit) == 2
    assert one_line(capsys) == f"-o {out}: the folder is not empty; name another, or pass --force."
    assert cli.main([*fit, "--force"]) == 0
    assert sorted(os.listdir(out)) == sorted([*RESULTS, "notes.txt"])
    assert cli.main([*fit[:-2], str(sleepstudy)]) == 2
    assert one_line(capsys) == f"-o {sleepstudy}: exists and is no folder."
    assert cli.main([*fit[:-2], str(sleepstudy / "below")]) == 2
    assert "is no folder that can be written to" in one_line(capsys)


def test_missing_values_are_refused_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "d.csv", tmp_path / "out"
    frame = pmx.datasets.load("sleepstudy").astype({"Subject": str})
    frame.loc[4, "Days"] = np.nan
    frame.to_csv(data, index=False, na_rep="NA")
    fit = ["fit", FORMULA, str(data), "-o", str(out)]
    assert cli.main(fit) == 2
    message = one_line(capsys)
    assert message.startswith(f"{data}:6:Days: column 'Days' (fixed effects): 1 missing value in data, line 6.")
    assert message.endswith("or pass --missing drop.")
    assert cli.main([*fit, "--missing", "drop"]) == 0
    assert "Number of obs: 179" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["nested-laplace", "svi"])
def test_posteriors_from_the_command_line(
    backend: str, sleepstudy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "posterior"
    assert cli.main(["fit", FORMULA, str(sleepstudy), "--backend", backend, "--draws", "100", "-o", str(out)]) == 0
    fitted = pmx.load(out / "fit.pyromix")
    assert fitted.estimate.kind == "draws" and fitted.n_draws == 100
    days = fitted.fixed_effects().loc["Days"]
    assert abs(days["estimate"] - 10.47) < 1.5  # one posterior SD
    assert cli.main(["summary", str(out / "fit.pyromix")]) == 0
    assert "Days" in capsys.readouterr().out


BAD_FITS = [
    (["y ~ x + (1 | g"], "formula: "),
    ([FORMULA, "--family", "gamma"], "unknown family 'Gamma'; choose one of"),
    ([FORMULA, "--family", "poisson", "--link", "probit"], "probit"),
    ([FORMULA, "--marginal", "saddle-point"], "unknown marginaliser 'SaddlePoint'"),
    ([FORMULA, "--marginal", "laplace", "--nodes", "3"], "--nodes 3: only for --marginal gauss-hermite."),
    ([FORMULA, "--criterion", "aic"], "unknown criterion"),
    ([FORMULA, "--draws", "5"], "maximum likelihood makes none"),
    ([FORMULA, "--backend", "nuts", "--criterion", "reml"], "only for --backend maximum-likelihood"),
    ([FORMULA, "--backend", "svi", "--marginal", "exact"], "svi approximates the effects' posterior"),
    (["Reaction ~ Day + (1 | Subject)"], "sleepstudy.csv:1: no column 'Day'; did you mean 'Days'? Columns: "),
    ([FORMULA, "--offset", "exposure"], "sleepstudy.csv:1: no column 'exposure'"),
    ([FORMULA, "--categorical", "Day"], "sleepstudy.csv:1: no column 'Day'"),
    (["log(Reaction) ~ Days + (1|Subject)", "--success", "Y"], "no cell is 'Y'"),
    (["cbind(Reaction, Days) ~ 1 + (1|Subject)", "--success", "Y"], "must be one column, not an expression"),
    ([FORMULA, "--family", "poisson"], "sleepstudy.csv:2:Reaction: column 'Reaction' (response"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_FITS)
def test_refused_fit(
    arguments: list[str], message: str, sleepstudy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formula, *options = arguments
    assert cli.main(["fit", formula, str(sleepstudy), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in one_line(capsys)
    assert os.listdir(tmp_path) == ["sleepstudy.csv"]


def test_failure_while_writing_leaves_nothing(
    sleepstudy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fit: pmx.Fit, folder: Path) -> list[str]:
        (folder / "summary.txt").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "write_fit", full)
    out = tmp_path / "out"
    fit = ["fit", FORMULA, str(sleepstudy), "-o", str(out)]
    assert cli.main(fit) == 2
    assert one_line(capsys) == f"-o {out}: cannot be written: No space left on device."
    assert os.listdir(tmp_path) == ["sleepstudy.csv"]


def test_interrupt_and_unexpected_errors(
    sleepstudy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: BaseException) -> None:
        def write(fit: pmx.Fit, folder: Path) -> list[str]:
            raise error

        monkeypatch.setattr(commands, "write_fit", write)

    fit = ["fit", FORMULA, str(sleepstudy), "-o", str(tmp_path / "out")]
    failing(KeyboardInterrupt())
    assert cli.main(fit) == 130
    assert one_line(capsys) == "pyromix: interrupted"
    failing(ZeroDivisionError("by\nzero"))
    assert cli.main(fit) == 1
    assert one_line(capsys) == "pyromix: unexpected ZeroDivisionError: by zero (--debug shows the traceback)"
    with pytest.raises(ZeroDivisionError):
        cli.main([*fit, "--debug"])
    assert os.listdir(tmp_path) == ["sleepstudy.csv"]


def test_warnings_are_lines_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.csv"
    data.write_bytes(text(ROWS))
    assert cli.main(["fit", "Reaction ~ Days + (1 | Subject)", str(data), "-o", str(tmp_path / "o"), "--quiet"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any("3 levels" in line for line in lines) and all(line.startswith("warning: ") for line in lines)


# -- corrupted files --------------------------------------------------------------------------------------------------
GZ = gzip.compress(text(ROWS * 200), mtime=0)
DAMAGED = GZ[:40] + bytes(255 - byte for byte in GZ[40:60]) + GZ[60:]

CORRUPTED = {
    "row too short": (text(replaced(5, "271,3")), r":5:Subject: missing; the line has 2 cells, the header has 3\."),
    "row too long": (text(replaced(5, "271,3,308,9")), r":5: 4 cells, the header has 3; first too many: '9'; quote"),
    "decimal commas": (text(replaced(5, "271,5,3,308")), r":5: 4 cells, .* write 2\.5, not 2,5\."),
    "quoted decimal comma": (text(replaced(5, '"271,5",3,308')), r":5:Reaction: '271,5' has a comma; write 271\.5, or"),
    "decimal commas, semicolons": (
        text([row.replace(",", ";").replace("1;", ",5;") for row in ROWS], "Reaction;Days;Subject"),
        r":1: the cells are separated by semicolons; pass --sep ';'\.",
    ),
    "tabs": (text([row.replace(",", "\t") for row in ROWS], "a\tb\tc"), r":1: .* separated by tabs; pass --sep tab\."),
    "bad UTF-8": (
        text(ROWS[:3]) + b"271,3,J\xfcrg\n",
        r":5: byte 0xfc at character 8 is not UTF-8; save the file as UTF-8\.",
    ),
    "UTF-16": (text(ROWS).decode().encode("utf-16"), r":1: the text is UTF-16; save the file as UTF-8\."),
    "NUL byte": (text(replaced(5, "271,3\0,308")), r":5: a NUL byte at character 6; the file is binary or damaged\."),
    "open quote": (text(replaced(5, '271,3,"308')), r":5: the quote that opens in cell 3 is never closed; close it"),
    "open quote, quotes below": (
        text([*ROWS[:3], '271,3,"308', *(f'{row[:-3]}"{row[-3:]}"' for row in ROWS[4:])]),
        r":5-6: text after a closing quote; a quote is missing before it, or must be doubled\.",
    ),
    "open quote, long file": (text([*ROWS[:3], '271,3,"308', *ROWS * 2000]), r":5: the quote that opens in cell 3 is"),
    "text after quote": (text(replaced(5, '271,3,"30"8')), r":5: text after a closing quote"),
    "empty": (b"", r":1: the file is empty; its first line must name the columns\."),
    "blank lines only": (b"\n\n", r":1: the file is empty"),
    "header only": (text([]), r":2: no rows below the header \('Reaction', 'Days', 'Subject'\)\."),
    "no header": (text(ROWS[1:], ROWS[0]), r":1: holds numbers \('234', '0', '308'\); the first line must name"),
    "unnamed columns": (text(ROWS, ",,"), r":1: no column has a name"),
    "duplicate header": (
        text(ROWS, "Reaction,Days,Days"),
        r":1:Days: the column name occurs twice, at positions 2 and 3; rename one\.",
    ),
    "4x": (text(replaced(7, "264,4x,309")), r":7:Days: '4x' is not a number, 11 other cells are; correct it, leave it"),
    "word in the response": (text(replaced(7, "abc,1,309")), r":7:Reaction: 'abc' is not a number, 11 other cells"),
    "leading zeros": (
        text([row.replace(",3,", ",03,") for row in ROWS]),
        r":5:Days: '03' starts with a zero as a label does, not a number; pass --categorical Days, or write 3\.",
    ),
    "underscore": (text(replaced(7, "2_64,1,309")), r":7:Reaction: '2_64' is not a number"),
    "missing id": (text(replaced(7, "264,1,")), r":7:Subject: column 'Subject' \(grouping factor\): 1 missing value"),
    "NA among number ids": (text(replaced(7, "264,1,NA")), r":7:Subject: .*1 missing value in data, line 7\."),
    "infinity": (text(replaced(7, "264,Inf,309")), r":7:Days: .*1 infinite value, first inf at line 7\."),
    "trailing comma in one line": (text(replaced(5, "271,3,308,")), r":5: 4 cells, .*the line ends in ',' too many\."),
    "trailing comma in all rows": (text([f"{row}," for row in ROWS]), r":2: 4 cells, the header has 3; the line ends"),
    "carriage returns alone": (text(ROWS, end="\r"), r":1: a carriage return within the line; end the lines by LF or"),
    "huge line": (text([*ROWS[:3], "2" * (reading.MAX_LINE + 1)]), r":5: the line is longer than 1,048,576 bytes"),
    "huge cell": (text([*ROWS[:3], f"271,3,{'8' * 200_000}"]), r":5: a cell is longer than 131,072 characters\."),
    "all text": (text(["a,b,c"] * 3), r":2:Reaction: the response holds labels, not numbers \('a'\)"),
}


@pytest.mark.parametrize("name", CORRUPTED)
def test_corrupted_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = CORRUPTED[name]
    data, out = tmp_path / "data.csv", tmp_path / "out"
    data.write_bytes(content)
    assert cli.main(["fit", FORMULA, str(data), "-o", str(out)]) == 2
    assert re.match(re.escape(str(data)) + expected, one_line(capsys))
    assert os.listdir(tmp_path) == ["data.csv"]


COMPRESSED = {
    "cut off": (GZ[:-30], r":\d+: the compressed file is cut off \(the file ends too early\); copy or compress"),
    "damaged": (DAMAGED, r":\d+: no intact gzip file \(.*\); copy or compress it again\."),
    "not compressed": (text(ROWS), r":1: no intact gzip file \(Not a gzipped file"),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_corrupted_compressed_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = COMPRESSED[name]
    data = tmp_path / "data.csv.gz"
    data.write_bytes(content)
    assert cli.main(["fit", FORMULA, str(data), "-o", str(tmp_path / "out")]) == 2
    assert re.match(re.escape(str(data)) + expected, one_line(capsys))
    assert os.listdir(tmp_path) == ["data.csv.gz"]


def test_compressed_file_without_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(GZ)
    with pytest.raises(pmx.DataError, match=r"data\.csv:1: the file is compressed; give it a name that ends in \.gz"):
        read_table(str(tmp_path / "data.csv"))


def test_file_that_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(path: Path) -> str:
        assert cli.main(["fit", FORMULA, str(path), "-o", str(tmp_path / "out")]) == 2
        return one_line(capsys)

    assert attempt(tmp_path) == f"{tmp_path}: is a directory; name a CSV file."
    absent = tmp_path / "absent.csv"
    assert attempt(absent) == f"{absent}: cannot be read: No such file or directory."

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")  # permissions do not bind the superuser, so they are played

    monkeypatch.setattr(reading, "open", refuse, raising=False)
    assert attempt(absent) == f"{absent}: cannot be read: Permission denied."
    assert os.listdir(tmp_path) == []


def test_endless_line_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("no /dev/zero here")
    with pytest.raises(pmx.DataError, match="/dev/zero:1: the line is longer than"):
        read_table("/dev/zero")


# -- files that are fine ----------------------------------------------------------------------------------------------
FINE = {
    "plain": text(ROWS),
    "byte order mark": b"\xef\xbb\xbf" + text(ROWS),
    "CRLF": text(ROWS, end="\r\n"),
    "CRLF and LF": text(ROWS[:6]).replace(b"\n", b"\r\n") + text(ROWS[6:]).split(b"\n", 1)[1],
    "no last line end": text(ROWS).rstrip(),
    "blank lines": text(ROWS[:6]) + b"\n\n" + text(ROWS[6:]).split(b"\n", 1)[1],
    "quoted": text(['"' + row.replace(",", '","') + '"' for row in ROWS], '"Reaction",Days,"Subject"'),
    "row names of R": text([f'"{k}",{row}' for k, row in enumerate(ROWS)], f'"",{HEADER}'),
    "trailing commas": text([f"{row}," for row in ROWS], f"{HEADER},"),
    "another column with a line end": text([f'{row},"two\nlines"' for row in ROWS], f"{HEADER},note"),
}


@pytest.mark.parametrize("name", FINE)
def test_fine_file_gives_the_same_data(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(FINE[name])
    table = read_table(str(path), choose=lambda header: HEADER.split(","))
    found = to_frame(table, {"Subject"}, Dialect(), [])
    assert found["Reaction"].tolist() == [int(row.split(",")[0]) for row in ROWS]
    assert found["Days"].tolist() == list(range(4)) * 3
    assert found["Subject"].astype(str).tolist() == [row.split(",")[2] for row in ROWS]


def frame_of(tmp_path: Path, content: str, labels: set[str], dialect: Dialect = Dialect()) -> tuple[pd.DataFrame, list]:  # noqa: B008
    path = tmp_path / "data.csv"
    path.write_text(content, encoding="utf-8")
    notes: list[str] = []
    return to_frame(read_table(str(path), dialect.sep), labels, dialect, notes), notes


def test_ids_stay_the_text_they_are(tmp_path: Path) -> None:
    frame, _ = frame_of(tmp_path, "id,y\n01,1\n1,2\n001,3\n10,4\n2,5\n", {"id"})
    assert frame["id"].tolist() == ["01", "1", "001", "10", "2"]
    assert list(frame["id"].cat.categories) == ["001", "01", "1", "2", "10"]
    big = ["9007199254740993", "9007199254740992", ""]  # one apart: equal as float64
    frame, _ = frame_of(tmp_path, "id,y\n" + "".join(f"{item},1\n" for item in big), {"id"})
    assert frame["id"].tolist()[:2] == big[:2] and pd.isna(frame["id"].iloc[2])


def test_na_is_a_name_among_names_and_missing_among_numbers(tmp_path: Path) -> None:
    frame, notes = frame_of(tmp_path, "land,x,n\nNA,NA,NA\nDE,1,a\nFR,2.5,b\n", {"land"})
    assert frame["land"].tolist() == ["NA", "DE", "FR"]
    assert np.isnan(frame["x"].iloc[0]) and frame["x"].tolist()[1:] == [1.0, 2.5]
    assert frame["n"].tolist() == ["NA", "a", "b"]
    assert notes == [f"{tmp_path / 'data.csv'}:2:n: 'NA' is a label here, as the column holds text."]
    frame, _ = frame_of(tmp_path, "land,y\nNA,1\n7,2\n", {"land"})
    assert pd.isna(frame["land"].iloc[0]) and frame["land"].iloc[1] == "7"


def test_numbers_and_words(tmp_path: Path) -> None:
    content = "i,f,w,m\n 1,.5,a,0\n-2,1e3,b,1\n+3,-Inf,a,3+\n4,nan,,3+\n"
    frame, _ = frame_of(tmp_path, content, set())
    assert frame.index.tolist() == [2, 3, 4, 5]
    assert frame["i"].tolist() == [1, -2, 3, 4]
    np.testing.assert_array_equal(frame["f"], [0.5, 1000.0, -np.inf, np.nan])
    assert frame["w"].tolist()[:3] == ["a", "b", "a"] and frame["w"].isna().tolist() == [False, False, False, True]
    assert frame["m"].tolist() == ["0", "1", "3+", "3+"]  # many words among numbers: labels
    frame, _ = frame_of(tmp_path, "x\n12345678901234567890123\n0.5\n", set())
    assert frame["x"].tolist() == [12345678901234567890123.0, 0.5]
    frame, _ = frame_of(tmp_path, "x\n12345678901234567890123\n-7\n", set())
    assert frame["x"].tolist() == [12345678901234567890123.0, -7.0]  # too long for an integer type


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    frame, _ = frame_of(tmp_path, "x;y\n1,5;2\n-,25;3,0\n", set(), Dialect(";", ","))
    assert frame["x"].tolist() == [1.5, -0.25] and frame["y"].tolist() == [2.0, 3.0]


def test_values_round_trip_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=200) * 10.0 ** rng.integers(-300, 300, size=200)
    pd.DataFrame({"x": values}).to_csv(tmp_path / "d.csv", index=False)
    frame = to_frame(read_table(str(tmp_path / "d.csv")), set(), Dialect(), [])
    assert frame["x"].tolist() == values.tolist()


# -- summary, predict, datasets ---------------------------------------------------------------------------------------
def test_summary_prints_that_of_the_fit(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", str(saved)]) == 0
    assert capsys.readouterr().out == f"{pmx.load(saved).summary()}\n"


def test_summary_of_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fit.pyromix"
    path.write_bytes(b"\x80\x04 this could be a pickle")
    assert cli.main(["summary", str(path)]) == 2
    assert "is not a file saved by pyromix" in one_line(capsys)
    assert cli.main(["summary", str(tmp_path / "absent")]) == 2
    assert "cannot read" in one_line(capsys)


NEW = "Subject,other,Days\n310,x,9\n308,y,\nnew,z,2.5\n308,,0\n"


def test_predictions_keep_the_order_of_the_rows(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "new.csv"
    data.write_text(NEW)
    assert cli.main(["predict", str(saved), str(data), "--new-groups", "zero"]) == 0
    lines = capsys.readouterr().out.splitlines()
    frame = pd.DataFrame({"Days": [9.0, np.nan, 2.5, 0.0], "Subject": ["310", "308", "new", "308"]})
    fit = pmx.load(saved)
    expected = fit.predict(frame, new_groups="zero")
    assert lines[0] == "mean" and lines[2] == "NaN"
    np.testing.assert_array_equal([float(line) for line in lines[1:]], expected)  # bit for bit
    # by hand: population line and conditional modes
    beta, modes = fit.fixed_effects()["estimate"], fit.random_effects("Subject")
    line = beta["Intercept"] + modes.loc["310", "Intercept"] + 9 * (beta["Days"] + modes.loc["310", "Days"])
    assert float(lines[1]) == pytest.approx(line, rel=1e-12)
    assert float(lines[3]) == pytest.approx(beta["Intercept"] + 2.5 * beta["Days"], rel=1e-12)
    out = tmp_path / "out.csv"
    options = ["--kind", "interval", "--new-groups", "marginal", "--level", "0.8", "--seed", "3", "-o", str(out)]
    assert cli.main(["predict", str(saved), str(data), *options]) == 0
    assert capsys.readouterr().out == ""
    interval = fit.predict(frame, kind="interval", new_groups="marginal", level=0.8, seed=3)
    pd.testing.assert_frame_equal(pd.read_csv(out), interval.reset_index(drop=True), rtol=1e-12)


BAD_PREDICTIONS = [
    (NEW, [], r"new\.csv:4:Subject: column 'Subject': 1 level not seen in the fit: 'new'; 1 row, first at line 4\. "),
    ("Subject\n308\n", [], r"new\.csv:1: no column 'Days'"),
    ("Subject,Days\n308,two\n", [], r"new\.csv:2:Days: 'two' is not a number, but there are numbers in the fit\."),
    ("Subject,Days\n308,02\n", [], r"new\.csv:2:Days: '02' starts with a zero"),
    ("Subject,Days\n308\n", [], r"new\.csv:2:Days: missing"),
    ("Subject,Days\n308,1\n", ["--level", "2", "--kind", "interval"], r"level"),
    ("Subject,Days\n308,1\n", ["-o", "new.csv"], r"-o .*new\.csv: is the file that was read; name another\."),
]


@pytest.mark.parametrize(("content", "options", "message"), BAD_PREDICTIONS)
def test_refused_predictions(
    content: str,
    options: list[str],
    message: str,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "new.csv"
    data.write_text(content)
    options = [str(data) if option == "new.csv" else option for option in options]
    assert cli.main(["predict", str(saved), str(data), *options]) == 2
    assert re.search(message, one_line(capsys))
    assert os.listdir(tmp_path) == ["new.csv"] and data.read_text() == content


def test_new_data_take_the_types_of_the_fit(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("g,land,flag,x\n1,NA,TRUE,2\n12,DE,False,NA\n")
    known = {
        "g": np.array([1, 2, 12]),
        "land": np.array(["NA", "DE"], dtype=object),
        "flag": np.array([True, False]),
        "x": np.array([0.5, 2.0]),
    }
    found = like_frame(read_table(str(path)), known, {}, Dialect())
    assert found["g"].tolist() == [1, 12] and found["g"].dtype == np.int64
    assert found["land"].tolist() == ["NA", "DE"]
    assert found["flag"].tolist() == [True, False] and found["flag"].dtype == bool
    assert found["x"].iloc[0] == 2.0 and np.isnan(found["x"].iloc[1])
    path.write_text("g,land,flag,x\n1,NA,yes,2\n")
    with pytest.raises(pmx.DataError, match=r"new\.csv:2:flag: 'yes' is not True or False, as the fit had them"):
        like_frame(read_table(str(path)), known, {}, Dialect())


def test_offset_column_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(12), 8)
    frame = pd.DataFrame({"g": [f"g{k}" for k in group], "e": rng.uniform(0.1, 1.0, 96), "x": rng.normal(size=96)})
    effect = rng.normal(size=12)[group]
    frame["y"] = rng.poisson(np.exp(1 + 0.4 * frame["x"] + effect + frame["e"]))
    frame.to_csv(tmp_path / "d.csv", index=False)
    fit = ["fit", "y ~ x + (1 | g)", str(tmp_path / "d.csv"), "--family", "poisson", "--offset", "e", "--quiet"]
    assert cli.main([*fit, "-o", str(tmp_path / "out")]) == 0
    frame.drop(columns="y").to_csv(tmp_path / "new.csv", index=False)
    saved = tmp_path / "out" / "fit.pyromix"
    capsys.readouterr()
    assert cli.main(["predict", str(saved), str(tmp_path / "new.csv"), "--kind", "linear"]) == 0
    found = [float(line) for line in capsys.readouterr().out.splitlines()[1:]]
    loaded = pmx.load(saved)
    beta, modes = loaded.fixed_effects()["estimate"], loaded.random_effects("g")["Intercept"]
    expected = beta["Intercept"] + beta["x"] * frame["x"] + modes[frame["g"]].to_numpy() + frame["e"]
    assert found == pytest.approx(expected.tolist(), rel=1e-10)


def test_reader_that_leaves_early(saved: Path, tmp_path: Path) -> None:
    data = tmp_path / "new.csv"
    data.write_text("Subject,Days\n" + "308,1\n" * 20_000)
    command = f"'{sys.executable}' -m pyromix predict '{saved}' '{data}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout == "mean\n" and done.stderr == ""


def test_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["datasets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == pmx.datasets.names()
    assert cli.main(["datasets", "cbpp"]) == 0
    assert capsys.readouterr().out == f"{pmx.datasets.describe('cbpp')}\n"
    assert cli.main(["datasets", "cbpp", "-o", str(tmp_path / "cbpp.csv")]) == 0
    found = pd.read_csv(tmp_path / "cbpp.csv")
    assert found["incidence"].tolist() == pmx.datasets.load("cbpp")["incidence"].tolist()
    assert cli.main(["datasets", "cbp"]) == 2
    assert "did you mean 'cbpp'" in one_line(capsys)
    assert cli.main(["datasets", "-o", str(tmp_path / "x.csv")]) == 2
    assert one_line(capsys) == "datasets: name the data set to write."
    assert cli.main(["datasets", "cbpp", "-o", str(tmp_path)]) == 2
    assert one_line(capsys) == f"-o {tmp_path}: is a folder; name a file."
