"""Runs the sides of a posterior benchmark one after the other and prints effective draws a second, beside agreement."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import PEERS, ROOT, Failed, Missing, Result, has_r_packages, run_side, table
from benchmarks.posteriors import (
    APPROXIMATE,
    BAMBI,
    FASTEST,
    NUMPYRO,
    POSTERIORS,
    PYMC,
    RSTANARM,
    PosteriorCase,
    Requirement,
    write_target,
)

if TYPE_CHECKING:
    import numpy as np

CORES = 2
SETTINGS = {"chains": 4, "cores": CORES, "seed": 1, "double": True}
ENVIRONMENTS = {NUMPYRO: ".peers-numpyro", BAMBI: ".peers-bambi", PYMC: ".peers-bambi"}
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR")
# Two sides agree where means differ by less than this many Monte Carlo standard errors: 60 comparisons of correct
# sides pass it with probability 0.996 ...
MCSES = 4.0
# ... and an approximation may add this many posterior SDs.
APPROXIMATION = 0.1


@dataclass(frozen=True)
class Side:
    """What one side's draws say.

    Attributes
    ----------
    ess, worst
        Smallest bulk effective size over the hyper-parameters, and whose it is.
    mean, sd, error
        Posterior mean, SD and Monte Carlo standard error of the mean, by name.
    """

    ess: float
    worst: str
    rhat: float
    seconds: float
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    error: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Effective draws a second."""
        return self.ess / self.seconds


def digest(result: Result) -> Side:
    """Effective sizes, means and their errors of a side's draws, by ArviZ for every side alike.

    A side whose draws are weighted by importance hands its effective size over as ``ess``.
    """
    import arviz as az
    import numpy as np

    draws = {name: np.asarray(value, dtype=float) for name, value in result["draws"].items()}
    given = result.get("ess") or None
    ess = {name: float(given or az.ess(value, method="bulk")) for name, value in draws.items()}
    worst = min(ess, key=lambda name: ess[name])
    sd = {name: float(value.std()) for name, value in draws.items()}
    chains = next(iter(draws.values())).shape[0]
    return Side(
        ess[worst],
        "(weights)" if given else worst,
        max(float(az.rhat(value)) for value in draws.values()) if chains > 1 else math.nan,
        result["seconds"],
        {name: float(value.mean()) for name, value in draws.items()},
        sd,
        {name: _mean_error(value, sd[name], given) for name, value in draws.items()},
    )


def _mean_error(draws: np.ndarray, sd: float, ess: float | None) -> float:
    import arviz as az

    return float(sd / math.sqrt(ess)) if ess else float(az.mcse(draws, method="mean"))


def disagreement(side: Side, reference: Side, approximate: bool) -> tuple[float, float, float, str, bool]:
    """Largest difference of means, in errors and in posterior SDs; the largest SD ratio; whose; whether it is small."""
    found = []
    for name, mean in side.mean.items():
        difference = abs(mean - reference.mean[name])
        error = math.hypot(side.error[name], reference.error[name])
        allowed = MCSES * error + (APPROXIMATION * reference.sd[name] if approximate else 0.0)
        found.append((difference / error, difference / reference.sd[name], name, difference <= allowed))
    ratio = max((side.sd[name] / reference.sd[name] for name in side.sd), key=lambda value: abs(math.log(value)))
    worst = max(found)
    return worst[0], worst[1], ratio, worst[2], all(ok for *_, ok in found)


def reference_of(sides: Mapping[str, Side], peers: Sequence[str]) -> str:
    """The peer with the most effective draws: evidence from outside; without peers, pyromix's best exact method."""
    candidates = [label for label in sides if label in peers]
    candidates = candidates or [label for label in sides if label not in APPROXIMATE] or list(sides)
    return max(candidates, key=lambda label: sides[label].ess)


def agreement(sides: Mapping[str, Side], reference: str) -> tuple[list[str], list[str]]:
    """One line per side, and the sides that do not agree."""
    lines, different = [], []
    for label, side in sides.items():
        if label == reference:
            continue
        errors, sds, ratio, name, ok = disagreement(side, sides[reference], label in APPROXIMATE)
        if not ok:
            different.append(label)
        lines.append(
            f"{label} against {reference}: means within {errors:.1f} Monte Carlo errors, {sds:.3f} SD ({name}); "
            f"SDs within {ratio:.3f}: {'agree' if ok else 'DO NOT AGREE'}"
        )
    return lines, different


