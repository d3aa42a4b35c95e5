"""The command: ``python -m pyromix.testing.sbc``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from pyromix.backends.base import AbstractBackend
from pyromix.errors import ConfigError, PyromixError
from pyromix.testing.sbc import report
from pyromix.testing.sbc.bugs import planted
from pyromix.testing.sbc.campaign import Cell, Verdict, calibrate, judge, read
from pyromix.testing.sbc.controls import PAIRS, caught, wrong_cell
from pyromix.testing.sbc.models import FAMILIES, STRUCTURES, problem_of
from pyromix.testing.sbc.problem import RANKS, by_backend


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(
        prog="python -m pyromix.testing.sbc",
        description="Simulation-based calibration of backends on small mixed models. Simulations are kept in the "
        "output folder, one file a cell, and are not made again: a stopped run goes on where it was. Ends with 1 where "
        "a quantity fails on fresh seeds again, or a planted bug is not caught.",
    )
    found.add_argument(
        "--backend",
        nargs="+",
        default=["nuts", "nested-laplace"],
        help="nuts, nuts:marginal, nested-laplace, nested-laplace:corrected, svi:GUIDE (default: %(default)s)",
    )
    names = (*FAMILIES, *STRUCTURES)
    found.add_argument("--family", nargs="+", default=list(FAMILIES), choices=names, help="default: the three families")
    found.add_argument("--bugs", nargs="*", metavar="BUG", help="planted bugs instead: all, or those named")
    found.add_argument("-n", "--count", type=int, default=200, help="simulations a cell (default: %(default)s)")
    found.add_argument("--no-confirm", action="store_true", help="do not simulate again what is flagged")
    found.add_argument("--cores", type=int, default=1)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--draws", type=int, default=4 * RANKS, help="a chain of NUTS (default: %(default)s)")
    found.add_argument("--tune", type=int, default=300, help="of NUTS (default: %(default)s)")
    found.add_argument("--chains", type=int, default=1, help="of NUTS (default: %(default)s)")
    found.add_argument("--evaluations", type=int, default=200, help="of nested Laplace, to begin with")
    found.add_argument("--steps", type=int, default=1000, help="of SVI (default: %(default)s)")
    found.add_argument("--out", type=Path, default=Path("sbc-results"), help="folder (default: %(default)s)")
    found.add_argument("--report-only", action="store_true", help="judge what the folder has; simulate nothing")
    return found


def backend_of(name: str, options: argparse.Namespace) -> AbstractBackend:
    """The backend that a name on the command line stands for.

    Raises
    ------
    ConfigError
        None.
    """
    import pyromix as pmx

    nuts = {"draws": options.draws, "tune": options.tune, "chains": options.chains, "cores": 1}
    makers: dict[str, Callable[[], AbstractBackend]] = {
        "nuts": lambda: pmx.NUTS(**nuts),
        "nuts:marginal": lambda: pmx.NUTS(**nuts, marginal=pmx.Laplace()),
        "nested-laplace": lambda: pmx.NestedLaplace(RANKS, evaluations=options.evaluations, cores=1),
        "nested-laplace:corrected": lambda: pmx.NestedLaplace(
            RANKS, evaluations=options.evaluations, correct=20, cores=1
        ),
    }
    if name in makers:
        return makers[name]()
    kind, _, guide = name.partition(":")
    if kind == "svi" and guide:
        from pyromix.backends.svi import SVI

        return SVI(guide, steps=options.steps, draws=RANKS)
    raise ConfigError(f"--backend {name}: choose from {', '.join(makers)}, svi:GUIDE.")


def settings_of(name: str, options: argparse.Namespace) -> str:
    """What of the options a backend's draws depend on."""
    keys = {"nuts": ("draws", "tune", "chains"), "nested-laplace": ("evaluations",), "svi": ("steps",)}
    return ", ".join(f"{key}={getattr(options, key)}" for key in keys[name.partition(":")[0]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = parser().parse_args(argv)
    if options.count < 10 or options.cores < 1:
        parser().error("--count must be at least 10, --cores at least 1")
    try:
        good = [(_bugs if options.bugs is not None else _families)(name, options) for name in options.backend]
    except PyromixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(good) else 1


def _families(name: str, options: argparse.Namespace) -> bool:
    """Calibrate a backend on every family asked for; whether nothing failed."""
    sampler, good = by_backend(backend_of(name, options)), True
    for family in options.family:
        cell = Cell(f"{name}/{family}", problem_of(family), sampler, settings_of(name, options), options.seed)
        verdict = _calibrated(cell, options, options.count)
        print(report.table(verdict), flush=True)
        good = good and not verdict.failed
        path = cell.path(options.out)
        path.with_suffix(".json").write_text(json.dumps(report.plain(verdict), indent=1) + "\n", encoding="utf-8")
        report.plot(verdict, path.with_suffix(".png"))
    return good


def _bugs(name: str, options: argparse.Namespace) -> bool:
    """Plant the bugs asked for; whether all were caught."""
    bugs = {bug.name: bug for bug in planted()}
    unknown = sorted(set(options.bugs) - set(bugs))
    if unknown:
        raise ConfigError(f"--bugs {unknown[0]!r}: choose from {', '.join(map(repr, bugs))}.")
    sampler, found = by_backend(backend_of(name, options)), []
    for bug in (bugs[key] for key in options.bugs or bugs):
        right = Cell(f"{name}/{bug.problem.name}", bug.problem, sampler, settings_of(name, options), options.seed)
        wrong = wrong_cell(bug, right)
        pairs = _calibrated(right, options, PAIRS, confirm=False)
        verdict = _calibrated(wrong, options, options.count)
        found.append(caught(bug, verdict.simulations, pairs.simulations))
        print(found[-1], flush=True)
    text = json.dumps([vars(entry) for entry in found], indent=1) + "\n"
    (options.out / f"bugs-{name.replace(':', '-')}.json").write_text(text, encoding="utf-8")
    return all(entry.at is not None for entry in found)


def _calibrated(cell: Cell, options: argparse.Namespace, count: int, confirm: bool = True) -> Verdict:
    if options.report_only:
        return judge(cell.name, list(read(cell, options.out).values()), count)
    with tqdm(total=count, desc=cell.name, unit=" fits", file=sys.stderr) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        confirm = confirm and not options.no_confirm
        return calibrate(cell, count, folder=options.out, cores=options.cores, confirm=confirm, report=progress)


if __name__ == "__main__":
    sys.exit(main())
