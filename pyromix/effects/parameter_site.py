"""Emit the site of one hyper-parameter."""

from __future__ import annotations

import pyro
import torch

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
