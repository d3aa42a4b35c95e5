"""``python -m benchmarks.imports``: what importing pyromix costs beside Pyro, and how soon the command line answers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Failed, arguments, finish, machine, table

SCRIPT = Path(sys.executable).parent / "pyromix"
COMMANDS: dict[str, list[str]] = {
    "import pyro": [sys.executable, "-c", "import pyro"],
    "import pyro, pyromix": [sys.executable, "-c", "import pyro, pyromix"],
    "... and every public name": [
        sys.executable,
        "-c",
        "import pyro, pyromix\nfor name in pyromix.__all__: getattr(pyromix, name)",
    ],
    "pyromix --help": [str(SCRIPT), "--help"] if SCRIPT.exists() else [sys.executable, "-m", "pyromix", "--help"],
}


def seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    taken = time.perf_counter() - start
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return taken


def main() -> int:
    options = arguments(__doc__ or "", repeats=7)
    print(machine())
    times: dict[str, list[float]] = {label: [] for label in COMMANDS}
    # one round of all commands at a time, so that a busy moment of the machine meets each of them
    for _ in range(options.repeats + 1):
        for label, command in COMMANDS.items():
            times[label].append(seconds(command))
    median = {label: statistics.median(values[1:]) for label, values in times.items()}
    print(table(["", "median s", "first s"], [[k, f"{median[k]:.3f}", f"{times[k][0]:.3f}"] for k in COMMANDS]))
    added = median["import pyro, pyromix"] - median["import pyro"]
    checks = [
        (f"import pyromix adds {added:.3f} s to import pyro; required <= 0.3", added <= 0.3),
        (f"pyromix --help answers in {median['pyromix --help']:.3f} s; required <= 1", median["pyromix --help"] <= 1),
    ]
    for text, ok in checks:
        print(f"{text}: {'met' if ok else 'NOT MET'}")
    return finish(options, times, all(ok for _, ok in checks))


if __name__ == "__main__":
    raise SystemExit(main())
