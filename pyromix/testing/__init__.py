"""Conformance suites for new covariances and families: subclass one, define two or three methods, run pytest.

A suite is a plain class of ``test_`` methods; pytest collects a subclass whose name starts with ``Test``.
"""

from pyromix.testing.covariance import CovarianceSuite
from pyromix.testing.discovery import without_suite
from pyromix.testing.family import FamilySuite

__all__ = ["CovarianceSuite", "FamilySuite", "without_suite"]
