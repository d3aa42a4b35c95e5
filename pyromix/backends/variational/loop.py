"""The loop: stochastic gradient steps on the ELBO, averaged at the end.

Every random number is a function of the seed and the step, so what a checkpoint holds is tensors and counters alone,
and a resumed fit ends on the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyromix.backends.checkpoint import Checkpoint
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.backends.variational.schedule import Batches, Settings
from pyromix.errors import NumericalError, Status

CALM = 1e-3  # Adam's epsilon: gradients below it, in nats per posterior SD, no longer make full steps
LOOKS = 40  # looks at the held-out groups over the whole schedule
FAILURES = 20  # steps in a row without a finite gradient after which a fit is given up
WINDOW = 50  # steps over which the guide's parameters are averaged to see whether they stand still
STILL = 0.25  # posterior SDs between two windows that count as standing still
EPOCHS = 5  # passes over the data, in mini-batches, that come before that and that a fit takes at least
DELAY = 0.5  # seconds before a progress bar appears


@dataclass
class Progress:
    """Where the loop is: plain values only."""

    step: int = 0
    elbo: list[float] = field(default_factory=list)
    failed: int = 0
    failed_in_a_row: int = 0
    averaged: int = 0
    cooling: int = -1
    best: float = -math.inf
    best_step: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)
    elapsed: float = 0.0
    status: str = ""


class Loop:
    """One optimisation of an objective.

    Attributes
    ----------
    now
        How far it got.
    """

    def __init__(self, objective: AbstractObjective, batches: Batches, settings: Settings, seed: int) -> None:
        self.objective, self.batches, self.settings, self.seed = objective, batches, settings, seed
        self.lists = [(leaves, factor) for leaves, factor in objective.groups() if leaves]
        self.leaves = [leaf for leaves, _ in self.lists for leaf in leaves]
        self.mean = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.best: list[torch.Tensor] | None = None
        self.windows = [[torch.zeros_like(gauge) for gauge in objective.gauges()] for _ in range(2)]
        self.now = Progress()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.optimizer]
        extra = {} if settings.optimizer == "sgd" else {"eps": CALM}
        self.optimizer = kind([{"params": leaves, "lr": settings.lr * f} for leaves, f in self.lists], **extra)

    def run(self, checkpoint: Checkpoint | None, progress: bool) -> Progress:
        """To the end of the schedule, or to where it stops; the leaves then hold the result."""
        saved = None if checkpoint is None else checkpoint.load()
        if saved is not None:
            self._restore(saved)
        began = time.monotonic() - self.now.elapsed
        total = self.settings.steps
        with tqdm(
            desc="SVI", total=total, initial=self.now.step, disable=not progress, delay=DELAY, leave=False
        ) as bar:
            while not self.now.status:
                self._step()
                self.now.elapsed = time.monotonic() - began
                self._look()
                self._stop()
                bar.set_postfix_str(f"ELBO {self.now.elbo[-1]:.2f}", refresh=False)
                bar.update()
                if checkpoint is not None:
                    checkpoint.save(self._state, force=bool(self.now.status))
        self._finish()
        return self.now

    def _step(self) -> None:
        now, settings = self.now, self.settings
        rows, share = self.batches.at(now.step)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            value = self.objective.step(rows, share, seed_of(self.seed, 2, now.step))
        except (NumericalError, torch.linalg.LinAlgError):
            value = math.nan
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        finite = math.isfinite(value) and all(bool(torch.isfinite(g).all()) for g in gradients)
        if finite:
            rate = settings.rate(now.step, now.cooling)
            for group, (_, factor) in zip(self.optimizer.param_groups, self.lists, strict=True):
                group["lr"] = settings.lr * factor * rate
            self.optimizer.step()
            now.failed_in_a_row = 0
        else:
            now.failed += 1
            now.failed_in_a_row += 1
            if now.failed_in_a_row >= FAILURES:
                raise NumericalError(
                    f"SVI: the ELBO or its gradient was not finite in {FAILURES} steps in a row, up to step "
                    f"{now.step + 1}. Lower lr (now {settings.lr:g}), standardise predictors, or give tighter priors."
                )
        now.elbo.append(value)
        now.step += 1
        self._watch()
        if settings.averages(now.step, now.cooling):
            now.averaged += 1
            with torch.no_grad():
                for mean, leaf in zip(self.mean, self.leaves, strict=True):
                    mean += (leaf - mean) / now.averaged

    def _watch(self) -> None:
        """Begin to cool once the guide stands still from one window to the next, and half way at the latest."""
        now, (last, current) = self.now, self.windows
        if now.cooling >= 0:
            return
        with torch.no_grad():
            for total, gauge in zip(current, self.objective.gauges(), strict=True):
                total += gauge / WINDOW
            still = False
            if now.step % WINDOW == 0:
                seen = now.step >= max(2 * WINDOW, EPOCHS * self.batches.per_epoch)
                moved = [float((a - b).abs().max()) for a, b in zip(last, current, strict=True) if a.numel()]
                still = seen and bool(moved) and max(moved) < STILL
                for a, b in zip(last, current, strict=True):
                    a.copy_(b)
                    b.zero_()
        if still or now.step >= self.settings.steps // 2:
            now.cooling = now.step

    def _look(self) -> None:
        """At the held-out groups, now and then."""
        now, held = self.now, self.batches.held
        every = max(1, self.settings.steps // LOOKS)
        if not len(held) or now.step % every:
            return
        score = self.objective.held_out(held) / len(held)
        now.scores.append((now.step, score))
        if score > now.best:
            now.best, now.best_step = score, now.step
            self.best = [leaf.detach().clone() for leaf in self.leaves]

    def _stop(self) -> None:
        now, settings = self.now, self.settings
        patience = settings.patience
        if patience is not None and now.scores and now.step - now.best_step >= patience:
            now.status = Status.STOPPED_EARLY.name
        elif settings.done(now.step, now.cooling):
            now.status = Status.CONVERGED.name
        elif settings.max_time is not None and now.elapsed > settings.max_time:
            now.status = Status.TIME_LIMIT.name

    def _finish(self) -> None:
        """Leave the averaged iterates behind, or after an early stop the best ones."""
        final = self.mean if self.now.averaged else None
        if self.now.status == Status.STOPPED_EARLY.name:
            final = self.best
        with torch.no_grad():
            for leaf, value in zip(self.leaves, final or self.leaves, strict=True):
                leaf.copy_(value)
        self.optimizer.zero_grad(set_to_none=True)

    # -- state -------------------------------------------------------------------------------------------------------
    def _state(self) -> dict[str, Any]:
        return {
            "now": {**vars(self.now), "elbo": np.array(self.now.elbo), "scores": list(self.now.scores)},
            "leaves": [leaf.detach() for leaf in self.leaves],
            "mean": self.mean,
            "best": self.best,
            "windows": self.windows,
            "optimizer": self.optimizer.state_dict(),
            "tables": self.objective.tables(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        now = dict(state["now"])
        self.now = Progress(**{**now, "elbo": now["elbo"].tolist()})
        if self.now.status == Status.TIME_LIMIT.name:
            self.now.status = ""  # a resumed fit has its time anew
            self.now.elapsed = 0.0
        with torch.no_grad():
            for leaf, value in zip(self.leaves, state["leaves"], strict=True):
                leaf.copy_(value)
            for name, table in self.objective.tables().items():
                table.copy_(state["tables"][name])
        self.mean, self.best, self.windows = state["mean"], state["best"], state["windows"]
        self.optimizer.load_state_dict(state["optimizer"])


def seed_of(seed: int, *counters: int) -> int:
    """A seed of its own for every counter."""
    return int(np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0] >> 1)
