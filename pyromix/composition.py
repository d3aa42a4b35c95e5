"""Programs composed of a linear mean, a network, random effects and a family: what a formula stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions import Distribution

from pyromix.covariances import Covariance
from pyromix.effects import LinearEffect, NeuralEffect, RandomEffect
from pyromix.errors import ConfigError, DataError
from pyromix.families import AbstractFamily
from pyromix.program import observe

Inputs = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Composition:
    r"""The program :math:`\eta = X\beta + f(x) + \sum_t Z_t u_t + o`, observed through a family.

    Called with a `pyromix.Design`, or anything with its fields.

    Attributes
    ----------
    linear
        Prior of the coefficients (a scalar or one per column), by site name ``beta``; with a network, of the intercept
        alone.
    network
        The neural mean, or ``None``.
    covariances
        Structure of each random term, by the term's name.
    """

    family: AbstractFamily
    linear: Distribution | None
    covariances: Mapping[str, Covariance]
    network: torch.nn.Module | None = None
    _effects: dict[str, RandomEffect] = field(default_factory=dict, repr=False, compare=False)
    _places: dict[str, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def __name__(self) -> str:
        return "program"

    def with_network(self, network: torch.nn.Module) -> Composition:
        """The same program around another network."""
        return replace(self, network=network)

    def __call__(self, design: Any) -> None:
        eta: Any = 0.0
        columns, labels = linear_columns(design, self.network)
        if labels:
            eta = eta + LinearEffect("beta", self.linear, labels=labels)(columns)
        if self.network is not None:
            eta = eta + self._network_mean(design)
        for term in design.terms:
            index, weight = self._rows(term)
            eta = eta + self._effect(term)(index, term.design, weight)
        if not isinstance(eta, torch.Tensor):
            eta = torch.zeros(len(design.index), dtype=torch.float64)
        observe(
            design.response,
            self.family,
            eta,
            design.y,
            trials=design.trials,
            offset=design.offset,
            weights=design.frequency_weights,
            precision=design.precision_weights,
            columns=getattr(design, "residual", None),
        )

    def _network_mean(self, design: Any) -> torch.Tensor:
        assert self.network is not None
        value = NeuralEffect("mean", self.network)(network_inputs(design, self.network))
        n = len(design.index)
        if value.shape != (n,):
            raise DataError(
                f"mean=: {type(self.network).__name__} returned shape {tuple(value.shape)}, expected ({n},): "
                f"{type(self.family).__name__} responses take one number a row."
            )
        return value

    def _effect(self, term: Any) -> RandomEffect:
        """The term's effect, kept from run to run while its levels stay the same."""
        effect = self._effects.get(term.name)
        structure = self.covariances[term.name]
        mesh = getattr(structure, "mesh", None)
        if effect is None or (mesh is None and effect.levels is not term.levels):
            levels = term.levels if mesh is None else mesh.size
            effect = RandomEffect(term.name, structure, levels=levels, terms=term.terms, group=term.group)
            self._effects[term.name] = effect
        return effect

    def _rows(self, term: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Levels of every row and their weights: those of the term, or vertices of a mesh around the row's place."""
        mesh = getattr(self.covariances[term.name], "mesh", None)
        if mesh is None:
            return term.index, term.weight
        kept = self._places.get(term.name)
        if kept is None or kept[0] is not term.levels or kept[1] is not term.index:
            index, weight = mesh.projector(list(term.levels))
            kept = (term.levels, term.index, index[term.index], weight[term.index])
            self._places[term.name] = kept
        return kept[2:]


def linear_columns(design: Any, network: torch.nn.Module | None) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Columns of the linear part and their names: all of them, or the intercept where a network has the rest."""
    if network is None:
        return design.x, tuple(design.columns)
    count = 1 if design.has_intercept else 0
    return design.x[:, :count], tuple(design.columns[:count])


def network_inputs(design: Any, network: torch.nn.Module) -> Inputs:
    """What a neural mean is given: the columns (n, k), or a dict with the codes of those it declares as categorical.

    Indicator columns of the declared categories are left out of ``numeric``; those of other categories stay in it.
    """
    inputs = design.inputs()
    declared = tuple(getattr(network, "categorical", ()) or ())
    if not declared:
        return inputs["numeric"]
    unknown = sorted(set(declared) - set(inputs["codes"]))
    if unknown:
        known = ", ".join(sorted(inputs["codes"])) or "none"
        raise ConfigError(
            f"mean: the module declares the categorical column {unknown[0]!r}, which the formula's fixed part does not "
            f"have as a category (it has: {known}); add it to the formula, or take it out of the module."
        )
    keep = [k for k, factors in enumerate(inputs["factors"]) if not _covered(factors, declared)]
    return {"numeric": inputs["numeric"][:, keep], **{name: inputs["codes"][name] for name in declared}}


def _covered(factors: tuple[str, ...], declared: tuple[str, ...]) -> bool:
    """Whether a column says nothing that the codes of the declared categories do not say."""
    return len(factors) > 0 and all(factor in declared for factor in factors)
