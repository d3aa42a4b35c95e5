r"""Hyper-parameters as one flat unconstrained vector.

Two charts serve two ends. The optimiser's chart has to reach boundaries: an SD that may vanish is :math:`|t|`, so zero
is an interior point, and linear coefficients are rotated and scaled to unit curvature. The reporting chart
(`natural_chart`) is the plain bijection of each support, the scale on which a normal approximation is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributions import biject_to, constraints

from pyromix.running import Site

TIED = 0.95  # correlation (about zero) of two columns of a random effect's design


@dataclass(frozen=True)
class Entry:
    """One site's part of the vector: coordinates ``t`` -> value, and back."""

    name: str
    size: int
    forward: Callable[[torch.Tensor], torch.Tensor]
    inverse: Callable[[torch.Tensor], torch.Tensor]
    kind: str


@dataclass(frozen=True)
class FactorEntry:
    r"""SDs and correlations of one unstructured block, together: :math:`L = C \tilde L`, both lower triangular.

    As lme4's theta, so zero SDs and perfect correlations are interior points, but on a basis C in which the columns of
    the design are orthonormal over the rows: a predictor far from zero does not tie the coordinates to each other.

    Attributes
    ----------
    sd, corr
        The sites: SDs (q,) and the Cholesky factor of the correlation matrix (q, q).
    basis
        C, lower triangular (q, q), with ``C^T (Z^T Z / n) C = I``.
    size
        Coordinates, ``q (q + 1) / 2``, row by row; in units of `scale`.
    """

    name: str
    sd: str
    corr: str
    basis: torch.Tensor
    scale: float
    kind: str = "factor"

    @property
    def rows(self) -> torch.Tensor:
        """Row and column of every coordinate, (2, size)."""
        return torch.tril_indices(len(self.basis), len(self.basis))

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    @property
    def start(self) -> torch.Tensor:
        """Coordinates of independent effects of typical size on the basis."""
        row, col = self.rows
        return (row == col).to(torch.float64)

    @property
    def tied(self) -> bool:
        """Whether the design's columns are so close to dependent that independent effects are no start."""
        correlation = torch.linalg.inv(self.basis @ self.basis.T)
        scale = correlation.diagonal().sqrt()
        return bool((correlation / scale[:, None] / scale).tril(-1).abs().max() > TIED)

    def forward(self, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both sites' values."""
        row, col = self.rows
        q = len(self.basis)
        factor = self.basis @ torch.zeros(q, q, dtype=t.dtype).index_put((row, col), self.scale * t)
        # the sign of a column is free: a Cholesky factor has a positive diagonal
        diagonal = factor.diagonal()
        factor = factor * torch.where(diagonal < 0, -1.0, 1.0)
        square = factor.square().sum(1)
        empty = square == 0
        sd = torch.where(empty, 0.0, torch.where(empty, 1.0, square).sqrt())
        eye = torch.eye(q, dtype=t.dtype)
        corr = torch.where(empty[:, None], eye, factor / torch.where(empty, 1.0, sd)[:, None])
        return {self.sd: sd, self.corr: corr}

    def correlation(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cholesky factor of the correlations on the basis: a predictor far from zero makes the plain ones near one."""
        inner = torch.linalg.solve_triangular(self.basis, values[self.sd][:, None] * values[self.corr], upper=False)
        size = inner.norm(dim=1, keepdim=True)
        return torch.where(size > 0, inner / size.clamp(min=1e-300), torch.eye(len(inner), dtype=inner.dtype))

    def inverse(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The coordinates of both sites' values."""
        factor = values[self.sd][:, None] * values[self.corr]
        inner = torch.linalg.solve_triangular(self.basis, factor, upper=False) / self.scale
        row, col = self.rows
        return inner[row, col]


class Chart:
    """The sites' entries side by side."""

    def __init__(self, entries: Sequence[Entry | FactorEntry]) -> None:
        self.entries = entries
        self.slices: dict[str, slice] = {}
        start = 0
        for entry in entries:
            self.slices[entry.name] = slice(start, start + entry.size)
            start += entry.size
        self.size = start

    def values(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Site values at a vector (size,); gradients flow."""
        out: dict[str, torch.Tensor] = {}
        for entry in self.entries:
            value = entry.forward(flat[self.slices[entry.name]])
            out.update(value if isinstance(value, dict) else {entry.name: value})
        return out

    def flat(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vector of site values."""
        parts = [
            entry.inverse(values if isinstance(entry, FactorEntry) else values[entry.name]).reshape(-1)
            for entry in self.entries
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def jacobian(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Derivative of each site's flattened value in the whole vector, (entries of the value, size)."""
        with torch.enable_grad():
            names = list(self.values(flat.detach()))
            parts = torch.autograd.functional.jacobian(
                lambda t: tuple(value.reshape(-1) for value in self.values(t).values()), flat.detach()
            )
        return dict(zip(names, parts, strict=True))

    def entry_of(self, site: str) -> Entry | FactorEntry:
        """The entry that holds a site."""
        for entry in self.entries:
            if site == entry.name or (isinstance(entry, FactorEntry) and site in (entry.sd, entry.corr)):
                return entry
        raise KeyError(site)

    def vanishing(self) -> list[int]:
        """Coordinates that say a variance is zero when they are."""
        out = []
        for entry in self.entries:
            start = self.slices[entry.name].start
            if entry.kind == "boundary":
                out.extend(range(start, start + entry.size))
            elif isinstance(entry, FactorEntry):
                row, col = entry.rows
                out.extend(start + k for k in torch.nonzero(row == col)[:, 0].tolist())
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
