"""The ``pyromix`` command: fit, summary, predict, datasets, demo.

Every failure is one line on standard error. Exit status: 0 done; 1 an unexpected error; 2 a wrong argument, formula,
file or cell; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pyromix.errors import PyromixError

__all__ = ["main"]

FIT = """\
Fits a hierarchical model to a CSV file and writes into a new folder: fit.pyromix, summary.txt,
fixed_effects.csv, variance_components.csv, random_effects_<group>.csv, posterior.nc (ArviZ),
fitted.png and residuals.png. Row labels (obs_id) are the lines of the CSV file.
"""
EXAMPLES = """\
examples:
  pyromix demo
  pyromix datasets sleepstudy -o sleepstudy.csv
  pyromix fit "Reaction ~ Days + (Days | Subject)" sleepstudy.csv --criterion reml -o fit1
  pyromix predict fit1/fit.pyromix new.csv --kind interval --new-groups marginal
"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments after the command's name; by default those of the process.

    Returns
    -------
    int
        Exit status.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _fail("pyromix: interrupted", 130)
    except BrokenPipeError:
        # whoever read the output has left; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PyromixError as error:
        if arguments.debug:
            raise
        from pyromix.cli.commands import one_line

        return _fail(one_line(error), 2)
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        return _fail(f"pyromix: unexpected {type(error).__name__}: {text} (--debug shows the traceback)", 1)


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace) -> int:
    """The command, imported only now, so that help needs no torch."""
    if arguments.command == "demo":
        from pyromix.cli.demo import demo

        return demo(arguments)
    from pyromix.cli import commands

    return getattr(commands, arguments.command)(arguments)


# -- arguments --------------------------------------------------------------------------------------------------------
class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        from pyromix import __version__

        print(f"pyromix {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="pyromix",
        description="Hierarchical models with linear or neural means, fitted by marginal likelihood.",
        epilog=EXAMPLES,
        **layout,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and the warnings of other packages")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, text: str, **options: Any) -> argparse.ArgumentParser:
        options.setdefault("description", text[0].upper() + text[1:] + ".")
        return commands.add_parser(name, help=text, parents=[common], **layout, **options)

    _fit_arguments(command("fit", "fit a model to a CSV file", description=FIT))
    command("summary", "print the summary of a saved fit").add_argument("fit", help="file that `pyromix fit` wrote")
    _predict_arguments(command("predict", "predict at the rows of a CSV file, in their order"))
    sets = command("datasets", "list, describe or export the data sets that come along")
    sets.add_argument("name", nargs="?", help="data set to describe, or to export with -o")
    sets.add_argument("-o", "--output", metavar="FILE", help="CSV file to write")
    demo = command("demo", "fit two real data sets in several ways and draw them")
    demo.add_argument("-o", "--output", metavar="DIR", default="pyromix-demo", help="folder (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="train the networks for a moment only")
    return parser


def _fit_arguments(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("formula", help="such as 'y ~ x + (x | g)'; C(x) makes x categorical")
    fit.add_argument("data", help="CSV file, or .csv.gz")
    fit.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    fit.add_argument("--force", action="store_true", help="replace the results in a folder that has some")
    model = fit.add_argument_group("model")
    model.add_argument("--family", default="gaussian", help="gaussian, binomial or poisson (default: %(default)s)")
    model.add_argument("--link", help="link of the family, such as probit (default: the family's own)")
    model.add_argument("--success", metavar="LABEL", help="label of a two-valued text response that counts as 1")
    model.add_argument("--offset", metavar="COL", help="column added to the predictor")
    model.add_argument("--precision-weights", metavar="COL", help="column of relative precisions (Gaussian)")
    model.add_argument("--frequency-weights", metavar="COL", help="column of counts: a row stands for so many")
    method = fit.add_argument_group("method")
    method.add_argument(
        "--backend",
        choices=("maximum-likelihood", "nested-laplace", "nuts", "svi"),
        default="maximum-likelihood",
        help="a point estimate, or a posterior (default: %(default)s)",
    )
    method.add_argument("--draws", type=int, metavar="N", help="posterior draws (NUTS: per chain; default: 1000)")
    method.add_argument("--marginal", help="exact, laplace or gauss-hermite (default: exact where it is, else laplace)")
    method.add_argument("--nodes", type=int, metavar="K", help="nodes a dimension, for gauss-hermite")
    method.add_argument("--criterion", default="ml", help="ml, reml or map (default: %(default)s)")
    method.add_argument("--seed", type=int, default=0, metavar="N", help="seed (default: %(default)s)")
    data = fit.add_argument_group("data")
    data.add_argument("--categorical", type=_names, default=(), metavar="COL,...", help="columns to read as labels")
    data.add_argument("--missing", choices=("error", "drop"), default="error", help="rows with missing values")
    _dialect_arguments(data)
    fit.add_argument("--quiet", action="store_true", help="print warnings and errors only")


def _predict_arguments(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("fit", help="file that `pyromix fit` wrote")
    predict.add_argument("data", help="CSV file, or .csv.gz")
    predict.add_argument("-o", "--output", metavar="FILE", help="CSV file to write (default: standard output)")
    predict.add_argument("--kind", choices=("mean", "linear", "interval"), default="mean", help="default: %(default)s")
    predict.add_argument(
        "--new-groups",
        choices=("error", "zero", "marginal", "conditional"),
        default="error",
        help="what levels the fit has not seen get (default: %(default)s)",
    )
    predict.add_argument("--level", type=float, default=0.9, help="coverage of the interval (default: %(default)s)")
    predict.add_argument("--seed", type=int, default=0, metavar="N", help="seed of draws (default: %(default)s)")
    _dialect_arguments(predict)


def _dialect_arguments(parser: Any) -> None:
    parser.add_argument("--sep", type=_separator, default=",", help="character between cells, or 'tab' (default: ,)")
    parser.add_argument("--decimal", choices=(".", ","), default=".", help="decimal point (default: .)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _separator(text: str) -> str:
    sep = "\t" if text in ("tab", "\\t") else text
    if len(sep) != 1 or sep in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character")
    return sep
