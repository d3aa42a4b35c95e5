"""Findings about posterior draws: samplers, importance draws, leave-one-out weights.

Thresholds are the strictest in use: R-hat 1.01 and 100 effective draws a chain (Vehtari et al. 2021, as in `mixing`),
E-BFMI 0.3 [Betancourt2016]_, Pareto k-hat ``min(1 - 1 / log10 S, 0.7)`` [Vehtari2024]_. Past the second limits given
here a fit is refused as not reliable: its status is not ok, and its standard errors are shown only by ``fit.force()``.

References
----------
.. [Betancourt2016] Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo,
   arXiv:1604.00695.
.. [Vehtari2024] Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, Journal of Machine
   Learning Research 25(72).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyromix.errors import Status
from pyromix.results.estimate import HealthRecord
from pyromix.results.mixing import Mixing, measure

RHAT, RHAT_REFUSED = 1.01, 1.1
ESS_PER_CHAIN = 100
BFMI = 0.3
DEEP = 0.05  # share of a chain's draws at the largest tree
DIVERGENT_REFUSED = 0.05  # share of all draws
CHAINS, DRAWS = 4, 100
KHAT_DOUBTFUL, KHAT = 0.5, 0.7
MAX_ENTRIES = 1000  # of one site; a longer one is checked at evenly spaced entries
WORST = 5

Labels = Mapping[str, tuple[Sequence[Any], ...]]


def sampler_findings(
    draws: Mapping[str, torch.Tensor],
    chains: int,
    sample_stats: Mapping[str, Any] | None = None,
    labels: Labels | None = None,
) -> tuple[HealthRecord, ...]:
    """Findings about the draws of a Markov chain sampler.

    Parameters
    ----------
    draws
        Site -> (n, *shape), chain after chain. Entries that never change are not judged.
    chains
        Number of chains in them.
    sample_stats
        ArviZ's canonical names -> (chain, draw); read are ``diverging``, ``energy``, ``tree_depth`` and
        ``reached_max_treedepth``.
    labels
        Site -> labels of each of its dimensions (`declared.dimension_labels`); positions where there are none.
    """
    entries = Entries.of(draws, chains, labels or {})
    if entries.broken:
        return (_broken(entries.broken),)
    stats = {name: np.asarray(value) for name, value in (sample_stats or {}).items()}
    return (
        *_divergences(stats, entries),
        *_few(chains, entries.length),
        *(_mixing(entries) if entries.length >= 8 and len(entries.names) else ()),
        *_energy(stats),
        *_depth(stats),
    )


def importance_findings(khat: float, effective: float, n: int) -> tuple[HealthRecord, ...]:
    """Findings about importance draws.

    Parameters
    ----------
    khat
        Shape of the generalised Pareto distribution of their largest weights.
    effective
        Effective draws among them, ``1 / sum w^2`` for weights that sum to one.
    n
        How many were made.
    """
    limit = khat_limit(n)
    found = []
    if not khat <= limit:  # NaN too
        found.append(
            HealthRecord(
                "pareto_k", "error", float(khat), limit, "importance weights",
                "Not reliable: the approximation misses part of the posterior. Use NUTS(marginal=...), or NUTS.",
            )
        )  # fmt: skip
    elif khat > KHAT_DOUBTFUL:
        found.append(
            HealthRecord(
                "pareto_k", "warn", float(khat), KHAT_DOUBTFUL, "importance weights",
                f"More draws improve estimates slowly; compare with NUTS(marginal=...). Refused beyond {limit:.2f}.",
            )
        )  # fmt: skip
    if not effective >= ESS_PER_CHAIN:
        more = math.ceil(n * ESS_PER_CHAIN / effective) if effective > 0 else 10 * n
        found.append(
            HealthRecord(
                "effective_size", "warn", float(effective), float(ESS_PER_CHAIN), "importance weights",
                f"Few effective draws: make {_round_up(more)} of them.",
            )
        )  # fmt: skip
    return tuple(found)


def khat_limit(n: int) -> float:
    """The k-hat beyond which weighted means of n draws cannot be relied on."""
    return min(1 - 1 / math.log10(max(n, 11)), KHAT)


def posterior_status(findings: Sequence[HealthRecord]) -> Status:
    """The status of draws in view of the findings about them."""
    refused = {record.code for record in findings if record.severity == "error"}
    if "pareto_k" in refused:
        return Status.UNRELIABLE
    return Status.NOT_MIXED if refused else Status.CONVERGED


def leave_one_out_findings(khat: np.ndarray, rows: Sequence[Any], n: int) -> tuple[HealthRecord, ...]:
    """The finding about leave-one-out weights, if some row is beyond the limit.

    Parameters
    ----------
    khat
        Of each row.
    rows
        Their labels.
    n
        Draws.
    """
    limit = khat_limit(n)
    over = np.flatnonzero(~(khat <= limit))
    if not len(over):
        return ()
    order = over[np.argsort(-np.nan_to_num(khat[over], nan=np.inf), kind="stable")]
    shown = ", ".join(f"{rows[k]} ({khat[k]:.2f})" for k in order[:WORST])
    more = f" and {len(order) - WORST} more" if len(order) > WORST else ""
    return (
        HealthRecord(
            "loo_khat", "warn", float(np.nanmax(khat)), limit, f"rows {shown}{more}",
            f"{len(order)} of {len(khat)} rows move the posterior too much to be left out by reweighting: do not rank "
            "models by this elpd; refit without these rows, or leave whole groups out.",
        ),
    )  # fmt: skip


# -- what is judged ---------------------------------------------------------------------------------------------------
class Entries:
    """The entries of every site as rows of one array, those that never change left out.

    Attributes
    ----------
    names
        ``site[label]`` of each entry.
    values
        (entries, chains, draws).
    broken
        Sites with draws that are not finite.
    """

    def __init__(self, names: list[str], values: np.ndarray, broken: tuple[str, ...]) -> None:
        self.names, self.values, self.broken = names, values, broken

    @property
    def length(self) -> int:
        """Draws of one chain."""
        return self.values.shape[2]

    @classmethod
    def of(cls, draws: Mapping[str, torch.Tensor], chains: int, labels: Labels, limit: int = MAX_ENTRIES) -> Entries:
        """Of draws by site, chain after chain."""
        names: list[str] = []
        parts: list[np.ndarray] = []
        broken = []
        length = len(next(iter(draws.values()))) // chains
        for site, value in draws.items():
            array = value.detach().cpu().numpy().reshape(len(value), -1)
            keep = np.unique(np.linspace(0, array.shape[1] - 1, min(limit, array.shape[1])).round().astype(int))
            array = array[:, keep].astype(np.float64)
            if not np.isfinite(array).all():
                broken.append(site)
                continue
            low, high = array.min(0, initial=np.inf), array.max(0, initial=-np.inf)
            varies = high - low > 1e-12 * np.maximum(np.abs(low), np.abs(high))
            parts.append(array[:, varies].T.reshape(-1, chains, length))
            names += [entry_name(site, k, value.shape[1:], labels.get(site)) for k in keep[varies]]
        joined = np.concatenate(parts) if parts else np.zeros((0, chains, length))
        return cls(names, joined, tuple(broken))


def entry_name(site: str, position: int, shape: Sequence[int], labels: tuple[Sequence[Any], ...] | None) -> str:
    """``site[label, label]`` of a flattened position; positions where the labels do not fit the shape."""
    if not shape:
        return site
    where = [int(k) for k in np.unravel_index(position, tuple(shape))]
    if labels is not None and tuple(len(names) for names in labels) == tuple(shape):
        return f"{site}[{', '.join(str(names[k]) for names, k in zip(labels, where, strict=True))}]"
    return f"{site}[{', '.join(map(str, where))}]"


# -- findings ---------------------------------------------------------------------------------------------------------
def _broken(sites: tuple[str, ...]) -> HealthRecord:
    return HealthRecord(
        "not_finite", "error", "NaN or infinite", "finite", ", ".join(sites),
        "The density is not finite there: look at the priors and the data of these sites.",
    )  # fmt: skip


def _divergences(stats: Mapping[str, np.ndarray], entries: Entries) -> Iterator[HealthRecord]:
    diverging = stats.get("diverging")
    if diverging is None or not diverging.any():
        return
    mask: np.ndarray = diverging.astype(bool)
    count, share = int(mask.sum()), float(mask.mean())
    where = _shifted(mask, entries)
    yield HealthRecord(
        "divergences",
        "error" if share > DIVERGENT_REFUSED else "warn",
        f"{count} ({100 * share:.2g} %)",
        0.0,
        where or "all",
        "Parts of the posterior may be missed. Raise target_accept, e.g. to 0.95 or 0.99; if they stay, non-centre the "
        "effects (parametrisation='noncentered'; in plain Pyro theta = mu + tau * z), or integrate them out.",
    )


def _shifted(mask: np.ndarray, entries: Entries) -> str:
    """The entry whose mean differs most, in SDs, between draws that diverged and those that did not.

    Positive entries are compared on the log scale: the neck of a funnel is at small SDs.
    """
    here = mask.reshape(-1)
    if here.all() or not len(entries.names) or mask.shape != entries.values.shape[1:]:
        return ""
    values = entries.values.reshape(len(entries.names), -1)
    positive = np.all(values > 0, axis=1)
    values = np.where(positive[:, None], np.log(np.where(positive[:, None], values, 1.0)), values)
    at, away = (np.mean(values, axis=1, where=side) for side in (here, np.logical_not(here)))
    shift = (at - away) / values.std(1)
    worst = int(np.nanargmax(np.abs(shift)))
    return f"{entries.names[worst]} ({'lower' if shift[worst] < 0 else 'higher'} there by {abs(shift[worst]):.1f} SD)"


def _few(chains: int, length: int) -> Iterator[HealthRecord]:
    if chains < CHAINS:
        severity = "warn" if chains == 1 else "info"
        remedy = "Chains from several starts are what shows that the posterior was found: run 4."
        yield HealthRecord("few_chains", severity, float(chains), float(CHAINS), "chains", remedy)
    if length < DRAWS:
        remedy = "Too few for quantiles, and for these checks: 1000 draws a chain are usual."
        yield HealthRecord("few_draws", "warn", float(length), float(DRAWS), "draws of a chain", remedy)


def _mixing(entries: Entries) -> Iterator[HealthRecord]:
    found = measure(entries.values)
    yield from _rhat(entries, found)
    chains = entries.values.shape[1]
    for code, what, sizes in (("ess_bulk", "means", found.bulk), ("ess_tail", "quantiles", found.tail)):
        limit = float(ESS_PER_CHAIN * chains)
        if not (sizes < limit).any():
            continue
        worst = int(np.nanargmin(sizes))
        needed = _round_up(math.ceil(entries.length * limit / max(float(sizes[worst]), 1.0)))
        more = f" and {int((sizes < limit).sum()) - 1} more" if (sizes < limit).sum() > 1 else ""
        remedy = f"Its {what} are rough: take about {needed} draws a chain."
        yield HealthRecord(code, "warn", float(sizes[worst]), limit, entries.names[worst] + more, remedy)


def _rhat(entries: Entries, found: Mixing) -> Iterator[HealthRecord]:
    over = np.flatnonzero(found.rhat > RHAT)
    if not len(over):
        return
    order = over[np.argsort(-found.rhat[over], kind="stable")]
    shown = ", ".join(f"{entries.names[k]} {found.rhat[k]:.4g}" for k in order[:WORST])
    more = f" and {len(order) - WORST} more" if len(order) > WORST else ""
    worst = float(found.rhat[order[0]])
    refused = worst > RHAT_REFUSED
    remedy = (
        "The chains found different distributions: none of the numbers can be relied on. Look at az.plot_trace; run "
        "longer (tune, draws), give priors, or reparametrise."
        if refused
        else "The chains have not quite mixed: run longer (tune, draws)."
    )
    yield HealthRecord("rhat", "error" if refused else "warn", worst, RHAT, shown + more, remedy)


def _energy(stats: Mapping[str, np.ndarray]) -> Iterator[HealthRecord]:
    energy = stats.get("energy")
    if energy is None or energy.shape[1] < 8:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1, ddof=1)
    low = np.flatnonzero(ratio < BFMI)
    if len(low):
        shown = ", ".join(f"chain {k}: {ratio[k]:.2f}" for k in low)
        remedy = "The sampler explores the tails slowly: reparametrise (parametrisation='noncentered'), or give priors."
        yield HealthRecord("bfmi", "warn", float(ratio[low].min()), BFMI, shown, remedy)


def _depth(stats: Mapping[str, np.ndarray]) -> Iterator[HealthRecord]:
    reached = stats.get("reached_max_treedepth")
    if reached is None or not reached.any():
        return
    share = reached.astype(float).mean(1)
    depth = f", depth {int(np.max(stats['tree_depth']))}" if "tree_depth" in stats else ""
    shown = ", ".join(f"chain {k}: {100 * share[k]:.2g} %" for k in np.flatnonzero(share))
    remedy = "Nothing is wrong with the draws, but they are dear: rescale predictors, give priors, or raise the depth."
    severity = "warn" if share.max() > DEEP else "info"
    yield HealthRecord("tree_depth", severity, f"{100 * share.max():.2g} %", f"{100 * DEEP:g} %", shown + depth, remedy)


def _round_up(count: float) -> int:
    """To one leading digit and a half: 1234 -> 1500."""
    step = 10 ** max(int(math.log10(max(count, 1))) - 1, 0) * 5
    return int(math.ceil(count / step) * step)
