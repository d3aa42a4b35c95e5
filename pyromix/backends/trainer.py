"""The training loop: hyper-parameters and network weights by Adam on the marginal likelihood of batches of groups.

Every random number is a function of the seed and a counter (the epoch for the order of the groups, the step for
dropout), so the state that a checkpoint must hold has no generator in it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from pyromix.backends.batches import Split, Subsets
from pyromix.backends.chart import Chart, optimiser_entry
from pyromix.backends.checkpoint import Checkpoint
from pyromix.backends.journal import searcher
from pyromix.backends.training import Trained, Training
from pyromix.errors import NumericalError, Status, UnsupportedError
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.plan import data_of
from pyromix.results.estimate import HealthRecord
from pyromix.running import Record, isolated, run

if TYPE_CHECKING:
    from pyromix.backends.maximum_likelihood import Search

STEPS = 2000  # of a default schedule
FEWEST_EPOCHS = 20
EVALUATE = 10  # steps between two looks at the held-out groups, at least
HYPER_RATE = 10.0  # learning rate of the hyper-parameters, in typical sizes, over that of the weights
PATIENCE = 0.5  # seconds before a progress bar appears

Weights = list[dict[str, torch.Tensor]]


@dataclass
class Progress:
    """Where training is: counters and scores, all plain values."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    rate: float = 1.0
    loss: float = 0.0
    looked: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    bar: float = -math.inf
    bar_epoch: int = 0
    elapsed: float = 0.0
    status: str = ""
    history: list[tuple[int, float, float]] = field(default_factory=list)