def verdicts(
    case: PosteriorCase,
    sides: Mapping[str, Side],
    peers: Sequence[str],
    different: Sequence[str] = (),
    unreliable: Sequence[str] = (),
) -> tuple[list[str], bool]:
    """Ratios of effective draws a second, method by peer, and the outcome of every requirement.

    Methods in `different` draw from another posterior than the reference, those in `unreliable` say so themselves:
    neither can meet a requirement.
    """
    lines, met = [], True
    for method in case.methods:
        if method not in sides:
            continue
        for peer in peers:
            shown = f"{sides[method].rate / sides[peer].rate:.2f}" if peer in sides else "not run"
            lines.append(f"{method} / {peer}: {shown}")
    for requirement in case.required:
        excluded = {*different, *unreliable}
        method = fastest(case, sides, [*excluded]) if requirement.method == FASTEST else requirement.method
        text, ok = _outcome(requirement, method, sides, [peer for peer in peers if peer in sides])
        if method in excluded:
            text, ok = f"{text}, but not by the same posterior", False
        met &= ok
        lines.append(text)
    return lines, met


def fastest(case: PosteriorCase, sides: Mapping[str, Side], excluded: Sequence[str]) -> str:
    """The method with the most effective draws a second among those not excluded."""
    ran = [method for method in case.methods if method in sides and method not in excluded]
    return max(ran, key=lambda method: sides[method].rate, default=FASTEST)


def _outcome(
    requirement: Requirement, method: str, sides: Mapping[str, Side], peers: Sequence[str]
) -> tuple[str, bool]:
    if method not in sides:
        return f"required of {method}: not run", True
    rate = sides[method].rate
    if requirement.floor is not None:
        ok = rate >= requirement.floor
        return f"{method}: {rate:.1f} effective draws/s; required >= {requirement.floor:g}: {_word(ok)}", ok
    chosen = peers if requirement.against == "best" else [peer for peer in peers if peer == requirement.against]
    if not chosen or requirement.ratio is None:
        return f"required of {method} against {requirement.against}: peer not run", True
    best = max(chosen, key=lambda peer: sides[peer].rate)
    ratio = rate / sides[best].rate
    ok = ratio >= requirement.ratio
    return f"{method}: {ratio:.2f} of {best}; required >= {requirement.ratio:g}: {_word(ok)}", ok


def _word(ok: bool) -> str:
    return "met" if ok else "NOT MET"


def command(label: str, case: PosteriorCase, target: Path) -> list[str]:
    """Command line of a side.

    Raises
    ------
    Missing
        The environment or R package of a peer is not installed.
    """
    if label in case.methods:
        return [sys.executable, "-m", "benchmarks.posterior_side", str(target), label]
    script = str(PEERS / case.peers[label])
    if label == RSTANARM:
        rscript = shutil.which("Rscript")
        if rscript is None or not has_r_packages(rscript, "rstanarm", "jsonlite"):
            raise Missing("R package rstanarm is not installed; run benchmarks/install_peers.sh")
        return [rscript, "--vanilla", script, str(target)]
    return [str(interpreter(label)), script, str(target)]


def interpreter(label: str) -> Path:
    """Python of a peer's own environment."""
    python = ROOT / "benchmarks" / ENVIRONMENTS[label] / "bin" / "python"
    if not python.exists():
        raise Missing(f"{label} is not installed; run benchmarks/install_peers.sh")
    return python


def environment(caches: Path) -> dict[str, str]:
    """Where compiled code is kept between processes: an empty folder makes every side compile."""
    return {
        **{name: str(caches / name) for name in CACHES},
        "PYTENSOR_FLAGS": f"base_compiledir={caches / 'pytensor'}",
    }


def run(case: PosteriorCase, options: argparse.Namespace) -> tuple[Result, list[str]]:
    """Run every side that is installed, one after the other, each with caches of its own; and which of them failed."""
    results: Result = {}
    failed: list[str] = []
    described = case.target()
    with tempfile.TemporaryDirectory() as folder:
        for number, label in enumerate((*case.methods, *case.peers)):
            if options.sides is not None and label not in options.sides:
                continue
            target = Path(folder) / f"target_{number}.json"
            write_target(described, target, **{**SETTINGS, **lengths(case, label, options)})
            caches = (options.caches or Path(folder)) / str(number)
            try:
                start = time.perf_counter()
                result = run_side(command(label, case, target), 1800, environment(caches), CORES)
                results[label] = {**result, "process": time.perf_counter() - start}
            except Missing as error:
                print(f"{label}: not run: {error}")
            except Failed as error:
                print(f"{label}: FAILED: {error}")
                failed.append(label)
    return results, failed


