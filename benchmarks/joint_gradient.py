"""``python -m benchmarks.joint_gradient``: one gradient of the log joint density of VerbAgg, in microseconds.

Value and gradient of the same non-centred density at the same point, on one core, in processes that stay alive and take
turns, so that a busy moment of the machine meets every side.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ONE_THREAD, PEERS, ROOT, Failed, Missing, arguments, finish, machine, table
from benchmarks.posterior_report import environment, interpreter
from benchmarks.posteriors import NUMPYRO, MixedModel, verbagg, write_target

BATCH = 500
# double precision on both sides: what is left is the order of sums over 7,584 rows
CLOSE = 1e-9


@dataclass
class Server:
    """A side that stays alive and answers one line to each command."""

    label: str
    process: subprocess.Popen[str]

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        if command:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise Failed(f"{self.label} ended without an answer to {command!r}")
        return json.loads(answer)

    def microseconds(self, command: str) -> float:
        return 1e6 * self.ask(f"{command} {BATCH}")["seconds"] / BATCH

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def start(label: str, command: list[str], caches: Path) -> Server:
    core = str(min(os.sched_getaffinity(0)))
    pipe = subprocess.PIPE
    settings = {**os.environ, **ONE_THREAD, **environment(caches)}
    pinned = ["taskset", "--cpu-list", core, *command]
    return Server(label, subprocess.Popen(pinned, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=settings))


def point(target: MixedModel) -> dict[str, Any]:
    """An ordinary point on unconstrained coordinates: coefficients, log SDs, unit effects."""
    rng = np.random.default_rng(1729)
    sizes = {name: max(index) + 1 for name, index in target.groups.items()}
    return {
        "beta": (0.3 * rng.standard_normal(1 + len(target.columns))).tolist(),
        **{f"{name}.sd": math.log(0.7) for name in sizes},
        **{name: rng.standard_normal(size).tolist() for name, size in sizes.items()},
    }


def servers(folder: Path) -> list[Server]:
    target = verbagg()
    files = {double: folder / f"target_{double}.json" for double in (True, False)}
    for double, path in files.items():
        write_target(target, path, point=point(target), double=double)
    made = [start("pyromix", [sys.executable, "-m", "benchmarks.gradient_side", str(files[True])], folder / "caches")]
    try:
        python, script = str(interpreter(NUMPYRO)), str(PEERS / "numpyro_gradient.py")
    except Missing as error:
        print(f"{NUMPYRO}: not run: {error}")
        return made
    made.append(start("NumPyro, float64", [python, script, str(files[True])], folder / "caches"))
    made.append(start("NumPyro, float32", [python, script, str(files[False])], folder / "caches"))
    return made


def agree(sides: list[Server]) -> tuple[str, bool]:
    """Whether value and squared length of the gradient are those of pyromix, in double precision."""
    answers = [side.ask("value") for side in sides[:2]]
    if len(answers) < 2:
        return "value and gradient: nothing to compare with", True
    ours, peer = answers
    ok = all(math.isclose(ours[key], peer[key], rel_tol=CLOSE) for key in ("value", "squares"))
    shown = f"value {ours['value']:.8f} and {peer['value']:.8f}, squared gradient {ours['squares']:.6f} and "
    return f"{shown}{peer['squares']:.6f}: {'agree' if ok else 'DO NOT AGREE'}", ok


def main() -> int:
    options = arguments(__doc__ or "", repeats=20)
    print(f"{verbagg().formula}\n{machine()}")
    with tempfile.TemporaryDirectory() as folder:
        sides = servers(Path(folder))
        greetings = [side.ask("") for side in sides]
        text, same = agree(sides)
        tasks = [(side, "call") for side in sides] + [(side, "loop") for side in sides[1:]]
        times: dict[str, list[float]] = {f"{side.label}, {command}": [] for side, command in tasks}
        for _ in range(options.repeats):
            for side, command in tasks:
                times[f"{side.label}, {command}"].append(side.microseconds(command))
        for side in sides:
            side.close()
    setup = {side.label: greeting["setup"] for side, greeting in zip(sides, greetings, strict=True)}
    print(", ".join(greeting["version"] for greeting in greetings) + "\n" + text)
    print(shown(times, setup))
    met = verdict(times) and same
    return finish(options, times, met)


def shown(times: dict[str, list[float]], setup: dict[str, float]) -> str:
    ours = statistics.median(times["pyromix, call"])
    body = []
    for label, values in times.items():
        median = statistics.median(values)
        once = f"{setup[label.rpartition(', ')[0]]:.2f}" if label.endswith("call") else ""
        body.append([label, f"{median:.1f}", f"{min(values):.1f}-{max(values):.1f}", f"{ours / median:.2f}", once])
    return table(["", "median us", "range us", "pyromix / this", "compiling s"], body)


def verdict(times: dict[str, list[float]]) -> bool:
    """Held against NumPyro's faster precision, called from Python as pyromix is."""
    peers = [
        statistics.median(values) for label, values in times.items() if label.startswith("NumPyro") and "call" in label
    ]
    if not peers:
        return True
    ratio = statistics.median(times["pyromix, call"]) / min(peers)
    print(f"pyromix / {NUMPYRO}: {ratio:.2f}; required <= 1: {'met' if ratio <= 1 else 'NOT MET'}")
    return ratio <= 1


if __name__ == "__main__":
    raise SystemExit(main())
