"""Marginalisers: program -> program without its random effects."""

from pyromix.marginal.base import AbstractMarginal, BoundMarginal, Conditional, MarginalProgram
from pyromix.marginal.exact import Exact
from pyromix.marginal.laplace import Laplace
from pyromix.marginal.quadrature import GaussHermite

__all__ = ["AbstractMarginal", "BoundMarginal", "Conditional", "Exact", "GaussHermite", "Laplace", "MarginalProgram"]
