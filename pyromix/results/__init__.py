"""What inference leaves behind: estimates, their tables, predictions, ArviZ groups, plots and files."""

from pyromix.results.estimate import Estimate, HealthRecord
from pyromix.results.fit import Fit

__all__ = ["Estimate", "Fit", "HealthRecord"]
