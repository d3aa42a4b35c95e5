"""Hyper-parameters of kernels: their names, supports and default priors. Knows kernels by what they hold alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints, transforms

from pyromix.covariances.sites import Sites
from pyromix.errors import ConfigError


def names_of(kernel: Any) -> dict[str, str]:
    """Name of every hyper-parameter -> its path in the kernel."""
    paths = [path for path, _ in kernel.named_parameters()]
    short = [path.rpartition(".")[2].removeprefix("raw_") for path in paths]
    counts = {name: 0 for name in short}
    names = {}
    for path, name in zip(paths, short, strict=True):
        counts[name] += 1
        names[name if short.count(name) == 1 else f"{name}_{counts[name]}"] = path
    return names


def walk(kernel: Any, prefix: str, dims: list[int]) -> Iterator[tuple[Any, str, list[int]]]:
    """Every part with its path and the dimensions it sees, inner ones first."""
    seen = seen_dims(kernel, dims)
    if hasattr(kernel, "kernels"):
        for i, part in enumerate(kernel.kernels):
            yield from walk(part, f"{prefix}kernels.{i}.", seen)
    elif hasattr(kernel, "base_kernel"):
        yield from walk(kernel.base_kernel, f"{prefix}base_kernel.", inner_dims(kernel, dims))
    yield kernel, prefix, seen


def seen_dims(kernel: Any, dims: list[int]) -> list[int]:
    """Those of the dimensions that a kernel looks at."""
    return dims if kernel.active_dims is None else [dims[int(k)] for k in kernel.active_dims]


def inner_dims(kernel: Any, dims: list[int]) -> list[int]:
    """The dimensions that a `ScaleKernel` hands to its kernel, which chooses once where both have ``active_dims``."""
    return seen_dims(kernel, dims) if kernel.base_kernel.active_dims is None else dims


def check_dimensions(kernel: Any, dims: list[int]) -> None:
    try:
        parts = list(walk(kernel, "", dims))
    except IndexError as error:
        raise ConfigError(f"GP(kernel=...): active_dims beyond the {len(dims)} coordinates of a site.") from error
    for part, _, seen in parts:
        if part.ard_num_dims not in (None, 1, len(seen)):
            raise ConfigError(
                f"GP(kernel=...): {type(part).__name__}(ard_num_dims={part.ard_num_dims}) over {len(seen)} coordinates."
            )


def scaled(kernel: Any) -> bool:
    """Whether the kernel has a free factor, as `sd` is."""
    kind = type(kernel).__name__
    if hasattr(kernel, "kernels"):
        return (all if kind == "AdditiveKernel" else any)(scaled(part) for part in kernel.kernels)
    return any(
        name in ("raw_outputscale", "raw_variance") and raw.requires_grad
        for name, raw in kernel.named_parameters(recurse=False)
    )


def value_shape(raw: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in raw if size > 1)


def bounds(constraint: Any) -> tuple[float, float]:
    if constraint is None:
        return -math.inf, math.inf
    # constraints keep them in the default dtype; short decimals are what was written
    return tuple(float(f"{float(b):.7g}") for b in (constraint.lower_bound, constraint.upper_bound))  # type: ignore


def support(low: float, high: float) -> constraints.Constraint:
    if low == -math.inf:
        return constraints.real if high == math.inf else constraints.less_than(high)
    return constraints.greater_than(low) if high == math.inf else constraints.interval(low, high)


def is_length(module: Any, name: str) -> bool:
    if name.startswith("period_length"):
        return True
    return name.startswith("lengthscale") and type(module).__name__ != "PeriodicKernel"  # there it has no unit


def default_prior(
    length: bool,
    sites: Sites,
    dims: list[int],
    shape: tuple[int, ...],
    low: float,
    high: float,
    functions: int | None = None,
) -> dist.Distribution:
    zero, one = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    if math.isfinite(low) and math.isfinite(high):
        return dist.Uniform(low * one, high * one)
    if low == high == math.inf or (low == -math.inf and high == math.inf):
        return dist.Normal(zero, one)
    loc, scale = zero, one
    if length:
        over = [[d] for d in dims] if shape else [dims]
        pairs = [sites.log_distances(each, functions) for each in over]
        loc, scale = (torch.tensor(part, dtype=torch.float64).reshape(shape) for part in zip(*pairs, strict=True))
    base = dist.LogNormal(loc, scale)
    if low == 0.0:
        return base
    edge, sign = (low, 1.0) if math.isfinite(low) else (high, -1.0)
    return dist.TransformedDistribution(base, [transforms.AffineTransform(edge, sign)])
