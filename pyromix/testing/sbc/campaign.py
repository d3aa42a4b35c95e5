"""Many simulations of one cell: kept in a file as they come, shared out over cores, judged, repeated where flagged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyromix.backends import workers
from pyromix.errors import ConfigError
from pyromix.testing.sbc.problem import RANKS, Problem, Sampler, simulate
from pyromix.testing.sbc.ranks import Uniformity, coverage, test_uniformity

RHAT, KHAT, SHARE = 1.01, 0.7, 0.5  # of a healthy fit; effective draws as a share of the ranked ones
Simulation = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One backend on one problem.

    Attributes
    ----------
    name
        For tables; the file's name follows from it.
    settings
        Of the sampler, as text: simulations made under others are not mixed with these.
    """

    name: str
    problem: Problem
    sampler: Sampler
    settings: str = ""
    seed: int = 0

    @property
    def header(self) -> dict[str, Any]:
        """First line of the cell's file."""
        return {"cell": self.name, "settings": self.settings, "seed": self.seed, "ranks": RANKS}

    def path(self, folder: Path) -> Path:
        """The cell's file in a folder."""
        return folder / (re.sub(r"[^a-z0-9.]+", "-", self.name.lower()) + ".jsonl")


@dataclass(frozen=True)
class Verdict:
    """What the simulations of a cell say.

    Attributes
    ----------
    first
        Tests by quantity over the first N simulations.
    again
        Tests over 2N fresh ones, where a quantity was flagged.
    simulations
        All of them, by number.
    """

    cell: str
    first: dict[str, Uniformity]
    again: dict[str, Uniformity] = field(default_factory=dict)
    simulations: Sequence[Simulation] = ()

    @property
    def flagged(self) -> list[str]:
        """Quantities with a p-value below the limit among the first simulations."""
        return [name for name, test in self.first.items() if test.flagged]

    @property
    def failed(self) -> list[str]:
        """Quantities flagged again on fresh seeds: confirmed."""
        return [name for name in self.flagged if name in self.again and self.again[name].flagged]

    def coverage(self, name: str, level: float) -> float:
        """Share of truths in central intervals, over all simulations."""
        return coverage(ranks_of(self.simulations)[name], RANKS, level)

    @property
    def health(self) -> dict[str, float]:
        """Counts and shares: fits, refused responses, failed fits, healthy ones, CPU seconds of the median fit."""
        good = [s for s in self.simulations if "quantities" in s]
        return {
            "fits": len(good),
            "refused": sum("refused" in s for s in self.simulations),
            "errors": sum("error" in s for s in self.simulations),
            "rhat": _share(good, "rhat", lambda x: x < RHAT),
            "tail": _share(good, "tail", lambda x: x > SHARE * RANKS),
            "khat": _share(good, "khat", lambda x: x <= KHAT),
            "effective_size": _share(good, "effective_size", lambda x: x > SHARE * RANKS),
            "cpu": float(np.median([s["cpu"] for s in good])) if good else float("nan"),
        }


def judge(cell: str, simulations: Sequence[Simulation], count: int) -> Verdict:
    """Tests of the first `count` simulations, and of the twice as many after them where they are there."""
    ordered = sorted(simulations, key=lambda s: s["number"])
    first = [s for s in ordered if s["number"] < count]
    again = [s for s in ordered if count <= s["number"] < 3 * count]
    return Verdict(cell, _tests(first), _tests(again) if len(again) == 2 * count else {}, ordered)


def ranks_of(simulations: Sequence[Simulation]) -> dict[str, np.ndarray]:
    """Ranks by quantity, over the simulations that have any."""
    good = [s["quantities"] for s in simulations if "quantities" in s]
    return {name: np.array([q[name][0] for q in good]) for name in good[0]} if good else {}


def _tests(simulations: Sequence[Simulation]) -> dict[str, Uniformity]:
    return {name: test_uniformity(ranks, RANKS) for name, ranks in ranks_of(simulations).items()}


def _share(simulations: Sequence[Simulation], key: str, good: Callable[[float], bool]) -> float:
    """Share of the simulations that have this number in which it is good; NaN if none has it."""
    values = [s[key] for s in simulations if s.get(key) is not None]
    return float(np.mean([good(value) for value in values])) if values else float("nan")


def calibrate(
    cell: Cell,
    count: int,
    *,
    folder: Path | None = None,
    cores: int = 1,
    confirm: bool = True,
    report: Callable[[str, int, int], None] = lambda cell, done, total: None,
) -> Verdict:
    """Simulate a cell `count` times; where a quantity is flagged, twice as many times more on fresh seeds.

    Parameters
    ----------
    folder
        Where simulations are kept, one line each, as they are made; those that it has already are not made again.
    confirm
        Whether to repeat what is flagged.
    report
        Told the cell's name, how many simulations there are and how many are wanted.

    Raises
    ------
    ConfigError
        The folder holds simulations of this cell under other settings.
    """
    kept = read(cell, folder)
    _complete(cell, kept, count, folder, cores, report)
    verdict = judge(cell.name, list(kept.values()), count)
    if confirm and verdict.flagged:
        _complete(cell, kept, 3 * count, folder, cores, report)
        verdict = judge(cell.name, list(kept.values()), count)
    return verdict


def read(cell: Cell, folder: Path | None) -> dict[int, Simulation]:
    """Simulations kept in a folder, by number; a last line that was cut off is left out."""
    path = None if folder is None else cell.path(folder)
    if path is None or not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what comes after the last line end was cut off
    header = json.loads(lines[0]) if lines else cell.header
    if header != cell.header:
        raise ConfigError(
            f"{path.name}: made with {header}, now {cell.header}; name another folder (--out), or remove the file."
        )
    return {s["number"]: s for s in map(json.loads, lines[1:])}


def _complete(
    cell: Cell,
    kept: dict[int, Simulation],
    count: int,
    folder: Path | None,
    cores: int,
    report: Callable[[str, int, int], None],
) -> None:
    missing = [k for k in range(count) if k not in kept]
    report(cell.name, count - len(missing), count)

    def keep(task: int, simulation: Simulation) -> None:
        kept[simulation["number"]] = simulation
        if folder is not None:
            _append(cell, folder, simulation)
        report(cell.name, sum(k in kept for k in range(count)), count)

    def work(numbers: Sequence[int]) -> Callable[[Callable[[Any], None]], None]:
        def task(send: Callable[[Any], None]) -> None:
            for k in numbers:
                send(simulate(cell.problem, cell.sampler, k, cell.seed))

        return task

    # one process a core: what a process has imported and traced serves all its simulations
    workers.run_tasks([work(missing[k::cores]) for k in range(cores) if missing[k::cores]], cores, keep)


def _append(cell: Cell, folder: Path, simulation: Simulation) -> None:
    path = cell.path(folder)
    text = json.dumps(simulation) + "\n"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(cell.header) + "\n" + text
    else:
        _cut(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _cut(path: Path) -> None:
    """Take off a last line that was not finished."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
