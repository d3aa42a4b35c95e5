"""Default structures and weakly informative default priors of a formula's model, scaled to its data.

As rstanarm: coefficients ``Normal(0, 2.5 s_y / s_x)``, the intercept about the mean of a Gaussian response, SDs
half-normal with scale ``2.5 s_y / rms(z)``, where ``s_y`` is the SD of a Gaussian response with identity link, and 1
otherwise. Maximum likelihood does not use them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch

from pyromix.composition import Composition, linear_columns
from pyromix.covariances import IID, Covariance, Diagonal, Unstructured
from pyromix.errors import ConfigError
from pyromix.families import AbstractFamily

STRUCTURES: dict[str, type[Covariance]] = {"iid": IID, "us": Unstructured, "diag": Diagonal}
WIDTH = 2.5


def compose(
    design: Any,
    family: AbstractFamily,
    mean: torch.nn.Module | None,
    covariances: Mapping[str, Covariance] | None,
    priors: Mapping[str, Any] | None,
) -> Composition:
    """The program of a design, with every prior the user did not give filled in.

    Raises
    ------
    ConfigError
        A name in `covariances` or `priors` that the model does not have.
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
    used: set[str] = set()
    size = _response_size(design, family)
    structures = {}
    for term in design.terms:
        structure = given.get(term.name, STRUCTURES[term.structure]())
        structures[term.name] = _with_priors(structure, term, asked, used, size)
    family = _family_prior(family, design, asked, used)
    linear = asked.get("beta", _coefficient_prior(design, family, mean, size))
    used.add("beta")
    unknown = sorted(set(asked) - used)
    if unknown:
        raise ConfigError(f"priors: no site {unknown[0]!r}; the sites are {', '.join(sorted(used))}.")
    return Composition(family, linear, structures, mean)


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
        arguments += [asked.get(f"{name}.{key}", value) for key, value in structure.items() if key != "corr"]
    for parameter in family.parameters():
        arguments.append(rest.get(parameter.name, family.config().get(parameter.name)))
    return all(argument is not None and not isinstance(argument, dist.ImproperUniform) for argument in arguments)


def _with_priors(structure: Covariance, term: Any, asked: dict[str, Any], used: set[str], size: float) -> Covariance:
    """The structure with the priors asked for by site name, and a scaled prior for SDs that have none."""
    given = vars(structure)
    arguments = {key: given[key] for key in inspect.signature(type(structure)).parameters if key in given}
    changed = {}
    for key in arguments:
        site = f"{term.name}.{key}"
        used.add(site)
        if site in asked:
            changed[key] = asked[site]
    if "sd" in arguments and arguments["sd"] is None and "sd" not in changed:
        changed["sd"] = dist.HalfNormal(_sd_scale(term, size, scalar=isinstance(structure, IID)))
    return type(structure)(**{**arguments, **changed}) if changed else structure


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
            arguments[parameter.name] = dist.HalfNormal(torch.tensor(WIDTH * _sd(design.y), dtype=torch.float64))
    return type(family)(**arguments) if len(arguments) > 1 else family


def _coefficient_prior(design: Any, family: AbstractFamily, mean: torch.nn.Module | None, size: float) -> Any:
    columns, labels = linear_columns(design, mean)
    if not labels:
        return None
    spread = columns.std(0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    centre = torch.zeros(len(labels), dtype=torch.float64)
    if labels[0] == "Intercept" and family.has_residual and family.link.name == "identity":
        centre[0] = design.y.mean()
    return dist.Normal(centre, WIDTH * size / spread)


def _response_size(design: Any, family: AbstractFamily) -> float:
    return _sd(design.y) if family.has_residual and family.link.name == "identity" else 1.0


def _sd(y: torch.Tensor) -> float:
    size = float(y.std()) if len(y) > 1 else 0.0
    return size if size > 0 else 1.0
