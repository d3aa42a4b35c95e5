"""How networks inside a marginal likelihood are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from pyromix.errors import ConfigError, Status
from pyromix.results.estimate import HealthRecord
from pyromix.running import Program, run

if TYPE_CHECKING:
    from pyromix.backends.maximum_likelihood import Search

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("cosine", "plateau", "constant")


@dataclass(frozen=True)
class Training:
    r"""Settings for networks: Adam on minus the log marginal likelihood of batches of whole groups.

    The loss of a step is :math:`-\frac{G}{B} \log p(y_{batch} \mid \theta, w) / n`, an unbiased estimate of the whole,
    where a batch holds B of the G independent groups (those of the coarsest factor if factors are nested; crossed
    factors leave one group, so every step takes all rows). Hyper-parameters are trained along, from the starts a fit
    without training would use, at ten times the networks' rate and relative to their typical sizes.

    Parameters
    ----------
    optimizer
        ``"adam"``, or ``"adamw"``, where the weight decay is decoupled from the gradient.
    lr
        Learning rate of the networks' weights, > 0.
    epochs
        Passes over the data; by default as many as make some 2000 steps, at least 20.
    batch_groups
        Groups in a batch; ``None`` takes all rows at once where they are few, else 32 groups.
    schedule
        ``"cosine"`` (to zero over the epochs), ``"plateau"`` (halved after a third of the patience without improvement)
        or ``"constant"``.
    clip_norm
        Largest Euclidean norm of a step's gradient; longer ones are shortened to it. ``None`` for no limit.
    patience
        Epochs without improvement after which training stops; by default an eighth of the epochs. Needs `validation`.
    validation
        Fraction of the groups held out of training to decide when to stop, in [0, 1); 0 for none, and none where that
        would be fewer than four. What is fitted after training (the hyper-parameters) uses all of the data.
    weight_decay
        Decay of the networks' weights, >= 0.
    max_time
        Seconds after which training stops; ``None`` for no limit. The result then depends on the machine's speed.
    checkpoint_every
        Seconds between two saves to ``MaximumLikelihood(checkpoint=...)``.

    Raises
    ------
    ConfigError
        A value outside its allowed set.
    """

    optimizer: str = "adam"
    lr: float = 3e-3
    epochs: int | None = None
    batch_groups: int | None = None
    schedule: str = "cosine"
    clip_norm: float | None = 1.0
    patience: int | None = None
    validation: float = 0.15
    weight_decay: float = 0.0
    max_time: float | None = None
    checkpoint_every: float = 10.0

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ConfigError(f"Training({name}={getattr(self, name)!r}): choose one of {choices}.")
        for name in ("epochs", "batch_groups", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"Training({name}={value!r}): must be a positive integer, or None.")
        _check_number("lr", self.lr, "must be a finite number > 0", lambda v: v > 0)
        _check_number("validation", self.validation, "must be in [0, 1)", lambda v: 0 <= v < 1)
        _check_number("weight_decay", self.weight_decay, "must be a finite number >= 0", lambda v: v >= 0)
        _check_number("checkpoint_every", self.checkpoint_every, "must be a finite number >= 0", lambda v: v >= 0)
        for name in ("clip_norm", "max_time"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), "must be a finite number > 0, or None", lambda v: v > 0)
        if self.patience is not None and self.validation == 0:
            raise ConfigError(
                f"Training(patience={self.patience}, validation=0): nothing is held out that could stop improving; "
                "set validation=0.15 or patience=None."
            )

    def config(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def _check_number(name: str, value: Any, rule: str, holds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
        raise ConfigError(f"Training({name}={value!r}): {rule}.")


@dataclass(frozen=True)
class Trained:
    """Where training ended; the modules hold the weights.

    Attributes
    ----------
    values
        Hyper-parameter site -> value.
    status
        ``CONVERGED`` if the schedule ran to its end.
    health
        What a user should know of it.
    history
        Per evaluation: epoch, training loss per row, held-out log marginal likelihood per row (NaN without).
    """

    values: dict[str, torch.Tensor]
    status: Status
    health: tuple[HealthRecord, ...] = ()
    history: tuple[tuple[int, float, float], ...] = ()


def modules_of(program: Program, args: tuple[Any, ...]) -> dict[str, torch.nn.Module]:
    """Every module the program calls, by site."""
    with torch.no_grad():
        record = run(program, args, hypers="moderate", seed=0)
    return {name: site.role.module for name, site in record.functions.items()}


@contextmanager
def evaluating(modules: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode, where they stay; on failure weights, buffers and modes are those of before."""
    parts = [part for module in modules.values() for part in module.modules()]
    modes = [part.training for part in parts]
    states = {
        name: {key: value.detach().clone() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }
    try:
        for module in modules.values():
            module.eval()
        yield
    except BaseException:
        for name, module in modules.items():
            module.load_state_dict(states[name])
            for weight in module.parameters():
                weight.grad = None
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        raise


def train(
    search: Search, training: Training, path: str | PathLike[str] | None, *, seed: int, progress: bool
) -> Trained:
    """Train the modules of a program in place, from the starts of a search; `evaluating` undoes it on failure.

    Parameters
    ----------
    search
        The maximisation prepared without training, with every coefficient among its sites.
    path
        Checkpoint, or ``None``.
    """
    from pyromix.backends.checkpoint import Checkpoint, identity
    from pyromix.backends.trainer import Trainer

    trainer = Trainer(search, training, seed)
    checkpoint = None
    if path is not None:
        settings = {**training.config(), **search.backend.settings(search.marginal), "seed": seed}
        settings = {key: value for key, value in settings.items() if key not in ("max_time", "checkpoint_every")}
        shapes = [[name, list(site.value.shape)] for name, site in search.base.hypers.items()]
        belongs = identity({**settings, "sites": shapes}, search.plan.modules, search.plan, search.args)
        checkpoint = Checkpoint(path, belongs, training.checkpoint_every)
    return trainer.train(checkpoint, progress)
