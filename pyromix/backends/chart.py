r"""Hyper-parameters as one flat unconstrained vector.

Two charts serve two ends. The optimiser's chart has to reach boundaries: an SD that may vanish is :math:`|t|`, so zero
is an interior point, and linear coefficients are rotated and scaled to unit curvature. The reporting chart
(`natural_chart`) is the plain bijection of each support, the scale on which a normal approximation is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.distributions import biject_to, constraints

from pyromix.running import Site


@dataclass(frozen=True)
class Entry:
    """One site's part of the vector: coordinates ``t`` -> value, and back."""

    name: str
    size: int
    forward: Callable[[torch.Tensor], torch.Tensor]
    inverse: Callable[[torch.Tensor], torch.Tensor]
    kind: str


class Chart:
    """The sites' entries side by side."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.slices: dict[str, slice] = {}
        start = 0
        for entry in entries:
            self.slices[entry.name] = slice(start, start + entry.size)
            start += entry.size
        self.size = start

    def values(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Site values at a vector (size,); gradients flow."""
        return {entry.name: entry.forward(flat[self.slices[entry.name]]) for entry in self.entries}

    def flat(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vector of site values."""
        parts = [entry.inverse(values[entry.name]).reshape(-1) for entry in self.entries]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def jacobian(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Derivative of each site's flattened value in the whole vector, (entries of the value, size)."""
        out = {}
        for entry in self.entries:

            def value(t: torch.Tensor, entry: Entry = entry) -> torch.Tensor:
                return entry.forward(t[self.slices[entry.name]]).reshape(-1)

            out[entry.name] = torch.autograd.functional.jacobian(value, flat)
        return out


def optimiser_entry(
    site: Site, support: constraints.Constraint, scale: torch.Tensor, rotation: torch.Tensor | None
) -> Entry:
    """The optimiser's chart of a site.

    Parameters
    ----------
    support
        Where the optimum may lie.
    scale
        Typical size of the value's entries, of its shape.
    rotation
        For coefficients: a root of their approximate covariance, (p, p).
    """
    shape = site.value.shape
    if rotation is not None:
        inverse = torch.linalg.inv(rotation)
        return Entry(site.name, shape.numel(), lambda t: rotation @ t, lambda v: inverse @ v, "linear")
    if support is constraints.nonnegative:
        return Entry(
            site.name, shape.numel(), lambda t: (t.reshape(shape) * scale).abs(), lambda v: v / scale, "boundary"
        )
    if support is constraints.real:
        return Entry(site.name, shape.numel(), lambda t: t.reshape(shape) * scale, lambda v: v / scale, "real")
    if support is constraints.positive:
        return Entry(
            site.name, shape.numel(), lambda t: t.reshape(shape).exp() * scale, lambda v: (v / scale).log(), "positive"
        )
    return _bijection(site.name, shape, support)


def natural_chart(sites: Mapping[str, Site]) -> Chart:
    """Each support's plain bijection: log SD, identity, partial correlations on the real line."""
    entries = []
    for name, site in sites.items():
        support = site.role.support
        if support is constraints.real:
            shape = site.value.shape
            entries.append(Entry(name, shape.numel(), lambda t, s=shape: t.reshape(s), lambda v: v.reshape(-1), "real"))
        else:
            support = constraints.positive if support is constraints.nonnegative else support
            entries.append(_bijection(name, site.value.shape, support))
    return Chart(entries)


def _bijection(name: str, shape: torch.Size, support: constraints.Constraint) -> Entry:
    transform = biject_to(support)
    inner = transform.inverse_shape(shape)
    kind = "correlation" if support is constraints.corr_cholesky else "other"
    return Entry(
        name, inner.numel(), lambda t: transform(t.reshape(inner)), lambda v: transform.inv(v).reshape(-1), kind
    )
