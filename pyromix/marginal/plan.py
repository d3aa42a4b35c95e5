"""What a marginaliser has to know of a program, read from runs of it: which rows, which levels, what is affine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyromix.errors import DataError, UnsupportedError
from pyromix.linalg.block import Layout, Slot, Term
from pyromix.running import Program, Record, run
from pyromix.sites import Data, Latent

FARTHEST_BACK = 20  # rows, where what they bring adds levels to a row
AFFINE_TOLERANCE = 1e-8  # of the size of the random effects' contribution; rounding is some 1e-13


@dataclass(frozen=True)
class Plan:
    """A program's structure on given data.

    Attributes
    ----------
    latents
        Names of the random-effect sites, in program order.
    layout
        Their level pattern.
    affine
        Whether the predictor is affine in them through the row maps they declare.
    moving
        Whether the row designs depend on hyper-parameters (a learned scale, correlated residuals), so an evaluation has
        to read them again.
    modules
        Sites of networks -> module with weights to learn.
    linear
        Coefficient sites through which the predictor is affine (design times value) -> design (n, p).
    obs, trials, prepared
        The response, the trials if any, and what the family computed of them once.
    row_weight
        Frequency weight times mask, (n,); ``None`` for ones.
    """

    response: str
    latents: tuple[str, ...]
    layout: Layout
    affine: bool
    moving: bool
    modules: dict[str, torch.nn.Module]
    linear: dict[str, torch.Tensor]
    obs: torch.Tensor
    trials: torch.Tensor | None
    row_weight: torch.Tensor | None
    prepared: Any

    @property
    def n_obs(self) -> float:
        """Number of observations: the sum of the frequency weights."""
        return float(len(self.obs) if self.row_weight is None else self.row_weight.sum())

    def on_rows(self, rows: np.ndarray) -> Plan:
        """The plan of some rows, with only the levels they hold, so that its cost is that of its rows.

        Where the predictor is not affine the marginaliser runs the program on effects of its own: all levels stay then.
        """
        at = torch.from_numpy(rows)

        def take(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[at]

        return replace(
            self,
            layout=Layout([_term_on(term, rows, compact=self.affine) for term in self.layout.terms]),
            linear={name: design[at] for name, design in self.linear.items()},
            obs=self.obs[at],
            trials=take(self.trials),
            row_weight=take(self.row_weight),
            prepared=tuple(entry[at] for entry in self.prepared),
        )


def make_plan(program: Program, args: tuple[Any, ...], seed: int = 0) -> Plan:
    """Run the program a few times at random values and read its structure."""
    base = run(program, args, hypers="moderate", seed=seed)
    data = data_of(base)
    if data.obs is None:
        raise DataError(f"observe({_response(base)!r}): obs is None; there is nothing to fit.")
    if base.plain:
        names = ", ".join(sorted(base.plain))
        raise UnsupportedError(
            f"sites without a pyromix role ({names}) cannot be maximised or integrated out; write them as "
            "RandomEffect, LinearEffect or hyper-parameters, or sample them with NUTS."
        )
    values = {name: site.value for name, site in base.hypers.items()}
    weight = data.weights
    if data.mask is not None:
        weight = data.mask.to(torch.float64) if weight is None else weight * data.mask
    obs = data.obs.to(torch.float64)
    trials = None if data.trials is None else data.trials.to(torch.float64)
    layout = Layout([_term(site.role, site.fn.event_shape) for site in base.latents.values()])
    return Plan(
        response=_response(base),
        latents=tuple(base.latents),
        layout=layout,
        affine=_affine(program, args, base, values, seed),
        moving=_moving(program, args, base, seed),
        modules={name: site.role.module for name, site in base.functions.items() if site.role.learned()},
        linear=_linear(program, args, base, values, seed),
        obs=obs,
        trials=trials,
        row_weight=None if weight is None else weight.to(torch.float64),
        prepared=data.family.prepare(obs, trials),
    )


def chained(record: Record) -> bool:
    """Whether rows of the response take over from rows before them."""
    return any(site.role.chain is not None for site in record.data.values())


def data_of(record: Record) -> Data:
    """The program's one observation."""
    if not record.data or record.observed:
        names = ", ".join(map(repr, record.observed))
        raise UnsupportedError(
            f"the marginalisers take responses of pyromix.observe; {names} is observed by pyro.sample. "
            "Write it with observe(...), or sample the program with NUTS(marginal=None)."
        )
    if len(record.data) > 1:
        raise UnsupportedError(
            f"the program observes {len(record.data)} responses ({', '.join(record.data)}); the marginalisers take "
            "one. Sample it with NUTS, or fit the responses one by one."
        )
    (site,) = record.data.values()
    if site.role.eta.dim() != 1:
        raise UnsupportedError(
            f"observe({site.name!r}): eta has shape {tuple(site.role.eta.shape)}; the marginalisers take one "
            "predictor a row."
        )
    return site.role


