"""Roles of sample sites: the only reader and writer of ``infer["pyromix"]``.

A backend sees a program through its sites. What it may know of a site beyond Pyro's own fields is the annotation here:

=========  ==========================================================================================================
`Hyper`    a hyper-parameter or a coefficient vector
`Latent`   a random-effect array, Gaussian given the hyper-parameters, with its row map
`Function` the output of a network or an outside regressor, carrying the module
`Data`     an observed response, carrying its predictor and its family
=========  ==========================================================================================================

Roles are written by effects and `observe`, never guessed: ``poutine.condition`` marks latent sites as observed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import constraints

if TYPE_CHECKING:
    from pyromix.families.base import AbstractFamily

KEY = "pyromix"


@dataclass(frozen=True)
class Chain:
    r"""How the error of each row follows from those of rows before it: correlated residuals, row by row.

    .. math:: y_n - \eta_n = \sum_m c_{nm} (y_{p(n,m)} - \eta_{p(n,m)}) + e_n

    with independent :math:`e_n`, so given the rows before it row n has the predictor
    :math:`\eta_n + \sum_m c_{nm}(y - \eta)_{p(n,m)}`, and what multiplies a coefficient or an effect in it is
    `lead` of its column.

    Attributes
    ----------
    index
        ``p``, (n, m); a row itself where it has fewer than m before it.
    coef
        ``c``, (n, m); zero there.
    linked
        Whether there is such a row, (n, m).
    """

    index: torch.Tensor
    coef: torch.Tensor
    linked: torch.Tensor

    def lead(self, rows: torch.Tensor) -> torch.Tensor:
        """``x_n - sum_m c_nm x_p(n,m)``: rows (*batch, n) -> the same shape."""
        return rows - (self.coef * rows[..., self.index]).sum(-1)

    def columns(self, design: torch.Tensor) -> torch.Tensor:
        """`lead` of every column: design (n, k) -> the same shape."""
        return self.lead(design.mT).mT

    def follow(self, noise: torch.Tensor) -> torch.Tensor:
        """Errors from independent ones e (*batch, n): the inverse of `lead`."""
        error = noise.clone()
        pending = self.linked.any(1)
        while bool(pending.any()):  # rows whose predecessors are done; one round a step of the longest series
            ready = pending & ~(pending[self.index] & self.linked).any(1)
            at = ready.nonzero()[:, 0]
            error[..., at] = noise[..., at] + (self.coef[at] * error[..., self.index[at]]).sum(-1)
            pending = pending & ~ready
        return error


@dataclass(frozen=True)
class RowMap:
    r"""Sparse linear map from a random-effect array ``u`` (levels, terms) to rows.

    .. math:: (Zu)_n = \sum_m w_{nm} \sum_k z_{nk} u_{g(n,m),k}

    Attributes
    ----------
    index
        Level of each row, ``(n,)``, or levels ``(n, m)`` for multiple membership. Negative entries count from the end
        of ``u``, where prediction appends levels that the fit has not seen.
    design
        ``z``, ``(n, q)``; ``None`` for an intercept.
    weight
        ``w``, ``(n, m)``; ``None`` for ones.
    chain
        What each row takes over from rows before it, if anything.
    own
        The map of rows by themselves, where this one is that of rows given rows before them.
    """

    index: torch.Tensor
    design: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    chain: Chain | None = None
    own: RowMap | None = None

    def carried(self, chain: Chain) -> RowMap:
        """The map where rows depend on rows before them: with another design if those have the same levels."""
        rows = self.index
        same = rows.dim() == 1 and bool((rows[chain.index] == rows[:, None])[chain.linked].all())
        if not same:
            return replace(self, chain=chain, own=self)
        design = torch.ones(len(rows), 1, dtype=torch.float64) if self.design is None else self.design
        if self.weight is not None:
            design = design * self.weight.reshape(-1, 1)
        return RowMap(rows, chain.columns(design), own=self)

    def apply(self, u: torch.Tensor) -> torch.Tensor:
        """Rows of ``Zu``: u (*batch, levels, q) -> (*batch, n)."""
        rows = self._own(u)
        return rows if self.chain is None else self.chain.lead(rows)

    def _own(self, u: torch.Tensor) -> torch.Tensor:
        if u.dim() == 2 and u.stride() == (0, 0) and not bool(u[0, 0]):  # one zero, seen as an array: no row to read
            return u.new_zeros(()).expand(len(self.index))
        if u.shape[-1] == 1:
            rows = u[..., 0][..., self.index]
            if self.design is not None:
                column = self.design[:, 0]
                rows = rows * (column if self.index.dim() == 1 else column[:, None])
        else:
            rows = u[..., self.index, :]  # (*batch, n[, m], q)
            assert self.design is not None
            design = self.design if self.index.dim() == 1 else self.design[:, None, :]
            rows = (rows * design).sum(-1)
        if self.index.dim() == 1:
            return rows if self.weight is None else rows * self.weight.reshape(-1)
        return rows.sum(-1) if self.weight is None else (rows * self.weight).sum(-1)


@dataclass(frozen=True)
class Hyper:
    """A hyper-parameter site.

    Attributes
    ----------
    support
        Where the value may lie (`pyromix.parameters.Parameter`); may be wider than the prior's support.
    design
        For a coefficient vector: the columns ``(n, p)`` that multiply it in the predictor, else ``None``.
    labels
        Names of the entries along the last dimension, if they have names.
    """

    support: constraints.Constraint
    design: torch.Tensor | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Latent:
    """A random-effect site: its distribution is a `StructuredNormal`, its value (levels, terms).

    Attributes
    ----------
    rows
        How the array enters the predictor.
    levels, terms
        Labels of the two dimensions.
    group
        The grouping factor it belongs to; several effects may share one.
    extend
        The covariance operator of these levels and of further ones, by their labels; ``None`` if it is not known.
    spread
        Where the array holds coefficients of functions of the levels: how the levels' effects come of them.
    structure
        What the effect was declared with; plots ask it whether levels are places.
    """

    rows: RowMap
    levels: tuple[Any, ...]
    terms: tuple[str, ...]
    group: str
    extend: Callable[[tuple[Any, ...]], Any] | None = None
    spread: Spread | None = None
    structure: Any = None

    @property
    def shown(self) -> Latent:
        """The role of the array that people ask for: effects by level."""
        return self if self.spread is None else self.spread.role


@dataclass(frozen=True)
class Spread:
    r"""Effects of levels that are sums of functions: :math:`u_{lk} = \sum_j f_{lj} c_{jk}`.

    Attributes
    ----------
    role
        What an array of the levels' effects would have as its role.
    functions
        ``f``, (levels, m).
    further
        The same for levels given by their labels; ``None`` if they cannot be placed.
    """

    role: Latent
    functions: torch.Tensor
    further: Callable[[tuple[Any, ...]], torch.Tensor] | None = None

    def apply(self, coefficients: torch.Tensor, functions: torch.Tensor | None = None) -> torch.Tensor:
        """Effects (*batch, levels, terms) from an array of coefficients (*batch, 1, m * terms)."""
        f = self.functions if functions is None else functions
        return f @ coefficients.reshape(*coefficients.shape[:-2], f.shape[-1], -1)

    def covariance(self, inner: torch.Tensor, functions: torch.Tensor | None = None) -> torch.Tensor:
        """Covariances of the terms of every level, (levels, q, q), from that of the coefficients (m * q, m * q)."""
        f = self.functions if functions is None else functions
        m, q = f.shape[-1], inner.shape[-1] // f.shape[-1]
        blocks = inner.reshape(m, q, m, q).permute(1, 3, 0, 2)
        return torch.stack([torch.stack([((f @ part) * f).sum(-1) for part in row], -1) for row in blocks], -2)

    def mean_covariance(self, inner: torch.Tensor) -> torch.Tensor:
        """The mean of these over levels, (q, q)."""
        m = self.functions.shape[-1]
        gram = self.functions.mT @ self.functions / len(self.functions)
        return torch.einsum("jk,jakb->ab", gram, inner.reshape(m, -1, m, inner.shape[-1] // m))


@dataclass(frozen=True)
class Function:
    """The output of a module.

    Attributes
    ----------
    module
        The module.
    random
        Names of its weights that are sites of their own; the others are estimated.
    """

    module: torch.nn.Module
    random: frozenset[str] = frozenset()

    def learned(self) -> dict[str, torch.nn.Parameter]:
        """The weights to be estimated, by name."""
        weights = self.module.named_parameters()
        return {name: weight for name, weight in weights if weight.requires_grad and name not in self.random}


@dataclass(frozen=True)
class Data:
    """An observed response.

    Attributes
    ----------
    family
        The response family.
    eta
        Predictor with the offset added: ``(n,)``, or ``(n, K)`` for several predictors.
    obs
        The response ``(n,)``.
    trials, weights, mask
        Binomial trials; frequency weights of the log-likelihood; rows that count.
    dispersion
        The family's other parameters by name: SD of a Gaussian, ...
    chain
        What each row takes over from rows before it, if residuals are correlated. Predictor and dispersion are then
        those of a row given the rows before it.
    plain
        This role without them: the predictor and dispersion of a row by itself.
    """

    family: AbstractFamily
    eta: torch.Tensor
    obs: torch.Tensor
    trials: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    dispersion: Mapping[str, torch.Tensor] = field(default_factory=dict)
    chain: Chain | None = None
    plain: Data | None = None


Annotation = Hyper | Latent | Function | Data


def annotate(annotation: Annotation, **infer: Any) -> dict[str, Any]:
    """The ``infer`` argument of a site with this role."""
    return {KEY: annotation, **infer}


def annotation(site: Mapping[str, Any]) -> Annotation | None:
    """The site's role, or ``None`` for a site that is not pyromix's."""
    return (site.get("infer") or {}).get(KEY)


def sites_of(trace: Any, role: type) -> Iterable[tuple[str, dict[str, Any]]]:
    """Name and message of every site of a trace with the given role, in program order."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and isinstance(annotation(site), role):
            yield name, site
