"""Residuals at the training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pyromix.errors import ConfigError
from pyromix.running import Site

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

KINDS = ("response", "pearson")


def residuals(fit: Fit, kind: str) -> np.ndarray:
    r"""Residuals at the conditional modes, (n,), over all responses of the program one after the other.

    ``"response"``: :math:`y_n - \mu_n` (a difference of proportions for binomial counts); ``"pearson"``:
    :math:`(y_n - \mu_n)/SD(y_n)`, which lme4 prints as scaled residuals. Rows that a mask takes out are NaN.
    """
    if kind not in KINDS:
        raise ConfigError(f"residuals({kind!r}): choose one of {', '.join(map(repr, KINDS))}.")
    return np.concatenate([_site_residuals(site, kind) for site in fit.record.data.values()])


@torch.no_grad()
def _site_residuals(site: Site, kind: str) -> np.ndarray:
    role = site.role
    response = role.family.distribution(role.eta, role.trials, **role.dispersion)
    value = role.obs - response.mean
    if kind == "pearson":
        value = value / response.variance.sqrt()
    elif role.trials is not None:
        value = value / role.trials
    if role.mask is not None:
        value = torch.where(role.mask, value, torch.nan)
    return value.to(torch.float64).numpy()
