"""``python -m benchmarks.posteriordb [name ...]``: posteriors with published draws, see docs/posteriordb.md."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyromix.backends import AbstractBackend
    from tests.reference.posteriordb.measure import Measured
    from tests.reference.posteriordb.posteriors import Posterior

HEADER = (
    "| posterior | form | backend | mean error / SD | log SD ratio | divergences | R-hat | ESS | s | leapfrogs | |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
KINDS = ("joint", "marginal", "nested")


def backends(posterior: Posterior, form: str, kinds: Sequence[str]) -> Iterator[tuple[str, AbstractBackend]]:
    """What a form is fitted with, by label."""
    import pyromix as pmx
    from tests.reference.posteriordb.measure import nuts

    marginals = posterior.forms[form].marginals
    if "joint" in kinds:
        yield "NUTS", nuts(posterior.id, form)
    if "marginal" in kinds:
        for name in marginals:
            yield f"NUTS(marginal={name}())", nuts(posterior.id, form, getattr(pmx, name)())
    if "nested" in kinds and marginals:
        yield "NestedLaplace", pmx.NestedLaplace(draws=10_000)


def row(posterior: str, form: str, label: str, measured: Measured) -> str:
    """One line of the table."""
    c = measured.comparison
    (mean_at, mean), (sd_at, sd) = c.worst_mean, c.worst_sd
    problems = measured.problems()
    cells = [
        posterior,
        form,
        label,
        f"{mean:+.3f} {mean_at}",
        f"{sd:+.3f} {sd_at}",
        "" if measured.divergences is None else str(measured.divergences),
        "" if measured.divergences is None else f"{c.r_hat:.4f}",
        f"{c.ess:.0f}",
        f"{measured.seconds:.1f}",
        "" if measured.steps is None else f"{measured.steps:,}",
        "; ".join(problems) or "ok",
    ]
    return "| " + " | ".join(cells) + " |"


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names of the references that a pattern matches; all without patterns."""
    from tests.reference.posteriordb.registry import ALL

    names = [name for name in ALL if not patterns or any(fnmatch.fnmatch(name, f"*{p}*") for p in patterns)]
    if not names:
        raise SystemExit(f"no reference matches {' '.join(patterns)!r}; there are: {', '.join(ALL)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print, and return 1 if a gate was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posteriordb", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names, or patterns; all posteriors without")
    parser.add_argument("--form", choices=("pyro", "pyromix"), help="one form only")
    parser.add_argument("--kind", choices=KINDS, action="append", help="joint NUTS, marginal NUTS, nested Laplace")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)

    from tests.reference.posteriordb.measure import measure
    from tests.reference.posteriordb.registry import ALL

    missed = 0
    print(HEADER, flush=True)
    for name in chosen(options.names):
        posterior = ALL[name]
        for form in posterior.forms if options.form is None else {options.form} & set(posterior.forms):
            for label, backend in backends(posterior, form, options.kind or KINDS):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    measured = measure(posterior, form, backend, options.seed)
                print(row(name, form, label, measured), flush=True)
                missed += bool(measured.problems())
                for warning in caught:
                    if issubclass(warning.category, UserWarning):
                        print(f"{name}, {form}, {label}: {warning.message}", file=sys.stderr)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
