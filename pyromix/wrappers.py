"""What the wrappers of a formula's random terms stand for: ``ar1(1 | g:time)``, ``gp(x, y)``, ``propto(1 | id, K)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyromix.covariances import (
    AR1,
    ARMA,
    BYM2,
    GP,
    IID,
    OU,
    SPDE,
    Besag,
    CompoundSymmetry,
    Covariance,
    Diagonal,
    HilbertSpace,
    InducingPoints,
    Kinship,
    Kronecker,
    RandomWalk,
    Toeplitz,
    Unstructured,
)
from pyromix.errors import ConfigError
from pyromix.linalg.meshes import Grid

Known = Mapping[str, Any]
KERNELS: dict[str, list[Any]] = {  # as `GP` saves them
    "matern12": ["MaternKernel", {"nu": 0.5}, {}, []],
    "matern32": ["MaternKernel", {"nu": 1.5}, {}, []],
    "matern52": ["MaternKernel", {"nu": 2.5}, {}, []],
    "rbf": ["RBFKernel", {}, {}, []],
    "periodic": ["PeriodicKernel", {}, {}, []],
}
HALVES: dict[str, Callable[[], Covariance]] = {"iid": IID, "ar1": AR1, "ou": OU, "rw": RandomWalk}


def wrapped(term: Any, known: Known) -> Covariance:
    """The structure of a random term by its wrapper.

    Parameters
    ----------
    term
        A `pyromix.formula.design.RandomTerm`: its `structure`, what the formula gave it, its levels.
    known
        What the formula names and is handed over beside it: matrices, pedigrees, graphs, meshes, kernels.

    Raises
    ------
    ConfigError
        A name that was not handed over, an argument that is missing.
    """
    return BUILDERS[term.structure](term, _Arguments(term, known))


class _Arguments:
    """The arguments of one wrapper."""

    def __init__(self, term: Any, known: Known) -> None:
        self.where, self.known, self.given = f"{term.structure}(... | {term.group})", known, dict(term.arguments)

    def number(self, name: str, default: Any) -> Any:
        """A number that stands in the formula."""
        value = self.given.get(name, default)
        if isinstance(value, str):
            raise ConfigError(f"{self.where}: {name}={value} is no number.")
        return value

    def thing(self, name: str, what: str, optional: bool = False) -> Any:
        """Something that is handed over, by the name that stands in the formula."""
        if name not in self.given:
            if optional:
                return None
            raise ConfigError(f"{self.where} needs {what}: name it behind the term, and hand it over: known={{...}}.")
        value = self.given[name]
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {name}={value!r} is no name; it takes the name of {what}.")
        if value not in self.known:
            there = ", ".join(map(repr, self.known)) or "nothing"
            raise ConfigError(
                f"{self.where}: {value!r} is not there; pass known={{{value!r}: {what}}} (there is {there})."
            )
        return self.known[value]


def _gp(term: Any, given: _Arguments) -> Covariance:
    name = given.given.get("kernel", "matern32")
    if name in KERNELS and name not in given.known:
        kernel = KERNELS[str(name)]
    else:
        kernel = given.thing("kernel", f"a GPyTorch kernel, or one of {', '.join(KERNELS)}")
    basis, inducing = given.number("basis", None), given.number("inducing", None)
    if basis is not None and inducing is not None:
        raise ConfigError(f"{given.where}: basis= and inducing= are two approximations; choose one.")
    approximation = HilbertSpace(basis) if basis is not None else None if inducing is None else InducingPoints(inducing)
    return GP(kernel, approximation=approximation)


def _spde(term: Any, given: _Arguments) -> Covariance:
    mesh = given.thing("mesh", "a pyromix.Mesh or pyromix.Grid", optional=True)
    return SPDE(Grid(list(term.levels)) if mesh is None else mesh, alpha=given.number("alpha", 2))


def _half(given: _Arguments, name: str) -> Covariance:
    """One factor of a product: a structure without arguments, or one that is handed over, or a known matrix."""
    word = given.given.get(name)
    if isinstance(word, str) and word in HALVES and word not in given.known:
        return HALVES[word]()
    thing = given.thing(name, f"a structure or a matrix, or one of {', '.join(HALVES)}")
    return thing if isinstance(thing, Covariance) else Kinship(thing)


def _relatives(term: Any, given: _Arguments) -> Covariance:
    kinship = Kinship(given.thing("K", "a covariance matrix with labels"))
    several = any(isinstance(level, tuple) for level in term.levels)
    return Kronecker(kinship, IID()) if several else kinship


BUILDERS: dict[str, Callable[[Any, _Arguments], Covariance]] = {
    "iid": lambda term, given: IID(),
    "us": lambda term, given: Unstructured(),
    "diag": lambda term, given: Diagonal(),
    "cs": lambda term, given: CompoundSymmetry(hom=False),
    "homcs": lambda term, given: CompoundSymmetry(hom=True),
    "toep": lambda term, given: Toeplitz(hom=False),
    "homtoep": lambda term, given: Toeplitz(hom=True),
    # as glmmTMB has it, where the terms of a level are times, the values of a factor: ar1(0 + C(time) | g)
    "ar1": lambda term, given: AR1(over="terms" if all("[" in name for name in term.terms) else "levels"),
    "ou": lambda term, given: OU(),
    "rw": lambda term, given: RandomWalk(order=given.number("order", 1)),
    "arma": lambda term, given: ARMA(given.number("p", 1), given.number("q", 0)),
    "gp": _gp,
    "spde": _spde,
    "besag": lambda term, given: Besag(given.thing("graph", "a graph of neighbours")),
    "bym2": lambda term, given: BYM2(given.thing("graph", "a graph of neighbours")),
    "propto": _relatives,
    "ped": lambda term, given: Kinship(pedigree=given.thing("pedigree", "a pedigree")),
    "kron": lambda term, given: Kronecker(_half(given, "first"), _half(given, "second")),
}


def unused(terms: Sequence[Any], known: Known) -> list[str]:
    """Names that were handed over and that no term uses."""
    used = {value for term in terms for value in term.arguments.values()}
    return [name for name in known if name not in used]
