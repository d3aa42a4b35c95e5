"""Residuals at the training rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyromix.errors import ConfigError
from pyromix.results.draws import Responses, Values, describe, over_draws
from pyromix.results.rows import by_itself, response_site
from pyromix.running import Site

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

KINDS = ("response", "pearson", "normalized")
DRAWS = 400  # of a posterior, for its mean and variance at every row


def residuals(fit: Fit, kind: str) -> np.ndarray:
    r"""Residuals, (n,), over all responses that the program observes with a family, one after the other.

    ``"response"``: :math:`y_n - \mu_n` (a difference of proportions for binomial counts); ``"pearson"``:
    :math:`(y_n - \mu_n)/SD(y_n)`, which lme4 prints as scaled residuals; ``"normalized"``: the same given the rows
    before row n in its series where residuals are correlated (nlme's normalized residuals), so that they are
    independent. Mean and variance are those at the conditional
    modes, or for a posterior their averages over its draws. Rows that a mask takes out are NaN.
    """
    if kind not in KINDS:
        raise ConfigError(f"residuals({kind!r}): choose one of {', '.join(map(repr, KINDS))}.")
    if not fit.record.data:
        response_site(fit.record)  # says why there are none
    return np.concatenate([_site_residuals(fit, site, kind) for site in fit.record.data.values()])


@torch.no_grad()
def _site_residuals(fit: Fit, site: Site, kind: str) -> np.ndarray:
    view = (lambda site: site) if kind == "normalized" else by_itself
    site = view(site)
    role = site.role
    mean, variance = _moments(fit, site, view)
    value = role.obs - mean
    if kind != "response":
        value = value / variance.sqrt()
    elif role.trials is not None:
        value = value / role.trials
    if role.mask is not None:
        value = torch.where(role.mask, value, torch.nan)
    return value.to(torch.float64).numpy()


def _moments(fit: Fit, site: Site, view: Callable[[Site], Site]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the response at each row."""
    role = site.role
    at = Responses.of(site, {name: value[None] for name, value in describe(site).items()})
    if fit.estimate.kind == "draws":

        def one(values: Values) -> Values:
            return describe(view(fit.run(values).data[site.name]))

        at = Responses.of(site, over_draws(one, fit.draws(min(fit.n_draws, DRAWS)), len(role.eta)))

    def moments(eta: torch.Tensor, dispersion: Values) -> torch.Tensor:
        response = role.family.distribution(eta, role.trials, **dispersion)
        return torch.stack([response.mean, response.variance])

    mean, variance = at.map(moments).mean(0)
    return mean, variance
