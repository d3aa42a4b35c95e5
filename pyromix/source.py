"""A formula's program as Pyro source that can be pasted, run and edited."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Distribution

from pyromix.composition import Composition, linear_columns
from pyromix.parameters import encode

HEADER = '''"""{formula}"""

import pyro.distributions as dist
import torch

import pyromix as pmx


def f64(value):
    return torch.tensor(value, dtype=torch.float64)

'''
FREE = ("K", "mesh", "graph")  # too large to be written out


def program_source(composition: Composition, design: Any, formula: str) -> str:
    """Source that defines ``program(design)`` with the same sites, priors and density.

    A network is a free name, ``network``, as are the places of a process, ``sites``, a matrix or pedigree, ``K``, a
    ``mesh`` and a ``graph``: define them before it runs.
    """
    lines = ["def program(design):"]
    _, labels = linear_columns(design, composition.network)
    terms = []
    if labels:
        columns = "design.x" if composition.network is None else "design.x[:, :1]"
        call = _call("beta", composition.linear)
        terms.append(f"pmx.LinearEffect({call}\n        labels={labels!r},\n    )({columns})")
    if composition.network is not None:
        if getattr(composition.network, "categorical", ()):
            lines.append("    from pyromix.composition import network_inputs")
            terms.append('pmx.NeuralEffect("mean", network)(network_inputs(design, network))')
        else:
            terms.append('pmx.NeuralEffect("mean", network)(design.inputs()["numeric"])')
    eta = ""
    for term in terms:
        lines.append(f"    eta = {eta}{term}")
        eta = "eta + "
    for k, term in enumerate(design.terms):
        structure = composition.covariances[term.name]
        covariance = structure.source(_value) or _instance(structure)
        lines.append(f"    term = design.terms[{k}]  # {', '.join(term.terms)} by {term.group}")
        lines.append("    effect = pmx.RandomEffect(")
        lines.append(f"        {term.name!r},")
        lines.append(f"        {covariance},")
        placed = hasattr(structure, "mesh")
        levels = "mesh.size" if placed else "term.levels"
        lines.append(f"        levels={levels}, terms=term.terms, group={term.group!r},")
        lines.append("    )")
        if placed:
            lines.append("    index, weight = mesh.projector(list(term.levels))")
            lines.append(f"    eta = {eta}effect(index[term.index], term.design, weight[term.index])")
        else:
            weight = "" if term.weight is None else ", term.weight"
            lines.append(f"    eta = {eta}effect(term.index, term.design{weight})")
        eta = "eta + "
    if not eta:
        lines.append("    eta = torch.zeros(len(design.index), dtype=torch.float64)")
    lines.append("    pmx.observe(")
    lines.append(f"        {design.response!r},")
    lines.append(f"        {_instance(composition.family)},")
    lines.append("        eta, design.y, trials=design.trials, offset=design.offset,")
    lines.append("        weights=design.frequency_weights, precision=design.precision_weights,")
    if composition.family.residual is not None or composition.family.variance is not None:
        lines.append("        columns=design.residual,")
    lines.append("    )")
    header = HEADER.format(formula=formula)
    if any("gpytorch." in line for line in lines):
        header = header.replace("import pyro.", "import gpytorch\nimport pyro.", 1)
    return header + "\n" + "\n".join(lines) + "\n"


def _call(name: str, prior: Distribution | None) -> str:
    return f"\n        {name!r}," + ("" if prior is None else f"\n        prior={_value(prior)},")


def _instance(thing: Any) -> str:
    """``pmx.IID(sd=dist.HalfNormal(2.0))`` from a family's or covariance's description."""
    given = {k: getattr(thing, k) for k in thing.config() if k != "class"}
    arguments = []
    for key, value in given.items():
        if key == "link":
            arguments.append(f"link={value.name!r}")
        elif key in FREE and value is not None:
            arguments.append(f"{key}={key}")
        elif value is not None:
            arguments.append(f"{key}={_value(value)}")
    return f"pmx.{type(thing).__name__}({', '.join(arguments)})"


def _value(value: Any) -> str:
    if hasattr(value, "prior") and hasattr(value, "fixed"):  # a family's Parameter
        return _value(value.prior if value.fixed is None else value.fixed)
    if isinstance(value, Distribution):
        encoded = encode(value, "source")
        given = ", ".join(f"{k}={_number(v)}" for k, v in encoded["args"].items())
        return f"dist.{encoded['distribution']}({given})"
    if isinstance(value, torch.Tensor):
        return _number(value.tolist())
    return _instance(value) if hasattr(value, "config") else repr(value)


def _number(value: Any) -> str:
    return repr(value) if isinstance(value, int) else f"f64({value!r})"
