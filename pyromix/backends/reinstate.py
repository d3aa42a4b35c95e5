"""Random effects, drawn again for every draw of the hyper-parameters they were integrated out of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pyromix.backends import workers
from pyromix.backends.hyper_posterior import HyperPosterior
from pyromix.results.estimate import Draws

CHUNKS = 4  # pieces of work a core: a progress bar moves, and cores finish together
FEW = 100  # rows not worth a process


def share(
    rows: np.ndarray,
    work: Callable[[np.ndarray], object],
    cores: int,
    done: Callable[[int], None] = lambda count: None,
) -> list:
    """Apply `work` to parts of the rows, on several cores where there are many; `done` is told how many are."""
    pieces = [p for p in np.array_split(rows, cores * CHUNKS if len(rows) >= FEW else 1) if len(p)]
    tasks = [lambda send, piece=piece: work(piece) for piece in pieces]
    return workers.run_tasks(tasks, cores, on_result=lambda k, result: done(len(pieces[k])))


def reinstate(
    posterior: HyperPosterior,
    points: np.ndarray,
    seed: int,
    cores: int,
    prepare: Callable[[np.ndarray], None],
    done: Callable[[int], None] = lambda count: None,
) -> Draws:
    """Values of every site at points (n, d), with one draw of the effects from their conditional at each.

    Parameters
    ----------
    prepare
        Called with a point before its mode search.
    """
    seeds = np.random.default_rng([seed, 12]).integers(2**62, size=len(points))

    def one(k: int) -> dict[str, torch.Tensor]:
        record = posterior.record(points[k])
        values = {name: site.value for name, site in record.hypers.items()}
        if not record.latents:
            return values
        prepare(points[k])
        _, conditional = posterior.bound.evaluate(record)
        drawn = conditional.draw(1, torch.Generator().manual_seed(int(seeds[k])), {})
        return {**values, **{name: value[0] for name, value in drawn.items()}}

    def work(part: np.ndarray) -> dict[str, np.ndarray]:
        values = [one(k) for k in part]
        return {name: np.stack([value[name].detach().numpy() for value in values]) for name in values[0]}

    parts = share(np.arange(len(points)), work, cores, done)
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
