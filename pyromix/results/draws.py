"""The response of a program at many draws: all at once where the program allows it, else one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyromix.running import Site, isolated

Values = dict[str, torch.Tensor]
BATCH = 2_000_000  # entries of one (draws, rows) tensor evaluated at once


def over_draws(function: Callable[[Values], Values], inputs: Mapping[str, torch.Tensor], rows: int) -> Values:
    """Apply a function of one draw to every draw and stack what it returns.

    The function is vectorised (``torch.vmap``), which for a program of a few hundred rows is fifty times faster than
    running it draw by draw. A program that looks at its values, by a branch or an ``item()``, cannot be: it is then run
    draw by draw, which also shows an error of its own as what it is.

    Parameters
    ----------
    inputs
        Tensors by name, (draws, ...).
    rows
        Rows of the data, by which memory is kept in bounds.
    """
    mapped = torch.vmap(function)
    try:
        return _joined(mapped(part) for part in _pieces(inputs, rows).values())
    except Exception:  # whatever it was, the loop finds out whether it is the program's own
        return _one_by_one(lambda values, _: function(values), inputs)


def sampled_over_draws(
    function: Callable[[Values, int], Values], inputs: Mapping[str, torch.Tensor], rows: int
) -> Values:
    """As `over_draws`, of a function that draws random numbers seeded by its second argument, new ones for each draw.

    A few of torch's distributions can be sampled from under ``vmap``; the others fail there, or warn.
    """

    def seeded(start: int) -> Callable[[Values], Values]:
        return torch.vmap(lambda values: function(values, start), randomness="different")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return _joined(seeded(start)(part) for start, part in _pieces(inputs, rows).items())
    except Exception:  # as above
        return _one_by_one(function, inputs)


def _pieces(inputs: Mapping[str, torch.Tensor], rows: int) -> dict[int, Values]:
    """Parts of the draws, by the number of their first."""
    size = max(1, BATCH // max(rows, 1))
    count = len(next(iter(inputs.values())))
    return {k: {name: value[k : k + size] for name, value in inputs.items()} for k in range(0, count, size)}


def _joined(found: Iterable[Values]) -> Values:
    parts = list(found)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _one_by_one(function: Callable[[Values, int], Values], inputs: Mapping[str, torch.Tensor]) -> Values:
    count = len(next(iter(inputs.values())))
    parts = [function({name: value[s] for name, value in inputs.items()}, s) for s in progress(range(count))]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def progress(steps: range) -> Any:
    """The steps with a bar that shows itself only if they take longer than two seconds."""
    from tqdm import tqdm

    return tqdm(steps, desc="draws", delay=2.0, leave=False)


DISPERSION = "dispersion\0"


def describe(site: Site) -> Values:
    """What is kept of a response at one draw: predictor and dispersion."""
    return {"eta": site.role.eta, **{DISPERSION + name: value for name, value in site.role.dispersion.items()}}


def following(site: Site, noise: torch.Tensor) -> torch.Tensor:
    """New responses whose rows take over from new rows before them, (n,): noise (n,) of unit variance."""
    role = site.role
    return role.plain.eta + role.chain.follow(noise * role.dispersion["sigma"])


@dataclass(frozen=True)
class Responses:
    """A response at every draw.

    Attributes
    ----------
    site
        The response at one of them: its family, data and trials serve all.
    eta
        Predictors (draws, n).
    dispersion
        By name, (draws,) or (draws, n).
    """

    site: Site
    eta: torch.Tensor
    dispersion: Values

    @classmethod
    def of(cls, site: Site, values: Values) -> Responses:
        """From what `describe` kept, stacked."""
        dispersion = {n.removeprefix(DISPERSION): v for n, v in values.items() if n.startswith(DISPERSION)}
        return cls(site, values["eta"], dispersion)

    def __len__(self) -> int:
        return len(self.eta)

    def at(self, s: int) -> Values:
        """Dispersion at draw s."""
        return {name: value[s] for name, value in self.dispersion.items()}

    def map(self, function: Callable[[torch.Tensor, Values], torch.Tensor]) -> torch.Tensor:
        """``function(eta, dispersion)`` at every draw, stacked."""
        with torch.no_grad():
            return torch.stack([function(eta, self.at(s)) for s, eta in enumerate(self.eta)])

    def means(self) -> torch.Tensor:
        """Expected responses, (draws, n)."""
        return self.map(lambda eta, dispersion: self.site.role.family.mean(eta, **dispersion))

    def log_likelihoods(self) -> torch.Tensor:
        """Row-wise log-likelihoods, (draws, n).

        Frequency weights multiply them; rows that a mask takes out have 0.
        """
        role = self.site.role

        def one(eta: torch.Tensor, dispersion: Values) -> torch.Tensor:
            value = role.family.log_prob(eta, role.obs, role.trials, **dispersion)
            value = value if role.weights is None else value * role.weights
            return value if role.mask is None else torch.where(role.mask, value, torch.zeros_like(value))

        return self.map(one)

    def replicates(self, seed: int) -> tuple[torch.Tensor, bool]:
        """New responses, float64 (draws, n), NaN where the predictor is NaN; and whether they are counts."""
        role = self.site.role
        bad = ~torch.isfinite(self.eta).reshape(*self.eta.shape[:2], -1).all(-1)
        eta = torch.where(bad.reshape(*bad.shape, *[1] * (self.eta.dim() - 2)), torch.zeros_like(self.eta), self.eta)
        # under the lock of runs: the global generator is lent to one thread at a time
        with isolated(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            responses = [role.family.distribution(e, role.trials, **self.at(s)) for s, e in enumerate(eta)]
            sample = torch.stack([response.sample() for response in responses]).to(torch.float64)
        sample[sample == -(2.0**63)] = torch.inf  # what torch makes of a count that no integer holds
        sample[bad] = torch.nan
        return sample, bool(responses[0].support.is_discrete)
