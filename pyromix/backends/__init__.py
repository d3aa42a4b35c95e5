"""Backends: drivers that fit a program, each in its own way, to the same kind of result."""

from pyromix.backends.base import AbstractBackend
from pyromix.backends.maximum_likelihood import MaximumLikelihood
from pyromix.backends.nested_laplace import NestedLaplace
from pyromix.backends.nuts import NUTS
from pyromix.backends.svi import SVI

__all__ = ["AbstractBackend", "MaximumLikelihood", "NUTS", "SVI", "NestedLaplace"]
