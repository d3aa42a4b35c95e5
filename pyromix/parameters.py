"""Hyper-parameters of covariances and families: a support, a shape and a prior, or a fixed number."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch.distributions import constraints

from pyromix.errors import ConfigError

Argument = float | int | Sequence[float] | torch.Tensor | Distribution | None
T = TypeVar("T")

# Priors that a saved model may hold, with the constructor arguments that define them.
_PRIORS: dict[str, tuple[str, ...]] = {
    "Beta": ("concentration1", "concentration0"),
    "Cauchy": ("loc", "scale"),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "InverseGamma": ("concentration", "rate"),
    "LKJ": ("dim", "concentration"),
    "LKJCholesky": ("dim", "concentration"),
    "LogNormal": ("loc", "scale"),
    "Normal": ("loc", "scale"),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
}


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
        Its prior, with ``event_shape`` equal to the parameter's shape, in float64. Unused by maximum likelihood.
    fixed
        Its value where the user gave a number; then there is no prior.
    labels
        Names of its entries, where they are not those of the effect's terms.
    """

    name: str
    support: constraints.Constraint
    prior: Distribution | None = None
    fixed: torch.Tensor | None = None
    labels: tuple[str, ...] | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of its value."""
        return self.prior.event_shape if self.fixed is None else self.fixed.shape


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
        What the argument belongs to, for error messages: ``"IID"``, ``"LinearEffect('beta')"``.

    Raises
    ------
    ConfigError
        The number lies outside the support, the prior reaches outside it, or the shapes do not fit.
    """
    label = f"{where[:-1]}, {name}=...)" if where.endswith(")") else f"{where}({name}=...)" if where else name
    if argument is None or isinstance(argument, Distribution):
        prior = default
        if argument is not None:
            prior = double(argument, label)
            _check_reach(prior, support, label)
        return Parameter(name, support, prior=_expand(prior, shape, label))
    value = fixed(argument, support, label)
    if value.shape not in ((), shape):
        raise ConfigError(f"{label}: got shape {tuple(value.shape)}, expected a scalar or shape {shape}.")
    return Parameter(name, support, fixed=value.expand(shape))


def fixed(argument: Any, support: constraints.Constraint, label: str) -> torch.Tensor:
    """A fixed value in float64; `ConfigError` naming `label` if it lies outside the support."""
    value = number(argument, label)
    if not bool(support.check(value).all()) or not bool(torch.isfinite(value).all()):
        raise ConfigError(f"{label}: {argument!r} is not allowed; it must be {_describe(support)}.")
    return value


def number(argument: Any, label: str) -> torch.Tensor:
    """A number or numbers as a float64 tensor; `ConfigError` naming `label` for anything else."""
    message = f"{label}: got {argument!r}; pass a number (fixed), a Pyro distribution (its prior) or None."
    if isinstance(argument, bool):
        raise ConfigError(message)
    try:
        return torch.as_tensor(argument, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(message) from error


def double(prior: Distribution, label: str, dtype: torch.dtype = torch.float64) -> Distribution:
    """The same distribution with its arguments in `dtype`; torch makes ``HalfNormal(1.0)`` a float32 one.

    Raises
    ------
    ConfigError
        An argument is outside its range, or the distribution is of another dtype and cannot be rebuilt.
    """
    if isinstance(prior, dist.Independent):
        return double(prior.base_dist, label, dtype).to_event(prior.reinterpreted_batch_ndims)
    if isinstance(prior, dist.ExpandedDistribution):
        return double(prior.base_dist, label, dtype).expand(prior.batch_shape)
    if isinstance(prior, dist.ImproperUniform):  # holds no numbers, and cannot be drawn from
        return prior
    if type(prior) is dist.TransformedDistribution:
        return dist.TransformedDistribution(double(prior.base_dist, label, dtype), prior.transforms)
    known = type(prior).__name__ in _PRIORS
    names = _PRIORS[type(prior).__name__] if known else _constructor_arguments(type(prior))
    values = {name: getattr(prior, name) for name in names}
    if not values:
        return _already(prior, label, dtype)
    values = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    try:
        rebuilt = type(prior)(**values, validate_args=True)
    except (TypeError, ValueError) as error:
        if known:
            raise ConfigError(f"{label}: its prior {type(prior).__name__} has an invalid argument: {error}") from error
        return _already(prior, label, dtype)
    if rebuilt.batch_shape != prior.batch_shape or rebuilt.event_shape != prior.event_shape:
        return _already(prior, label, dtype)
    return rebuilt


def _constructor_arguments(cls: type) -> tuple[str, ...]:
    """Names of the constrained arguments if they are all that the constructor takes, else none."""
    constrained = getattr(cls, "arg_constraints", None)
    if not isinstance(constrained, Mapping):
        return ()
    taken = set(inspect.signature(cls).parameters) - {"validate_args"}
    return tuple(constrained) if taken == set(constrained) else ()


def _already(prior: Distribution, label: str, dtype: torch.dtype) -> Distribution:
    with torch.random.fork_rng(devices=[]):
        got = prior.sample().dtype
    if got != dtype:
        raise ConfigError(
            f"{label}: its prior {type(prior).__name__} draws {got}, expected {dtype}; "
            f"build it from tensors of dtype {dtype}."
        )
    return prior


def _check_reach(prior: Distribution, support: constraints.Constraint, label: str) -> None:
    """A prior with mass below zero, for a parameter that cannot be negative, is a mistake worth naming."""
    if support not in (constraints.nonnegative, constraints.positive):
        return
    base = prior
    while isinstance(base, dist.Independent):
        base = base.base_dist
    probes = torch.tensor([-1e-6, -1e-3, -1.0, -1e3], dtype=torch.float64)
    if bool(base.support.check(probes.reshape(4, *(1 for _ in base.batch_shape))).any()):
        raise ConfigError(
            f"{label}: its prior {type(base).__name__} reaches below zero, but it must be {_describe(support)}; "
            "use HalfNormal, HalfCauchy, Exponential, Gamma or LogNormal."
        )


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


# -- plain JSON values for saved models ------------------------------------------------------------------------------
def encode(argument: Any, label: str) -> Any:
    """A constructor argument as plain JSON; `ConfigError` for a prior that is not in the list of known ones."""
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    if isinstance(argument, dist.Independent):
        return {**encode(argument.base_dist, label), "to_event": argument.reinterpreted_batch_ndims}
    if isinstance(argument, Distribution):
        name = type(argument).__name__
        if type(argument) is not getattr(dist, name, None) or name not in _PRIORS:
            raise ConfigError(f"{label}: a prior {name} cannot be saved; those that can: {', '.join(_PRIORS)}.")
        return {"distribution": name, "args": {key: encode(getattr(argument, key), label) for key in _PRIORS[name]}}
    return torch.as_tensor(argument).tolist()


def decode(value: Any) -> Any:
    """What `encode` wrote, in float64."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("distribution")
    if name not in _PRIORS:
        raise ConfigError(f"saved prior {name!r} is unknown; known ones: {', '.join(_PRIORS)}.")
    saved = value.get("args")
    if not isinstance(saved, Mapping) or set(saved) != set(_PRIORS[name]):
        raise ConfigError(f"saved prior {name} has arguments {saved!r}, expected {', '.join(_PRIORS[name])}.")
    args = {key: _number(key, saved[key]) for key in _PRIORS[name]}
    prior = getattr(dist, name)(**args)
    return prior.to_event(value["to_event"]) if "to_event" in value else prior


def _number(key: str, value: Any) -> Any:
    return int(value) if key == "dim" else torch.as_tensor(value, dtype=torch.float64)


def build(config: Mapping[str, Any], classes: Mapping[str, type[T]], kind: str) -> T:
    """The object whose ``config()`` is given. Only listed classes and priors are ever made.

    Raises
    ------
    ConfigError
        The class, one of its arguments, or a prior is not known.
    """
    cls = class_named(config.get("class"), classes, kind)
    arguments = {key: decode(value) for key, value in config.items() if key != "class"}
    unknown = sorted(set(arguments) - set(inspect.signature(cls).parameters))
    if unknown:
        raise ConfigError(f"saved {kind} {cls.__name__}: unknown argument {unknown[0]!r}.")
    return cls(**arguments)


def class_named(name: Any, classes: Mapping[str, type[T]], kind: str) -> type[T]:
    """The class called ``name``; `ConfigError` listing the known ones otherwise."""
    if not isinstance(name, str) or name not in classes:
        raise ConfigError(f"unknown {kind} {name!r}; choose one of {', '.join(classes)}.")
    return classes[name]
