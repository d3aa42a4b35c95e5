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

LAYERS = ("all", "last")


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
    layers
        Which weights the prior is of: ``"all"``, or ``"last"`` for those of the last submodule that has weights (a
        Bayesian last layer); the others are then estimated.

    Raises
    ------
    ConfigError
        Something that is not a module, a prior that is not scalar, other `layers`, or ``"last"`` without a prior or
        of a module without weights.
    """

    def __init__(
        self, name: str, module: torch.nn.Module, prior: Distribution | None = None, *, layers: str = "all"
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"NeuralEffect({name!r}): module={module!r} is not a torch.nn.Module.")
        if prior is not None and (not isinstance(prior, Distribution) or prior.batch_shape or prior.event_shape):
            raise ConfigError(f"NeuralEffect({name!r}): prior={prior!r} must be a scalar distribution or None.")
        if layers not in LAYERS:
            raise ConfigError(f"NeuralEffect({name!r}, layers={layers!r}): choose 'all' or 'last'.")
        if layers == "last" and prior is None:
            raise ConfigError(f"NeuralEffect({name!r}, layers='last'): a prior of the last layer's weights is missing.")
        self.name = name
        self.module = module
        self.prior = prior
        self.layers = layers

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
        if not _traced(value) and not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).reshape(n, -1).any(1).nonzero()[0])
            raise NumericalError(
                f"NeuralEffect({self.name!r}): {type(self.module).__name__} returned {value[row].tolist()} at row "
                f"{row}, the first of its kind; check its inputs for NaN, its weights, and the learning rate."
            )
        role = Function(self.module, frozenset(self._random_weights()))
        point = Delta(value, event_dim=value.dim()).mask(False)
        return pyro.sample(self.name, point, obs=value, infer=annotate(role, _deterministic=True))

    def _evaluate(self, x: torch.Tensor | Mapping[str, torch.Tensor], tensors: list[torch.Tensor]) -> Any:
        random = self._random_weights()
        weights = {
            key: self._weight(key, weight) if key in random else weight
            for key, weight in self.module.named_parameters()
        }
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

    def _random_weights(self) -> set[str]:
        """Names of the weights that have a prior."""
        if self.prior is None:
            return set()
        keys = [key for key, _ in self.module.named_parameters()]
        if self.layers == "all":
            return set(keys)
        if not keys:
            raise ConfigError(
                f"NeuralEffect({self.name!r}, layers='last'): {type(self.module).__name__} has no weights."
            )
        last = keys[-1].rpartition(".")[0]
        return {key for key in keys if key.rpartition(".")[0] == last}

    def _weight(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        assert self.prior is not None
        name = f"{self.name}.{key}"
        prior = double(self.prior, f"NeuralEffect({self.name!r}, prior=...)", weight.dtype)
        prior = prior.expand(weight.shape).to_event(weight.dim())
        return pyro.sample(name, prior, infer=annotate(Hyper(constraints.real)))


def _traced(value: torch.Tensor) -> bool:
    """Whether the value stands for many values, or for none yet: inside vmap, a functional gradient, or a trace.

    There it cannot be looked at; the ordinary run that precedes every trace has looked at its like.
    """
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return True
    return torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.Python)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in this precision; integer codes stay codes."""
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor
