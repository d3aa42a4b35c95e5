"""Rows to predict at, and the program run there under the fit's random effects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from pyro.poutine.messenger import Messenger

from pyromix.errors import ConfigError, UnseenLevelError, UnsupportedError
from pyromix.results.declared import label_text
from pyromix.results.new_levels import law, law_of_functions
from pyromix.running import Record, Site, run
from pyromix.sites import Latent, Spread, annotate, annotation

if TYPE_CHECKING:
    from pyromix.results.fit import Fit


NOISE, GIVEN = "noise\0", "given\0"  # prefixes of what stands beside site values in the arguments of `run_at`


class Appended(NamedTuple):
    """New levels of an effect.

    Attributes
    ----------
    shape
        Rows and terms appended to its array.
    open
        Which of the rows have no effects given.
    root
        Root of their covariance, (rows * terms, rows * terms), where levels are correlated and it was asked for.
    """

    shape: tuple[int, int]
    open: torch.Tensor
    root: torch.Tensor | None = None


class Known(Protocol):
    """New levels whose effects are given (`pyromix.results.condition.NewGroups`)."""

    @property
    def keys(self) -> Mapping[str, Sequence[Any]]:
        """Effect -> labels of those levels, or their numbers where levels have no labels."""

    def at_estimate(self) -> dict[str, torch.Tensor]:
        """Their effects at the point estimate, (levels, terms), by effect under the prefix `GIVEN`."""

    def draw(self, values: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        """The same at every draw of the values, (draws, levels, terms)."""


@dataclass(frozen=True)
class Rows:
    """Rows to predict at.

    Attributes
    ----------
    args
        What the program takes.
    index
        Row labels, if there are any.
    unseen
        Labels of levels not seen in the fit, by grouping factor, where the design knows them.
    policy
        What such levels get.
    whole
        Rows without missing values, a mask; only they are in `args`. ``None`` if all are.
    given
        New levels that rows of their own tell something about.
    """

    args: tuple[Any, ...]
    index: pd.Index | None
    unseen: Mapping[str, Any]
    policy: str
    whole: np.ndarray | None = None
    given: Known | None = None

    @classmethod
    def of(cls, fit: Fit, data: Any, policy: str, **how: Any) -> Rows:
        """The training rows for ``None``, else new ones, those with missing values left out."""
        offset = how.pop("offset", None)
        if offset is not None and (data is None or fit.new_design is None):
            raise ConfigError(
                "predict(offset=...): only with new data of a formula fit; a program reads its own offset."
            )

        def new_design(data: Any, offset: Any) -> Any:
            if fit.new_design is None:
                return data
            given = how if offset is None else {**how, "offset": offset}
            return fit.new_design(data, **given)

        args = fit.args if data is None else (new_design(data, offset),)
        index = getattr(args[0], "index", None) if args else None
        index = index if isinstance(index, pd.Index) else None
        missing = getattr(args[0], "missing", None) if data is not None and fit.new_design is not None else None
        whole = None
        if missing is not None and bool(missing.any()):
            # a network would refuse NaN inputs, and one row must not cost the others their prediction
            whole = ~np.asarray(missing)
            kept = offset if offset is None or isinstance(offset, str) else np.asarray(offset)[whole]
            args = (new_design(_take(data, whole), kept),) if whole.any() else args
        unseen = getattr(args[0], "unseen", None) if args else None
        return cls(args, index, unseen if isinstance(unseen, Mapping) else {}, policy, whole)

    def label(self, position: int) -> str:
        """``row 'a17' (position 16)`` for a position among the rows that are run."""
        at = position if self.whole is None else int(np.flatnonzero(self.whole)[position])
        if self.index is None:
            return f"position {at}"
        label = self.index[at]
        return f"row {label.item() if isinstance(label, np.generic) else label!r} (position {at})"

    def new_labels(self, name: str, role: Latent) -> tuple[Any, ...]:
        """Labels of the levels numbered -1, -2, ...; empty where the design does not know them."""
        return tuple(dict.fromkeys(self.unseen.get(name) or self.unseen.get(role.group) or ()))

    def pick(self, name: str, role: Latent, extra: int) -> torch.Tensor:
        """Position of every appended level among those whose effects are given, -1 for one that is not; (extra,)."""
        keys = {key: k for k, key in enumerate(self.given.keys.get(name, ()))} if self.given is not None else {}
        labels = self.new_labels(name, role)
        numbers = range(-extra, 0)
        found = [keys.get(labels[-1 - k] if -1 - k < len(labels) else k, -1) for k in numbers]
        return torch.tensor(found, dtype=torch.long)

    def scatter(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Values of the rows that are run at their places among all rows, NaN elsewhere."""
        if self.whole is None:
            return values
        shape = list(values.shape)
        shape[axis] = len(self.whole)
        out = np.full(shape, np.nan)
        out[(slice(None),) * axis + (self.whole,)] = values
        return out


