"""The priors of a formula's model as a table: what each is, who chose it, and what its scale was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyro.distributions as dist
import torch

from pyromix.composition import Composition, linear_columns
from pyromix.covariances import Coords, Covariance
from pyromix.covariances.regression import read_occasions, residual_parameters, residual_structure
from pyromix.defaults import WIDTH, one_sd, scaled_to_response, sd_of, spread_of
from pyromix.families import AbstractFamily

MAX_SHOWN = 4  # numbers of a list


@dataclass(frozen=True)
class PriorTable:
    """The priors of a model.

    Attributes
    ----------
    table
        Data frame: ``site`` (its key in ``priors={...}``), ``name`` (of the entry, if the site has several), ``prior``
        (readable), ``source`` (``"default"``, ``"user"``, or ``"fixed"`` for a number), ``scale`` (what the scale of
        a default prior was made of).
    note
        What else to know.
    """

    table: pd.DataFrame
    note: str

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.width", None, "display.max_rows", None):
            lines = self.table.to_string(index=False, justify="left", formatters=self._padded()).splitlines()
        return "\n".join([*(line.rstrip() for line in lines), "", self.note])

    def _padded(self) -> dict[str, Any]:
        """Every column as left-aligned text."""
        widths = {name: int(self.table[name].str.len().max()) for name in self.table}
        return {name: f"{{:<{width}}}".format for name, width in widths.items()}

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False) + f"<p>{self.note}</p>"


def prior_table(entries: Sequence[Entry], network: bool) -> PriorTable:
    """The table of these entries; `network` says whether the mean has weights, which have no priors."""
    rows = [
        {
            "site": entry.site,
            "name": entry.name,
            "prior": readable(entry.prior, entry.position),
            "source": entry.source if isinstance(entry.prior, dist.Distribution) else "fixed",
            "scale": entry.scale,
        }
        for entry in entries
    ]
    columns = ["site", "name", "prior", "source", "scale"]
    note = (
        "Change them by priors={site: prior}, or {site: {name: prior}} for single entries. Maximum likelihood ignores "
        "them; criterion='map' and every posterior use them."
    )
    if network:
        note += " The weights of the network mean have no prior."
    return PriorTable(pd.DataFrame(rows, columns=columns, dtype=str), note)


def readable(prior: Any, position: int | None = None) -> str:
    """``Normal(0, 2.5)``: a prior, one entry of it, or the number that takes its place.

    Its own arguments are shown to four digits; a distribution that does not say what they are is shown by its name.
    """
    if not isinstance(prior, dist.Distribution):
        return _plain(torch.as_tensor(prior), position)
    while isinstance(prior, (dist.Independent, dist.ExpandedDistribution)):
        prior = prior.base_dist
    name, arguments = type(prior).__name__, getattr(type(prior), "arg_constraints", None)
    if not isinstance(arguments, Mapping):  # of some distributions it is a property
        return name
    values = [getattr(prior, key) for key in arguments]
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        return name
    return f"{name}({', '.join(_plain(value, position) for value in values)})"


def _plain(value: torch.Tensor, position: int | None) -> str:
    if position is not None and value.dim() == 1:
        value = value[position]
    if value.dim() == 0:
        return f"{float(value):.4g}"
    numbers = [f"{float(x):.4g}" for x in value.reshape(-1)]
    if len(set(numbers)) == 1:
        return numbers[0]
    return "[" + ", ".join(numbers[:MAX_SHOWN]) + (", ..." if len(numbers) > MAX_SHOWN else "") + "]"


@dataclass(frozen=True)
class Entry:
    """The prior of one entry of a site, or of a site that is one whole.

    Attributes
    ----------
    site
        Its key in ``priors={...}``.
    name
        Label of the entry; empty for a whole site.
    prior
        A distribution, or the number or numbers that it is fixed at.
    position
        Which entry of the distribution it is; ``None`` for the whole.
    source
        ``"default"``, or ``"user"``.
    scale
        What the scale of a default prior was made of.
    """

    site: str
    name: str
    prior: Any
    position: int | None
    source: str
    scale: str


def prior_entries(
    program: Composition,
    design: Any,
    covariances: Mapping[str, Covariance] | None,
    priors: Mapping[str, Any] | None,
    family: AbstractFamily,
) -> list[Entry]:
    """Every prior of a formula's model.

    Parameters
    ----------
    covariances, priors, family
        What the user gave to `compose`.
    """
    asked, given = dict(priors or {}), dict(covariances or {})
    _, labels = linear_columns(design, program.network)
    found = []
    if labels:
        says = _coefficient_scales(design, family, program.network)
        found += _entries("beta", labels, program.linear, asked, False, says)
    for term in design.terms:
        structure = program.covariances[term.name]
        for parameter in structure.parameters(Coords(term.levels, term.terms)):
            key = parameter.name.removesuffix("_cholesky")
            own = getattr(given.get(term.name), key, None) is not None
            says = _sd_scales(design, term, family, structure) if key == "sd" else _other_scales(key, parameter)
            prior = parameter.prior if parameter.fixed is None else parameter.fixed
            found += _entries(f"{term.name}.{key}", term.terms if key == "sd" else (), prior, asked, own, says)
    for parameter in program.family.parameters():
        prior = parameter.prior if parameter.fixed is None else parameter.fixed
        own = family.config().get(parameter.name) is not None
        says = [f"{WIDTH:g} SD({design.response}) = {WIDTH:g} x {sd_of(design.y):.4g}"]
        found += _entries(f"{design.response}.{parameter.name}", (), prior, asked, own, says)
    for part, labels, parameter in _residual(program.family, design):
        key = parameter.name.removesuffix("_cholesky")
        prior = parameter.prior if parameter.fixed is None else parameter.fixed
        own = getattr(getattr(family, part), key, None) is not None
        found += _entries(f"{design.response}.{key}", labels, prior, asked, own, _other_scales(key, parameter))
    return found


def _residual(family: AbstractFamily, design: Any) -> Iterator[tuple[str, Sequence[str], Any]]:
    """Parameters of correlated residuals and of their SDs, with the labels of their entries."""
    if family.variance is not None:
        for parameter in family.variance.parameters():
            yield "variance", getattr(family.variance, "labels", ()), parameter
    if family.residual is not None:
        structure = residual_structure(family.residual, "residual")
        occasions = read_occasions(structure, design.residual, len(design.index), "residual")
        for parameter in residual_parameters(structure, occasions):
            yield "residual", (), parameter


def _entries(
    site: str, labels: Sequence[str], prior: Any, asked: Mapping[str, Any], own: bool, says: Sequence[str]
) -> list[Entry]:
    mine = asked.get(site)
    shape = prior.batch_shape + prior.event_shape if isinstance(prior, dist.Distribution) else _shape(prior)
    if not labels or shape not in ((), (len(labels),)):
        whole = "user" if own or mine is not None else "default"
        return [Entry(site, "", prior, None, whole, says[0] if whole == "default" else "")]
    rows = []
    for k, label in enumerate(labels):
        changed = own if mine is None else not isinstance(mine, Mapping) or label in mine
        position = k if shape else None
        scale = "" if changed else says[min(k, len(says) - 1)]
        rows.append(Entry(site, str(label), prior, position, "user" if changed else "default", scale))
    return rows if shape else [replace(rows[0], name=", ".join(map(str, labels)))]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(torch.as_tensor(value).shape)


def _coefficient_scales(design: Any, family: AbstractFamily, mean: torch.nn.Module | None) -> list[str]:
    columns, labels = linear_columns(design, mean)
    spread, top = spread_of(columns), _top(design, family)
    says = [
        f"{top} / SD({label}) = {_number(design, family)} / {float(s):.4g}"
        for label, s in zip(labels, spread, strict=True)
    ]
    if labels[0] == "Intercept":
        far = float((1 + (columns[:, 1:].mean(0) / spread[1:]).square().sum()).sqrt())
        about = f"about mean({design.response}), " if scaled_to_response(family) else ""
        says[0] = f"{about}{top} at the mean of the columns: {_number(design, family)} x {far:.4g}"
    return says


def _sd_scales(design: Any, term: Any, family: AbstractFamily, structure: Covariance) -> list[str]:
    top, number = _top(design, family), _number(design, family)
    if term.design is None:
        return [f"{top} = {number}" if top != number else top]
    sizes = term.design.square().mean(0).sqrt()
    says = [f"{top} / rms({t}) = {number} / {float(rms):.4g}" for t, rms in zip(term.terms, sizes, strict=True)]
    return [f"mean of {'; '.join(says)}"] if one_sd(structure, term.terms) and len(says) > 1 else says


def _other_scales(key: str, parameter: Any) -> list[str]:
    matrices = key == "corr" and isinstance(parameter.prior, dist.LKJCholesky)
    flat = matrices and float(parameter.prior.concentration) == 1.0
    return ["uniform over correlation matrices" if flat else ""]


def _top(design: Any, family: AbstractFamily) -> str:
    return f"{WIDTH:g} SD({design.response})" if scaled_to_response(family) else f"{WIDTH:g}"


def _number(design: Any, family: AbstractFamily) -> str:
    return f"{WIDTH:g} x {sd_of(design.y):.4g}" if scaled_to_response(family) else f"{WIDTH:g}"