class Trainer:
    """One training run."""

    def __init__(self, search: Search, training: Training, seed: int) -> None:
        self.program, self.args, self.plan = search.program, search.args, search.plan
        self.training, self.seed = training, seed % 2**63
        self.penalised = search.backend.criterion == "map"
        self.modules = list(self.plan.modules.values())
        self.subsets = Subsets(self.program, self.args, self.plan, search.marginal)
        self.sites = {name: (site, search._support(site)) for name, site in search.base.hypers.items()}
        self.sizes = _sizes(search)
        self.chart = self._make_chart()
        start = search.objective.chart.values(torch.from_numpy(search.objective.origin))
        self.flat = self.chart.flat(start).detach().clone().requires_grad_(True)
        self._split()
        self.now = Progress()
        self.best: tuple[torch.Tensor, Weights] | None = None
        self.weights = self._named_weights()
        self.optimizer = self._optimizer()
        self._whole: tuple[tuple[Any, ...], BoundMarginal] | None = None
        self._held: tuple[tuple[Any, ...], BoundMarginal] | None = None

    # -- set-up ------------------------------------------------------------------------------------------------------
    def _make_chart(self) -> Chart:
        return Chart([optimiser_entry(*self.sites[name], size, None) for name, size in self.sizes.items()])

    def _split(self) -> None:
        training = self.training
        self.split = Split(self.plan, training.batch_groups, training.validation, self.seed)
        self.health = [HealthRecord("training", "info", v, limit, what, r) for what, v, limit, r in self.split.notes]
        self.batches = self.split.batches
        self.epochs = training.epochs or max(FEWEST_EPOCHS, math.ceil(STEPS / self.batches))
        self.patience = training.patience or max(1, self.epochs // 8)
        held = self.split.units.rows(self.split.held)
        self.n_train, self.n_held = self._count(self.split.train_rows), self._count(held)
        if self.n_held or self.batches > 1:
            self.subsets.check(held if self.n_held else self.split.units.rows(self.split.batch(0, 0)))

    def _count(self, rows: np.ndarray) -> float:
        weight = self.plan.row_weight
        return float(len(rows)) if weight is None else float(weight[torch.from_numpy(rows)].sum())

    def _optimizer(self) -> torch.optim.Optimizer:
        weights = [weight for _, weight in self.weights]
        groups = [
            {"params": weights, "lr": self.training.lr, "weight_decay": self.training.weight_decay},
            {"params": [self.flat], "lr": HYPER_RATE * self.training.lr, "weight_decay": 0.0},
        ]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.training.optimizer]
        return kind(groups)

    def _named_weights(self) -> list[tuple[str, torch.nn.Parameter]]:
        found: dict[int, tuple[str, torch.nn.Parameter]] = {}
        for site, module in self.plan.modules.items():
            for key, weight in module.named_parameters():
                if weight.requires_grad:
                    found.setdefault(id(weight), (f"{site}.{key}", weight))
        return list(found.values())

    # -- the loop ----------------------------------------------------------------------------------------------------
    def train(self, checkpoint: Checkpoint | None, progress: bool) -> Trained:
        """Run to the end of the schedule, or to where it stops."""
        saved = None if checkpoint is None else checkpoint.load()
        if saved is not None:
            self._restore(saved)
        began = time.monotonic() - self.now.elapsed
        total = self.epochs * self.batches
        with tqdm(
            desc="training", total=total, initial=self.now.step, disable=not progress, delay=PATIENCE, leave=False
        ) as bar:
            while not self.now.status:
                loss, rate = self._step()
                self.now.elapsed = time.monotonic() - began
                if self.now.position == self.batches:
                    self._end_epoch()
                limit = self.training.max_time
                if not self.now.status and limit is not None and self.now.elapsed > limit:
                    self.now.status = Status.TIME_LIMIT.name
                held = f"{self.now.history[-1][2]:.4f}" if self.now.history else "-"
                bar.set_postfix_str(f"loss {loss:.4f}, held out {held}, rate {rate:.2g}", refresh=False)
                bar.update()
                if checkpoint is not None:
                    checkpoint.save(self._state, force=bool(self.now.status))
        return self._finish()

    def _step(self) -> tuple[float, float]:
        """One optimiser step; its loss and learning rate."""
        args, bound, share = self._next_batch()
        for module in self.modules:
            module.train()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with isolated(), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self._seed_of_step())  # every run of this step drops the same units
                record = run(self.program, args, self.chart.values(self.flat))
                value = bound.log_marginal(record) / share
                if self.penalised:
                    value = value + record.log_prior()
                loss = -value / self.n_train
                loss.backward()
        except (NumericalError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
            raise self._diverged(str(error)) from error
        result = float(loss.detach())
        if not math.isfinite(result):
            raise self._diverged(f"the loss is {result}")
        weights = [weight for _, weight in self.weights]
        if self.now.step == 0:
            self._check_reached()
        clip = self.training.clip_norm
        norm = torch.nn.utils.clip_grad_norm_([*weights, self.flat], math.inf if clip is None else clip)
        if not bool(torch.isfinite(norm)):
            raise self._diverged(f"the gradient of {self._first_broken()} is not finite")
        rate = self._rate()
        for group, factor in zip(self.optimizer.param_groups, (1.0, HYPER_RATE), strict=True):
            group["lr"] = factor * rate
        self.optimizer.step()
        self.now.step += 1
        self.now.position += 1
        self.now.loss += result
        return result, rate

    def _next_batch(self) -> tuple[tuple[Any, ...], BoundMarginal, float]:
        """Arguments, marginaliser, and the share of the training groups in the batch."""
        split = self.split
        if self.batches > 1:
            chosen = split.batch(self.now.epoch, self.now.position)
            return *self.subsets.bound(split.units.rows(chosen)), len(chosen) / len(split.train)
        if self._whole is None:
            self._whole = self.subsets.bound(split.train_rows if self.n_held else None)
        return *self._whole, 1.0

    def _seed_of_step(self) -> int:
        return int(np.random.SeedSequence([self.seed, 2, self.now.step]).generate_state(1, np.uint64)[0] >> 1)

    def _rate(self) -> float:
        rate = self.training.lr * self.now.rate
        if self.training.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.now.step / (self.epochs * self.batches)))
        return rate

    def _end_epoch(self) -> None:
        """Look at the held-out groups, and decide how to go on."""
        now = self.now
        now.epoch += 1
        now.position = 0
        loss, now.loss = now.loss / self.batches, 0.0
        last = now.epoch == self.epochs
        if not last and now.step - now.looked < EVALUATE:
            return
        now.looked = now.step
        score = self._score() if self.n_held else math.nan
        now.history.append((now.epoch, loss, score))
        if self.n_held and score > now.best:
            now.best, now.best_epoch = score, now.epoch
            self.best = (self.flat.detach().clone(), self._weights())
        if self.training.schedule == "plateau":
            self._plateau(score if self.n_held else -loss)
        if self.n_held and now.epoch - now.best_epoch >= self.patience and not last:
            now.status = Status.STOPPED_EARLY.name
        elif last:
            unfinished = self.training.schedule != "cosine" and self.n_held and now.best_epoch == now.epoch
            now.status = (Status.ITERATION_LIMIT if unfinished else Status.CONVERGED).name

    def _plateau(self, score: float) -> None:
        if score > self.now.bar:
            self.now.bar, self.now.bar_epoch = score, self.now.epoch
        elif self.now.epoch - self.now.bar_epoch >= max(1, self.patience // 3):
            self.now.rate *= 0.5
            self.now.bar_epoch = self.now.epoch

    def _score(self) -> float:
        """Log marginal likelihood per row of the held-out groups, without dropout."""
        if self._held is None:
            self._held = self.subsets.bound(self.split.units.rows(self.split.held))
        args, bound = self._held
        searcher(bound).warm = None  # the score must not depend on what was looked at before
        for module in self.modules:
            module.eval()
        try:
            with torch.no_grad():
                record: Record = run(self.program, args, self.chart.values(self.flat))
                score = float(bound.log_marginal(record)) / self.n_held
        except (NumericalError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
            raise self._diverged(f"on the held-out groups: {error}") from error
        if not math.isfinite(score):
            raise self._diverged(f"the log marginal likelihood of the held-out groups is {score}")
        return score

    def _finish(self) -> Trained:
        status = Status[self.now.status]
        if self.best is not None:
            flat, weights = self.best
            with torch.no_grad():
                self.flat.copy_(flat)
            self._load_weights(weights)
        for module in self.modules:
            module.eval()
        self.optimizer.zero_grad(set_to_none=True)
        values = {name: value.detach() for name, value in self.chart.values(self.flat).items()}
        groups = f"{len(self.split.train)} of {self.split.units.count} groups"
        what = f"{self.now.step} steps, {self.now.epoch} epochs on {groups}"
        self.health.append(HealthRecord("training", "info", self.now.epoch, self.epochs, what, status.value))
        return Trained(values, status, tuple(self.health), tuple(self.now.history))

    # -- failures ----------------------------------------------------------------------------------------------------
    def _diverged(self, what: str) -> NumericalError:
        names = ", ".join(self.plan.modules)
        return NumericalError(
            f"training of {names} failed at step {self.now.step + 1} (epoch {self.now.epoch + 1}): {what}. The weights "
            f"are those of before the fit. Lower Training(lr={self.training.lr:g}), set clip_norm (now "
            f"{self.training.clip_norm}), or standardise the network's inputs."
        )

    def _first_broken(self) -> str:
        for name, weight in [*self.weights, ("the hyper-parameters", self.flat)]:
            if weight.grad is not None and not bool(torch.isfinite(weight.grad).all()):
                return name
        return "the weights"

    def _check_reached(self) -> None:
        """A module whose weights the likelihood does not see cannot be trained."""
        for site, module in self.plan.modules.items():
            if all(weight.grad is None for weight in module.parameters()):
                raise UnsupportedError(
                    f"NeuralEffect({site!r}): the likelihood does not depend on the module's own weights; with prior= "
                    "they are hyper-parameters, to be sampled with NUTS. Here use prior=None and "
                    "Training(weight_decay=...)."
                )

    # -- state -------------------------------------------------------------------------------------------------------
    def _weights(self) -> Weights:
        return [{key: value.detach().clone() for key, value in m.state_dict().items()} for m in self.modules]

    def _load_weights(self, weights: Weights) -> None:
        for module, state in zip(self.modules, weights, strict=True):
            module.load_state_dict(state)

    def _state(self) -> dict[str, Any]:
        return {
            "now": {**vars(self.now), "history": list(self.now.history)},
            "sizes": list(self.sizes.values()),
            "flat": self.flat.detach(),
            "weights": [list(state.values()) for state in self._weights()],
            "optimizer": self.optimizer.state_dict(),
            "best": None if self.best is None else [self.best[0], [list(state.values()) for state in self.best[1]]],
            "warm": None if self._whole is None else getattr(searcher(self._whole[1]), "warm", None),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.now = Progress(**state["now"])
        self.sizes = dict(zip(self.sizes, state["sizes"], strict=True))
        self.chart = self._make_chart()
        with torch.no_grad():
            self.flat.copy_(state["flat"])
        self._load_weights(self._keyed(state["weights"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = None if state["best"] is None else (state["best"][0], self._keyed(state["best"][1]))
        if self.batches == 1 and state["warm"] is not None:
            self._next_batch()
            searcher(self._whole[1]).warm = state["warm"]

    def _keyed(self, weights: list[list[torch.Tensor]]) -> Weights:
        return [
            dict(zip(module.state_dict(), values, strict=True))
            for module, values in zip(self.modules, weights, strict=True)
        ]


def _sizes(search: Search) -> dict[str, torch.Tensor]:
    """Typical size of every hyper-parameter; of a coefficient, what moves the predictor by the response's size."""
    sizes = {name: scale.size for name, scale in search.scales.items()}
    role = data_of(search.base)
    identity = role.family.gaussian_sd(**role.dispersion) is not None
    response = float(search.plan.obs.std()) if identity and len(search.plan.obs) > 1 else 1.0
    for name, design in search.plan.linear.items():
        rms = design.square().mean(0).sqrt()
        sizes[name] = response / torch.where(rms > 0, rms, 1.0)
    return {name: sizes[name] for name in search.base.hypers}
