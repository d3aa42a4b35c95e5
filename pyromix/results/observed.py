"""Observed sites of a program that are Pyro's own: what they hold, their densities, and replicates at draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger

from pyromix.results.draws import Values, sampled_over_draws
from pyromix.running import Record, run
from pyromix.sites import annotation

if TYPE_CHECKING:
    from pyromix.results.fit import Fit


@dataclass(frozen=True)
class Observed:
    """One observed site at one run; its rows are the batch dimensions of its density.

    Attributes
    ----------
    value
        The data, (*rows, *event).
    log_prob
        Log density of each row, (*rows): rows that a mask takes out have 0, scales (weights) multiply.
    count
        Rows that count; a row of scale w counts w times.
    discrete
        Whether the values are counts or classes.
    """

    value: torch.Tensor
    log_prob: torch.Tensor
    count: torch.Tensor
    discrete: bool

    @classmethod
    def of(cls, msg: Any) -> Observed:
        """From the message of the site."""
        fn, value, mask = msg["fn"], msg["value"], msg["mask"]
        density = fn.log_prob(value)
        counted = torch.ones_like(density)
        if mask is not None:
            keep = torch.as_tensor(mask).expand(density.shape)
            density = torch.where(keep, density, torch.zeros_like(density))
            counted = keep.to(density.dtype)
        value = value.expand(density.shape + fn.event_shape)
        return cls(value, density * msg["scale"], (counted * msg["scale"]).sum(), bool(fn.support.is_discrete))


class _Observer(Messenger):
    """See every observed site that is Pyro's own; with `replicate`, draw its value anew first."""

    def __init__(self, replicate: bool) -> None:
        super().__init__()
        self.replicate = replicate
        self.seen: dict[str, Observed] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if self.replicate and _is_data(msg):
            fn, value = msg["fn"], msg["value"]
            rows = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - len(fn.event_shape)])
            msg["value"] = (fn if rows == fn.batch_shape else fn.expand(rows)).sample()
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_data(msg):
            self.seen[msg["name"]] = Observed.of(msg)


def _is_data(msg: Any) -> bool:
    """Whether a site is observed data: no deterministic value, no index of a plate, no factor (which has no value)."""
    return (
        msg["is_observed"]
        and annotation(msg) is None
        and not msg["infer"].get("_deterministic")
        and 0 not in msg["fn"].event_shape
        and type(msg["fn"]).__name__ != "_Subsample"
    )


def run_observed(
    fit: Fit, values: Mapping[str, torch.Tensor], seed: int | None = None
) -> tuple[Record, dict[str, Observed]]:
    """Run the program at the training rows: its record, and its observed sites that are Pyro's own.

    Parameters
    ----------
    seed
        Draw their values anew from their distributions; what follows from them in the program follows from the new
        values.
    """
    observer = _Observer(replicate=seed is not None)

    def program(*args: Any) -> None:
        with observer:
            fit.program(*args)

    with torch.no_grad():
        return run(program, fit.args, values, seed=seed), observer.seen


def replicates(fit: Fit, draws: Values, seed: int) -> Values:
    """New values of these sites, one for each draw, (draws, *rows, *event)."""
    if not fit.observed:
        return {}

    def one(values: Values, number: int) -> Values:
        return {name: site.value for name, site in run_observed(fit, values, seed=seed + number)[1].items()}

    return sampled_over_draws(one, draws, sum(site.value.numel() for site in fit.observed.values()))