def _take(data: Any, rows: np.ndarray) -> Any:
    """The given rows of a data frame or of a mapping of columns."""
    if isinstance(data, Mapping):
        return {name: np.asarray(column)[rows] for name, column in data.items()}
    frame = data if isinstance(data, pd.DataFrame) else data.to_pandas()
    return frame[rows]


class _Effects(Messenger):
    """Put the fit's random effects at their sites, with rows appended for the levels that the fit has not seen."""

    def __init__(self, values: Mapping[str, torch.Tensor], effects: Mapping[str, Any], rows: Rows) -> None:
        super().__init__()
        self.values, self.effects, self.rows = values, effects, rows
        self.appended: dict[str, Appended] = {}
        self.spreads: dict[str, tuple[Spread, torch.Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        role = annotation(msg)
        if not isinstance(role, Latent) or msg["name"] not in self.effects or msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        spread = role.spread
        if spread is not None:  # effects of levels in place of coefficients, and the role that goes with them
            self.spreads[msg["name"]] = (spread, value)
            role, value = spread.role, spread.apply(value)
            msg["infer"] = annotate(role)
        index = role.rows.index
        extra = max(0, -int(index.min())) if index.numel() else 0
        _check_levels(msg["name"], role, len(value))
        if extra:
            value = torch.cat([value, self._new_rows(msg, role, extra, value)])
        msg["value"], msg["is_observed"] = value, True  # as poutine.condition would

    def _new_rows(self, msg: Any, role: Latent, extra: int, value: torch.Tensor) -> torch.Tensor:
        name, policy = msg["name"], self.rows.policy
        pick = self.rows.pick(name, role, extra)
        is_open = pick < 0
        unused = torch.ones(extra, dtype=torch.bool)
        unused[role.rows.index[role.rows.index < 0]] = False
        if bool((is_open & ~unused).any()):
            self.appended[name] = Appended((extra, value.shape[1]), is_open)
            if policy == "error":
                raise UnseenLevelError(_unseen_message(name, role, self.rows, is_open))
        new = value.new_zeros((extra, value.shape[1]))
        if name in self.appended and policy != "zero":
            new = self._open_rows(msg, role, new, value)
        if GIVEN + name not in self.values:
            return new
        both = torch.cat([new, self.values[GIVEN + name]])
        return both[torch.where(is_open, torch.arange(extra), extra + pick)]

    def _open_rows(self, msg: Any, role: Latent, new: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Effects of levels that nothing is known of but the fit: their mean, and where asked for a draw about it."""
        name, block = msg["name"], msg["fn"].operator.block
        noise = self.values.get(NOISE + name)
        if block is not None and name not in self.spreads:
            return new if noise is None else noise @ block.mT
        if self.rows.policy == "condition_on":
            raise UnsupportedError(
                f"condition_on: the levels of {name!r} depend on each other; use new_groups='conditional', which "
                "places new levels by their labels, or fit again with the new rows."
            )
        labels = self.rows.new_labels(name, role)[::-1]  # they are numbered -1, -2, ..., rows of the array from its end
        if name in self.spreads:
            mean, root = law_of_functions(name, *self.spreads[name], self.rows.policy, labels, block)
        else:
            mean, root = law(name, role, self.rows.policy, labels, value)
        self.appended[name] = self.appended[name]._replace(root=root)
        return mean if noise is None else mean + (root @ noise.reshape(-1)).reshape(mean.shape)


def _policy(policy: str) -> str:
    return policy if policy == "condition_on" else f"new_groups={policy!r}"


def _check_levels(name: str, role: Latent, count: int) -> None:
    high = int(role.rows.index.max()) if role.rows.index.numel() else -1
    if high >= count:
        row = int((role.rows.index.reshape(len(role.rows.index), -1) == high).any(1).nonzero()[0])
        raise UnseenLevelError(
            f"column {role.group!r} (random effect {name!r}): index {high} at row {row} is not one of the {count} "
            "levels of the fit; number new levels -1, -2, ... and pass new_groups='zero', 'marginal' or 'conditional'."
        )


def _unseen_message(name: str, role: Latent, rows: Rows, is_open: torch.Tensor) -> str:
    index = role.rows.index.reshape(len(role.rows.index), -1)
    new = (index < 0) & is_open[index.clamp(max=-1)]
    count = int(new.any(1).sum())
    first = int(new.any(1).nonzero()[0])
    labels = [
        label for k, label in enumerate(rows.new_labels(name, role)) if bool(is_open[-1 - min(k, len(is_open) - 1)])
    ]
    if labels:
        shown = ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
        what = f"{len(labels)} level{'s' * (len(labels) != 1)} not seen in the fit: {shown}"
    else:
        what = "levels not seen in the fit"
    return (
        f"column {role.group!r}: {what}; {count} row{'s' * (count != 1)}, first at {rows.label(first)}. Choose what "
        "they get: new_groups='zero' (no effect), 'marginal' (its prior, integrated over) or 'conditional' (given the "
        "known levels); or pass rows of theirs as condition_on=."
    )


# -- running ----------------------------------------------------------------------------------------------------------
def run_at(fit: Fit, rows: Rows, values: Mapping[str, torch.Tensor]) -> tuple[Record, dict[str, Appended]]:
    """One run at the rows: the record, and the new levels of every effect that has some without given effects.

    Parameters
    ----------
    values
        By site; beside them, under the prefix `NOISE`, standard normals by effect (new levels, terms), which make
        draws from the prior at the values' hyper-parameters (effects left out have zeros), and under the prefix
        `GIVEN` the effects of the levels of `Rows.given` (levels, terms).
    """
    effects = _Effects(values, fit.record.latents, rows)
    sites = {
        name: value
        for name, value in values.items()
        if name not in fit.record.latents and not name.startswith((NOISE, GIVEN))
    }

    def program(*args: Any) -> None:
        with effects:
            fit.program(*args)

    with torch.no_grad():
        return run(program, rows.args, sites), effects.appended


def response_site(record: Record) -> Site:
    """The program's one response, each row by itself: what rows take over from rows before them is left out."""
    if len(record.data) > 1:
        names = ", ".join(map(repr, record.data))
        raise UnsupportedError(f"predict: the program observes several responses ({names}); predict needs exactly one.")
    if not record.data:
        names = ", ".join(map(repr, record.observed))
        raise UnsupportedError(
            f"the program observes {names} by pyro.sample, which names no predictor and no mean: predictions, fitted "
            "values and residuals need pyromix.observe(...). Replicated data are in fit.idata.posterior_predictive; "
            "for new data run pyro.infer.Predictive(program, fit.draws())(data)."
        )
    return by_itself(next(iter(record.data.values())))


def by_itself(site: Site) -> Site:
    """The site without what its rows take over from rows before them."""
    return site if site.role.plain is None else replace(site, role=site.role.plain)


def refuse_chained(record: Record, what: str) -> None:
    """Refuse correlated residuals where rows are taken out of their series."""
    for site in record.data.values():
        if site.role.chain is not None:
            raise UnsupportedError(
                f"{what}: the residuals of {site.name!r} are correlated, rows depend on rows before them; "
                "fit again with the rows in question added or left out."
            )


def stream(seed: int, what: str) -> int:
    """A seed of its own for each use of a seed: draws made of equal noise would move together."""
    return int.from_bytes(hashlib.blake2b(f"{what} {seed}".encode(), digest_size=7).digest(), "big")


# -- labels ---------------------------------------------------------------------------------------------------------
def row_labels(index: Any, n: int) -> np.ndarray:
    """Row labels as coordinates: the index's own if they are unique, of one type and flat, else positions."""
    if not isinstance(index, pd.Index) or isinstance(index, pd.MultiIndex) or not index.is_unique or len(index) != n:
        return np.arange(n)
    return tidy_labels(index)


def tidy_labels(labels: Any) -> np.ndarray:
    """Labels as an array of numbers or of strings; a mixture becomes strings."""
    values = [label_text(v) if isinstance(v, tuple) else v for v in labels]
    if all(isinstance(v, bool | np.bool_) for v in values) or not values:
        return np.array([str(v) for v in values])
    if all(isinstance(v, int | np.integer) for v in values):
        return np.array(values, dtype=np.int64)
    if all(isinstance(v, float | np.floating | int | np.integer) for v in values):
        return np.array(values, dtype=np.float64)
    return np.array([str(v) for v in values])
