"""Linear regressions, in plain Pyro and with pyromix's effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pyromix as pmx
from tests.reference.posteriordb import oracles
from tests.reference.posteriordb.posteriors import Arrays, Form, Posterior, Tensors, tensor

Data = dict[str, Any]
Columns = Callable[[Data], tuple[list[Any], Any]]

FLAT_POSITIVE = dist.ImproperUniform(constraints.positive, (), ())


def flat(*shape: int) -> dist.ImproperUniform:
    """A flat prior of real numbers."""
    return dist.ImproperUniform(constraints.real, (), shape)


def prepared(columns: Columns) -> Callable[[Data], Tensors]:
    """Response and design matrix of a regression."""

    def prepare(data: Data) -> Tensors:
        arrays = {name: tensor(v) for name, v in data.items()}
        parts, y = columns(arrays)
        x = torch.stack([part if isinstance(part, torch.Tensor) else tensor(part).expand(len(y)) for part in parts], 1)
        return {"x": x, "y": y}

    return prepare


def plain(beta: Callable[[int], Any], sigma: Any) -> Callable[[Tensors], None]:
    """A regression as one writes it in Pyro."""

    def program(data: Tensors) -> None:
        coefficients = pyro.sample("beta", beta(data["x"].shape[1]))
        scale = pyro.sample("sigma", sigma)
        with pyro.plate("rows", len(data["y"])):
            pyro.sample("y", dist.Normal(data["x"] @ coefficients, scale), obs=data["y"])

    return program


def effects(beta: Any, sigma: Any) -> Callable[[Tensors], None]:
    """The same with a linear effect and a family."""

    def program(data: Tensors) -> None:
        eta = pmx.LinearEffect("beta", prior=beta)(data["x"])
        pmx.observe("y", pmx.Gaussian(sigma=sigma), eta, data["y"])

    return program


def renamed(arrays: Arrays) -> Arrays:
    """The family's residual SD is called after the response."""
    return {"y.sigma" if name == "sigma" else name: value for name, value in arrays.items()}


def back(arrays: Arrays) -> Arrays:
    return {"sigma" if name == "y.sigma" else name: value for name, value in arrays.items()}


def regression(
    name: str, columns: Columns, log_density: Callable[[Data, Arrays], float], beta: Any = None, sigma: Any = None
) -> Posterior:
    """A regression in both forms; coefficients and residual SD have flat priors where none is given."""
    sigma = FLAT_POSITIVE if sigma is None else sigma

    def vector(p: int) -> Any:
        return flat(p) if beta is None else beta.expand((p,)).to_event(1)

    forms = {
        "pyro": Form(plain(vector, sigma), prepared(columns)),
        "pyromix": Form(effects(flat() if beta is None else beta, sigma), prepared(columns), renamed, derive=back),
    }
    return Posterior(name, log_density, forms)


def _earn(d: Data) -> Any:
    return [1.0, d["height"]], d["earn"]


def _logearn(d: Data) -> Any:
    return [1.0, d["height"], d["male"], d["height"] * d["male"]], torch.log(d["earn"])


def _kid_interaction(d: Data) -> Any:
    return [1.0, d["mom_hs"], d["mom_iq"], d["mom_hs"] * d["mom_iq"]], d["kid_score"]


def _kid(d: Data) -> Any:
    return [1.0, d["mom_hs"], d["mom_iq"]], d["kid_score"]


def _mesquite(d: Data) -> Any:
    area, volume = d["diam1"] * d["diam2"], d["diam1"] * d["diam2"] * d["canopy_height"]
    shape, height = torch.log(d["diam1"] / d["diam2"]), torch.log(d["total_height"])
    return [1.0, torch.log(volume), torch.log(area), shape, height, d["group"]], torch.log(d["weight"])


def _nes(d: Data) -> Any:
    ages = [(d["age_discrete"] == k).double() for k in (2, 3, 4)]
    rest = [d["educ1"], d["gender"], d["income"]]
    return [1.0, d["real_ideo"], d["race_adj"], *ages, *rest], d["partyid7"]


def _blr(d: Data) -> Any:
    return list(d["X"].T), d["y"]


# -- a regression whose priors are data --------------------------------------------------------------------------------
def _kilpisjarvi_data(data: Data) -> Tensors:
    return {name: tensor(value) for name, value in data.items()}


def kilpisjarvi(data: Tensors) -> None:
    alpha = pyro.sample("alpha", dist.Normal(data["pmualpha"], data["psalpha"]))
    beta = pyro.sample("beta", dist.Normal(data["pmubeta"], data["psbeta"]))
    sigma = pyro.sample("sigma", FLAT_POSITIVE)
    with pyro.plate("years", len(data["y"])):
        pyro.sample("y", dist.Normal(alpha + beta * data["x"], sigma), obs=data["y"])


def kilpisjarvi_effects(data: Tensors) -> None:
    means = torch.stack([data["pmualpha"], data["pmubeta"]])
    sds = torch.stack([data["psalpha"], data["psbeta"]])
    x = torch.stack([torch.ones_like(data["x"]), data["x"]], 1)
    eta = pmx.LinearEffect("line", prior=dist.Normal(means, sds))(x)
    pmx.observe("y", pmx.Gaussian(sigma=FLAT_POSITIVE), eta, data["y"])


def _line(p: Arrays) -> Arrays:
    return {"line": np.array([p["alpha"], p["beta"]]), "y.sigma": p["sigma"]}


def _unline(d: Arrays) -> Arrays:
    return {"alpha": d["line"][:, 0], "beta": d["line"][:, 1], "sigma": d["y.sigma"]}


POSTERIORS = (
    regression("earnings-earn_height", _earn, oracles.earn_height),
    regression("earnings-logearn_interaction", _logearn, oracles.logearn_interaction),
    regression(
        "kidiq-kidscore_interaction", _kid_interaction, oracles.kidscore_interaction, None, dist.HalfCauchy(tensor(2.5))
    ),
    regression("kidiq-kidscore_momhsiq", _kid, oracles.kidscore_momhsiq, None, dist.HalfCauchy(tensor(2.5))),
    regression("mesquite-logmesquite_logvash", _mesquite, oracles.logmesquite_logvash),
    regression("nes1980-nes", _nes, oracles.nes),
    regression("nes2000-nes", _nes, oracles.nes),
    regression("sblri-blr", _blr, oracles.blr, dist.Normal(tensor(0.0), tensor(10.0)), dist.HalfNormal(tensor(10.0))),
    Posterior(
        "kilpisjarvi_mod-kilpisjarvi",
        oracles.kilpisjarvi,
        {
            "pyro": Form(kilpisjarvi, _kilpisjarvi_data),
            "pyromix": Form(kilpisjarvi_effects, _kilpisjarvi_data, _line, derive=_unline),
        },
    ),
)
