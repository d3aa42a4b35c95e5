"""Response families: one a file."""

from pyromix.families.base import AbstractFamily, Derivatives
from pyromix.families.binomial import Binomial
from pyromix.families.gaussian import Gaussian
from pyromix.families.poisson import Poisson

__all__ = ["AbstractFamily", "Binomial", "Derivatives", "Gaussian", "Poisson"]
