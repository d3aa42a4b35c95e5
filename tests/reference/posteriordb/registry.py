"""All reference posteriors, by name."""

from __future__ import annotations

from tests.reference.posteriordb import hierarchical, processes, regressions, series
from tests.reference.posteriordb.posteriors import Posterior

ALL: dict[str, Posterior] = {
    posterior.id: posterior
    for module in (regressions, hierarchical, series, processes)
    for posterior in module.POSTERIORS
}
