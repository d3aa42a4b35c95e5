"""Hyper-parameters of covariances and families: a support, a shape and a prior, or a fixed number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro.distributions import Distribution
from torch.distributions import constraints

from pyromix.errors import ConfigError

Argument = float | int | Sequence[float] | torch.Tensor | Distribution | None


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of a structure.

    Attributes
    ----------
    name
        Its name inside the structure (``sd``); the site is ``<effect>.<name>``.
    support
        Where it may lie. A variance that may vanish has support ``constraints.nonnegative``, so an optimiser knows
        that zero is an answer; ``constraints.positive`` says that zero is not.
    prior
        Its prior, with ``event_shape`` equal to the parameter's shape. Unused by maximum likelihood.
    fixed
        Its value where the user gave a number; then there is no prior.
    """

    name: str
    support: constraints.Constraint
    prior: Distribution | None = None
    fixed: torch.Tensor | None = None


def parameter(
    name: str,
    argument: Argument,
    support: constraints.Constraint,
    default: Distribution,
    shape: tuple[int, ...] = (),
    where: str = "",
) -> Parameter:
    """Turn what a user passed (a number, a distribution or nothing) into a `Parameter`.

    Parameters
    ----------
    name, support
        As in `Parameter`.
    argument
        ``None`` for the default prior, a number (or numbers, of `shape`) to fix it, a distribution as its prior.
    default
        The prior used for ``None``; scalar, expanded to `shape`, or already of that event shape.
    shape
        The parameter's shape; ``()`` for a scalar.
    where
        What the argument belongs to, for error messages: ``"IID"``.

    Raises
    ------
    ConfigError
        The number lies outside the support, or the shapes do not fit.
    """
    label = f"{where}({name}=...)" if where else name
    if argument is None or isinstance(argument, Distribution):
        prior = default if argument is None else argument
        return Parameter(name, support, prior=_expand(prior, shape, label))
    try:
        value = torch.as_tensor(argument, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        message = f"{label}: got {argument!r}; pass a number (fixed), a Pyro distribution (its prior) or None."
        raise ConfigError(message) from error
    if value.shape not in ((), shape):
        raise ConfigError(f"{label}: got shape {tuple(value.shape)}, expected a scalar or shape {shape}.")
    value = value.expand(shape)
    if not bool(support.check(value).all()) or not bool(torch.isfinite(value).all()):
        raise ConfigError(f"{label}: {argument!r} is not allowed; it must be {_describe(support)}.")
    return Parameter(name, support, fixed=value)


def _expand(prior: Distribution, shape: tuple[int, ...], label: str) -> Distribution:
    if prior.batch_shape + prior.event_shape == torch.Size(shape):
        return prior.to_event(len(prior.batch_shape)) if prior.batch_shape else prior
    if prior.batch_shape == () and prior.event_shape == ():
        return prior.expand(torch.Size(shape)).to_event(len(shape))
    got = tuple(prior.batch_shape + prior.event_shape)
    raise ConfigError(f"{label}: its prior has shape {got}, expected a scalar prior or shape {shape}.")


def _describe(support: constraints.Constraint) -> str:
    known = {constraints.positive: "positive", constraints.nonnegative: "zero or positive", constraints.real: "real"}
    return known.get(support, str(support))
