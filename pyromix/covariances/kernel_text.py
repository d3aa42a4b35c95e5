"""GPyTorch's kernels as plain values, for saved models, and as Python text. Knows them by the names of their classes.

`library` is the module ``gpytorch``, which `pyromix.covariances.gp` alone imports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pyromix.covariances.kernel_parameters import bounds
from pyromix.errors import ConfigError

SAVED = ("RBFKernel", "MaternKernel", "PeriodicKernel", "RQKernel", "CosineKernel", "LinearKernel", "ScaleKernel")
SAVED_SUMS = ("AdditiveKernel", "ProductKernel")
SAVED_BOUNDS = ("Positive", "GreaterThan", "LessThan", "Interval")


def describe(kernel: Any, library: Any) -> list[Any]:
    """A kernel as plain values: class, arguments, bounds of its hyper-parameters, parts."""
    kind = type(kernel).__name__
    if type(kernel) is not getattr(library.kernels, kind, None) or kind not in SAVED + SAVED_SUMS:
        known = ", ".join(SAVED + SAVED_SUMS)
        raise ConfigError(f"GP(kernel=...): a kernel {kind} cannot be saved; those that can: {known}.")
    if kind in SAVED_SUMS:
        return [kind, {}, {}, [describe(part, library) for part in kernel.kernels]]
    arguments = {key: list(v) if isinstance(v, tuple) else v for key, v in _arguments(kernel).items()}
    edges = {name: _describe_bounds(c) for name, c in _constraints(kernel) if c is not None}
    if kind == "ScaleKernel":
        return [kind, arguments, edges, [describe(kernel.base_kernel, library)]]
    return [kind, arguments, edges, []]


def _constraints(kernel: Any) -> Iterator[tuple[str, Any]]:
    for name, _ in kernel.named_parameters(recurse=False):
        yield name, kernel.constraint_for_parameter_name(name)


def _describe_bounds(constraint: Any) -> list[Any]:
    kind = type(constraint).__name__
    if kind not in SAVED_BOUNDS:
        raise ConfigError(f"GP(kernel=...): a constraint {kind} cannot be saved; those that can: {SAVED_BOUNDS}.")
    return [kind, *(bound for bound in bounds(constraint) if math.isfinite(bound) and kind != "Positive")]


def build(described: Any, library: Any) -> Any:
    """The kernel that `describe` described; only known classes are ever made."""
    try:
        kind, arguments, limits, parts = described
        if kind not in SAVED + SAVED_SUMS:
            raise ConfigError(f"saved kernel {kind!r} is unknown; known ones: {', '.join(SAVED + SAVED_SUMS)}.")
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
        kernel = getattr(library.kernels, kind)(*(build(part, library) for part in parts), **given)
        for name, (bound, *edges) in limits.items():
            if bound not in SAVED_BOUNDS:
                raise ConfigError(f"saved constraint {bound!r} is unknown; known ones: {', '.join(SAVED_BOUNDS)}.")
            kernel.register_constraint(name, getattr(library.constraints, bound)(*edges))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"saved kernel {described!r} cannot be read: {error}") from error
    return kernel


# -- as text ---------------------------------------------------------------------------------------------------------
def text(kernel: Any, prefix: str = "") -> str:
    """The call that makes a kernel, ``MaternKernel(nu=1.5) * PeriodicKernel()``; values and priors are not in it.

    Parameters
    ----------
    prefix
        Before every class of kernels: ``"gpytorch.kernels."``.
    """
    kind = type(kernel).__name__
    if kind in SAVED_SUMS:
        sign = " + " if kind == "AdditiveKernel" else " * "
        parts = [text(part, prefix) for part in kernel.kernels]
        inner = [
            f"({p})" if sign == " * " and type(k).__name__ == "AdditiveKernel" else p
            for k, p in zip(kernel.kernels, parts, strict=True)
        ]
        return sign.join(inner)
    given = [text(kernel.base_kernel, prefix)] if kind == "ScaleKernel" else []
    given += [f"{key}={value!r}" for key, value in _arguments(kernel).items()]
    library = prefix.replace("kernels.", "constraints.")
    for name, constraint in _constraints(kernel):
        if constraint is not None and type(constraint).__name__ not in ("Positive", "NoneType"):
            edges = ", ".join(f"{edge:g}" for edge in bounds(constraint) if math.isfinite(edge))
            given.append(f"{name.removeprefix('raw_')}_constraint={library}{type(constraint).__name__}({edges})")
    return f"{prefix}{kind}({', '.join(given)})"


def _arguments(kernel: Any) -> dict[str, Any]:
    """Arguments that are neither parts nor hyper-parameters."""
    found: dict[str, Any] = {"nu": kernel.nu} if type(kernel).__name__ == "MaternKernel" else {}
    if kernel.ard_num_dims is not None:
        found["ard_num_dims"] = kernel.ard_num_dims
    within = getattr(kernel, "base_kernel", None)  # whose dimensions a ScaleKernel takes over
    if kernel.active_dims is not None and (within is None or within.active_dims is None):
        found["active_dims"] = tuple(kernel.active_dims.tolist())
    return found
