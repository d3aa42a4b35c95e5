"""Random effects, drawn again for every draw of the hyper-parameters they were integrated out of."""

from __future__ import annotations

import hashlib
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


def generator_at(seed: int, t: np.ndarray, k: int | None = None) -> torch.Generator:
    """A generator for one point: the same wherever and whenever it is met, or by its number k."""
    what = t.tobytes() if k is None else k.to_bytes(8, "little")
    digest = hashlib.blake2b(what, digest_size=7, key=seed.to_bytes(8, "little")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


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

    def one(k: int) -> dict[str, torch.Tensor]:
        prepare(points[k])
        return posterior.draw(points[k], generator_at(seed, points[k], int(k)))[1]

    parts = share(np.arange(len(points)), lambda part: stacked([one(k) for k in part]), cores, done)
    return joined(parts)


def stacked(draws: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """One array (n, ...) a site, as it travels between processes."""
    return {name: np.stack([draw[name].detach().numpy() for draw in draws]) for name in (draws[0] if draws else ())}


def joined(parts: list[dict[str, np.ndarray]]) -> Draws:
    """Stacked draws one after the other."""
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
