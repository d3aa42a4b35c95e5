"""The Python in the documents runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/formula.md", "docs/limitations.md", "docs/benchmarks.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def _page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    for block in blocks(_page("README.md"), "python"):
        exec(compile(block, "README.md", "exec"), space)
    assert "Subject" in capsys.readouterr().out
    # a Gaussian response: the two ways of integrating agree
    assert space["exact"].log_likelihood == pytest.approx(space["laplace"].log_likelihood, abs=1e-8)


def test_contributing_runs_and_its_tests_pass(tmp_path: Path) -> None:
    path = tmp_path / "test_contributing.py"
    path.write_text("\n\n".join(blocks(_page("CONTRIBUTING.md"), "python")), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\d{2,} passed", done.stdout)


def test_the_commands_of_the_readme_are_those_of_continuous_integration() -> None:
    lines = "".join(blocks(_page("README.md"), "bash")).splitlines()
    demo, test = (line for line in lines if line.startswith("python3 -m venv"))
    assert demo.endswith("pyromix demo")
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert demo.rpartition("&&")[0] == test.rpartition("&&")[0]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", _page(name)):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), target
