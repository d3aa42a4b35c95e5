"""Runs pyromix and its peers side by side, each in its own process on one thread, and prints one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_THREAD_LIMIT"), "1"
)
Result = dict[str, Any]


class Missing(Exception):
    """A peer is not installed."""


class Failed(Exception):
    """A side ran and did not print a result."""


def peers_python() -> Path:
    """Interpreter with GPBoost: ``benchmarks/.peers``, or PYROMIX_PEERS_PYTHON."""
    return Path(os.environ.get("PYROMIX_PEERS_PYTHON", ROOT / "benchmarks" / ".peers" / "bin" / "python"))


def peer_command(script: str, csv: Path, repeats: int) -> list[str]:
    """Command line of a peer's script.

    Raises
    ------
    Missing
        The interpreter or the R package it needs is not installed.
    """
    if script.endswith(".R"):
        rscript = shutil.which("Rscript")
        package = {"glmmtmb": "glmmTMB", "nlme": "nlme"}.get(Path(script).stem.rpartition("_")[2], "lme4")
        if rscript is None or not has_r_packages(rscript, package, "jsonlite"):
            raise Missing(f"R package {package} is not installed; run benchmarks/install_peers.sh")
        return [rscript, "--vanilla", str(PEERS / script), str(csv), str(repeats), str(PEERS)]
    python = peers_python()
    if not python.exists():
        raise Missing("GPBoost is not installed; run benchmarks/install_peers.sh")
    return [str(python), str(PEERS / script), str(csv), str(repeats)]


def has_r_packages(rscript: str, *packages: str) -> bool:
    names = ", ".join(f"'{package}'" for package in packages)
    code = f"quit(status = !all(c({names}) %in% rownames(installed.packages())))"
    return subprocess.run([rscript, "--vanilla", "-e", code], capture_output=True).returncode == 0


def run_side(
    command: Sequence[str], timeout: float = 3600, environment: Mapping[str, str] = ONE_THREAD, cores: int | None = None
) -> Result:
    """Run one side and read the result it prints on a line of its own; with `cores`, on so many of the machine's."""
    if cores is not None:
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        command = ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=timeout
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not lines:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def pyromix_result(case: Case, csv: Path, repeats: int) -> Result:
    return run_side([sys.executable, "-m", "benchmarks.pyromix_side", case.name, str(csv), str(repeats)])


def write_csv(case: Case, folder: Path) -> Path:
    path = folder / f"{case.name}.csv"
    case.data().to_csv(path, index=False)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load:.2f} at the start, one thread a side"


def compare(case: Case, repeats: int, peers: Sequence[str] | None = None, ours: bool = True) -> Result:
    """Run a case on every side that is installed, one after the other."""
    results: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        csv = write_csv(case, Path(folder))
        if ours:
            results["pyromix"] = pyromix_result(case, csv, repeats)
        for label, script in case.peers.items():
            if peers is not None and label not in peers:
                continue
            try:
                results[label] = run_side(peer_command(script, csv, repeats))
            except Missing as error:
                print(f"{label}: not run: {error}")
    return results


def report(case: Case, results: Result) -> tuple[str, bool]:
    """The table of a case and whether every requirement that could be checked is met."""
    if not results:
        return "nothing was run", True
    rows = []
    for result in results.values():
        model = statistics.median(result["model_times"]) if "model_times" in result else None
        median = statistics.median(result["times"])
        rows.append(
            [
                result["version"],
                f"{median:.4f}",
                f"{median + model:.4f}" if model is not None else f"{median:.4f}",
                f"{result['first'] + result.get('first_model', 0.0):.3f}",
                f"{min(result['times']):.4f}-{max(result['times']):.4f}",
                f"{result['loglik']:.4f}",
                f"{result['peak_mb']:.0f}",
            ]
        )
    header = ["", "fit s", "model+fit s", "first call s", "range of fit s", "log-likelihood", "peak MB"]
    lines = [table(header, rows)]
    checks, met = requirements(case, results)
    return "\n".join(lines + checks), met


def requirements(case: Case, results: Result) -> tuple[list[str], bool]:
    """One line per peer with the ratios, and per requirement with its outcome."""
    if "pyromix" not in results:
        return [], True
    ours, lines, met = results["pyromix"], [], True
    fit = statistics.median(ours["times"])
    whole = fit + statistics.median(ours["model_times"])
    for label in case.peers:
        if label not in results:
            lines.append(f"ratio to {label}: not run")
            continue
        peer = results[label]
        time = statistics.median(peer["times"])
        line = f"ratio to {label}: fit {fit / time:.3f}, model + fit {whole / time:.3f}"
        line += f"; log-likelihood {ours['loglik'] - peer['loglik']:+.4f}"
        if label in case.bounds:
            ok = fit / time <= case.bounds[label]
            met &= ok
            line += f"; required: fit <= {case.bounds[label]:g}: {'met' if ok else 'NOT MET'}"
        lines.append(line)
    if case.max_mb is not None:
        ok = ours["peak_mb"] <= case.max_mb
        met &= ok
        lines.append(f"peak memory {ours['peak_mb']:.0f} MB; required <= {case.max_mb:g}: {'met' if ok else 'NOT MET'}")
    return lines, met


def arguments(description: str, peers: Sequence[str] = (), repeats: int = 5) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed calls after the first (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write every measured number here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a requirement is not met")
    if peers:
        parser.add_argument("--peers", nargs="*", choices=peers, help="run only these peers (default: all)")
        parser.add_argument("--only-peers", action="store_true", help="leave pyromix out")
    return parser.parse_args()


def finish(options: argparse.Namespace, results: Result, met: bool) -> int:
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if options.check and not met else 0


def main(name: str) -> int:
    """Command line of one case."""
    case = CASES[name]
    options = arguments(f"{case.name}: {case.formula}", list(case.peers))
    family = case.family if isinstance(case.family, str) else repr(case.family())
    print(f"{case.name}: {case.formula}  [{family}, {case.criterion.upper()}]\n{machine()}")
    results = compare(case, options.repeats, options.peers, not options.only_peers)
    text, met = report(case, results)
    print(text)
    return finish(options, results, met)
