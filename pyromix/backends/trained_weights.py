"""Weights of networks that have no prior, learned before the rest is sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyromix.backends.maximum_likelihood import MaximumLikelihood
from pyromix.backends.training import Trained, Training
from pyromix.marginal import AbstractMarginal
from pyromix.marginal.plan import Plan
from pyromix.running import Program


def train_weights(
    program: Program,
    args: tuple[Any, ...],
    plan: Plan,
    marginal: AbstractMarginal,
    training: Training | None,
    seed: int,
    progress: bool,
) -> Trained | None:
    """Train where there is something to train, by the penalised marginal likelihood; the modules keep the weights.

    The posterior is then that of everything else at these weights (empirical Bayes).
    """
    if not plan.modules:
        return None
    return MaximumLikelihood(marginal, criterion="map", training=training).train(program, args, plan, seed, progress)


@contextmanager
def held(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Keep the weights out of gradients; they are as they were afterwards."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
