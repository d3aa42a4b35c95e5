"""pyromix's half of ``benchmarks.joint_gradient``: ``python -m benchmarks.gradient_side TARGET``.

Takes the commands of ``benchmarks/peers/numpyro_gradient.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.posterior_side import mixed_model

EVALUATIONS = 100_000  # what a sampler with four chains of some thousand leapfrog steps asks for


def prepare(target: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """The compiled value and gradient, and the common point on its coordinates."""
    from pyromix.potential import Potential

    model = mixed_model(target)
    potential = Potential(model.program, (model.design,), spherical=tuple(target["groups"]))
    point = torch.zeros(potential.size, dtype=torch.float64)
    for name, at in potential.slices.items():
        point[at] = torch.tensor(target["point"][name], dtype=torch.float64).reshape(-1)
    return potential.value_and_gradient(mode="compiled", evaluations=EVALUATIONS), point


def main(path: str) -> None:
    import pyromix as pmx

    target = json.loads(Path(path).read_text(encoding="utf-8"))
    start = time.perf_counter()
    function, point = prepare(target)
    function(point)
    setup = time.perf_counter() - start
    reply(version=f"pyromix {pmx.__version__} ({function.mode})", setup=setup)
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "value":
            value, gradient = function(point)
            reply(value=float(value), squares=float(gradient.square().sum()))
        else:
            start = time.perf_counter()
            for _ in range(int(count)):
                function(point)
            reply(seconds=time.perf_counter() - start)


def reply(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
