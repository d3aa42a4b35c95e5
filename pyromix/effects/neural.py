"""Neural effects: a network as a term of the predictor."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro.distributions import Delta, Distribution
from torch.distributions import constraints

from pyromix.errors import ConfigError, DataError, NumericalError
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
        Any ``torch.nn.Module`` whose output is ``(n,)`` or ``(n, K)``. Backends learn its weights where they stand;
        float64 weights are advised (``module.double()``).
    prior
        ``None`` (weights are estimated), or a scalar distribution for every weight.
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
        DataError
            Its output is not ``(n,)`` or ``(n, K)``; ``(n, 1)`` would broadcast against a response silently.
        """
        value = self._evaluate(x)
        n = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
        if value.dim() not in (1, 2) or len(value) != n or value.shape[1:] == (1,):
            raise DataError(
                f"NeuralEffect({self.name!r}): the module returned shape {tuple(value.shape)}, expected ({n},); "
                "end it with .squeeze(-1)."
            )
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).reshape(n, -1).any(1).nonzero()[0])
            raise NumericalError(
                f"NeuralEffect({self.name!r}): {type(self.module).__name__} returned {value[row].tolist()} at row {row} "
                "(the first of its kind); check its inputs for NaN, its weights, and the learning rate."
            )
        role = Function(self.module)
        point = Delta(value, event_dim=value.dim()).mask(False)
        return pyro.sample(self.name, point, obs=value, infer=annotate(role, _deterministic=True))

    def _evaluate(self, x: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.prior is None:
            return self.module(x)
        weights = {}
        for key, weight in self.module.named_parameters():
            prior = self.prior.expand(weight.shape).to_event(weight.dim())
            weights[key] = pyro.sample(f"{self.name}.{key}", prior, infer=annotate(Hyper(constraints.real)))
        return torch.func.functional_call(self.module, weights, (x,))
