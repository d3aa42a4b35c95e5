"""Weights of networks that have no prior, learned before the rest is sampled."""

from __future__ import annotations

from typing import Any

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
