"""Emit the site of one hyper-parameter, and take tensors in as float64."""

from __future__ import annotations

from typing import Any

import pyro
import torch

from pyromix.errors import DataTypeError
from pyromix.parameters import Parameter
from pyromix.sites import Hyper, annotate


def parameter_site(name: str, parameter: Parameter, labels: tuple[str, ...] | None = None) -> torch.Tensor:
    """Sample the parameter at site ``name``, or record it there if the user fixed it."""
    if parameter.fixed is not None:
        return record(name, parameter.fixed)
    role = Hyper(parameter.support, labels=labels)
    return pyro.sample(name, parameter.prior, infer=annotate(role))


def record(name: str, value: torch.Tensor) -> torch.Tensor:
    """A deterministic site whose whole value is one event."""
    return pyro.deterministic(name, value, event_dim=value.dim())


def float64(value: Any, where: str) -> torch.Tensor:
    """A tensor of real numbers in float64: single precision and integers are exact in it.

    Raises
    ------
    DataTypeError
        Something else, or complex numbers; the message names ``where`` it was found.
    """
    if not isinstance(value, torch.Tensor) or value.dtype.is_complex:
        got = f"a complex tensor ({value.dtype})" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise DataTypeError(f"{where} is {got}; pass a real tensor, e.g. torch.as_tensor(values, dtype=torch.float64).")
    return value.to(torch.float64)
