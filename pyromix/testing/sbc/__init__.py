"""Simulation-based calibration: is a posterior right on average over what its priors can produce?

``python -m pyromix.testing.sbc`` runs it on small models by every backend; `simulate` on a program of your own.
"""

from pyromix.testing.sbc.problem import Fitted, Problem, by_backend, draw, quantities, simulate
from pyromix.testing.sbc.ranks import Uniformity, coverage, rank, test_uniformity

__all__ = [
    "Fitted",
    "Problem",
    "Uniformity",
    "by_backend",
    "coverage",
    "draw",
    "quantities",
    "rank",
    "simulate",
    "test_uniformity",
]
