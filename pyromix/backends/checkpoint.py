"""Training state on disk: written whole or not at all, and refused where it belongs to another fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyromix.errors import CheckpointError
from pyromix.marginal.plan import Plan
from pyromix.results.storage import pack, read_container, unpack, write_container

WHAT = "training checkpoint"


class Checkpoint:
    """The file that a training run saves itself to.

    Parameters
    ----------
    path
        Exactly this file is written, atomically. It is kept when training is done: a later fit of the same
        configuration to the same data starts from its end.
    identity
        Digests of what the state belongs to, by topic.
    every
        Seconds between two saves.
    """

    def __init__(self, path: str | PathLike[str], identity: Mapping[str, str], every: float) -> None:
        self.path, self.identity, self.every = Path(path), dict(identity), every
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, ``None`` without a file.

        Raises
        ------
        CheckpointError
            The file is damaged, something else, or of another fit.
        """
        if not self.path.exists():
            return None
        spec, arrays = read_container(self.path)
        if spec.get("what") != WHAT:
            raise CheckpointError(
                f"{str(self.path)!r} holds a {spec.get('what')!r}, not a {WHAT}; name another file in checkpoint=."
            )
        differ = [topic for topic, digest in self.identity.items() if spec["identity"].get(topic) != digest]
        if differ:
            raise CheckpointError(
                f"checkpoint {str(self.path)!r} belongs to another fit: it differs in {' and '.join(differ)}. Name "
                "another file in checkpoint=, or delete this one to start over."
            )
        for leftover in self.path.parent.glob(f".{self.path.name[:100]}.*.part"):
            leftover.unlink(missing_ok=True)  # of a run killed while it wrote
        return unpack(spec["state"], arrays)

    def save(self, state: Callable[[], Mapping[str, Any]], *, force: bool) -> None:
        """Write the state if one is due."""
        if not force and time.monotonic() - self._last < self.every:
            return
        arrays: dict[str, np.ndarray] = {}
        packed = pack(state(), arrays, "state")
        write_container(self.path, {"what": WHAT, "identity": self.identity, "state": packed}, arrays)
        self._last = time.monotonic()


def identity(
    settings: Mapping[str, Any], modules: Mapping[str, torch.nn.Module], plan: Plan | None, args: tuple[Any, ...]
) -> dict[str, str]:
    """Digests of the settings, of the networks' architecture (not their weights) and of the data."""
    architecture = [
        [site, str(module), [[key, str(value.dtype), list(value.shape)] for key, value in module.state_dict().items()]]
        for site, module in modules.items()
    ]
    return {
        "settings": _digest([json.dumps(settings, sort_keys=True)]),
        "network": _digest([json.dumps(architecture)]),
        "data": _digest([*(() if plan is None else _of_plan(plan)), *_of_value(args)]),
    }


def _of_plan(plan: Plan) -> Iterable[Any]:
    yield plan.response
    yield from _of_value([plan.obs, plan.trials, plan.row_weight, plan.linear])
    for name, term in zip(plan.latents, plan.layout.terms, strict=True):
        yield f"{name} {term.levels} {term.q}"
        for slot in term.slots:
            yield from _of_value([slot.index, slot.design])


def _of_value(value: Any) -> Iterable[Any]:
    """Arrays and plain values anywhere in a program's argument; opaque objects by their type alone."""
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().numpy()
    elif isinstance(value, np.ndarray) and value.dtype.kind not in "OUS":
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _of_value(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _of_value(entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield entry.name
            yield from _of_value(getattr(value, entry.name))
    elif value is None or isinstance(value, str | bool | int | float):
        yield repr(value)
    else:
        yield type(value).__name__


def _digest(parts: Iterable[Any]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype} {part.shape};".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            sha.update(f"{part};".encode())
    return sha.hexdigest()
