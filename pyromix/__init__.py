"""pyromix: hierarchical models as Pyro programs with interchangeable inference.

The public names are resolved on first use (PEP 562), so ``import pyromix`` and ``pyromix --help`` load neither torch
nor pandas.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyromix import datasets as datasets
    from pyromix import networks as networks
    from pyromix import testing as testing
    from pyromix.backends import NUTS as NUTS
    from pyromix.backends import SVI as SVI
    from pyromix.backends import MaximumLikelihood as MaximumLikelihood
    from pyromix.backends import NestedLaplace as NestedLaplace
    from pyromix.backends.training import Training as Training
    from pyromix.covariances import AR1 as AR1
    from pyromix.covariances import ARMA as ARMA
    from pyromix.covariances import BYM2 as BYM2
    from pyromix.covariances import GP as GP
    from pyromix.covariances import IID as IID
    from pyromix.covariances import OU as OU
    from pyromix.covariances import SPDE as SPDE
    from pyromix.covariances import Besag as Besag
    from pyromix.covariances import CompoundSymmetry as CompoundSymmetry
    from pyromix.covariances import Diagonal as Diagonal
    from pyromix.covariances import HilbertSpace as HilbertSpace
    from pyromix.covariances import InducingPoints as InducingPoints
    from pyromix.covariances import Kinship as Kinship
    from pyromix.covariances import Kronecker as Kronecker
    from pyromix.covariances import RandomWalk as RandomWalk
    from pyromix.covariances import Toeplitz as Toeplitz
    from pyromix.covariances import Unstructured as Unstructured
    from pyromix.effects import LinearEffect as LinearEffect
    from pyromix.effects import NeuralEffect as NeuralEffect
    from pyromix.effects import RandomEffect as RandomEffect
    from pyromix.errors import ApproximationWarning as ApproximationWarning
    from pyromix.errors import CheckpointError as CheckpointError
    from pyromix.errors import ConfigError as ConfigError
    from pyromix.errors import ConvergenceWarning as ConvergenceWarning
    from pyromix.errors import DataError as DataError
    from pyromix.errors import DataTypeError as DataTypeError
    from pyromix.errors import DataWarning as DataWarning
    from pyromix.errors import FewGroupsWarning as FewGroupsWarning
    from pyromix.errors import FormulaError as FormulaError
    from pyromix.errors import JitterWarning as JitterWarning
    from pyromix.errors import NotFittedError as NotFittedError
    from pyromix.errors import NumericalError as NumericalError
    from pyromix.errors import PyromixError as PyromixError
    from pyromix.errors import PyromixWarning as PyromixWarning
    from pyromix.errors import RankWarning as RankWarning
    from pyromix.errors import ScaleWarning as ScaleWarning
    from pyromix.errors import SeparationWarning as SeparationWarning
    from pyromix.errors import SingularFitWarning as SingularFitWarning
    from pyromix.errors import Status as Status
    from pyromix.errors import StructureError as StructureError
    from pyromix.errors import UnsafeFileError as UnsafeFileError
    from pyromix.errors import UnseenLevelError as UnseenLevelError
    from pyromix.errors import UnsupportedError as UnsupportedError
    from pyromix.families import Binomial as Binomial
    from pyromix.families import Gaussian as Gaussian
    from pyromix.families import Poisson as Poisson
    from pyromix.families import VarExp as VarExp
    from pyromix.families import VarIdent as VarIdent
    from pyromix.families import VarPower as VarPower
    from pyromix.formula.design import Design as Design
    from pyromix.linalg.meshes import Grid as Grid
    from pyromix.linalg.triangulation import Mesh as Mesh
    from pyromix.marginal import Exact as Exact
    from pyromix.marginal import GaussHermite as GaussHermite
    from pyromix.marginal import Laplace as Laplace
    from pyromix.model import Model as Model
    from pyromix.model import fit as fit
    from pyromix.model import load as load
    from pyromix.model import model as model
    from pyromix.model import prior_predictive as prior_predictive
    from pyromix.program import observe as observe
    from pyromix.results import Fit as Fit
    from pyromix.results.agreement import agreement as agreement

__version__ = "0.1.0"

_SUBMODULES = ("datasets", "networks", "testing")

_NAMES: dict[str, tuple[str, ...]] = {
    "model": ("Model", "fit", "load", "model", "prior_predictive"),
    "effects": ("LinearEffect", "NeuralEffect", "RandomEffect"),
    "program": ("observe",),
    "covariances": (
        "ARMA",
        "RandomWalk",
        "Toeplitz",
        "CompoundSymmetry",
        "OU",
        "SPDE",
        "AR1",
        "BYM2",
        "Besag",
        "GP",
        "IID",
        "Diagonal",
        "HilbertSpace",
        "InducingPoints",
        "Kinship",
        "Kronecker",
        "Unstructured",
    ),
    "families": ("Binomial", "Gaussian", "Poisson", "VarExp", "VarIdent", "VarPower"),
    "linalg.meshes": ("Grid",),
    "linalg.triangulation": ("Mesh",),
    "marginal": ("Exact", "GaussHermite", "Laplace"),
    "backends": ("MaximumLikelihood", "NUTS", "NestedLaplace", "SVI"),
    "backends.training": ("Training",),
    "formula.design": ("Design",),
    "results": ("Fit",),
    "results.agreement": ("agreement",),
    "errors": (
        "ApproximationWarning",
        "CheckpointError",
        "ConfigError",
        "ConvergenceWarning",
        "DataError",
        "DataTypeError",
        "DataWarning",
        "FewGroupsWarning",
        "FormulaError",
        "JitterWarning",
        "NotFittedError",
        "NumericalError",
        "PyromixError",
        "PyromixWarning",
        "RankWarning",
        "ScaleWarning",
        "SeparationWarning",
        "SingularFitWarning",
        "Status",
        "StructureError",
        "UnsafeFileError",
        "UnseenLevelError",
        "UnsupportedError",
    ),
}

_HOME: dict[str, str] = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, *_SUBMODULES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name where it lives and keep it here for the next look-up."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package's class: it keeps ``pyromix.model`` the function of the contract.

    Loading the submodule ``pyromix.model`` makes the import system bind that module to the attribute ``model`` of the
    package, whichever statement loads it and in whatever order, after the submodule has run. The function of that name
    is bound instead. The module stays reachable through ``from pyromix.model import ...`` and ``sys.modules``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
