"""Gaussian processes over the sites of levels, with the kernels of GPyTorch.

The one file that knows GPyTorch, which it loads where a process is made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances import kernel_text
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels, cholesky
from pyromix.covariances.hilbert_space import HilbertSpace
from pyromix.covariances.inducing_points import InducingPoints
from pyromix.covariances.kernel_parameters import (
    bounds,
    check_dimensions,
    default_prior,
    is_length,
    names_of,
    scaled,
    support,
    value_shape,
    walk,
)
from pyromix.covariances.kernel_values import Pairs, is_written_out
from pyromix.covariances.low_rank import Approximation, Process
from pyromix.covariances.sites import Sites, read_sites
from pyromix.errors import ConfigError
from pyromix.linalg.covariance_operator import CovarianceOperator
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, decode, encode, number, parameter

NUGGET = 1e-6
APPROXIMATIONS: dict[str, type] = {"HilbertSpace": HilbertSpace, "InducingPoints": InducingPoints}
# torch distributions behind GPyTorch's priors, and their arguments
PRIORS = {
    "Gamma": ("concentration", "rate"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "LogNormal": ("loc", "scale"),
    "Normal": ("loc", "scale"),
    "Uniform": ("low", "high"),
}


class GP(BetweenLevels):
    r"""A Gaussian process over the places of levels: kriging, smooth curves, seasons.

    .. math:: vec(u) \sim N(0, C \otimes T), \quad C_{ij} = k(x_i, x_j) + nugget\,[i = j], \quad T = diag(sd^2)

    .. math::
        \log p(u) = -\tfrac12 tr(C^{-1} u T^{-1} u^T) - \tfrac q2\log|C| - \tfrac n2\log|T| - \tfrac{nq}2\log 2\pi

    for n levels and q terms, by a dense Cholesky factor, n^3 operations. The kernel k is one of GPyTorch's, sums and
    products of them included, and stays untouched: its hyper-parameters become this structure's, with GPyTorch's names
    and formulas (``lengthscale``, ``period_length``, ``alpha``; names that occur twice get numbers in the order of the
    kernel's parts, ``lengthscale_1``, ``lengthscale_2``). Their values in the kernel are not used, unless
    ``requires_grad`` is off: then the hyper-parameter is fixed there.

    Places are the effect's ``coords``, or those of `sites`, or the labels themselves: numbers, or tuples of numbers.
    Levels at one place have one value there, but for the nugget, which is each level's own. A length per dimension
    (``ard_num_dims``) is labelled by the columns of a DataFrame of places, else ``x1``, ``x2``.

    The variance is ``sd^2``, GPyTorch's ``outputscale``, brms' ``sdgp^2`` and gstat's partial sill; a sum of two
    kernels has variance ``2 sd^2``. A `ScaleKernel` inside a sum weighs its part. Where every part has one, or the
    whole, they and `sd` are one scale too many: fix ``sd=1``, and the outputscales are the variances.

    Parameters
    ----------
    kernel
        A `gpytorch.kernels.Kernel`, without batch shape.
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    nugget
        Added to the diagonal of C, a share of ``sd^2``; nothing else is ever added.
    priors
        Priors of the kernel's hyper-parameters by name; a number fixes one. These come before the kernel's registered
        priors, and those before the defaults: for lengths and periods a LogNormal with 1 % below the smallest and 1 %
        above the largest distance between sites (with one number per dimension, in that dimension; SD 0.5 at least; of
        an approximation, the distance of as many evenly spread sites as there are functions is the smallest),
        for others between two bounds uniform, for others above a bound that bound plus LogNormal(0, 1), else
        Normal(0, 1).
    sites
        Places by level label: pandas DataFrame with the labels as index, or ``(array, labels)``.
    terms
        Structure of the terms of a level where they are correlated: ``Unstructured()``.
    approximation
        `HilbertSpace` or `InducingPoints`, by which the process is a sum of a few functions and any number of places
        goes; ``None`` for the process itself, which takes 4,000. Nothing is approximated unless it is asked for. The
        nugget is then no part of the process. Sampled are the coefficients of the functions, in posteriors the array
        of the effect's name; ``fit.random_effects`` gives the process at its places.

    Raises
    ------
    ConfigError
        Something that is no kernel, one scale too many, priors of unknown names, a negative nugget; where the effect is
        used, more than 4,000 sites, or a kernel of another number of dimensions.
    DataError
        Where the effect is used: places that are missing or no numbers.
    NumericalError
        C is singular to working precision where its root is needed; a larger nugget helps.
    """

    def __init__(
        self,
        kernel: Any,
        sd: Argument = None,
        *,
        nugget: float = NUGGET,
        priors: Mapping[str, Argument] | None = None,
        sites: Any = None,
        terms: Covariance | None = None,
        approximation: Approximation | None = None,
    ) -> None:
        self.kernel = _read_kernel(kernel)
        self.approximation = _read_approximation(approximation)
        self.nugget = _read_nugget(nugget)
        self._set_terms(sd, terms)
        if scaled(self.kernel) and (self.sd is None or isinstance(self.sd, dist.Distribution)):
            raise ConfigError(
                "GP(kernel=...): its outputscale and sd are one scale too many; pass the kernel without ScaleKernel, "
                "or fix sd=1.0, which makes the outputscales variances."
            )
        self.sites = None if sites is None else read_sites(sites)
        self._bare = _without_constraints(self.kernel)
        self._written_out = is_written_out(self.kernel, _gpytorch())
        self._names = names_of(self.kernel)
        self.priors = {**_own_priors(self.kernel, self._names), **_read_priors(priors, self._names)}
        self._kept: dict[tuple[Any, ...], Sites] = {}

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        sites = self._sites(coords)
        found = [self._kernel_parameter(name, path, sites) for name, path in self._names.items()]
        return (*self._term_parameters(coords.terms), *found)

    def functions(
        self, theta: Mapping[str, torch.Tensor], coords: Coords, labels: tuple[Any, ...] | None = None
    ) -> torch.Tensor | None:
        if self.approximation is None:
            return None
        sites = self._sites(coords)
        if labels is not None:
            x = Sites.of(Coords(labels, coords.terms), self.sites).x
            return self.approximation.at(self._process(theta, sites), sites, x)
        if not self.approximation.moves and "functions" in sites.kept:
            return sites.kept["functions"]
        x, at = sites.merged
        found = self.approximation.at(self._process(theta, sites), sites, x)
        found = found if at is None else found[..., at, :]
        if not self.approximation.moves:
            sites.kept["functions"] = found
        return found

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> CovarianceOperator | BlockOperator:
        sites = self._sites(coords)
        tril = self._tril(theta, coords)
        if self.approximation is not None:
            root = self.approximation.root(self._process(theta, sites), sites)
            return BlockOperator(_kron(root, tril), 1)
        x, at = sites.merged
        c = self._correlation({name: theta[name] for name in self._names}, x, x)
        c = c if at is None else c[..., at[:, None], at]
        c = c + self.nugget * torch.eye(c.shape[-1], dtype=c.dtype)
        root = partial(cholesky, where=f"GP(nugget={self.nugget:g})", hint="; a larger nugget helps")
        return CovarianceOperator(c, tril, root)

    def config(self) -> dict[str, Any]:
        """As for every structure; the kernel is described by its class and arguments.

        Raises
        ------
        ConfigError
            A kernel that is not among those a saved model may hold, or such a prior.
        """
        return {
            "class": "GP",
            "kernel": kernel_text.describe(self.kernel, _gpytorch()),
            "sd": encode(self.sd, "GP(sd=...)"),
            "nugget": self.nugget,
            "priors": [[name, encode(prior, f"GP(priors[{name!r}])")] for name, prior in self.priors.items()],
            "sites": None if self.sites is None else self.sites.config("GP(sites=...)"),
            "terms": None if self.terms is None else self.terms.config(),
            "approximation": None if self.approximation is None else self.approximation.config(),
        }

    def __repr__(self) -> str:
        names = ("sd", "sites", "terms", "approximation")
        given = [f"{name}={value!r}" for name in names if (value := getattr(self, name)) is not None]
        given += [f"nugget={self.nugget:g}"] if self.nugget != NUGGET else []
        given += [f"priors={self.priors!r}"] if self.priors else []
        return f"GP({', '.join([kernel_text.text(self.kernel), *given])})"

    def source(self, value: Callable[[Any], str]) -> str:
        given = [f"sd={value(self.sd)}"] if self.sd is not None else []
        given += [f"nugget={self.nugget!r}"] if self.nugget != NUGGET else []
        if self.priors:
            given.append(f"priors={{{', '.join(f'{k!r}: {value(v)}' for k, v in self.priors.items())}}}")
        given += ["sites=sites"] if self.sites is not None else []
        given += [f"terms={value(self.terms)}"] if self.terms is not None else []
        given += [f"approximation=pmx.{self.approximation!r}"] if self.approximation is not None else []
        return f"pmx.GP({', '.join([kernel_text.text(self.kernel, 'gpytorch.kernels.'), *given])})"

    def _sites(self, coords: Coords) -> Sites:
        found = Sites.of(coords, self.sites)
        kept = self._kept.get(coords.levels)
        if kept is not None and torch.equal(kept.x, found.x):
            return kept
        found.check(coords.levels, exact=self.approximation is None)
        check_dimensions(self.kernel, found.dims)
        if self.approximation is not None and coords.levels:
            self.approximation.check(self.kernel, found)
        while len(self._kept) >= 8:
            self._kept.pop(next(iter(self._kept)))
        self._kept[coords.levels] = found
        return found

    def _process(self, theta: Mapping[str, torch.Tensor], sites: Sites) -> Process:
        values = {name: theta[name] for name in self._names}
        by_path = {path: values[name] for name, path in self._names.items()}
        return Process(self.kernel, by_path, partial(self._correlation, values), self.nugget)

    def _correlation(self, values: Mapping[str, torch.Tensor], x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """k over all pairs of places; with hyper-parameters (*batch, shape) one matrix for each."""
        raw = {path: values[name] for name, path in self._names.items()}
        if self._written_out:
            return Pairs(x, other, raw).between(self.kernel, "", list(range(x.shape[1])))
        shapes = {path: parameter.shape for path, parameter in self._bare.named_parameters()}
        extra = [value.dim() - len(value_shape(shapes[path])) for path, value in raw.items()]
        if extra and extra[0] > 0:
            count = len(next(iter(values.values())))
            each = [{k: v[i] for k, v in values.items()} for i in range(count)]
            return torch.stack([self._correlation(one, x, other) for one in each])
        dtype = next(iter(values.values())).dtype if values else x.dtype
        raw = {path: value.reshape(shapes[path]) for path, value in raw.items()}
        return _evaluate(self._bare, raw, x.to(dtype), None if other is x else other.to(dtype))

    def _kernel_parameter(self, name: str, path: str, sites: Sites) -> Parameter:
        module, dims = next((m, d) for m, p, d in walk(self.kernel, "", sites.dims) if path.startswith(p + "raw_"))
        constraint = module.constraint_for_parameter_name(path.rpartition(".")[2])
        low, high = bounds(constraint)
        shape = value_shape(module.get_parameter(path.rpartition(".")[2]).shape)
        functions = None if self.approximation is None or not len(sites.x) else self.approximation.size(sites)
        default = default_prior(is_length(module, name), sites, dims, shape, low, high, functions)
        positive = 0 <= low and high == math.inf  # for the check of priors; see `arguments.rate_parameter`
        checked = constraints.positive if positive else support(low, high)
        made = parameter(name, self.priors.get(name), checked, default, shape, "GP")
        labels = tuple(sites.names[d] for d in dims) if shape == (len(dims),) else None
        return replace(made, support=support(low, high), labels=labels)


def _kron(root: torch.Tensor, tril: torch.Tensor) -> torch.Tensor:
    """Kronecker product (*batch, m * q, m * q) of (*batch, m, m) and (*batch, q, q)."""
    whole = root[..., :, None, :, None] * tril[..., None, :, None, :]
    return whole.reshape(*whole.shape[:-4], root.shape[-1] * tril.shape[-1], -1)


def _read_approximation(given: Any) -> Approximation | None:
    if isinstance(given, (list, tuple)) and len(given) == 2:
        kind, arguments = given
        if kind not in APPROXIMATIONS:
            raise ConfigError(f"saved approximation {kind!r} is unknown; known ones: {', '.join(APPROXIMATIONS)}.")
        return APPROXIMATIONS[kind](**arguments)
    if given is not None and not isinstance(given, Approximation):
        raise ConfigError(f"GP(approximation={given!r}): pass HilbertSpace(...), InducingPoints(...) or None.")
    return given


def _gpytorch() -> Any:
    import gpytorch

    return gpytorch


# -- reading a kernel ------------------------------------------------------------------------------------------------
def _read_kernel(kernel: Any) -> Any:
    import gpytorch

    if isinstance(kernel, (list, tuple)):
        return kernel_text.build(kernel, gpytorch)
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise ConfigError(f"GP(kernel={kernel!r}): pass a kernel of GPyTorch, e.g. MaternKernel(nu=1.5).")
    if len(kernel.batch_shape):
        raise ConfigError(f"GP(kernel=...): its batch shape is {tuple(kernel.batch_shape)}; make it without one.")
    return copy.deepcopy(kernel)


def _read_nugget(nugget: Any) -> float:
    value = number(nugget, "GP(nugget=...)")
    if value.dim() or not 0 <= float(value) < math.inf:
        raise ConfigError(f"GP(nugget={nugget!r}): pass a number >= 0, a share of the variance.")
    return float(value)


def _own_priors(kernel: Any, names: Mapping[str, str]) -> dict[str, Argument]:
    """Priors registered in the kernel, and the values of hyper-parameters that are switched off."""
    by_path = {path: name for name, path in names.items()}
    found: dict[str, Argument] = {}
    for path, _, prior, _, _ in kernel.named_priors():
        owner, _, name = path.removesuffix("_prior").rpartition(".")
        target = f"{owner}.raw_{name}" if owner else f"raw_{name}"
        if target not in by_path:
            raise ConfigError(f"GP(kernel=...): its prior {path!r} is of no hyper-parameter; pass GP(priors=...).")
        found[by_path[target]] = _translated(prior, by_path[target])
    for path, raw, constraint in kernel.named_parameters_and_constraints():
        if not raw.requires_grad:
            value = raw.detach() if constraint is None else constraint.transform(raw.detach())
            found[by_path[path]] = value.double().reshape(value_shape(raw.shape))
    return found


def _translated(prior: Any, name: str) -> dist.Distribution:
    for cls in type(prior).__mro__:
        if cls.__module__.startswith("torch.distributions") and cls.__name__ in PRIORS:
            given = {key: getattr(prior, key).detach().double() for key in PRIORS[cls.__name__]}
            made = getattr(dist, cls.__name__)(**given)
            return made.to_event(len(made.batch_shape)) if made.batch_shape else made
    raise ConfigError(
        f"GP(kernel=...): the prior {type(prior).__name__} of {name} is not known; known ones: {', '.join(PRIORS)}. "
        f"Pass GP(priors={{{name!r}: ...}})."
    )


def _read_priors(priors: Any, names: Mapping[str, str]) -> dict[str, Argument]:
    given = {name: decode(value) for name, value in priors} if isinstance(priors, (list, tuple)) else dict(priors or {})
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(f"GP(priors=...): no hyper-parameter {unknown[0]!r}; the kernel has {', '.join(names)}.")
    return given


# -- evaluating it ---------------------------------------------------------------------------------------------------
class _Dense(torch.nn.Module):
    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        return self.kernel(x, other).to_dense()


def _without_constraints(kernel: Any) -> Any:
    """A copy that takes hyper-parameters themselves for its raw ones: no round trip through softplus."""
    import gpytorch

    bare = copy.deepcopy(kernel).double().requires_grad_(False)
    for module in bare.modules():
        for raw in [name for name, _ in module.named_parameters(recurse=False)]:
            module.register_constraint(raw, gpytorch.constraints.GreaterThan(-math.inf, transform=None))
    return bare


def _evaluate(
    kernel: Any, raw: Mapping[str, torch.Tensor], x: torch.Tensor, other: torch.Tensor | None
) -> torch.Tensor:
    import gpytorch

    # in these modes kernels are plain torch operations, evaluated at once; the modes end with the block
    with gpytorch.settings.trace_mode(True), gpytorch.settings.lazily_evaluate_kernels(False):
        named = {f"kernel.{path}": value for path, value in raw.items()}
        return torch.func.functional_call(_Dense(kernel), named, (x, other))
