"""Marginalisers: programs without their random effects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyromix.errors import NumericalError, UnsupportedError
from pyromix.linalg.factor import Factor
from pyromix.marginal.plan import Plan, make_plan
from pyromix.running import Program, Record, Site
from pyromix.sites import Data, Latent, annotation


@dataclass(frozen=True)
class Conditional:
    """The random effects given data and hyper-parameters, in the marginaliser's (Gaussian) approximation.

    Attributes
    ----------
    mode, sd
        Site -> conditional mode and SD, (levels, terms); the SDs are computed when first asked for.
    spread
        Computes `sd`.
    draw
        ``draw(n, generator, shifts)`` -> site -> (n, levels, terms). `shifts` (coefficient site -> (n, p)) moves the
        coefficients away from the values used here, and the effects with them, to first order.
    blocks
        Computes the covariance of every level's effects, (levels, terms, terms); ``None`` if that is not known.
    """

    mode: dict[str, torch.Tensor]
    spread: Callable[[], dict[str, torch.Tensor]]
    draw: Callable[[int, torch.Generator, Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
    blocks: Callable[[], dict[str, torch.Tensor]] | None = None

    def shown_sd(self, record: Record) -> dict[str, torch.Tensor]:
        """`sd`, of levels where an effect is a sum of functions of them."""
        spreads = {name: site.role.spread for name, site in record.latents.items() if site.role.spread is not None}
        if not spreads:
            return self.sd
        if self.blocks is None:
            unknown = {n: torch.full((len(s.functions), len(s.role.terms)), torch.nan) for n, s in spreads.items()}
            return {**self.sd, **unknown}
        blocks = self.blocks()
        found = {n: s.covariance(blocks[n][0]).diagonal(dim1=-2, dim2=-1).clamp(min=0.0) for n, s in spreads.items()}
        return {**self.sd, **{name: variance.sqrt() for name, variance in found.items()}}

    @cached_property
    def sd(self) -> dict[str, torch.Tensor]:
        return self.spread()


class AbstractMarginal(ABC):
    r"""Integrates the random effects out of a program: :math:`\log \int p(y \mid u, \theta)\, p(u \mid \theta)\, du`.

    A marginaliser is `bind`: given the plan of a program on its data it returns a `BoundMarginal`. Calling it on a
    program gives a program without the random effects, whose density every Pyro algorithm can use.
    """

    @abstractmethod
    def bind(self, program: Program, args: tuple[Any, ...], plan: Plan) -> BoundMarginal:
        """Prepare for one program on one data set; `UnsupportedError` if this marginaliser cannot take it."""

    def prepare(self, program: Program, args: tuple[Any, ...], seed: int = 0) -> BoundMarginal:
        """Analyse the program and `bind` to it."""
        return self.bind(program, args, make_plan(program, args, seed))

    def __call__(self, program: Program) -> MarginalProgram:
        """The program with its random effects integrated out."""
        return MarginalProgram(program, self)

    @property
    def label(self) -> str:
        """What a summary calls it."""
        return type(self).__name__

    def config(self) -> dict[str, Any]:
        """Class and constructor arguments as plain values; `pyromix.marginal.from_config` reads them back."""
        return {"class": type(self).__name__, **vars(self)}

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in sorted(vars(self).items()))
        return f"{type(self).__name__}({given})"


class BoundMarginal(ABC):
    """A marginaliser prepared for one program on one data set.

    Attributes
    ----------
    out
        Coefficient vectors that it profiles or integrates out.
    """

    plan: Plan
    out: tuple[str, ...] = ()

    @abstractmethod
    def log_marginal(self, record: Record) -> torch.Tensor:
        """Log marginal likelihood at a run of the program with the random effects at zero; differentiable."""

    @abstractmethod
    def conditional(self, record: Record) -> Conditional:
        """The random effects given the data, at the same kind of run."""

    def evaluate(self, record: Record) -> tuple[float, Conditional]:
        """Log marginal and conditional at once, without gradients."""
        with torch.no_grad():
            return float(self.log_marginal(record)), self.conditional(record)

    def curvature(self, record: Record) -> Factor | None:
        """The factored precision of the spherical effects given the data, if this marginaliser has one."""
        return None

    def compile(self, record: Record) -> None:  # noqa: B027 - most have nothing to compile
        """Prepare for many evaluations, of which a run of the program is an example."""

    def value_and_slopes(self, inputs: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]] | None:
        """Log marginal and its gradients in predictor, factors L and dispersion, where one call of C gives both."""
        return None

    def coefficients_at(self, record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Estimate and covariance of every coefficient vector in `out`."""
        return {}

    def forget(self) -> None:  # noqa: B027 - most have nothing to forget
        """Drop what earlier evaluations left as a start: the next result then does not depend on them in any bit."""


