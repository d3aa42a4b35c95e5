"""``python -m benchmarks.kinship_reml``: REML with one known relationship matrix; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import PEERS, ROOT, Missing, Result, has_r_packages, machine, run_side, table
from benchmarks.kinship_cases import CASES, log_likelihood

SECONDS = {"wheat": 1.0, "simulated_5000": 60.0}  # required of pyromix, structure to estimates
ENOUGH = 1e-3  # log-likelihood that a side may be below the best
SIDES = ("pyromix", "glimix-core", "dense", "lme4")


def glimix_python() -> Path:
    """Interpreter with glimix-core: ``benchmarks/.peers-kinship``, or PYROMIX_PEERS_KINSHIP."""
    return Path(os.environ.get("PYROMIX_PEERS_KINSHIP", ROOT / "benchmarks" / ".peers-kinship" / "bin" / "python"))


def command(side: str, case: str, folder: Path, repeats: int) -> list[str]:
    """Command line of a side.

    Raises
    ------
    Missing
        What it needs is not installed, or it would take hours.
    """
    given = [str(folder), str(repeats)]
    if side == "pyromix":
        return [sys.executable, "-m", "benchmarks.kinship_side", *given]
    if side == "dense":
        return [sys.executable, str(PEERS / "kinship_dense.py"), *given]
    if side == "glimix-core":
        if not glimix_python().exists():
            raise Missing("glimix-core is not installed; run benchmarks/install_peers.sh points")
        return [str(glimix_python()), str(PEERS / "kinship_glimix.py"), *given]
    if case != "wheat":
        raise Missing("its sparse factor of a dense matrix takes hours here")
    rscript = shutil.which("Rscript")
    if rscript is None or not has_r_packages(rscript, "lme4", "jsonlite"):
        raise Missing("R package lme4 is not installed; run benchmarks/install_peers.sh points")
    return [rscript, "--vanilla", str(PEERS / "kinship_lme4.R"), str(folder), "0", str(PEERS)]


def compare(case: str, repeats: int, sides: tuple[str, ...]) -> tuple[Result, dict[str, str]]:
    """Run every side that is there; what was not run, with the reason."""
    results: Result = {}
    left: dict[str, str] = {}
    data = CASES[case]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, value in data.items():
            np.save(folder / f"{key}.npy", value)
        if case == "wheat":  # for R
            np.savetxt(folder / "k.csv", data["k"], delimiter=",", fmt="%.17g")
            np.savetxt(folder / "y.csv", data["y"], fmt="%.17g")
        for side in sides:
            try:
                results[side] = run_side(command(side, case, folder, repeats))
            except Missing as error:
                left[side] = str(error)
    for result in results.values():
        result["loglik"] = log_likelihood(data, result["effects"], result["residual"])
    return results, left


def report(case: str, results: Mapping[str, Any], left: Mapping[str, str]) -> tuple[str, bool]:
    """The table of a case, ratios, and whether what is required is met."""
    rows = [
        [
            result["version"],
            f"{statistics.median(result['times']):.3f}",
            f"{result['first']:.3f}",
            f"{result['effects']:.6f}",
            f"{result['residual']:.6f}",
            f"{result['loglik']:.5f}",
            f"{result['peak_mb']:.0f}",
        ]
        for result in results.values()
    ]
    header = ["", "fit s", "first call s", "variance", "residual", "log-likelihood", "peak MB"]
    lines, met = [table(header, rows)], True
    lines += [f"{side}: not run: {reason}" for side, reason in left.items()]
    if "pyromix" in results:
        ours = results["pyromix"]
        seconds, best = statistics.median(ours["times"]), max(result["loglik"] for result in results.values())
        for side, result in results.items():
            if side != "pyromix":
                lines.append(f"ratio to {side}: fit {seconds / statistics.median(result['times']):.3f}")
        met = seconds <= SECONDS[case] and ours["loglik"] >= best - ENOUGH
        lines.append(
            f"pyromix {seconds:.3f} s, {best - ours['loglik']:.1e} below the best log-likelihood; required: "
            f"{SECONDS[case]:g} s, {ENOUGH:g}: {'met' if met else 'NOT MET'}"
        )
    return "\n".join(lines), met


def main() -> int:
    parser = argparse.ArgumentParser(description="REML with one known relationship matrix")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=None, help="timed calls after the first (wheat 5, simulated 0)")
    parser.add_argument("--json", type=Path, help="also write every measured number here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a requirement is not met")
    options = parser.parse_args()
    everything, fine = {}, True
    for case in options.cases:
        repeats = (5 if case == "wheat" else 0) if options.repeats is None else options.repeats
        print(f"{case}\n{machine()}", flush=True)
        results, left = compare(case, repeats, tuple(options.sides))
        text, met = report(case, results, left)
        print(text + "\n", flush=True)
        everything[case], fine = results, fine and met
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 1 if options.check and not fine else 0


if __name__ == "__main__":
    raise SystemExit(main())
