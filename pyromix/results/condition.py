r"""Groups that the fit has not seen, given a few rows of their own, without fitting again.

At draw s of the posterior the new groups' effects have the density :math:`p(u \mid y^{new}, \theta_s) \propto
p(y^{new} \mid u, u^{known}_s, \theta_s)\, p(u \mid \theta_s)`: hyper-parameters and known groups keep the fit's draws
and learn nothing from the new rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pyromix.errors import DataError, UnsupportedError
from pyromix.marginal.units import Batch, Units
from pyromix.results.declared import values_of
from pyromix.results.draws import DISPERSION, Values, describe, over_draws
from pyromix.results.rows import GIVEN, NOISE, Appended, Rows, refuse_chained, response_site, run_at
from pyromix.running import Record, Site
from pyromix.sites import Latent, RowMap

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

CANDIDATES = 32  # per group and draw, where the Gaussian at the mode is not exact


@dataclass(frozen=True)
class NewGroups:
    """New levels with rows of their own.

    Attributes
    ----------
    rows
        Those rows.
    keys
        Effect -> labels of its new levels, or their numbers -1, -2, ... where levels have no labels.
    numbers
        Effect -> their numbers.
    units
        The rows' independent units; ``None`` where the backend does the conditioning itself.
    """

    fit: Fit
    rows: Rows
    keys: Mapping[str, tuple[Any, ...]]
    numbers: Mapping[str, torch.Tensor]
    units: Units | None

    @classmethod
    def of(cls, fit: Fit, data: Any) -> NewGroups:
        """Read the rows that `condition_on` holds.

        Raises
        ------
        DataError
            No response, or rows whose levels are all known to the fit.
        UnsupportedError
            Effects that enter through a function, or whose levels depend on each other.
        """
        how = {"response": True, "missing": "error"} if fit.new_design is not None else {}
        rows = Rows.of(fit, data, "condition_on", **how)
        record, appended = run_at(fit, rows, values_of(fit.estimate))
        refuse_chained(record, "condition_on")
        site = response_site(record)
        _check(rows, record, site, appended)
        numbers = {name: _numbers(record.latents[name].role.rows) for name in appended}
        keys = {name: _keys(rows, name, record.latents[name].role, at) for name, at in numbers.items()}
        if fit.estimate.condition is not None:
            return cls(fit, rows, keys, numbers, None)
        _check_affine(fit, rows, record, appended)
        maps = {name: _compact(record.latents[name].role.rows, at) for name, at in numbers.items()}
        return cls(fit, rows, keys, numbers, Units(maps, site.role))

    def at_estimate(self) -> Values:
        """Conditional modes at the point estimate, under their prefix; zeros for a fit of draws, which has no use for
        them."""
        if self.units is None or self.fit.estimate.kind == "draws":
            latents = self.fit.estimate.latents
            return {GIVEN + n: latents[n].new_zeros(len(at), latents[n].shape[1]) for n, at in self.numbers.items()}
        values = {name: value[None] for name, value in values_of(self.fit.estimate).items()}
        found = self.units.modes(self._batch(values))
        return {GIVEN + name: value[0] for name, value in found.items()}

    def draw(self, values: Values, seed: int) -> Values:
        """One draw of the effects for every draw of the values, under their prefix, (draws, levels, terms)."""
        own = self.fit.estimate.condition
        if own is not None:
            found = own(self.rows.args, values, seed)
            return {GIVEN + name: found[name][:, at] for name, at in self.numbers.items()}  # -1 is the last
        assert self.units is not None
        batch = self._batch(values)
        exact = self.units.role.family.gaussian_sd(**self.units.role.dispersion) is not None
        generator = torch.Generator().manual_seed(seed)
        found = self.units.draw(batch, generator, 1 if exact else CANDIDATES)
        return {GIVEN + name: value for name, value in found.items()}

    def _batch(self, values: Values) -> Batch:
        def at(draw: Values) -> Record:
            return run_at(self.fit, self.rows, draw)[0]

        assert self.units is not None
        return batch(at, values, self.units.designs)


def batch(at: Callable[[Values], Record], values: Values, designs: Mapping[str, torch.Tensor | None]) -> Batch:
    """What units need to know of the program at every draw of the values.

    Parameters
    ----------
    at
        Runs the program under one draw, with the units' effects at zero.
    designs
        Effect -> the row design that the units know; taken from every run where it moves with the values.
    """
    first, last = (at({name: value[s] for name, value in values.items()}) for s in (0, -1))
    moving = [
        name
        for name, design in designs.items()
        if design is not None
        and not all(torch.equal(record.latents[name].role.rows.design, design) for record in (first, last))
    ]

    def one(draw: Values) -> Values:
        record = at(draw)
        found = describe(response_site(record))
        found |= {f"tril\0{name}": record.latents[name].fn.operator.block for name in designs}
        return found | {f"design\0{name}": record.latents[name].role.rows.design for name in moving}

    found = over_draws(one, values, len(response_site(first).role.eta))

    def under(prefix: str) -> Values:
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    return Batch(found["eta"], under(DISPERSION), under("tril\0"), under("design\0"))


def _check(rows: Rows, record: Record, site: Site, appended: Mapping[str, Appended]) -> None:
    role = site.role
    if role.obs is None:
        raise DataError(f"predict(condition_on=...): its rows need their response {site.name!r}.")
    new = torch.zeros(len(role.obs), dtype=torch.bool)
    for name in appended:
        new |= (record.latents[name].role.rows.index.reshape(len(new), -1) < 0).any(1)
    if not bool(new.all()):
        first = int((~new).nonzero()[0])
        levels = []
        for latent in record.latents.values():
            at = int(latent.role.rows.index.reshape(len(new), -1)[first, 0])
            levels.append(f"{latent.role.group} {latent.role.levels[at]!r}")
        raise DataError(
            f"predict(condition_on=...): {rows.label(first)} holds only levels that the fit knows "
            f"({', '.join(dict.fromkeys(levels)) or 'the program has no random effects'}); known groups keep the "
            "fit's draws. Leave such rows out, or fit again with them."
        )
    trials = None if role.trials is None else role.trials.numpy()
    role.family.check_response(role.obs.to(torch.float64).numpy(), trials, rows.label, site.name)


def _check_affine(fit: Fit, rows: Rows, record: Record, appended: Mapping[str, Appended]) -> None:
    """The predictor must move by exactly what the declared row maps say."""
    generator = torch.Generator().manual_seed(0)
    noise = {
        NOISE + name: torch.randn(new.shape, generator=generator, dtype=torch.float64) for name, new in appended.items()
    }
    probed, _ = run_at(fit, rows, {**values_of(fit.estimate), **noise})
    expected = response_site(record).role.eta
    if expected.dim() == 1:
        for name in appended:
            expected = expected + probed.latents[name].role.rows.apply(
                probed.latents[name].value - record.latents[name].value
            )
        if torch.allclose(response_site(probed).role.eta, expected, rtol=1e-9, atol=1e-9):
            return
    raise UnsupportedError(
        f"predict(condition_on=...): the predictor is not one sum in which {', '.join(appended)} enter linearly; fit "
        "again with the new rows."
    )


def _numbers(rows: RowMap) -> torch.Tensor:
    """Numbers of the new levels that rows hold: -1, -2, ..."""
    return torch.unique(rows.index[rows.index < 0]).flip(0)


def _keys(rows: Rows, name: str, role: Latent, numbers: torch.Tensor) -> tuple[Any, ...]:
    labels = rows.new_labels(name, role)
    return tuple(labels[-1 - k] if -1 - k < len(labels) else k for k in numbers.tolist())


def _compact(rows: RowMap, numbers: torch.Tensor) -> RowMap:
    """The row map of new levels alone, numbered from zero; known levels stand for no effect."""
    place = torch.full((-int(numbers.min()) + 1,), -1, dtype=torch.long)
    place[-numbers] = torch.arange(len(numbers))
    return RowMap(place[(-rows.index).clamp(min=0)], rows.design, rows.weight)