class MarginalProgram:
    """A program whose random effects are integrated out.

    Its sites are those of the program less the random effects and the response, plus the factor
    ``<response>.marginal``, the log marginal likelihood.

    Attributes
    ----------
    failures, last_failure
        How often the likelihood could not be computed (the factor is then -inf), and why the last time.
    """

    def __init__(self, program: Program, marginal: AbstractMarginal) -> None:
        self.program, self.marginal = program, marginal
        self.failures, self.last_failure = 0, ""
        self._bound: tuple[tuple[Any, ...], BoundMarginal] | None = None

    def bound(self, args: tuple[Any, ...]) -> BoundMarginal:
        """The marginaliser prepared for these arguments; analysed once per set of argument objects."""
        if self._bound is None or not _same(self._bound[0], args):
            with poutine.block():
                self._bound = (args, self.marginal.prepare(self.program, args))
        return self._bound[1]

    def __call__(self, *args: Any) -> None:
        bound = self.bound(args)
        with _Hide() as hidden:
            self.program(*args)
        record = Record(latents=hidden.latents, data=hidden.data)
        pyro.factor(f"{bound.plan.response}.marginal", self._log_marginal(bound, record))

    def _log_marginal(self, bound: BoundMarginal, record: Record) -> torch.Tensor:
        """-inf where the density cannot be computed: samplers start from draws of vague priors, where it is zero."""
        try:
            return bound.log_marginal(record)
        except NumericalError as error:
            self.failures += 1
            self.last_failure = str(error)
            return torch.tensor(-torch.inf, dtype=torch.float64)

    def reinstate(
        self, args: tuple[Any, ...], values: Mapping[str, torch.Tensor], seed: int
    ) -> dict[str, torch.Tensor]:
        """One draw of every random effect given hyper-parameter values, from its conditional distribution."""
        from pyromix.running import run

        record = run(self.program, args, values)
        drawn = self.bound(args).conditional(record).draw(1, torch.Generator().manual_seed(seed), {})
        return {name: value[0] for name, value in drawn.items()}


class _Hide(Messenger):
    """Take the random effects (at zero) and the response out of the message stream, and record them."""

    def __init__(self) -> None:
        super().__init__()
        self.latents: dict[str, Site] = {}
        self.data: dict[str, Site] = {}

    def _pyro_sample(self, msg: Any) -> None:
        role = annotation(msg)
        if isinstance(role, Latent):
            msg["value"] = msg["fn"].mean
            self.latents[msg["name"]] = Site(msg["name"], role, msg["fn"], msg["value"])
        elif isinstance(role, Data):
            self.data[msg["name"]] = Site(msg["name"], role, msg["fn"], msg["value"])
        else:
            return
        msg["done"] = msg["stop"] = True


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def blocks_of(record: Record, plan: Plan, who: str) -> list[torch.Tensor]:
    """The lower-triangular factor L of every random effect; `UnsupportedError` for one with dependent levels."""
    out = []
    for name in plan.latents:
        block = record.latents[name].fn.operator.block
        if block is None:
            raise UnsupportedError(
                f"{who} takes effects whose levels are independent and alike; {name!r} has a "
                f"{type(record.latents[name].fn.operator).__name__}. Sample it with NUTS."
            )
        out.append(block)
    return out


def without_coefficients(eta: torch.Tensor, record: Record, designs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Take the part of some coefficients out of the predictor, unless the caller already set them to zero."""
    for name, design in designs.items():
        site = record.hypers.get(name)
        if site is not None and bool((site.value != 0).any()):
            eta = eta - design @ site.value
    return eta


def by_site(
    estimate: np.ndarray, covariance: np.ndarray, designs: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Estimate and covariance of each coefficient vector, from those of all side by side."""
    out, at = {}, 0
    for name, design in designs.items():
        part = slice(at, at + design.shape[1])
        at = part.stop
        out[name] = (torch.from_numpy(estimate[part].copy()), torch.from_numpy(covariance[part, part].copy()))
    return out


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A float64 NumPy view without its graph."""
    return tensor.detach().to(torch.float64).numpy()
