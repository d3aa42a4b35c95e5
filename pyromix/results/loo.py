"""Leave-one-out scores by reweighting the draws."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pyromix.errors import ApproximationWarning, ConfigError
from pyromix.results.diagnostics import leave_one_out_findings

if TYPE_CHECKING:
    import arviz

    from pyromix.results.fit import Fit


def leave_one_out(fit: Fit, **how: Any) -> arviz.ELPDData:
    """`Fit.loo`."""
    import arviz

    idata = fit.idata
    names = list(idata["log_likelihood"].data_vars)
    if len(names) > 1 and how.get("var_name") is None:
        raise ConfigError(f"loo(): the program observes {', '.join(map(repr, names))}; choose one: loo(var_name=...).")
    with warnings.catch_warnings():
        # said below, with the rows that it is about
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution", UserWarning)
        found = arviz.loo(idata, **{"pointwise": True, **how})
    if "pareto_k" in found:
        khat = found["pareto_k"]
        rows = khat[khat.dims[0]].to_numpy() if khat.ndim == 1 else np.arange(khat.size)
        for record in leave_one_out_findings(
            khat.to_numpy().reshape(-1), list(rows), int(idata["posterior"].attrs["draws"])
        ):
            message = f"{record.code}: {record.parameter} (limit {record.threshold:.2f}). {record.remedy}"
            warnings.warn(message, ApproximationWarning, stacklevel=3)
    return found
