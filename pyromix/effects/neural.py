"""Neural effects: a network as a term of the predictor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, Distribution
from torch.distributions import constraints

from pyromix.errors import ConfigError, DataError, DataTypeError, NumericalError
from pyromix.parameters import double
from pyromix.sites import Function, Hyper, annotate


class NeuralEffect:
    """A network's output as a term of the predictor.

    Sites: ``name`` (the output, deterministic, carrying the module). With a `prior`, one site per weight tensor,
    ``name.<weight>``, which takes the place of the module's own weights; the module itself is never changed by a run.

    Parameters
    ----------
    name
        Name of the effect.
    module
        Any ``torch.nn.Module`` whose output is ``(n,)`` or ``(n, K)``. Backends learn its weights where they stand.
        Inputs are handed over in the precision of its weights and its output is taken in as float64; float64 weights
        are advised (``module.double()``).
    prior
        ``None`` (weights are estimated), or a scalar distribution for every weight.

    Raises
    ------
    ConfigError
        Something that is not a module, or a prior that is not scalar.
    """

    def __init__(self, name: str, module: torch.nn.Module, prior: Distribution | None = None) -> None:
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"NeuralEffect({name!r}): module={module!r} is not a torch.nn.Module.")
        if prior is not None and (not isinstance(prior, Distribution) or prior.batch_shape or prior.event_shape):
            raise ConfigError(f"NeuralEffect({name!r}): prior={prior!r} must be a scalar distribution or None.")
        self.name = name
        self.module = module
        self.prior = prior

    def __call__(self, x: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the network on a tensor or a dict of tensors and return its output.

        Raises
        ------
        NumericalError
            The network returned a value that is not finite.
        DataTypeError
            The input, or the output, is not made of tensors.
        DataError
            The module refused the input's shape; or its output is not ``(n,)`` or ``(n, K)``: ``(n, 1)`` would
            broadcast against a response silently.
        """
        tensors = list(x.values()) if isinstance(x, Mapping) else [x]
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            raise DataTypeError(f"NeuralEffect({self.name!r}): its input must be a tensor or a dict of tensors.")
        value = self._evaluate(x, tensors)
        if not isinstance(value, torch.Tensor):
            got = type(value).__name__
            raise DataTypeError(f"NeuralEffect({self.name!r}): the module returned a {got}, expected one tensor.")
        n = len(tensors[0])
        if value.dim() not in (1, 2) or len(value) != n or value.shape[1:] == (1,):
            raise DataError(
                f"NeuralEffect({self.name!r}): the module returned shape {tuple(value.shape)}, expected ({n},); "
                "end it with torch.nn.Flatten(0), or .squeeze(-1)."
            )
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).reshape(n, -1).any(1).nonzero()[0])
            raise NumericalError(
                f"NeuralEffect({self.name!r}): {type(self.module).__name__} returned {value[row].tolist()} at row "
                f"{row}, the first of its kind; check its inputs for NaN, its weights, and the learning rate."
            )
        role = Function(self.module)
        point = Delta(value, event_dim=value.dim()).mask(False)
        return pyro.sample(self.name, point, obs=value, infer=annotate(role, _deterministic=True))

    def _evaluate(self, x: torch.Tensor | Mapping[str, torch.Tensor], tensors: list[torch.Tensor]) -> Any:
        weights = {key: self._weight(key, weight) for key, weight in self.module.named_parameters()}
        dtypes = {weight.dtype for weight in weights.values() if weight.dtype.is_floating_point}
        if len(dtypes) == 1:
            (dtype,) = dtypes
            x = {k: _cast(v, dtype) for k, v in x.items()} if isinstance(x, Mapping) else _cast(x, dtype)
        try:
            value = self.module(x) if self.prior is None else torch.func.functional_call(self.module, weights, (x,))
        except RuntimeError as error:
            if "shape" not in str(error):
                raise
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise DataError(
                f"NeuralEffect({self.name!r}): {type(self.module).__name__} refused an input of shape {shapes}: {error}"
            ) from error
        return _cast(value, torch.float64) if isinstance(value, torch.Tensor) else value

    def _weight(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        if self.prior is None:
            return weight
        name = f"{self.name}.{key}"
        prior = double(self.prior, f"NeuralEffect({self.name!r}, prior=...)", weight.dtype)
        prior = prior.expand(weight.shape).to_event(weight.dim())
        return pyro.sample(name, prior, infer=annotate(Hyper(constraints.real)))


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in this precision; integer codes stay codes."""
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor
