"""Default structures and weakly informative default priors of a formula's model, scaled to its data.

As rstanarm and Bambi: coefficients ``Normal(0, 2.5 s_y / s_x)``, where ``s_y`` is the SD of a Gaussian response with
identity link, and 1 otherwise. The intercept is about the mean of such a response, else zero; its SD is that of a
prior of SD ``2.5 s_y`` on the predictor at the mean of the columns: ``2.5 s_y sqrt(1 + sum((mean_x / s_x)^2))``, since
the intercept stands for the point where every column is zero, however far that is from the data. SDs are half-normal
with scale ``2.5 s_y / rms(z)``, the residual SD with ``2.5 s_y``, and correlation matrices uniform. Maximum likelihood
does not use them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from pyromix.composition import Composition, linear_columns
from pyromix.covariances import IID, CompoundSymmetry, Coords, Covariance, Diagonal, Toeplitz, Unstructured
from pyromix.errors import ConfigError
from pyromix.families import AbstractFamily
from pyromix.wrappers import unused, wrapped

WIDTH = 2.5
NAMES = ("time", "within", "column", "strata", "over", "hom", "p", "q", "sd")  # arguments that are no sites
_NOT_ALL = (dist.ImproperUniform, Mapping)  # no proper prior; priors of some entries


def compose(
    design: Any,
    family: AbstractFamily,
    mean: torch.nn.Module | None,
    covariances: Mapping[str, Covariance] | None,
    priors: Mapping[str, Any] | None,
    known: Mapping[str, Any] | None = None,
) -> Composition:
    """The program of a design, with every prior the user did not give filled in.

    Parameters
    ----------
    known
        What the formula names: matrices, pedigrees, graphs, meshes.

    Raises
    ------
    ConfigError
        A name in `covariances`, `priors` or `known` that the model does not have.
    """
    given, asked = dict(covariances or {}), dict(priors or {})
    names = [term.name for term in design.terms]
    for name, structure in given.items():
        if name not in names:
            raise ConfigError(f"covariances: no random term {name!r}; the terms are {', '.join(names) or 'none'}.")
        if not isinstance(structure, Covariance):
            raise ConfigError(
                f"covariances[{name!r}] = {structure!r} is not a covariance; pass e.g. pyromix.Unstructured()."
            )
    needless = unused(design.terms, known or {})
    if needless:
        raise ConfigError(f"known: no random term of the formula names {needless[0]!r}.")
    used: set[str] = set()
    size = _response_size(design, family)
    structures = {}
    for term in design.terms:
        structure = given.get(term.name) or wrapped(term, known or {})
        structures[term.name] = _with_priors(structure, term, asked, used, size)
    family = _family_prior(family, design, asked, used)
    linear = _coefficient_prior(design, family, mean, size)
    if "beta" in asked:
        linear = _given("beta", asked["beta"], linear, linear_columns(design, mean)[1])
    used.add("beta")
    unknown = sorted(set(asked) - used)
    if unknown:
        raise ConfigError(f"priors: no site {unknown[0]!r}; the sites are {', '.join(sorted(used))}.")
    return Composition(family, linear, structures, mean)


def correlated_terms(covariances: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Terms that are given a structure in which levels need not be independent."""
    alike = (IID, Diagonal, Unstructured, CompoundSymmetry, Toeplitz)
    return tuple(name for name, structure in (covariances or {}).items() if not isinstance(structure, alike))


