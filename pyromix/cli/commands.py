"""What the commands do."""

from __future__ import annotations

import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyromix.cli.columns import Dialect, like_frame, success, to_frame
from pyromix.cli.reading import Table, read_table
from pyromix.cli.writing import Folder, write_csv, write_file, write_fit
from pyromix.errors import ConfigError, DataError, PyromixWarning

if TYPE_CHECKING:
    import pandas as pd

    from pyromix.backends import AbstractBackend
    from pyromix.families import AbstractFamily
    from pyromix.formula.parse import Formula
    from pyromix.results import Fit

_ROW = re.compile(r"\brow (\d+) \(position \d+\)")
_COLUMN = re.compile(r"^column '([^']+)'")
_OPTION = re.compile(r"(?<![\w(])(missing|new_groups|criterion|offset|precision_weights|frequency_weights)='([^']*)'")


def fit(arguments: Namespace) -> int:
    """``pyromix fit``."""
    from pyromix.formula.parse import parse
    from pyromix.model import model

    folder = Folder(arguments.output, arguments.force)
    family, backend = _family(arguments), _backend(arguments)
    formula = parse(arguments.formula)
    table, data = _read(arguments, formula)
    weights = {name: getattr(arguments, name) for name in ("offset", "precision_weights", "frequency_weights")}
    with speaking(arguments), _naming(table):
        specified = model(arguments.formula, data, family, **weights, missing=arguments.missing)
        fitted = specified.fit(backend, seed=arguments.seed, progress=not arguments.quiet and sys.stderr.isatty())
    with speaking(arguments), folder.writing() as draft:
        notes = write_fit(fitted, draft)
        names = sorted(file.name for file in draft.iterdir())
    for note in notes:
        _say(arguments, note)
    if not fitted.status.ok:
        print(f"warning: {fitted.status.value}", file=sys.stderr)
    if not arguments.quiet:
        print(fitted.summary())
        print()
        for name in names:
            print(folder.path / name)
    return 0


def summary(arguments: Namespace) -> int:
    """``pyromix summary``."""
    with speaking(arguments):
        print(_load(arguments.fit).summary())
    return 0


def predict(arguments: Namespace) -> int:
    """``pyromix predict``."""
    import pandas as pd

    dialect = Dialect(arguments.sep, arguments.decimal)
    with speaking(arguments):
        fitted = _load(arguments.fit)
        if fitted.design is None:
            raise ConfigError(f"{arguments.fit}: a fit of a program, not of a formula; predict with fit.predict(data).")
        known, needed = fitted.design.frame(), _predictors(fitted)
        table = read_table(arguments.data, dialect.sep, lambda header: _find(arguments.data, needed, header))
        with _naming(table):
            data = like_frame(table, known, fitted.design.categories, dialect)
            found = fitted.predict(
                data,
                kind=arguments.kind,
                new_groups=arguments.new_groups,
                level=arguments.level,
                seed=arguments.seed,
            )
    result = found if isinstance(found, pd.DataFrame) else pd.DataFrame({arguments.kind: found})
    if arguments.output is None:
        result.to_csv(sys.stdout, index=False, na_rep="NaN", lineterminator="\n")
        sys.stdout.flush()
    else:
        inputs = (arguments.data, arguments.fit)
        write_file(arguments.output, lambda path: write_csv(result, path), inputs)
    return 0


def datasets(arguments: Namespace) -> int:
    """``pyromix datasets``."""
    from pyromix.datasets import describe, load, names

    if arguments.name is None:
        if arguments.output is not None:
            raise ConfigError("datasets: name the data set to write.")
        width = max(map(len, names()))
        for name in names():
            about = describe(name)
            print(f"{name:<{width}}  {about.rows:>6} rows  {about.title}")
    elif arguments.output is None:
        print(describe(arguments.name))
    else:
        write_file(arguments.output, lambda path: write_csv(load(arguments.name), path))
    return 0


# -- what to fit ------------------------------------------------------------------------------------------------------
def _family(arguments: Namespace) -> AbstractFamily:
    from pyromix.families import named

    link = {} if arguments.link is None else {"link": arguments.link}
    return named(_class_name(arguments.family))(**link)


def _backend(arguments: Namespace) -> AbstractBackend:
    from pyromix.backends import NUTS, SVI, MaximumLikelihood, NestedLaplace
    from pyromix.marginal import from_config

    nodes = {} if arguments.nodes is None else {"nodes": arguments.nodes}
    if nodes and arguments.marginal != "gauss-hermite":
        raise ConfigError(f"--nodes {arguments.nodes}: only for --marginal gauss-hermite.")
    marginal = None
    if arguments.marginal is not None:
        marginal = from_config({"class": _class_name(arguments.marginal), **nodes})
    if arguments.backend == "maximum-likelihood":
        if arguments.draws is not None:
            raise ConfigError("--draws: maximum likelihood makes none; add --backend nested-laplace, nuts or svi.")
        return MaximumLikelihood(marginal, arguments.criterion)
    if arguments.criterion != "ml":
        raise ConfigError(f"--criterion {arguments.criterion}: only for --backend maximum-likelihood.")
    draws = {} if arguments.draws is None else {"draws": arguments.draws}
    if arguments.backend == "svi":
        if marginal is not None:
            raise ConfigError(
                f"--marginal {arguments.marginal}: svi approximates the effects' posterior; leave it out."
            )
        return SVI(**draws)
    return (NUTS if arguments.backend == "nuts" else NestedLaplace)(marginal=marginal, **draws)


