"""Fit a small network again and again, killed in between; print whether the results are those of an uninterrupted fit.

A script of its own, so that every attempt is a fork of a process that has imported everything and trained nothing.
Arguments: folder for checkpoints, number of kills, seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # optimisers load it on first use, which every fork would repeat

import pyromix as pmx
import pyromix.backends.trainer  # loaded on first use otherwise, in every fork
from pyromix.results import storage


def digest(batch_groups: int, checkpoint: Path | None) -> str:
    """Train, and hash the weights and the hyper-parameters."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(12), 5)
    x, u = rng.normal(size=(60, 1)), rng.normal(size=12)
    data = {
        "x": torch.from_numpy(x),
        "g": torch.from_numpy(g),
        "y": torch.from_numpy(np.sin(2 * x[:, 0]) + u[g] + 0.3 * rng.normal(size=60)),
    }
    module = pmx.networks.MLP(1, (6,), dropout=0.2, seed=0)

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(len(data["x"]), 1, dtype=torch.float64))
        eta = eta + pmx.NeuralEffect("f", module)(data["x"])
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=12)(data["g"])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    training = pmx.Training(
        validation=0.35, epochs=10, batch_groups=batch_groups, checkpoint_every=0.0, schedule="plateau", patience=10
    )
    marginal = pmx.Laplace() if batch_groups == 12 else None  # with all rows at once, modes start from the last ones
    backend = pmx.MaximumLikelihood(marginal, training=training, checkpoint=checkpoint)
    estimate = backend.estimate(program, (data,), seed=3, progress=False)
    sha = hashlib.sha256()
    for value in [*module.state_dict().values(), *(estimate.point[name] for name in sorted(estimate.point))]:
        sha.update(value.detach().numpy().tobytes())
    return sha.hexdigest()


def in_fork(work: Callable[[], object]) -> int:
    """Run in a child process; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def write_digest(results: Path, batch_groups: int, checkpoint: Path | None) -> None:
    results.write_text(digest(batch_groups, checkpoint))


def killed_inside_write(batch_groups: int, checkpoint: Path, count: int, before: bool) -> None:
    """Die at the count-th checkpoint: with the new file half written, or whole and not yet in place."""
    real, seen = (os.fsync if before else os.replace), [0]

    def dying(*args: object) -> object:
        seen[0] += 1
        if seen[0] == count:
            if before:
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(storage.os, "fsync" if before else "replace", dying)
    digest(batch_groups, checkpoint)


def main(folder: str, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance, wrong, reached, expected = random.Random(seed), [], 0, {}
    began = time.monotonic()
    for batch_groups in (12, 4):
        results = Path(folder) / f"{batch_groups}.txt"
        os.waitpid(in_fork(partial(write_digest, results, batch_groups, None)), 0)
        expected[batch_groups] = results.read_text()
    length = (time.monotonic() - began) / 2
    for trial in range(kills):
        batch_groups = (12, 4)[trial % 2]
        checkpoint, results = Path(folder) / f"{trial}.ckpt", Path(folder) / f"{trial}.txt"
        if trial < 2:
            dying = partial(killed_inside_write, batch_groups, checkpoint, chance.randrange(3, 12), trial == 0)
            os.waitpid(in_fork(dying), 0)
        else:
            for _ in range(2):  # killed, resumed, killed again
                child = in_fork(partial(digest, batch_groups, checkpoint))
                time.sleep(chance.uniform(0.05, 1.0) * length)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        reached += checkpoint.exists()
        os.waitpid(in_fork(partial(write_digest, results, batch_groups, checkpoint)), 0)
        found = results.read_text() if results.exists() else "no result"
        leftovers = list(Path(folder).glob(".*.part"))
        if found != expected[batch_groups] or leftovers:
            wrong.append([trial, found == expected[batch_groups], len(leftovers)])
    print(json.dumps({"wrong": wrong, "resumed": reached, "trials": kills}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
