"""The facade: formula -> program -> fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyromix.backends import AbstractBackend, MaximumLikelihood
from pyromix.backends.base import check_seed
from pyromix.composition import linear_columns, network_inputs
from pyromix.covariances import Covariance
from pyromix.defaults import all_proper, compose, correlated_terms, placing_terms
from pyromix.errors import ConfigError
from pyromix.families import AbstractFamily, Gaussian
from pyromix.formula.design import Design
from pyromix.formula.parse import parse
from pyromix.persistence import describe_model, describe_program, load
from pyromix.priors import PriorTable, prior_entries, prior_table
from pyromix.results import Fit
from pyromix.results import prior as results
from pyromix.results.prior import PriorPredictive
from pyromix.running import Program
from pyromix.source import program_source
from pyromix.threads import one_thread

__all__ = ["Model", "fit", "load", "model", "prior_predictive"]


class Model:
    """A formula applied to data: a design and the program that it stands for.

    Attributes
    ----------
    design
        Response, model matrices and group codes (`pyromix.Design`).
    program
        The Pyro program; ``program(design)`` runs it.
    formula
        The formula's text.
    """

    def __init__(self, design: Design, program: Any, priors: PriorTable) -> None:
        self.design, self.program = design, program
        self.formula = design.formula.text
        self._priors = priors

    @one_thread()
    def fit(self, backend: AbstractBackend | None = None, seed: int = 0, progress: bool = True) -> Fit:
        """Fit by a backend, by default `pyromix.MaximumLikelihood`.

        A neural mean is copied first: the module handed to `pyromix.model` keeps its weights, every fit has its own.
        """
        backend = _checked_backend(backend)
        check_seed(seed)
        self._check_identified(backend)
        program = self.program
        if program.network is not None:
            program = program.with_network(copy.deepcopy(program.network))
        estimate = backend.estimate(program, (self.design,), seed=seed, progress=progress)
        fitted = Fit(
            estimate,
            program,
            (self.design,),
            design=self.design,
            family=program.family,
            formula_text=self.formula,
            new_design=self.design.new,
        )
        fitted.describe = lambda: describe_model(self.design, program)
        return fitted

    def _check_identified(self, backend: AbstractBackend) -> None:
        """A design that only its priors identify cannot be fitted without them."""
        state = self.design.state
        if state is None or not state.proper_priors or getattr(backend, "criterion", "map") == "map":
            return
        columns, labels = linear_columns(self.design, self.program.network)
        rank = int(torch.linalg.matrix_rank(columns)) if labels else 0
        if rank < len(labels):
            raise ConfigError(
                f"{type(backend).__name__}(criterion={backend.criterion!r}) ignores the priors, and without them "  # type: ignore[attr-defined]
                f"{len(columns)} rows of rank {rank} do not determine {len(labels)} coefficients. Use criterion='map'."
            )

    def source(self) -> str:
        """The program as Pyro source: paste it, run ``program(model.design)``, edit it."""
        return program_source(self.program, self.design, self.formula)

    def priors(self) -> PriorTable:
        """Every prior: its site, the prior, whether it is a default, and what its scale was made of."""
        return self._priors

    def prior_predictive(self, draws: int = 500, seed: int = 0) -> PriorPredictive:
        """Draws of every parameter, random effect and response from the priors, as ``arviz.InferenceData``."""
        return results.prior_predictive(self.program, (self.design,), draws, seed)

    def __repr__(self) -> str:
        return f"<Model {self.formula!r}: {self.program.family!r}, {len(self.design.index)} rows>"


def model(
    formula: str,
    data: Any,
    family: AbstractFamily | None = None,
    *,
    mean: torch.nn.Module | None = None,
    covariances: Mapping[str, Covariance] | None = None,
    priors: Mapping[str, Any] | None = None,
    offset: Any = None,
    precision_weights: Any = None,
    frequency_weights: Any = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    known: Mapping[str, Any] | None = None,
    missing: str = "error",
) -> Model:
    """A hierarchical model from an lme4 formula.

    Parameters
    ----------
    formula
        ``"Reaction ~ Days + (Days | Subject)"``; the grammar is in ``docs/formula.md``.
    data
        A data frame, or a mapping of columns. Never changed.
    family
        Response family, by default ``pyromix.Gaussian()``.
    mean
        A ``torch.nn.Module`` that takes the place of the linear fixed effects; the intercept stays outside it.
    covariances
        Structure by random term, instead of the one its formula implies.
    priors
        Prior (or fixed number) by site: ``"beta"``, ``"Subject.sd"``, ``"Subject.corr"``, ``"Reaction.sigma"``; for
        single entries of a site a mapping, ``{"beta": {"Days": Normal(0.0, 5.0)}}``, the others keep their defaults.
        ``model.priors()`` shows them all.
    offset
        Known part of the predictor: a column's name, an array, or a Series (aligned by label).
    precision_weights
        Relative precisions of a Gaussian response: row i has residual variance ``sigma^2 / w_i`` (lme4's weights).
    frequency_weights
        How many times each row was observed; multiplies its log-likelihood.
    functions
        Further functions the formula may call, by name.
    known
        What the formula's random terms name: the matrix of ``propto(1 | id, K)``, the pedigree of ``ped(1 | id, P)``,
        the graph of ``besag(area, G)``, the mesh of ``spde(x, y, mesh=M)``, a kernel of ``gp(x, kernel=k)``.
    missing
        ``"error"``, or ``"drop"`` for rows with missing values.

    Raises
    ------
    FormulaError, DataError, DataTypeError, ConfigError
        Naming the column or argument, the value, its row and the remedy; before any fitting.
    """
    family = Gaussian() if family is None else family
    if not isinstance(family, AbstractFamily):
        raise ConfigError(f"family={family!r} is not a family; pass an instance such as pyromix.Binomial().")
    if mean is not None and not isinstance(mean, torch.nn.Module):
        raise ConfigError(f"mean={mean!r} is not a torch.nn.Module.")
    weights = {"precision_weights": precision_weights, "frequency_weights": frequency_weights}
    parsed = parse(formula, functions)
    design = Design.from_formula(
        parsed,
        data,
        family=family,
        offset=offset,
        **weights,
        functions=functions,
        missing=missing,
        proper_priors=all_proper(parsed, family, covariances, priors),
        correlated=correlated_terms(covariances),
        anywhere=placing_terms(covariances),
    )
    if precision_weights is not None and not family.has_residual:
        family.weigh({}, torch.empty(0))  # refuses, and says what to use instead
    if mean is not None:
        _build(mean, design)
    program = compose(design, family, mean, covariances, priors, known)
    entries = prior_entries(program, design, covariances, priors, family)
    return Model(design, program, prior_table(entries, mean is not None))


def fit(
    program: Program, data: Any, backend: AbstractBackend | None = None, seed: int = 0, progress: bool = True
) -> Fit:
    """Fit any Pyro program ``program(data)`` that observes through `pyromix.observe`.

    Networks inside the program are trained where they stand.
    """
    fitted = _checked_backend(backend).fit(program, data, seed=seed, progress=progress)
    modules = {name: site.role.module for name, site in fitted.record.functions.items()}
    fitted.describe = lambda: describe_program(program, fitted.args, modules)
    return fitted


def prior_predictive(program: Program, data: Any, draws: int = 500, seed: int = 0) -> PriorPredictive:
    """Draws from the priors of any Pyro program ``program(data)``, as ``arviz.InferenceData``.

    Groups ``prior`` (every parameter and random effect), ``prior_predictive`` (the responses) and ``observed_data``,
    with the dimensions of a fit.

    Parameters
    ----------
    draws
        Number of draws, one chain.

    Raises
    ------
    ConfigError
        An improper prior, which has no draws; a number of draws that is no positive integer.
    """
    return results.prior_predictive(program, (data,), draws, seed)


def _checked_backend(backend: AbstractBackend | None) -> AbstractBackend:
    if backend is None:
        return MaximumLikelihood()
    if not isinstance(backend, AbstractBackend):
        raise ConfigError(f"backend={backend!r} is not a backend; pass an instance: pyromix.MaximumLikelihood().")
    return backend


def _build(mean: torch.nn.Module, design: Design) -> None:
    """Give a module that waits for its input size that size (`pyromix.networks.MLP`)."""
    if getattr(mean, "built", True):
        return
    inputs = network_inputs(design, mean)
    numeric = inputs["numeric"] if isinstance(inputs, dict) else inputs
    mean.build(numeric.shape[1], numeric)
