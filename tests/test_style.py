"""The linter and the type checker, so that one command checks everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "ruff": ["ruff", "check", "--no-cache", "--output-format=concise", "pyromix", "tests", "benchmarks"],
    "mypy": ["mypy", "--no-error-summary"],
}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_checker_is_content(name: str) -> None:
    command = [sys.executable, "-m", *CHECKS[name]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
