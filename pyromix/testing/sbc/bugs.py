"""Planted bugs: mistakes that a calibration must find, made around the program that is fitted.

The library stays as it is. A bug changes what the fit is given: the data, or, by an effect handler, the program's
priors and values. Truth and response come from the right program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

from pyromix.families import Gaussian, Poisson
from pyromix.running import Program
from pyromix.testing.sbc.models import Rows, intercept_problem, rows
from pyromix.testing.sbc.problem import Fitted, Problem, Sampler


@dataclass(frozen=True)
class Bug:
    """A mistake, and the model on which it shows.

    Attributes
    ----------
    problem
        The right program.
    program, data
        What they become in the fit.
    """

    name: str
    problem: Problem
    program: Callable[[Program], Program] = lambda program: program
    data: Callable[[Rows], Rows] = lambda data: data

    def sampler(self, sampler: Sampler) -> Sampler:
        """The same sampler, given the wrong program or data."""

        def sample(program: Program, data: Any, seed: int) -> Fitted:
            return sampler(self.program(program), self.data(data), seed)

        return sample


class _Prior(Messenger):
    """Another prior at one site."""

    def __init__(self, site: str, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.site, self.change = site, change

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["fn"] = self.change(msg["fn"])


class _Value(Messenger):
    """The program goes on with another value than the site has: handlers outside have recorded the site's by then."""

    def __init__(self, site: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.site, self.change = site, change

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["value"] = self.change(msg["value"])


class _WithoutJacobian(dist.Gamma):
    """Its density taken for that of the logarithm: the prior of a sampler that forgot ``log |dx / dlog x|``."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return super().log_prob(value) - value.log()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return _WithoutJacobian(self.concentration.expand(batch_shape), self.rate.expand(batch_shape))


def planted() -> tuple[Bug, ...]:
    """The bugs, each on a model in which it moves a posterior by 0.2 SD or more."""
    plain = _gaussian("gaussian-intercepts", rows(8, 5))
    n = len(plain.data.group)
    precision = torch.from_numpy(np.random.default_rng(4).choice([0.1, 4.0], n))
    weighted = _gaussian("gaussian-weighted", replace(plain.data, precision=precision))
    offset = torch.from_numpy(np.random.default_rng(5).normal(0.5, 0.5, n))
    counts = intercept_problem("poisson-offset", Poisson(), replace(plain.data, offset=offset), 0.7, _gamma(0.5))
    few, fewer = (_gaussian(f"gaussian-{groups}-groups", rows(groups, size)) for groups, size in ((4, 3), (3, 2)))
    return (
        Bug("likelihood dropped", plain, data=lambda d: replace(d, precision=torch.full((n,), 1e-8).double())),
        Bug("sd taken for a variance", plain, program=_Value("g.sd", torch.sqrt)),
        Bug("Jacobian missing", few, program=_Prior("g.sd", lambda p: _WithoutJacobian(p.concentration, p.rate))),
        Bug("prior scale x 1.25", fewer, program=_Prior("g.sd", lambda p: dist.Gamma(p.concentration, p.rate / 1.25))),
        Bug("group index off by one", plain, data=lambda d: replace(d, group=(d.group + 1) % d.groups)),
        Bug("weights ignored", weighted, data=lambda d: replace(d, precision=None)),
        Bug("last group dropped", plain, data=lambda d: replace(d, mask=d.group < d.groups - 1)),
        Bug("offset ignored", counts, data=lambda d: replace(d, offset=None)),
    )


def _gaussian(name: str, data: Rows) -> Problem:
    return intercept_problem(name, Gaussian(sigma=0.5), data, 0.7, _gamma(0.7))


def _gamma(mean: float) -> dist.Distribution:
    """Zero at zero, so that it stays proper where a Jacobian is missing."""
    return dist.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(2.0 / mean, dtype=torch.float64))
