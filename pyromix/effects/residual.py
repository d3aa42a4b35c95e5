"""Residuals that are correlated or have SDs of their own: what a Gaussian response makes of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from pyromix.covariances import regression
from pyromix.effects.parameter_site import parameter_site, record
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.remembered import remembered
from pyromix.sites import Chain, Data


def with_residuals(name: str, role: Data, columns: Mapping[str, Any]) -> Data:
    """The role of a response whose family has `variance` or `residual`; emits their sites, ``<response>.<parameter>``.

    Parameters
    ----------
    columns
        Columns by name, each of one value a row.

    Raises
    ------
    ConfigError
        A column that is not there.
    DataError, StructureError
        Values that the structure cannot use, naming the row.
    UnsupportedError
        Frequency weights beside correlated residuals.
    """
    family: Any = role.family
    if family.variance is not None:
        role = replace(role, dispersion={"sigma": role.dispersion["sigma"] * _ratios(name, family.variance, columns)})
    if family.residual is None or (role.obs is None and not _known(family.residual, columns)):
        return role  # without a response there is nothing to take over, and a row by itself is as above
    if role.weights is not None and bool(((role.weights != 0) & (role.weights != 1)).any()):
        raise UnsupportedError(
            f"observe({name!r}): frequency weights beside residual={family.residual!r}: rows that follow each other "
            "are observed once. Use precision weights, or write the rows out as series of their own."
        )
    return _chained(name, role, family.residual, columns)


def _known(structure: Any, columns: Mapping[str, Any]) -> bool:
    return all(column in columns for column in regression.columns_of(structure))


def _ratios(name: str, variance: Any, columns: Mapping[str, Any]) -> torch.Tensor:
    if variance.column not in columns:
        raise ConfigError(
            f"observe({name!r}): {variance!r} reads column {variance.column!r}, which is not there; pass "
            f"columns={{{variance.column!r}: ...}}, or have it in the data."
        )
    values = variance.read(columns[variance.column], f"observe({name!r})")
    theta = {}
    for parameter in variance.parameters(values):
        labels = getattr(variance, "labels", ()) or None
        theta[parameter.name] = parameter_site(f"{name}.{parameter.name}", parameter, labels)
    return variance.scale(theta, values)


def _chained(name: str, role: Data, residual: Any, columns: Mapping[str, Any]) -> Data:
    structure = regression.residual_structure(residual, f"observe({name!r}): residual")
    rows = _counting(role.mask, role.weights)
    if rows is not None:  # rows that do not count are passed over
        columns = {key: _picked(columns[key], rows) for key in regression.columns_of(structure)}
    count = len(role.eta) if rows is None else len(rows)
    occasions = regression.read_occasions(structure, columns, count, f"observe({name!r})")
    theta = {}
    for parameter in regression.residual_parameters(structure, occasions):
        theta[parameter.name] = parameter_site(f"{name}.{parameter.name}", parameter)
    for key, value in structure.describe(theta).items():
        record(f"{name}.{key}", value)
    one = torch.ones((), dtype=torch.float64)
    at = regression.regress(structure, {"sd": one, **theta}, occasions)
    if rows is not None:
        at = _among(at, rows, len(role.eta))
    sigma = role.dispersion["sigma"].expand(len(role.eta))
    chain = Chain(at.index, at.coef * (sigma[:, None] / sigma[at.index]), at.linked)
    obs = role.eta if role.obs is None else role.obs
    eta = obs - chain.lead(obs - role.eta)
    return replace(role, eta=eta, dispersion={"sigma": sigma * at.scale}, chain=chain, plain=role)


@remembered
def _counting(mask: torch.Tensor | None, weights: torch.Tensor | None) -> torch.Tensor | None:
    """Positions of the rows that a mask and weights of zero leave; ``None`` for all."""
    keep = [part for part in (mask, None if weights is None else weights != 0) if part is not None]
    counts = torch.stack(keep).all(0) if keep else torch.ones(1, dtype=torch.bool)
    return None if bool(counts.all()) else counts.nonzero()[:, 0]


@remembered
def _picked(column: Any, rows: torch.Tensor) -> np.ndarray:
    """Some rows of a column, read-only."""
    values = column.numpy() if isinstance(column, torch.Tensor) else np.asarray(column)
    out = values[rows.numpy()]
    out.flags.writeable = False
    return out


def _among(at: regression.Regression, rows: torch.Tensor, n: int) -> regression.Regression:
    """The regressions of some rows among all n; the others stand alone."""
    m = at.index.shape[1]
    index = torch.arange(n)[:, None].repeat(1, m)
    index[rows] = rows[at.index]
    linked = torch.zeros(n, m, dtype=torch.bool)
    linked[rows] = at.linked
    coef = at.coef.new_zeros(n, m).index_copy(0, rows, at.coef)
    return regression.Regression(index, linked, coef, at.scale.new_ones(n).index_copy(0, rows, at.scale))


class Following(dist.Normal):  # type: ignore[misc]
    """Draws of a response with correlated residuals: rows about their predictors, each with what it takes over.

    Its density is of no use: it is what `observe` samples where no response is given.
    """

    def __init__(self, role: Data) -> None:
        assert role.plain is not None and role.chain is not None
        super().__init__(role.plain.eta, role.dispersion["sigma"], validate_args=False)
        self.chain = role.chain

    def expand(self, batch_shape: Any, _instance: Any = None) -> Following:
        return self

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """``(*sample_shape, n)``."""
        noise = torch.randn((*sample_shape, len(self.loc)), dtype=self.loc.dtype)
        return self.loc + self.chain.follow(noise * self.scale)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """As `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)
