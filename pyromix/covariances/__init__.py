"""Covariance structures of random effects: one a file."""

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.diagonal import Diagonal
from pyromix.covariances.iid import IID
from pyromix.covariances.unstructured import Unstructured

__all__ = ["IID", "Coords", "Covariance", "Diagonal", "Unstructured"]
