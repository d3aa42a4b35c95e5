"""Exceptions, warnings and fit statuses.

Every message says where the problem is (argument, column, term), what was found against what was expected
(value and row), and what to do about it.
"""

from __future__ import annotations

from enum import Enum


class PyromixError(Exception):
    """Root of every exception that pyromix raises on purpose."""


class DataError(PyromixError, ValueError):
    """A value, column or array that cannot be used as it is."""


class DataTypeError(PyromixError, TypeError):
    """An object of a type that is not accepted."""


class UnseenLevelError(DataError):
    """New data hold a level that the fit has never seen."""


class FormulaError(PyromixError, ValueError):
    """A formula that cannot be read, or names something that does not exist."""


class StructureError(PyromixError, ValueError):
    """A covariance structure that does not fit its levels, or is not a covariance."""


class ConfigError(PyromixError, ValueError):
    """An argument of a prior, family, marginaliser or backend outside its allowed set."""


class NumericalError(PyromixError, ArithmeticError):
    """A computation that left the finite numbers."""


class UnsupportedError(PyromixError, NotImplementedError):
    """A model that this backend cannot fit; the message names those that can."""


class NotFittedError(PyromixError, ValueError, AttributeError):
    """A result was asked for before there was one."""


class CheckpointError(PyromixError, OSError):
    """A saved file that is damaged or belongs to something else."""


class UnsafeFileError(PyromixError, OSError):
    """A file that is not in a format pyromix is willing to open."""


class PyromixWarning(UserWarning):
    """Root of every warning that pyromix gives."""


class ConvergenceWarning(PyromixWarning):
    """The optimiser stopped before an optimum, or at a bound."""


class SingularFitWarning(PyromixWarning):
    """A variance estimated at zero, or a correlation at one."""


class SeparationWarning(PyromixWarning):
    """A predictor separates the classes; its coefficient is not identified."""


class RankWarning(PyromixWarning):
    """Columns of the design that are linear combinations of others."""


class ScaleWarning(PyromixWarning):
    """Predictors on very different scales."""


class FewGroupsWarning(PyromixWarning):
    """A grouping factor with fewer than five levels."""


class JitterWarning(PyromixWarning):
    """A covariance needed an added diagonal; the message says how much."""


class ApproximationWarning(PyromixWarning):
    """The approximation in use is known to be poor here."""


class DataWarning(PyromixWarning):
    """Data that are legal and probably not meant."""


class Status(Enum):
    """How a fit ended. The value is the sentence a user reads."""

    CONVERGED = "converged"
    SINGULAR = "converged on the boundary (singular fit): a variance is zero or a correlation is one"
    NOT_CONVERGED = "not converged: the gradient is not small; more iterations or other starts are needed"
    NOT_A_MODE = "not a maximum: the curvature at the estimate is not negative definite"
    ITERATION_LIMIT = "stopped at the iteration limit"
    STOPPED_EARLY = "stopped early: the held-out score no longer improved; the best state was restored"
    TIME_LIMIT = "stopped at the time limit"
    NOT_MIXED = "not mixed: the chains do not agree on the posterior"
    UNRELIABLE = "not reliable: the approximation is too far from the posterior for importance weights to correct it"

    @property
    def ok(self) -> bool:
        """Whether estimates and standard errors can be read as usual."""
        return self in (Status.CONVERGED, Status.SINGULAR, Status.STOPPED_EARLY)
