"""Covariance structures of random effects: one a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyromix.covariances.ar1 import AR1
from pyromix.covariances.arma import ARMA
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.besag import Besag
from pyromix.covariances.bym2 import BYM2
from pyromix.covariances.compound_symmetry import CompoundSymmetry
from pyromix.covariances.diagonal import Diagonal
from pyromix.covariances.gp import GP
from pyromix.covariances.hilbert_space import HilbertSpace
from pyromix.covariances.iid import IID
from pyromix.covariances.inducing_points import InducingPoints
from pyromix.covariances.kinship import Kinship
from pyromix.covariances.known_matrix import vanraden
from pyromix.covariances.kronecker import Kronecker
from pyromix.covariances.ou import OU
from pyromix.covariances.pedigree import relationship
from pyromix.covariances.random_walk import RandomWalk
from pyromix.covariances.spde import SPDE
from pyromix.covariances.toeplitz import Toeplitz
from pyromix.covariances.unstructured import Unstructured
from pyromix.parameters import build, class_named

__all__ = [
    "AR1",
    "ARMA",
    "BYM2",
    "GP",
    "IID",
    "OU",
    "SPDE",
    "Besag",
    "CompoundSymmetry",
    "Coords",
    "Covariance",
    "Diagonal",
    "HilbertSpace",
    "InducingPoints",
    "Kinship",
    "Kronecker",
    "RandomWalk",
    "Toeplitz",
    "Unstructured",
    "from_config",
    "named",
    "relationship",
    "vanraden",
]

_CLASSES: dict[str, type[Covariance]] = {
    cls.__name__: cls
    for cls in (
        *(IID, Diagonal, Unstructured, Kinship, GP, SPDE, Besag, BYM2, Kronecker),
        *(AR1, OU, CompoundSymmetry, Toeplitz, RandomWalk, ARMA),
    )
}


def named(name: str) -> type[Covariance]:
    """The structure called ``name``; `ConfigError` listing the known ones otherwise."""
    return class_named(name, _CLASSES, "covariance")


def from_config(config: Mapping[str, Any]) -> Covariance:
    """The structure whose ``config()`` is given; nothing in it is executed."""
    parts = {key: from_config(v) if isinstance(v, Mapping) and "class" in v else v for key, v in config.items()}
    return build(parts, _CLASSES, "covariance")
