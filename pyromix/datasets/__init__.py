"""Small real data sets, each with its source, licence and columns. Nothing is downloaded.

``load("sleepstudy")`` gives a pandas DataFrame; ``names()`` lists the sets; ``describe("sleepstudy")`` says where one
comes from. Numbers are float64 or int64. Labels are categoricals in the order of the source, so the first category is
the reference of a fixed effect, or text where the alphabet gives the same order. Ids made of digits are labels too:
``Subject`` holds ``"308"``, not 308.

The files are third-party data under the licences that `describe` names, which are not that of pyromix itself.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pyromix.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Description", "describe", "load", "names"]


@dataclass(frozen=True)
class Description:
    """Where a data set comes from and what its columns are.

    Attributes
    ----------
    name, title
        The set.
    rows
        Number of rows.
    source
        Package and publication.
    licence
        Licence the data are distributed under.
    columns
        Description by column, in order.
    """

    name: str
    title: str
    rows: int
    source: str
    licence: str
    columns: dict[str, str]

    def __str__(self) -> str:
        width = max(len(column) for column in self.columns)
        lines = [f"{self.name}: {self.title} ({self.rows} rows)", f"source: {self.source}", f"licence: {self.licence}"]
        return "\n".join(lines + [f"  {column:<{width}}  {text}" for column, text in self.columns.items()])


@cache
def _catalog() -> dict[str, dict[str, Any]]:
    text = (files(__name__) / "catalog.json").read_text(encoding="utf-8")
    return json.loads(text)


def names() -> list[str]:
    """Names of the data sets."""
    return sorted(_catalog(), key=str.lower)


def _find(name: str) -> str:
    """The catalogue's spelling of a name, whatever its case."""
    if not isinstance(name, str):
        raise ConfigError(f"datasets: name {name!r} is a {type(name).__name__}, expected one of {', '.join(names())}.")
    known = {item.lower(): item for item in names()}
    if name.lower() not in known:
        close = [known[item] for item in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)]
        hint = f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else "."
        raise ConfigError(f"datasets: no data set {name!r}{hint} Available: {', '.join(names())}.")
    return known[name.lower()]


def describe(name: str) -> Description:
    """Source, licence and columns of a data set.

    Parameters
    ----------
    name
        One of `names`, in any case.

    Raises
    ------
    ConfigError
        For an unknown name, with the nearest ones.
    """
    name = _find(name)
    entry = _catalog()[name]
    columns = {column: _text(about) for column, about in entry["columns"].items()}
    return Description(name, entry["title"], entry["rows"], entry["source"], entry["licence"], columns)


def _text(about: dict[str, Any]) -> str:
    levels = f" ({', '.join(about['levels'])})" if "levels" in about else ""
    return about["description"] + levels


def load(name: str) -> pd.DataFrame:
    """A data set as a new DataFrame.

    Parameters
    ----------
    name
        One of `names`, in any case.

    Raises
    ------
    ConfigError
        For an unknown name, with the nearest ones.
    """
    import pandas as pd

    entry = _catalog()[_find(name)]
    columns: dict[str, dict[str, Any]] = entry["columns"]
    labels = {column: str for column, about in columns.items() if about["kind"] != "number"}
    path = files(__name__) / entry["file"]
    with path.open("rb") as stream:
        frame = pd.read_csv(
            stream,
            dtype=labels,
            keep_default_na=False,
            compression="gzip" if entry["file"].endswith(".gz") else None,
        )
    for column, about in columns.items():
        if about["kind"] == "category":
            levels = about.get("levels") or _in_order(frame[column].unique())
            frame[column] = pd.Categorical(frame[column], categories=levels, ordered=about.get("ordered", False))
    return frame[list(columns)]


def _in_order(labels: Iterable[str]) -> list[str]:
    """Digits by value, other labels by the alphabet."""
    items = list(labels)
    return sorted(items, key=int) if all(item.isdigit() for item in items) else sorted(items)