def slot_designs(latent: Latent) -> list[np.ndarray | None]:
    """`slot_columns` as arrays."""
    return [None if design is None else _numpy(design) for design in slot_columns(latent)]


def slot_columns(latent: Latent) -> list[torch.Tensor | None]:
    """Row designs of an effect, one per membership, with the membership weights in them.

    Where rows take over from rows before them, the memberships of those follow, one row before after the other.
    """
    rows = latent.rows
    if rows.index.dim() == 1:
        weights = [None if rows.weight is None else rows.weight.reshape(-1)]
    else:
        m = rows.index.shape[1]
        weights = [None if rows.weight is None else rows.weight[:, k] for k in range(m)]
    out: list[torch.Tensor | None] = []
    for weight in weights:
        if weight is None:
            out.append(rows.design)
        else:
            out.append(weight[:, None] if rows.design is None else rows.design * weight[:, None])
    if rows.chain is None:
        return out
    n = len(rows.index)
    whole = [torch.ones(n, 1, dtype=torch.float64) if design is None else design for design in out]
    before = [
        -rows.chain.coef[:, j, None] * design[rows.chain.index[:, j]]
        for j in range(rows.chain.index.shape[1])
        for design in whole
    ]
    return [*out, *before]


def _slot_index(latent: Latent) -> list[torch.Tensor]:
    """The level of every row by membership, in the order of `slot_columns`."""
    rows = latent.rows
    columns = [rows.index] if rows.index.dim() == 1 else list(rows.index.T)
    if rows.chain is None:
        return columns
    back = rows.chain.index.shape[1]
    if back > FARTHEST_BACK:
        raise UnsupportedError(
            f"residuals that look {back} rows back, beside the effects of {latent.group!r}, whose levels change within "
            f"a series: at most {FARTHEST_BACK} rows back are taken then. Use AR1, OU or ARMA(q=0), or NUTS."
        )
    return [*columns, *(column[rows.chain.index[:, j]] for j in range(back) for column in columns)]


def _term(latent: Latent, shape: torch.Size) -> Term:
    slots = [
        Slot(column.numpy().astype(np.int64, copy=False), design)
        for column, design in zip(_slot_index(latent), slot_designs(latent), strict=True)
    ]
    return Term(shape[0], shape[1], tuple(slots))


def _term_on(term: Term, rows: np.ndarray, compact: bool) -> Term:
    index = np.stack([slot.index[rows] for slot in term.slots])
    levels = term.levels
    if compact:
        present, inverse = np.unique(index, return_inverse=True)
        index, levels = inverse.reshape(index.shape), len(present)
    designs = [None if slot.design is None else slot.design[rows] for slot in term.slots]
    return Term(levels, term.q, tuple(Slot(column, design) for column, design in zip(index, designs, strict=True)))


def _affine(program: Program, args: tuple[Any, ...], base: Record, values: dict[str, Any], seed: int) -> bool:
    """Two random latents: the predictor must move by exactly what the row maps say."""
    origin = data_of(base).eta
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(2):
        draws = {
            name: torch.randn(site.fn.event_shape, generator=generator, dtype=torch.float64)
            for name, site in base.latents.items()
        }
        moved = data_of(run(program, args, {**values, **draws})).eta - origin
        declared = sum((base.latents[name].role.rows.apply(u) for name, u in draws.items()), torch.zeros_like(origin))
        if not _close(moved, declared, origin):
            return False
    return True


def _linear(
    program: Program, args: tuple[Any, ...], base: Record, values: dict[str, Any], seed: int
) -> dict[str, torch.Tensor]:
    designs = {n: site.role.design for n, site in base.hypers.items() if site.role.design is not None}
    if not designs:
        return {}
    generator = torch.Generator().manual_seed(seed + 2)
    origin = data_of(base).eta
    steps = {n: torch.randn(x.shape[1], generator=generator, dtype=torch.float64) for n, x in designs.items()}
    moved = data_of(run(program, args, {**values, **{n: values[n] + step for n, step in steps.items()}})).eta - origin
    declared = sum(designs[n] @ step for n, step in steps.items())
    return designs if _close(moved, declared, origin) else {}


def _moving(program: Program, args: tuple[Any, ...], base: Record, seed: int) -> bool:
    """Run again at other hyper-parameters: did any row design change, or does one carry a graph?"""
    if chained(base):
        return True
    if all(site.role.rows.design is None for site in base.latents.values()):
        return False
    again = run(program, args, hypers="moderate", seed=seed + 3)
    for name, site in base.latents.items():
        old, new = site.role.rows.design, again.latents[name].role.rows.design
        if old is not None and (old.requires_grad or (old is not new and not torch.equal(old, new))):
            return True
    return False


def _close(moved: torch.Tensor, declared: torch.Tensor, origin: torch.Tensor) -> bool:
    scale = declared.detach().abs().max() + 1e-3 * origin.detach().abs().max()
    return bool(((moved - declared).detach().abs().max() <= AFFINE_TOLERANCE * scale + 1e-300).item())


def _response(record: Record) -> str:
    return next(iter(record.data))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy()
