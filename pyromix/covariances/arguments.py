"""Correlations and rates as arguments of a structure: what is refused, and the prior where nothing is given."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.errors import ConfigError
from pyromix.parameters import Argument, Parameter, number, parameter


def double(value: float) -> torch.Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def sd_parameter(argument: Argument, where: str, shape: tuple[int, ...] = ()) -> Parameter:
    """The SD of a structure; by default HalfNormal(scale 10)."""
    return parameter("sd", argument, constraints.nonnegative, dist.HalfNormal(double(10.0)), shape, where)


def correlation(
    name: str, argument: Argument, where: str, low: float = -1.0, high: float = 1.0, shape: tuple[int, ...] = ()
) -> Parameter:
    """A correlation, or a partial one, inside (low, high); by default uniform there.

    Raises
    ------
    ConfigError
        A number at or beyond an end, where the covariance is singular or none; a prior that reaches beyond.
    """
    label = f"{where}({name}=...)"
    inside = f"between {low:.4g} and {high:.4g}, ends excluded"
    if isinstance(argument, dist.Distribution):
        probes = [low - d for d in (1e-6, 1e-3, 1.0, 1e3)] + [high + d for d in (1e-6, 1e-3, 1.0, 1e3)]
        if _reaches(argument, probes):
            kind = type(_base(argument)).__name__
            raise ConfigError(
                f"{label}: its prior {kind} reaches outside, but it must be {inside}; use Uniform({low:.4g}, "
                f"{high:.4g}) or one within."
            )
    elif argument is not None:
        value = number(argument, label)
        if not bool(((value > low) & (value < high)).all()):
            raise ConfigError(f"{label}: {argument!r} is not allowed; it must be {inside}.")
    default = dist.Uniform(double(low), double(high))
    return parameter(name, argument, constraints.interval(low, high), default, shape, where)


def rate_parameter(name: str, argument: Argument, where: str, default: dist.Distribution) -> Parameter:
    """A positive number that is no SD.

    Its support is not ``constraints.positive`` itself, by which a search takes a hyper-parameter for an SD and starts
    it at the size of the response.
    """
    label = f"{where}({name}=...)"
    if isinstance(argument, dist.Distribution) and _reaches(argument, [-1e-6, -1e-3, -1.0, -1e3]):
        raise ConfigError(
            f"{label}: its prior {type(_base(argument)).__name__} reaches below zero, but it must be positive; use "
            "LogNormal, Gamma, Exponential or HalfNormal."
        )
    if argument is not None and not isinstance(argument, dist.Distribution):
        value = number(argument, label)
        if not bool((value > 0).all()) or not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{label}: {argument!r} is not allowed; it must be positive.")
    return parameter(name, argument, constraints.greater_than(0.0), default, (), where)


def _base(prior: dist.Distribution) -> dist.Distribution:
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    return prior


def _reaches(prior: dist.Distribution, probes: Sequence[float]) -> bool:
    """Whether the prior has density at one of these values."""
    base = _base(prior)
    points = torch.tensor(probes, dtype=torch.float64)
    return bool(base.support.check(points.reshape(-1, *(1 for _ in base.batch_shape))).any())


def check_columns(where: str, **names: str | None) -> None:
    """Names of columns are text; `ConfigError` for anything else."""
    for key, name in names.items():
        if name is not None and (not isinstance(name, str) or not name):
            raise ConfigError(f"{where}({key}={name!r}): pass the name of a column, e.g. {key}='{key}'.")