def placing_terms(covariances: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Terms that are given a structure which takes places anywhere: new ones are no new levels."""
    return tuple(name for name, structure in (covariances or {}).items() if hasattr(structure, "mesh"))


def all_proper(
    formula: Any, family: AbstractFamily, covariances: Mapping[str, Any] | None, priors: Mapping[str, Any] | None
) -> bool:
    """Whether the user gave every parameter a proper prior, or fixed it; correlations have one anyway."""
    given, asked = dict(covariances or {}), dict(priors or {})
    names = formula.effects
    rest = {site.rpartition(".")[2]: prior for site, prior in asked.items() if site.rpartition(".")[0] not in names}
    arguments = [] if formula.fixed in ("0", "-1") else [asked.get("beta")]
    for name in names:
        structure = vars(given[name]) if isinstance(given.get(name), Covariance) else {"sd": None}
        sites = [key for key in structure if key not in ("corr", "time", "within")]
        arguments += [asked.get(f"{name}.{key}", structure[key]) for key in sites]
    for parameter in family.parameters():
        arguments.append(rest.get(parameter.name, family.config().get(parameter.name)))
    return all(argument is not None and not isinstance(argument, _NOT_ALL) for argument in arguments)


def _with_priors(structure: Covariance, term: Any, asked: dict[str, Any], used: set[str], size: float) -> Covariance:
    """The structure with the priors asked for by site name, and a scaled prior for SDs that have none."""
    names = [p.name.removesuffix("_cholesky") for p in structure.parameters(Coords(term.levels, term.terms))]
    used.update(f"{term.name}.{name}" for name in names)
    mine = {name: asked[f"{term.name}.{name}"] for name in names if f"{term.name}.{name}" in asked}
    for name, prior in mine.items():
        default = (
            _sd_prior(structure, term, size) if name == "sd" and _lacks_sd(structure) else vars(structure).get(name)
        )
        structure = _changed(structure, name, _given(f"{term.name}.{name}", prior, default, term.terms))
    if _lacks_sd(structure):
        structure = _changed(structure, "sd", _sd_prior(structure, term, size))
    return structure


def _lacks_sd(structure: Covariance) -> bool:
    return vars(structure).get("sd", 0.0) is None


def _changed(structure: Any, name: str, prior: Any) -> Covariance:
    """The structure with a prior at one of its parameters: an argument, one of a part, or one of a kernel."""
    given = vars(structure)
    arguments = {key: given[key] for key in inspect.signature(type(structure)).parameters if key in given}
    part, dot, inner = name.partition(".")
    if name in arguments:
        arguments[name] = prior
    elif dot and part in arguments:
        arguments[part] = _changed(given[part], inner, prior)
    else:
        arguments["priors"] = {**given["priors"], name: prior}
    return type(structure)(**arguments)


def _sd_prior(structure: Covariance, term: Any, size: float) -> dist.Distribution:
    return dist.HalfNormal(_sd_scale(term, size, scalar=one_sd(structure, term.terms)))


def one_sd(structure: Covariance, terms: Sequence[str]) -> bool:
    """Whether one SD serves all terms of a level."""
    return any(p.name == "sd" and p.shape == () for p in structure.parameters(Coords((), tuple(terms))))


def _given(site: str, asked: Any, default: Any, labels: Sequence[str]) -> Any:
    """What the user asked for at a site; where that is a mapping from entries, the default's priors with those changed.

    Raises
    ------
    ConfigError
        An entry that the site does not have, something that is no scalar prior, or priors of different families: a
        site has one distribution.
    """
    if not isinstance(asked, Mapping):
        return asked
    if not isinstance(default, dist.Distribution) or default.batch_shape != (len(labels),):
        raise ConfigError(f"priors[{site!r}] = {dict(asked)!r}: this site has no named entries; give it one prior.")
    unknown = [entry for entry in asked if entry not in labels]
    if unknown:
        raise ConfigError(f"priors[{site!r}]: no entry {unknown[0]!r}; the entries are {', '.join(labels)}.")
    for entry, prior in asked.items():
        if not isinstance(prior, dist.Distribution) or prior.batch_shape or prior.event_shape:
            raise ConfigError(
                f"priors[{site!r}][{entry!r}] = {prior!r}: pass a prior of one number, e.g. Normal(0, 5)."
            )
    kinds = {label: type(asked.get(label, default)) for label in labels}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{kind.__name__} for {label}" for label, kind in kinds.items())
        raise ConfigError(f"priors[{site!r}]: its entries need priors of one family; found {listed}.")
    kind = kinds[labels[0]]
    return kind(**{name: _stacked(name, asked, default, labels) for name in kind.arg_constraints})


def _stacked(name: str, asked: Mapping[str, Any], default: Any, labels: Sequence[str]) -> torch.Tensor:
    """One argument of the priors of every entry, (entries,)."""
    entries = [getattr(asked[label], name) if label in asked else getattr(default, name)[k]
               for k, label in enumerate(labels)]  # fmt: skip
    return torch.stack([torch.as_tensor(entry, dtype=torch.float64) for entry in entries])


def _sd_scale(term: Any, size: float, scalar: bool) -> torch.Tensor:
    if term.design is None:
        rms = torch.ones(1, dtype=torch.float64)
    else:
        rms = term.design.square().mean(0).sqrt().clamp(min=1e-12)
    scale = WIDTH * size / rms
    return scale.mean() if scalar else scale


def _family_prior(family: AbstractFamily, design: Any, asked: dict[str, Any], used: set[str]) -> AbstractFamily:
    """The family with priors for its dispersion, by site name ``<response>.<parameter>``."""
    arguments: dict[str, Any] = {"link": family.link.name}
    accepted = inspect.signature(type(family)).parameters
    for parameter in family.parameters():
        if parameter.name not in accepted:
            continue  # the family keeps this prior to itself
        site = f"{design.response}.{parameter.name}"
        used.add(site)
        configured = family.config().get(parameter.name)
        if site in asked:
            arguments[parameter.name] = asked[site]
        elif parameter.fixed is not None:
            arguments[parameter.name] = parameter.fixed
        elif configured is not None:
            arguments[parameter.name] = parameter.prior
        else:
            arguments[parameter.name] = dist.HalfNormal(torch.tensor(WIDTH * sd_of(design.y), dtype=torch.float64))
    for key in ("residual", "variance"):
        part = getattr(family, key)
        if part is not None:
            arguments[key] = _asked_of(part, design, asked, used)
    return type(family)(**arguments) if len(arguments) > 1 else family


def _asked_of(part: Any, design: Any, asked: dict[str, Any], used: set[str]) -> Any:
    """A residual structure or variance function with the priors asked for by site name, and with its strata named."""
    if hasattr(part, "with_strata"):
        part = part.with_strata(np.unique(design.residual[part.column]).tolist())
    changed = {}
    for key in vars(part):
        site = f"{design.response}.{key}"
        if key not in NAMES:
            used.add(site)
            if site in asked:
                changed[key] = asked[site]
    return type(part)(**{**vars(part), **changed}) if changed else part


def _coefficient_prior(design: Any, family: AbstractFamily, mean: torch.nn.Module | None, size: float) -> Any:
    columns, labels = linear_columns(design, mean)
    if not labels:
        return None
    spread = spread_of(columns)
    scale = WIDTH * size / spread
    centre = torch.zeros(len(labels), dtype=torch.float64)
    if labels[0] == "Intercept":
        far = columns[:, 1:].mean(0) / spread[1:]
        scale[0] = WIDTH * size * (1 + far.square().sum()).sqrt()
        if scaled_to_response(family):
            centre[0] = design.y.mean()
    return dist.Normal(centre, scale)


def spread_of(columns: torch.Tensor) -> torch.Tensor:
    """SD of every column, one for a constant one."""
    spread = columns.std(0) if len(columns) > 1 else torch.zeros(columns.shape[1], dtype=torch.float64)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def scaled_to_response(family: AbstractFamily) -> bool:
    return family.has_residual and family.link.name == "identity"


def _response_size(design: Any, family: AbstractFamily) -> float:
    return sd_of(design.y) if scaled_to_response(family) else 1.0


def sd_of(y: torch.Tensor) -> float:
    size = float(y.std()) if len(y) > 1 else 0.0
    return size if size > 0 else 1.0
