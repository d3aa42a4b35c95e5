"""The observation statement of a program, and programs composed of effects and a family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine

from pyromix.effects.parameter_site import parameter_site
from pyromix.errors import ConfigError, DataError
from pyromix.families.base import AbstractFamily
from pyromix.sites import Data, annotate


def observe(
    name: str,
    family: AbstractFamily,
    eta: torch.Tensor,
    obs: torch.Tensor | None,
    trials: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    **dispersion: Any,
) -> torch.Tensor:
    r"""Observe a response through a family: :math:`y_n \sim F(h(\eta_n + o_n), \phi)`.

    Sites: ``name`` (the response), and ``name.<parameter>`` for each dispersion parameter not given.

    Parameters
    ----------
    name
        Name of the response site.
    family
        An instance such as ``pyromix.Gaussian()``.
    eta
        Predictor on the link scale, ``(n,)``.
    obs
        The response ``(n,)``; ``None`` draws it.
    trials
        Binomial trials ``(n,)``; without, 0/1 data.
    offset
        Added to the predictor, ``(n,)``.
    weights
        Frequency weights ``(n,)``: row i counts ``weights[i]`` times.
    mask
        Boolean ``(n,)``: rows that are False do not count; their ``obs`` may hold anything finite.
    **dispersion
        Values for the family's dispersion parameters (``sigma=``), numbers or tensors; those not named are sampled.

    Raises
    ------
    DataError
        Shapes that differ; they are never broadcast.
    ConfigError
        A dispersion parameter that the family does not have.
    """
    if not isinstance(family, AbstractFamily):
        raise ConfigError(f"observe({name!r}): family={family!r} is not a family; pass an instance: pyromix.Gaussian().")
    _check_rows(name, eta, obs=obs, trials=trials, offset=offset, weights=weights, mask=mask)
    values = _dispersion(name, family, dispersion)
    if offset is not None:
        eta = eta + offset
    role = Data(family, eta, obs, trials, weights, mask, values)
    with ExitStack() as stack:
        stack.enter_context(pyro.plate(f"{name}.rows", eta.shape[0], dim=-1))
        if mask is not None:
            stack.enter_context(poutine.mask(mask=mask))
        if weights is not None:
            stack.enter_context(poutine.scale(scale=weights))
        return pyro.sample(name, family.distribution(eta, trials, **values), obs=obs, infer=annotate(role))


def _dispersion(name: str, family: AbstractFamily, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    declared = {parameter.name: parameter for parameter in family.parameters()}
    unknown = sorted(set(given) - set(declared))
    if unknown:
        allowed = ", ".join(declared) or "none"
        raise ConfigError(f"observe({name!r}): {type(family).__name__} has no parameter {unknown[0]!r} (it has: {allowed}).")
    values = {}
    for key, parameter in declared.items():
        if key in given:
            values[key] = torch.as_tensor(given[key], dtype=torch.float64)
        else:
            values[key] = parameter_site(f"{name}.{key}", parameter)
    return values


def _check_rows(name: str, eta: torch.Tensor, **rows: torch.Tensor | None) -> None:
    if eta.dim() not in (1, 2) or eta.shape[1:] == (1,):
        raise DataError(f"observe({name!r}): eta has shape {tuple(eta.shape)}, expected (n,); drop the extra dimension.")
    for key, value in rows.items():
        if value is not None and tuple(value.shape) != (len(eta),):
            raise DataError(
                f"observe({name!r}): {key} has shape {tuple(value.shape)}, eta has {tuple(eta.shape)}; they must agree."
            )