def lengths(case: PosteriorCase, label: str, options: argparse.Namespace) -> dict[str, int | None]:
    """Draws and warm-up of a side, and the seed: what was asked for, else what the case says.

    pyromix warms up as long as it does by itself (``None``); the peers, which must be told, as many as draws.
    """
    draws = options.draws or case.fewer.get(label, case.draws)
    tune = options.tune or (None if label in case.methods else draws)
    return {"draws": draws, "tune": tune, "seed": options.seed}


def rows(results: Result, sides: Mapping[str, Side]) -> list[list[str]]:
    shown = []
    for label, side in sides.items():
        result = results[label]
        compiling = result["compile"]
        shown.append(
            [
                result["version"],
                f"{side.rate:.2f}",
                f"{side.ess:.0f}",
                side.worst,
                f"{side.seconds:.2f}",
                "" if compiling is None or math.isnan(compiling) else f"{compiling:.2f}",
                f"{result['process']:.1f}",
                "" if math.isnan(side.rhat) else f"{side.rhat:.3f}",
            ]
        )
    return shown


HEADER = ("", "ESS/s", "ESS", "smallest", "seconds", "of these, compiling", "process s", "largest R-hat")


def report(case: PosteriorCase, results: Result) -> tuple[str, bool]:
    """Table, agreement, ratios and whether every requirement that could be checked is met."""
    if not results:
        return "nothing was run", True
    sides = {label: digest(result) for label, result in results.items()}
    peers = list(case.peers)
    agreed, different = agreement(sides, reference_of(sides, peers))
    unreliable = [label for label, result in results.items() if result.get("status") not in (None, "CONVERGED")]
    ratios, met = verdicts(case, sides, peers, different, unreliable)
    shorter = [f"{label}: {draws} draws a chain" for label, draws in case.fewer.items() if label in results]
    notes = [f"{label}: {line}" for label, result in results.items() for line in result.get("health", ())]
    return "\n".join([table(HEADER, rows(results, sides)), *shorter, *notes, *agreed, *ratios]), met


def posterior_table(sides: Mapping[str, Side]) -> str:
    """Mean and SD of every hyper-parameter, side by side."""
    names = list(next(iter(sides.values())).mean)
    body = [[name, *(f"{side.mean[name]:.4f} ({side.sd[name]:.4f})" for side in sides.values())] for name in names]
    return table(["mean (SD)", *sides], body)


def arguments(case: PosteriorCase, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--draws", type=int, help="draws a chain (default: as the case says)")
    parser.add_argument(
        "--tune", type=int, help="warm-up iterations a chain (default: pyromix's own; of peers as many as draws)"
    )
    parser.add_argument("--seed", type=int, default=SETTINGS["seed"], help="seed of every side (%(default)s)")
    labels = [*case.methods, *case.peers]
    listed = "; ".join(labels)
    parser.add_argument(
        "--sides", nargs="*", metavar="SIDE", help=f"run only these, or 'pyromix', or 'peers': {listed}"
    )
    parser.add_argument("--caches", type=Path, help="keep compiled code here, so that a second run finds it")
    parser.add_argument("--posterior", action="store_true", help="also print every side's means and SDs")
    parser.add_argument("--json", type=Path, help="also write every side's draws and times here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a requirement is not met")
    options = parser.parse_args()
    if options.sides is not None:
        groups = {"pyromix": list(case.methods), "peers": list(case.peers)}
        options.sides = [label for side in options.sides for label in groups.get(side, [side])]
        unknown = sorted(set(options.sides) - set(labels))
        if unknown:
            parser.error(f"no side {unknown[0]!r}; the sides are {listed}")
    return options


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load:.2f} at the start, {CORES} cores a side"


def main(name: str) -> int:
    """Command line of one posterior."""
    case = POSTERIORS[name]
    target = case.target()
    options = arguments(case, f"{name}: {target.formula}")
    print(f"{name}: {target.formula}\n{machine()}; caches of compiled code {'kept' if options.caches else 'empty'}")
    results, failed = run(case, options)
    if options.json:
        options.json.write_text(json.dumps(results) + "\n", encoding="utf-8")
    if options.posterior and results:
        print(posterior_table({label: digest(result) for label, result in results.items()}))
    text, met = report(case, results)
    print(text)
    met &= not set(failed) & set(case.methods)
    return 1 if options.check and not met else 0
