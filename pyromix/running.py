"""Run a program under given values and read what it declares.

Pyro's handler stack, parameter store and validation flag belong to the process. Every run takes one re-entrant lock and
leaves all three, and the random state, as they were.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to, constraints

from pyromix.errors import DataError, DataTypeError, UnsupportedError
from pyromix.sites import Data, Function, Hyper, Latent, annotation

Program = Callable[..., Any]
_LOCK = threading.RLock()


@dataclass
class Site:
    """A recorded sample site: its role, its distribution, its value, the annotation."""

    name: str
    role: Any
    fn: Any
    value: torch.Tensor


@dataclass
class Record:
    """What one run of a program declared, by role, each in program order.

    `plain` and `observed` hold the latent and the observed sites of a program that are none of pyromix's, `subsampled`
    the plates that took a random part of their rows: how many, of how many.
    """

    hypers: dict[str, Site] = field(default_factory=dict)
    latents: dict[str, Site] = field(default_factory=dict)
    functions: dict[str, Site] = field(default_factory=dict)
    data: dict[str, Site] = field(default_factory=dict)
    plain: dict[str, Site] = field(default_factory=dict)
    observed: dict[str, Site] = field(default_factory=dict)
    deterministic: dict[str, torch.Tensor] = field(default_factory=dict)
    subsampled: dict[str, tuple[int, int]] = field(default_factory=dict)

    def log_prior(self) -> torch.Tensor:
        """Summed log prior density of the hyper-parameters."""
        terms = [site.fn.log_prob(site.value).sum() for site in self.hypers.values()]
        return sum(terms, torch.zeros((), dtype=torch.float64))


class _Recorder(Messenger):
    """Put given values at latent sites, refuse to draw data, and record every site."""

    def __init__(self, values: Mapping[str, torch.Tensor], default: str, hypers: str) -> None:
        super().__init__()
        self.values, self.default, self.hypers, self.record = values, default, hypers, Record()

    def _pyro_sample(self, msg: Any) -> None:
        role = annotation(msg)
        if isinstance(role, Data):
            # the density is the business of whoever asked; the site only has to have a value of the right shape
            if msg["value"] is None:
                msg["value"] = role.eta.detach()
                msg["is_observed"] = True
            msg["done"] = True
            return
        if msg["is_observed"]:
            msg["done"] = True
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif isinstance(role, Latent) and self.default == "zero":
            msg["value"] = msg["fn"].mean
        elif isinstance(role, Hyper) and self.hypers == "moderate":
            support = constraints.positive if role.support is constraints.nonnegative else role.support
            msg["value"] = _moderate(msg["fn"], biject_to(support))
        elif role is None and self.hypers == "moderate" and (transform := bijection(msg["fn"])) is not None:
            msg["value"] = _moderate(msg["fn"], transform)
        else:
            return  # drawn from its prior
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        role, name = annotation(msg), msg["name"]
        if msg["infer"].get("_deterministic") and not isinstance(role, Function):
            self.record.deterministic[name] = msg["value"]
            return
        site = Site(name, role, msg["fn"], msg["value"])
        if isinstance(role, Hyper):
            self.record.hypers[name] = site
        elif isinstance(role, Latent):
            self.record.latents[name] = site
        elif isinstance(role, Function):
            self.record.functions[name] = site
        elif isinstance(role, Data):
            self.record.data[name] = site
        elif type(msg["fn"]).__name__ == "_Subsample":
            if len(site.value) < site.fn.size:
                self.record.subsampled[name] = (len(site.value), site.fn.size)
        elif msg["is_observed"]:
            self.record.observed[name] = site
        else:
            self.record.plain[name] = site


def bijection(fn: Any) -> Any:
    """The transform of real vectors onto a distribution's support; ``None`` where there is none.

    Discrete distributions and point masses have none, nor have the indices of a plate.
    """
    base = fn
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        base = base.base_dist
    if isinstance(base, dist.Delta) or type(base).__name__ == "_Subsample":
        return None
    try:
        support = fn.support
        if type(support).__name__ == "MixtureSameFamilyConstraint":  # of plain intervals torch makes one of its own
            common = support.base_constraint
            support = common if common in (constraints.real, constraints.nonnegative, constraints.positive) else support
        return None if support.is_discrete else biject_to(support)
    except NotImplementedError:  # a distribution that declares no support, or a support without a transform
        return None


def _moderate(prior: Any, transform: Any) -> torch.Tensor:
    shape = transform.inverse_shape(prior.batch_shape + prior.event_shape)
    return transform(torch.rand(shape, dtype=torch.float64) * 2 - 1)


@contextmanager
def isolated() -> Iterator[None]:
    """Hold the lock, an empty parameter store and unvalidated distributions; restore them afterwards."""
    with _LOCK, pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yield


@contextmanager
def _one_precision() -> Iterator[None]:
    """Say what to do where torch refuses float32 data beside values, which are float64."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if "float" in said and "double" in said:
            raise DataTypeError(
                f"the program mixes float32 and float64 tensors ({error}); its sites hold float64 values: hand data "
                "over as x.double(), and build constants and modules with dtype=torch.float64."
            ) from error
        raise


def run(
    program: Program,
    args: tuple[Any, ...],
    values: Mapping[str, torch.Tensor] | None = None,
    latents: str = "zero",
    hypers: str = "prior",
    seed: int | None = None,
) -> Record:
    """Run ``program(*args)`` with the given site values and record its sites.

    Parameters
    ----------
    values
        Value by site name; gradients flow through them.
    latents
        What a random-effect site left out of `values` holds: ``"zero"``, or ``"prior"`` for a draw.
    hypers
        What a hyper-parameter, or a continuous site of Pyro's own, left out holds: a draw from its ``"prior"``, or a
        ``"moderate"`` random value, of unit size on the unconstrained scale (a draw from a vague prior overflows most
        programs, and an improper prior has none).
    seed
        Seed of those draws; the global random state is restored afterwards either way.
    """
    with isolated(), torch.random.fork_rng(devices=[], enabled=True):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices that are not restored
        recorder = _Recorder(values or {}, latents, hypers)
        with recorder, _one_precision():
            program(*args)
    if not recorder.record.data and not recorder.record.observed:
        raise DataError(
            "the program observes nothing; add a pyromix.observe(...) statement, or a pyro.sample(..., obs=...)."
        )
    return _carried(recorder.record)


def _carried(record: Record) -> Record:
    """Row maps and designs as they enter the predictor where rows depend on rows before them."""
    chains = [site.role.chain for site in record.data.values() if site.role.chain is not None]
    if not chains:
        return record
    if len(record.data) > 1:
        raise UnsupportedError(
            f"the program observes {len(record.data)} responses, one with correlated residuals; these need a response "
            "of their own."
        )
    (chain,) = chains
    for site in record.latents.values():
        site.role = replace(site.role, rows=site.role.rows.carried(chain))
    for site in record.hypers.values():
        if site.role.design is not None:
            site.role = replace(site.role, design=chain.columns(site.role.design))
    return record


def unvalidated(fn: Any) -> Any:
    """A copy whose densities do not check their argument: the check is a branch that cannot be traced."""
    fn = copy.copy(fn)
    if hasattr(fn, "_validate_args"):
        fn._validate_args = False
    if isinstance(getattr(fn, "__dict__", {}).get("base_dist"), torch.distributions.Distribution):
        fn.base_dist = unvalidated(fn.base_dist)
    return fn
