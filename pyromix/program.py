"""The observation statement of a program, and programs composed of effects and a family."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine

from pyromix.effects.parameter_site import float64, parameter_site
from pyromix.effects.residual import Following, with_residuals
from pyromix.errors import ConfigError, DataError, DataTypeError
from pyromix.families.base import AbstractFamily
from pyromix.parameters import fixed
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
    *,
    precision: torch.Tensor | None = None,
    columns: Mapping[str, Any] | None = None,
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
    precision
        Precision weights ``(n,)`` of a response with a residual variance: row i has SD ``sigma / sqrt(precision[i])``.
    columns
        What the family's ``residual=`` and ``variance=`` read, by the names they were given: one value a row, as a
        tensor, an array or a list.
    **dispersion
        Values for the family's dispersion parameters (``sigma=``), numbers or tensors; those not named are sampled.

    Raises
    ------
    DataError
        Shapes that differ; they are never broadcast.
    DataTypeError
        Something that is not a tensor of real numbers, a mask that is not boolean.
    ConfigError
        A dispersion parameter that the family does not have, or a value it cannot take.
    """
    if not isinstance(family, AbstractFamily):
        raise ConfigError(f"observe({name!r}): family={family!r} is no family; pass an instance: pyromix.Gaussian().")
    eta = float64(eta, f"observe({name!r}): eta")
    rows = {"obs": obs, "trials": trials, "offset": offset, "weights": weights, "precision": precision, "mask": mask}
    obs, trials, offset, weights, precision, mask = _rows(name, eta, rows)
    values = _dispersion(name, family, dispersion, len(eta))
    if precision is not None:
        values = family.weigh(values, precision)
    if offset is not None:
        eta = eta + offset
    role = Data(family, eta, obs, trials, weights, mask, values)
    if family.residual is not None or family.variance is not None:
        role = with_residuals(name, role, _columns(name, columns, len(eta)))
    with ExitStack() as stack:
        stack.enter_context(pyro.plate(f"{name}.rows", eta.shape[0], dim=-1))
        if mask is not None:
            stack.enter_context(poutine.mask(mask=mask))
        if weights is not None:
            # Pyro scales by positive numbers only: a row of weight zero is one that does not count
            counts = weights != 0
            stack.enter_context(poutine.mask(mask=counts))
            stack.enter_context(poutine.scale(scale=torch.where(counts, weights, 1.0)))
        return pyro.sample(name, _density(role), obs=obs, infer=annotate(role))


def _density(role: Data) -> Any:
    if role.chain is not None and role.obs is None:
        return Following(role)
    return role.family.distribution(role.eta, role.trials, **role.dispersion)


def _columns(name: str, columns: Mapping[str, Any] | None, n: int) -> Mapping[str, Any]:
    columns = columns or {}
    for key, value in columns.items():
        if len(value) != n:
            raise DataError(f"observe({name!r}): columns[{key!r}] has {len(value)} values, eta {n}; they must agree.")
    return columns


def _dispersion(name: str, family: AbstractFamily, given: dict[str, Any], n: int) -> dict[str, torch.Tensor]:
    declared = {parameter.name: parameter for parameter in family.parameters()}
    unknown = sorted(set(given) - set(declared))
    if unknown:
        owner, allowed = type(family).__name__, ", ".join(declared) or "none"
        raise ConfigError(f"observe({name!r}): {owner} has no parameter {unknown[0]!r} (it has: {allowed}).")
    values = {}
    for key, parameter in declared.items():
        where = f"observe({name!r}, {key}=...)"
        if key not in given:
            values[key] = parameter_site(f"{name}.{key}", parameter)
        elif not isinstance(given[key], torch.Tensor):
            values[key] = fixed(given[key], parameter.support, where)
        else:
            values[key] = float64(given[key], where)
        if values[key].shape not in ((), (n,)):
            raise DataError(f"{where}: got shape {tuple(values[key].shape)}, expected a scalar or ({n},).")
    return values


def _rows(name: str, eta: torch.Tensor, rows: dict[str, torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Every row-wise argument, checked against eta's rows, in float64; the mask stays boolean."""
    if eta.dim() not in (1, 2) or eta.shape[1:] == (1,):
        shape = tuple(eta.shape)
        raise DataError(f"observe({name!r}): eta has shape {shape}, expected (n,); end a network with .squeeze(-1).")
    for key, value in rows.items():
        if value is None:
            continue
        tensor = float64(value, f"observe({name!r}): {key}")
        if tuple(tensor.shape) != (len(eta),):
            got, expected = tuple(tensor.shape), tuple(eta.shape)
            raise DataError(f"observe({name!r}): {key} has shape {got}, eta has {expected}; they must agree.")
        if key == "mask" and value.dtype != torch.bool:
            raise DataTypeError(f"observe({name!r}): mask is of {value.dtype}, expected torch.bool; True rows count.")
        rows[key] = value if key == "mask" else tensor
    return list(rows.values())
