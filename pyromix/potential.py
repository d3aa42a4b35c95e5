"""The joint density of a program over one flat unconstrained vector: what samplers walk on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyromix.compile import Compiled, compile_function, folding
from pyromix.errors import NumericalError, UnsupportedError
from pyromix.running import Program, Site, bijection, isolated, run, unvalidated

LOG_2PI = math.log(2 * math.pi)


class Potential:
    r"""Minus the log joint density of a program as a function of one flat unconstrained vector.

    .. math:: U(z) = -\log p(y, u, \theta) - \log\left|\frac{d(u,\theta)}{dz}\right|

    Every site that is not observed is part of `z`, hyper-parameters, effects and the program's own alike, through the
    bijection of the support it has in that run (that of ``Uniform(0, a)`` moves with a).

    Parameters
    ----------
    spherical
        Random effects that enter as :math:`b` with :math:`u = \Lambda(\theta) b`, :math:`b \sim N(0, I)` (the
        non-centred parametrisation); the others enter as u.

    Attributes
    ----------
    names, slices, size
        The sites in order, where each is in z, and the length of z.
    example
        An ordinary point.

    Raises
    ------
    UnsupportedError
        A site without a density over real numbers, or sites that differ from run to run.
    """

    def __init__(self, program: Program, args: tuple[Any, ...], spherical: Collection[str] = ()) -> None:
        self.program, self.args, self.spherical = program, args, frozenset(spherical)
        sites = self._sites(seed=0)
        self.names = tuple(sites)
        transforms = _transforms(sites)
        self._shapes = {name: transforms[name].inverse_shape(site.value.shape) for name, site in sites.items()}
        self._check_fixed(transforms, self._sites(seed=1))
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, shape in self._shapes.items():
            self.slices[name] = slice(self.size, self.size + shape.numel())
            self.size += shape.numel()
        self.example = self.flat({name: site.value for name, site in sites.items()})

    def _sites(self, values: Mapping[str, torch.Tensor] | None = None, seed: int = 0) -> dict[str, Site]:
        record = run(self.program, self.args, values, hypers="moderate", latents="prior", seed=seed)
        for name, (taken, rows) in record.subsampled.items():
            raise UnsupportedError(
                f"plate {name!r} takes {taken} of {rows} rows at random, so its density is random; "
                "leave subsample_size= out here, or fit mini-batches with SVI."
            )
        return {**record.hypers, **record.latents, **record.plain}

    def _check_fixed(self, transforms: Mapping[str, Any], others: dict[str, Site]) -> None:
        expected = {name: transforms[name].forward_shape(shape) for name, shape in self._shapes.items()}
        if {name: site.value.shape for name, site in others.items()} != expected:
            raise UnsupportedError(
                f"the sites of the program are not the same in every run ({', '.join(self.names)} in one, "
                f"{', '.join(others)} in another, or of other shapes); a sampler needs one fixed set."
            )

    def flat(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The vector of site values (of u, for every effect); sites left out get an ordinary value."""
        sites = self._sites(values)
        parts = []
        for name in self.names:
            fn, value = sites[name].fn, sites[name].value
            back = fn.operator.solve_factor if name in self.spherical else bijection(fn).inv
            parts.append(back(value).reshape(-1))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def values(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Site values at a vector; gradients flow."""
        placed = self._placed(z)
        with isolated(), torch.random.fork_rng(devices=[]), placed:
            self.program(*self.args)
        return placed.values

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        placed = self._placed(z)

        def program(*args: Any) -> None:
            with placed:
                self.program(*args)

        return -(log_density(program, self.args, {}, given=placed.values) + placed.log_det)

    def value_and_gradient(self, *, mode: str = "auto", evaluations: int) -> Compiled:
        """``z -> (U(z), dU/dz)`` in the mode that pays for that many evaluations."""
        return value_and_gradient(self, self.example, mode=mode, evaluations=evaluations)

    def first_problem(self, z: torch.Tensor) -> str:
        """The first site, in program order, whose density is not finite at z, and where in it."""
        placed = self._placed(z)
        with torch.no_grad(), isolated(), torch.random.fork_rng(devices=[]), placed:
            trace = poutine.trace(self.program).get_trace(*self.args)
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                    continue
                log_prob = unvalidated(site["fn"]).log_prob(site["value"])
                bad = ~torch.isfinite(log_prob)
                if bool(bad.any()):
                    where = bad.nonzero()[0].tolist()
                    row = f", first at row {where[0] if len(where) == 1 else tuple(where)}" if where else ""
                    return f"the log density of site {name!r} is {float(log_prob[bad][0])}{row}"
        return "its gradient is not finite, though every site's density is"

    def _placed(self, z: torch.Tensor) -> _Place:
        return _Place({name: z[at].reshape(self._shapes[name]) for name, at in self.slices.items()}, self.spherical)


def value_and_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor, *, mode: str = "auto", evaluations: int
) -> Compiled:
    """``z -> (f(z), df/dz)`` of a scalar function, in the mode that pays for that many evaluations."""
    traced = torch.func.grad_and_value(folding(function))

    def eager(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        point = z.detach().requires_grad_(True)
        with torch.enable_grad():
            value = function(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient

    def functional(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient, value = traced(z)
        return value, gradient

    made = compile_function(functional, [example], mode=mode, evaluations=evaluations, differentiable=False)
    # outside a trace the autograd engine is twice as fast as the functional gradient
    return Compiled(eager, [example], "eager", made.reason) if made.mode == "eager" else made


class _Place(Messenger):
    """Run a program at unconstrained values, each site through the support that it has there and then."""

    def __init__(self, pieces: dict[str, torch.Tensor], spherical: Collection[str]) -> None:
        super().__init__()
        self.pieces, self.spherical = pieces, spherical
        self.values: dict[str, torch.Tensor] = {}
        self.log_det = torch.zeros((), dtype=torch.float64)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.pieces:
            return
        piece = self.pieces[name]
        if name in self.spherical:
            msg["value"] = msg["fn"].operator.factor(piece)
            # the density of b stands for that of u, whose Jacobian cancels
            self.log_det = self.log_det - 0.5 * (piece.square().sum() + piece.numel() * LOG_2PI)
            msg["stop"] = True
        else:
            transform = bijection(msg["fn"])
            msg["value"] = transform(piece)
            self.log_det = self.log_det + transform.log_abs_det_jacobian(piece, msg["value"]).sum()
        msg["done"] = True
        self.values[name] = msg["value"]


def _transforms(sites: dict[str, Site]) -> dict[str, Any]:
    """The bijection of every site; `UnsupportedError` naming one that has none."""
    found = {name: bijection(site.fn) for name, site in sites.items()}
    for name, transform in found.items():
        if transform is None:
            kind = type(sites[name].fn).__name__
            raise UnsupportedError(
                f"site {name!r} ({kind}) has no density over real numbers, so NUTS, SVI and their like cannot take it. "
                "If it is discrete, sum it out in the program (torch.logsumexp over its values, or a mixture "
                "distribution); a point mass is pyro.deterministic; a support of one's own needs torch's biject_to."
            )
    return found


def log_joint(program: Program, args: tuple[Any, ...]) -> Potential:
    """The program's joint density as a `Potential`, for samplers."""
    return Potential(program, args)


def log_density(
    program: Program,
    args: tuple[Any, ...],
    values: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Log joint density of all sites at given values, by Pyro's own rules for plates, masks and scales.

    Parameters
    ----------
    given
        Sites that the program fills by itself, besides `values`; read after the run.

    Raises
    ------
    NumericalError
        A site has no value and is not observed, so the density would be random.
    """
    with isolated(), torch.random.fork_rng(devices=[]):
        trace = poutine.trace(poutine.condition(program, values)).get_trace(*args)
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            filled = site["is_observed"] or name in (given or {})
            if not filled and type(site["fn"]).__name__ != "_Subsample":
                raise NumericalError(f"site {name!r} has no value; the density would depend on a random draw.")
            site["fn"] = unvalidated(site["fn"])
        return trace.log_prob_sum()
