"""A guide of the user's: any Pyro guide, fitted by Pyro's own ELBO inside a parameter store of the fit's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_value
from pyro.poutine.messenger import Messenger

from pyromix.backends.batches import subset
from pyromix.backends.variational.grouped import NETWORK_RATE
from pyromix.backends.variational.objective import AbstractObjective
from pyromix.errors import ConfigError, UnsupportedError
from pyromix.results.estimate import Draws
from pyromix.running import Program, isolated
from pyromix.sites import Data, Function, annotation


class _Weigh(Messenger):
    """Count what is observed `data` times, and everything else `rest` times."""

    def __init__(self, data: float, rest: float) -> None:
        super().__init__()
        self.data, self.rest = data, rest

    def _pyro_sample(self, msg: Any) -> None:
        role = annotation(msg)
        if isinstance(role, Function) or type(msg["fn"]).__name__ == "_Subsample":
            return
        observed = isinstance(role, Data) or msg["is_observed"]
        factor = self.data if observed else self.rest
        if factor != 1.0:
            msg["scale"] = factor * msg["scale"]


DOT = "|"  # takes the place of dots in the names that automatic guides see: they read a dot as an attribute


class _Rename(Messenger):
    """Sites under names without dots."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = msg["name"].replace(".", DOT)


class OwnGuide(AbstractObjective):
    """The objective of a Pyro guide.

    The guide's parameters live in a store that belongs to this fit, and an automatic guide is copied first: neither the
    global store nor another fit sees them. Batches are rows of the arguments, handed to program and guide alike, with
    the observed sites scaled to all groups; no plate is subsampled behind anyone's back.
    """

    joint = True

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        rows: int,
        guide: Callable[..., Any],
        modules: list[torch.nn.Module],
        *,
        start: Draws | None = None,
        beta: float = 1.0,
        pairs: int = 1,
    ) -> None:
        self.args, self.rows, self.modules, self.beta = args, rows, modules, beta
        self.program, self.guide = _pair(program, guide, start or {})
        self.elbo = Trace_ELBO(num_particles=2 * pairs)
        self.store: Any = None
        with self._scope(0), torch.no_grad():
            self.guide(*args)  # makes the parameters
            self.parameters = {
                name: value.unconstrained()
                for name, value in pyro.get_param_store().named_parameters()
                for value in [pyro.get_param_store()[name]]
            }
        if not self.parameters:
            raise ConfigError(f"SVI(guide={guide!r}): the guide has no parameters (pyro.param) that could be fitted.")
        for value in self.parameters.values():
            value.requires_grad_(True)

    @contextmanager
    def _scope(self, seed: int) -> Iterator[None]:
        """The fit's own parameter store and random numbers."""
        with isolated(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            store = pyro.get_param_store()
            if self.store is not None:
                store.set_state(self.store)
            yield
            self.store = store.get_state()

    def groups(self) -> list[tuple[list[torch.Tensor], float]]:
        weights = [w for module in self.modules for w in module.parameters() if w.requires_grad]
        known = {id(w) for w in weights}
        return [([p for p in self.parameters.values() if id(p) not in known], 1.0), (weights, NETWORK_RATE)]

    def tables(self) -> dict[str, torch.Tensor]:
        return {f"buffer.{k}.{n}": b for k, module in enumerate(self.modules) for n, b in module.named_buffers()}

    def entries(self) -> int:
        return sum(value.numel() for value in self.parameters.values())

    def step(self, rows: np.ndarray | None, share: float, seed: int) -> float:
        for module in self.modules:
            module.train()
        args = self.args if rows is None else subset(self.args, torch.from_numpy(rows), self.rows)
        with self._scope(seed):
            program = _Weigh(1.0 / share, self.beta)(self.program)
            guide = self.guide if self.beta == 1.0 else _Weigh(1.0, self.beta)(self.guide)
            return -float(self.elbo.loss_and_grads(program, guide, *args))

    def finish(self, batches: list[np.ndarray] | None, seed: int) -> None:
        for module in self.modules:
            module.eval()

    def log_weights(self, batches: list[np.ndarray] | None, draws: int, seed: int) -> np.ndarray:
        out = []
        with self._scope(seed), torch.no_grad():
            for _ in range(draws):
                guide = poutine.trace(self.guide).get_trace(*self.args)
                model = poutine.trace(poutine.replay(self.program, trace=guide)).get_trace(*self.args)
                prior, data = _split(model)
                out.append(float(data + self.beta * (prior - guide.log_prob_sum())))
        return np.array(out)

    def draws(self, count: int, seed: int) -> Draws:
        drawn = []
        with self._scope(seed), torch.no_grad():
            for _ in range(count):
                guide = poutine.trace(self.guide).get_trace(*self.args)
                model = poutine.trace(poutine.replay(self.program, trace=guide)).get_trace(*self.args)
                drawn.append({name.replace(DOT, "."): site["value"].detach() for name, site in _latent(model)})
        return {name: torch.stack([values[name] for values in drawn]) for name in drawn[0]}

    def held_out(self, rows: np.ndarray) -> float:
        raise UnsupportedError("SVI(validation=...): groups can be held out from pyromix's own guides only.")


def _pair(program: Program, guide: Callable[..., Any], start: Draws) -> tuple[Program, Callable[..., Any]]:
    """Program and guide with sites of the same names; an automatic guide is built, or copied, for this fit alone."""
    if not (inspect.isclass(guide) or isinstance(guide, AutoGuide)):
        return program, copy.deepcopy(guide) if isinstance(guide, torch.nn.Module) else guide
    if inspect.isclass(guide):
        renamed = _Rename()(program)
        values = {name.replace(".", DOT): value for name, value in start.items()}
        if values and "init_loc_fn" in inspect.signature(guide).parameters:
            return renamed, guide(renamed, init_loc_fn=init_to_value(values=values))
        return renamed, guide(renamed)
    return _Rename()(program), _copied(guide)


def _copied(guide: AutoGuide) -> AutoGuide:
    """A copy of an automatic guide, on renamed sites; copying takes the program from both, so both get theirs back."""
    models = [getattr(part, "_model", None) for part in guide.modules()]
    masters = [getattr(part, "master", None) for part in guide.modules()]
    own = copy.deepcopy(guide)
    for part, mine, model, master in zip(guide.modules(), own.modules(), models, masters, strict=True):
        if isinstance(part, AutoGuide):
            part._model, part.master = model, master
            mine._model = None if model is None else (_Rename()(model[0]),)
    return own


def _latent(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


def _split(trace: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log density of what is latent, and of what is observed."""
    trace.compute_log_prob()
    latent = {name for name, _ in _latent(trace)}
    totals = {True: torch.zeros((), dtype=torch.float64), False: torch.zeros((), dtype=torch.float64)}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and "log_prob_sum" in site:
            totals[name in latent] = totals[name in latent] + site["log_prob_sum"]
    return totals[True], totals[False]
