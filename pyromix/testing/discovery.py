"""Find concrete classes of a package that no conformance suite checks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from pkgutil import walk_packages
from typing import Any


def without_suite(base: type, suites: Iterable[type], package: str) -> list[str]:
    """Names of the concrete subclasses of ``base`` defined in ``package`` that none of the suites makes.

    Parameters
    ----------
    base
        The extension point: `Covariance` or `AbstractFamily`.
    suites
        Suite classes, each with a ``make()``.
    package
        Dotted name of the package whose modules are searched, all of them.
    """
    module = import_module(package)
    for info in walk_packages(getattr(module, "__path__", ()), f"{package}."):
        import_module(info.name)
    checked = {type(suite().make()) for suite in suites}
    found = (cls for cls in _subclasses(base) if f"{cls.__module__}.".startswith(f"{package}."))
    return sorted(cls.__qualname__ for cls in found if not inspect.isabstract(cls) and cls not in checked)


def _subclasses(base: type) -> set[type[Any]]:
    direct: set[type[Any]] = set(base.__subclasses__())
    return direct.union(*(_subclasses(cls) for cls in direct)) if direct else direct