def _class_name(option: str) -> str:
    """``gauss-hermite`` names `GaussHermite`."""
    return option.title().replace("-", "")


# -- what to read -----------------------------------------------------------------------------------------------------
def _read(arguments: Namespace, formula: Formula) -> tuple[Table, pd.DataFrame]:
    """The columns that formula and options name; the response as 0 and 1 under ``--success``."""
    dialect = Dialect(arguments.sep, arguments.decimal)
    labels = {name for bar in formula.bars for name in bar.group}
    used: dict[str, set[str]] = {}
    for usage in formula.usage.values():
        for internal, ways in usage.columns.items():
            used.setdefault(formula.original(internal), set()).update(ways)
    labels = (labels - used.keys()) | {name for name, ways in used.items() if ways == {"C"}}
    labels |= set(arguments.categorical)
    options = [arguments.offset, arguments.precision_weights, arguments.frequency_weights]
    wanted = list(dict.fromkeys([*used, *labels, *(name for name in options if name is not None)]))
    table = read_table(arguments.data, dialect.sep, lambda header: _find(arguments.data, wanted, header))
    response = [formula.original(name) for name in formula.usage["response"].columns]
    coded = {}
    if arguments.success is not None:
        if len(response) != 1:
            raise ConfigError(f"--success {arguments.success}: the response must be one column, not an expression.")
        coded[response[0]] = success(table, response[0], arguments.success)
        table.columns.pop(response[0])
    notes: list[str] = []
    data = to_frame(table, labels, dialect, notes).assign(**coded)
    for name in response:
        _refuse_words(table, name, data[name])
    for note in notes:
        _say(arguments, note)
    return table, data


def _find(path: str, wanted: Sequence[str], header: Sequence[str]) -> Sequence[str]:
    from pyromix.formula.tokens import nearest

    for name in wanted:
        if name not in header:
            columns = [column for column in header if column]
            shown = ", ".join(map(repr, columns[:12])) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
            raise DataError(f"{path}:1: no column {name!r}{nearest(name, columns) or '.'} Columns: {shown}.")
    return wanted


def _refuse_words(table: Table, name: str, column: pd.Series) -> None:
    """A response of words has a remedy of its own here."""
    if column.dtype != object and column.dtype.name not in ("category", "str", "string"):
        return
    found = list(dict.fromkeys(label for label in column if isinstance(label, str)))
    shown = ", ".join(map(repr, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    remedy = f"pass --success {found[-1]} to count that label as 1" if len(found) == 2 else "a response must be numeric"
    raise table.error(0, name, f"the response holds labels, not numbers ({shown}); {remedy}.")


def _predictors(fitted: Fit) -> list[str]:
    """Columns that new data need: those of the formula without its response, and a column of offsets."""
    formula = fitted.design.formula
    names = [name for part in ("fixed", "random", "offset") for name in formula.usage[part].columns]
    needed = [formula.original(name) for name in names] + [name for bar in formula.bars for name in bar.group]
    offset = fitted.design.state.offset
    return list(dict.fromkeys(needed + ([offset] if isinstance(offset, str) else [])))


def _load(path: str) -> Fit:
    from pyromix.model import load

    return load(path)


# -- what to say ------------------------------------------------------------------------------------------------------
def _say(arguments: Namespace, note: str) -> None:
    if not getattr(arguments, "quiet", False):
        print(f"note: {one_line(note)}", file=sys.stderr)


def one_line(message: Any) -> str:
    """A message on one line, its remedies in the words of the command line."""

    def option(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')} {match[2]}"

    return _OPTION.sub(option, " ".join(str(message).split()))


@contextmanager
def speaking(arguments: Namespace) -> Iterator[None]:
    """Warnings of pyromix as lines on standard error; those of other packages only for who debugs."""
    debug = arguments.debug
    with warnings.catch_warnings():
        warnings.simplefilter("always" if debug else "ignore")
        warnings.simplefilter("always", PyromixWarning)
        shown: set[str] = set()

        def show(message: Warning | str, *rest: Any) -> None:
            line = f"warning: {one_line(message)}"
            if line not in shown:
                shown.add(line)
                print(line, file=sys.stderr)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextmanager
def _naming(table: Table) -> Iterator[None]:
    """Errors about the data begin with file, line and column."""
    try:
        yield
    except DataError as error:
        message = str(error)
        if message.startswith(f"{table.path}:"):
            raise
        row, column = _ROW.search(message), _COLUMN.match(message)
        where = table.path
        if row is not None and int(row[1]) in table.lines:
            where += f":{row[1]}" + (f":{column[1]}" if column else "")
        message = _ROW.sub(r"line \1", message)
        raise type(error)(f"{where}: {message}") from error
