"""`Design`: a formula applied to data, as tensors, and ready to be applied to new data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyromix.errors import PyromixError, PyromixWarning, UnseenLevelError
from pyromix.formula.build import State, build
from pyromix.formula.parse import Formula
from pyromix.formula.replay import build_new
from pyromix.formula.rows import Rows, plural, some


@dataclass(frozen=True)
class RandomTerm:
    """One random term: which level each row belongs to, and the row's design.

    Attributes
    ----------
    name
        Name of the effect: the grouping factor, with ``.1``, ``.2`` for further terms on the same one.
    group
        Grouping factor, ``"Subject"`` or ``"a:b"``.
    structure
        ``"iid"`` (one effect a level), ``"us"`` or ``"diag"``.
    index
        (n,) int64 codes into ``levels``; -1, -2, ... only in `Design.new`, one for each level the fit has never seen.
        For ``mm(a, b)``: (n, columns).
    design
        (n, q) float64, or None for an intercept alone.
    levels
        Labels in sorted order, or in the order of a categorical column; ``"x:y"`` for ``a:b``, or the tuple
        ``("x", "y")`` where the structure reads it (a time in a series, a place, a pair).
    terms
        Names of the q effects, such as ``("Intercept", "Days")``.
    weight
        (n, columns) for ``mm(a, b)``, else None.
    arguments
        What the formula gave its structure.
    """

    name: str
    group: str
    structure: str
    index: torch.Tensor
    design: torch.Tensor | None
    levels: tuple[Any, ...]
    terms: tuple[str, ...]
    weight: torch.Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Design:
    r"""Response, model matrices and group codes of :math:`\eta = X\beta + \sum_t Z_t u_t + o`.

    Built by `from_formula`; `new` re-applies everything, stateful transforms included, to other data.

    Attributes
    ----------
    formula
        The parsed formula.
    response
        Name of the response, used for its site.
    y
        (n,) float64; successes for ``cbind``. None in new data unless asked for.
    trials
        (n,) float64 for ``cbind``, else None.
    x
        (n, p) float64 of full column rank, the intercept first if there is one.
    columns
        Names of the p columns.
    factors
        Term name to its slice of the columns.
    terms
        The random terms.
    offset
        (n,) float64: formula offsets plus the ``offset=`` argument, or None.
    precision_weights, frequency_weights
        (n,) float64 or None.
    index
        Row labels.
    codes, levels
        Categorical predictors of the fixed part: (n,) int64 codes, and labels, by column.
    aliased
        Columns dropped because others span them; their coefficients are NaN.
    n_dropped
        Rows dropped for missing values under ``missing="drop"``.
    unused_levels
        Categories that no row holds, by column.
    unseen
        In new data: levels the fit has never seen, by random term.
    missing
        In new data: (n,) bool mask of rows with a missing value, or None. Their x is NaN.
    notes
        The warnings given when the design was built.
    residual
        What the family reads of the rows, by column: times and series of correlated residuals, strata.
    """

    formula: Formula
    response: str
    y: torch.Tensor | None
    trials: torch.Tensor | None
    x: torch.Tensor
    columns: tuple[str, ...]
    factors: Mapping[str, slice]
    terms: tuple[RandomTerm, ...]
    offset: torch.Tensor | None
    precision_weights: torch.Tensor | None
    frequency_weights: torch.Tensor | None
    index: pd.Index
    codes: Mapping[str, torch.Tensor]
    levels: Mapping[str, tuple[Any, ...]]
    aliased: tuple[str, ...] = ()
    n_dropped: int = 0
    unused_levels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unseen: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    missing: torch.Tensor | None = None
    notes: tuple[tuple[type[PyromixWarning], str], ...] = ()
    state: State | None = field(default=None, repr=False, compare=False)
    residual: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_formula(
        cls,
        formula: str | Formula,
        data: Any,
        *,
        family: Any = None,
        offset: Any = None,
        precision_weights: Any = None,
        frequency_weights: Any = None,
        functions: Mapping[str, Callable] | None = None,
        missing: str = "error",
        proper_priors: bool = False,
        correlated: Collection[str] = (),
        anywhere: Collection[str] = (),
        quiet: bool = False,
    ) -> Design:
        """Apply a formula to data.

        Parameters
        ----------
        formula
            Text, or a parsed `Formula`.
        data
            A pandas DataFrame, a mapping of one-dimensional arrays, or an object with ``to_pandas()``. Never changed.
        family
            A family, whose ``check_response(y, trials, describe, name)`` is called if it has one and whose
            ``has_residual`` says whether group counts are limited by the residual, and whose ``columns`` it reads of
            the rows. None stands for a Gaussian response.
        offset
            Added to the predictor: a Series (aligned by label), an array (by position) or a column name.
        precision_weights
            Relative precisions of the rows, at least 0; given as ``offset`` is.
        frequency_weights
            How many observations a row stands for, at least 0; given as ``offset`` is.
        functions
            Further functions the formula may call.
        missing
            ``"error"``, or ``"drop"`` to leave out rows with missing values.
        proper_priors
            Whether every parameter has a proper prior. Then too many columns, dependent columns, one group and a
            constant response are no errors.
        correlated
            Names of random terms whose levels will be correlated: they may have as many levels as there are rows.
        anywhere
            Those of them whose structure takes places anywhere, so that new places are no new levels.
        quiet
            Do not give warnings; they are still kept in ``notes``.

        Raises
        ------
        FormulaError, DataError, DataTypeError, ConfigError
            Naming the column or argument, the offending value, its row and the remedy.
        """
        parts = build(
            formula,
            data,
            family=family,
            offset=offset,
            precision_weights=precision_weights,
            frequency_weights=frequency_weights,
            functions=functions,
            missing=missing,
            proper_priors=proper_priors,
            correlated=correlated,
            anywhere=anywhere,
        )
        if not quiet:
            for category, text in parts["notes"]:
                warnings.warn(text, category, stacklevel=_callers_level())
        return cls(**_with_terms(parts))

    @classmethod
    def from_frame(
        cls,
        formula: str,
        columns: Mapping[str, np.ndarray],
        categories: Mapping[str, tuple[Any, ...]],
        *,
        index: pd.Index | None = None,
        **arguments: Any,
    ) -> Design:
        """Rebuild a design from `frame` and `categories`, as saved; no warning is given twice.

        Parameters
        ----------
        formula
            The formula's text.
        columns, categories
            What `frame` and the attribute ``categories`` returned.
        index
            Row labels; positions if omitted.
        arguments
            As for `from_formula`.
        """
        data = {}
        for name, values in columns.items():
            data[name] = pd.Categorical(values, categories=list(categories[name])) if name in categories else values
        frame = pd.DataFrame(data, index=index)
        return cls.from_formula(formula, frame, quiet=True, **arguments)

    def new(
        self,
        data: Any,
        *,
        offset: Any = None,
        missing: str = "propagate",
        response: bool = False,
    ) -> Design:
        """Apply the formula to new data, with every transform in the state of the training data.

        Parameters
        ----------
        data
            As for `from_formula`.
        offset
            Needed if the training data had an ``offset=`` that was no column name.
        missing
            ``"propagate"`` gives rows with missing values NaN in ``x`` and in the random terms' designs; ``"error"``
            refuses them.
        response
            Whether to read the response too.

        Returns
        -------
        Design
            With ``index`` -1, -2, ... in random terms for levels the fit has never seen, in the order of ``unseen``.

        Raises
        ------
        UnseenLevelError
            For a category of a fixed effect that the fit has never seen.
        """
        assert self.state is not None
        parts = build_new(self.state, data, offset=offset, missing=missing, response=response)
        if not response and isinstance(self.formula.response, tuple):
            parts["trials"] = self._new_trials(data, offset, missing, parts["missing"])
        for name in ("formula", "response", "columns", "factors", "levels", "aliased", "state"):
            parts[name] = getattr(self, name)
        return Design(**_with_terms(parts))

    def _new_trials(self, data: Any, offset: Any, missing: str, gone: Any) -> Any:
        """Trials of new rows where their columns are there and complete; the successes are not used."""
        assert self.state is not None
        try:
            parts = build_new(self.state, data, offset=offset, missing=missing, response=True)
        except PyromixError:
            return None
        same = (gone is None) == (parts["missing"] is None) and (gone is None or bool((gone == parts["missing"]).all()))
        return parts["trials"] if same else None

    def subset(self, rows: torch.Tensor) -> Design:
        """The same design on some of its rows, for a program to run on; levels keep their codes.

        Parameters
        ----------
        rows
            Positions, (m,) int64. `frame` and `categories` still speak of all rows.
        """

        def take(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[rows]

        names = ("y", "trials", "x", "offset", "precision_weights", "frequency_weights", "missing")
        state, at = self.state, rows.numpy()
        if state is not None:
            state = replace(state, positions=at if state.positions is None else state.positions[at])
        return replace(
            self,
            **{name: take(getattr(self, name)) for name in names},
            terms=tuple(
                replace(term, index=term.index[rows], design=take(term.design), weight=take(term.weight))
                for term in self.terms
            ),
            codes={name: codes[rows] for name, codes in self.codes.items()},
            index=self.index[at],
            state=state,
            residual={name: column[at] for name, column in self.residual.items()},
        )

    def __repr__(self) -> str:
        terms = ", ".join(f"{term.name} ({len(term.levels)} levels)" for term in self.terms)
        size = f"{self.n} rows, {len(self.columns)} columns"
        return f"<Design {self.formula.text!r}: {size}; {terms or 'no random terms'}>"

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.x.shape[0]

    @property
    def has_intercept(self) -> bool:
        """Whether the first column of ``x`` is the intercept."""
        return self.columns[:1] == ("Intercept",)

    def inputs(self) -> dict[str, Any]:
        """The fixed part without its intercept, as a neural mean takes it.

        Returns
        -------
        dict
            ``numeric`` (n, k) float64: the other columns of ``x``; ``names``: theirs; ``is_numeric``: for each, whether
            no categorical predictor takes part in it; ``factors``: for each, those that do; ``codes`` (n,) int64 and
            ``levels`` by categorical column.
        """
        assert self.state is not None
        start = 1 if self.has_intercept else 0
        return {
            "numeric": self.x[:, start:],
            "names": self.columns[start:],
            "is_numeric": self.state.numeric_only[start:],
            "factors": self.state.involved[start:],
            "codes": dict(self.codes),
            "levels": dict(self.levels),
        }

    def term(self, name: str) -> RandomTerm:
        """The random term of that name."""
        found = {term.name: term for term in self.terms}
        if name not in found:
            raise KeyError(f"no random term {name!r}; there are {', '.join(found) or 'none'}")
        return found[name]

    def describe_row(self, position: int) -> str:
        """``row 'a17' (position 16)``, for messages."""
        return Rows(self.index, self.state.positions if self.state else None).describe(position)

    def frame(self) -> dict[str, np.ndarray]:
        """The raw columns the formula reads, without dropped rows; with `categories` enough to rebuild the design."""
        assert self.state is not None
        return self.state.raw()

    @property
    def categories(self) -> dict[str, tuple[Any, ...]]:
        """Category order of the columns that came as categoricals, unused categories included."""
        assert self.state is not None
        return self.state.categories()

    def unseen_error(self, name: str) -> UnseenLevelError:
        """The error for a random term whose new data hold unseen levels, with the ways to go on."""
        term, levels = self.term(name), self.unseen[name]
        new = (term.index < 0).reshape(len(term.index), -1).any(1)
        first = self.describe_row(int(new.to(torch.int8).argmax()))
        return UnseenLevelError(
            f"grouping factor {term.group!r}: {plural(len(levels), 'level')} the fit has never seen: "
            f"{some(levels)}, first "
            f"at {first}. Choose new_groups='zero' (their effect is 0), 'marginal' (integrate it over its "
            "distribution) "
            "or 'error' (this refusal)."
        )


def _callers_level() -> int:
    """Stack level of the first frame outside this package, so that a warning names the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pyromix":
        frame, level = frame.f_back, level + 1
    return level


def _with_terms(parts: dict[str, Any]) -> dict[str, Any]:
    """Arrays to tensors; random terms to `RandomTerm`."""
    out = dict(parts)
    out["terms"] = tuple(
        RandomTerm(**{**term, **{key: _tensor(term[key]) for key in ("index", "design", "weight")}})
        for term in parts["terms"]
    )
    for name in ("y", "trials", "x", "offset", "precision_weights", "frequency_weights", "missing"):
        out[name] = _tensor(parts.get(name))
    out["codes"] = {name: _tensor(codes) for name, codes in parts["codes"].items()}
    return out


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    if array is None:
        return None
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
