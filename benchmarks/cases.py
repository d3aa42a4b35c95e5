"""The models that are timed: data, formula, family and what is required, each written once for both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Case:
    """One timed model.

    Attributes
    ----------
    name
        Name of the case; `peers` lists scripts in ``benchmarks/peers``.
    formula, family, criterion
        What pyromix fits; `family` is the name of a class of ``pyromix``, or makes a family.
    data
        Makes the data frame that both sides read as csv.
    text
        Columns that are labels and must not be read as numbers.
    peers
        Label of each peer and the script that runs it.
    bounds
        Label of a peer -> largest allowed ratio of pyromix's `fit` to that peer's call.
    max_mb
        Largest allowed peak memory of the pyromix process, in MB.
    """

    name: str
    formula: str
    data: Callable[[], pd.DataFrame]
    family: str | Callable[[], Any] = "Gaussian"
    criterion: str = "ml"
    text: tuple[str, ...] = ()
    peers: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    max_mb: float | None = None


def insteval() -> pd.DataFrame:
    """Lecture ratings at ETH Zurich: 73,421 rows, three crossed factors of 2,972, 1,128 and 14 levels."""
    import pyromix as pmx

    d = pmx.datasets.load("InstEval")[["y", "service", "s", "d", "dept"]]
    return d.assign(service=d["service"].astype(int))


def verbagg() -> pd.DataFrame:
    """Verbal aggression items: 7,584 rows, 316 persons crossed with 24 items."""
    import pyromix as pmx

    d = pmx.datasets.load("VerbAgg")
    y = (d["r2"].astype(str) == "Y").astype(int)
    return d.assign(y=y)[["y", "Anger", "Gender", "btype", "situ", "mode", "id", "item"]]


def contraception() -> pd.DataFrame:
    """Contraceptive use in Bangladesh: 1,934 women in 60 districts."""
    import pyromix as pmx

    d = pmx.datasets.load("Contraception")
    d = d.assign(
        use=(d["use"].astype(str) == "Y").astype(int),
        urb=(d["urban"].astype(str) == "Y").astype(int),
        age10=d["age"] / 10,
        livch="n" + d["livch"].astype(str),  # a label: "0" would be read back as a number
    )
    return d[["use", "age10", "urb", "livch", "district"]]


def sleepstudy() -> pd.DataFrame:
    """Reaction times under sleep deprivation: 180 rows, 18 subjects."""
    import pyromix as pmx

    return pmx.datasets.load("sleepstudy")[["Reaction", "Days", "Subject"]]


def simulated(rows: int, per_group: int = 10) -> pd.DataFrame:
    """Logit data with three covariates and a random intercept of SD 1; rows in random order, fixed seed."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(1729)
    group = rng.permutation(np.repeat(np.arange(rows // per_group), per_group))
    x = rng.standard_normal((rows, 3))
    eta = -0.5 + x @ np.array([0.5, -0.3, 0.2]) + rng.standard_normal(rows // per_group)[group]
    y = (rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(int)
    return pd.DataFrame({"y": y, "x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2], "group": group})


def series(groups: int = 1000, times: int = 100) -> pd.DataFrame:
    """Series whose errors follow each other with correlation 0.7, and a random intercept of SD 0.8; fixed seed."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(271828)
    errors = rng.standard_normal((groups, times))
    for t in range(1, times):
        errors[:, t] = 0.7 * errors[:, t - 1] + np.sqrt(1 - 0.49) * errors[:, t]
    x = rng.standard_normal((groups, times))
    y = 1 + 0.5 * x + 0.8 * rng.standard_normal((groups, 1)) + errors
    at = {"g": np.repeat(np.arange(groups), times), "t": np.tile(np.arange(times), groups)}
    return pd.DataFrame({"y": y.ravel(), "x": x.ravel(), **at})


def following() -> Any:
    """Residuals that follow each other within a series."""
    import pyromix as pmx

    return pmx.Gaussian(residual=pmx.AR1("t", within="g"))


def simulated_case(rows: int) -> Case:
    return Case(
        name=f"simulated_{rows}",
        formula="y ~ x1 + x2 + x3 + (1 | group)",
        data=partial(simulated, rows),
        family="Binomial",
        peers={"GPBoost": "gpboost_simulated.py"},
    )


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            name="ar1_within_groups",
            formula="y ~ x + (1 | g)",
            data=series,
            family=following,
            peers={"nlme": "ar1_nlme.R", "glmmTMB": "ar1_glmmtmb.R"},
            bounds={"nlme": 0.3, "glmmTMB": 0.3},
        ),
        Case(
            name="insteval",
            formula="y ~ service + (1 | s) + (1 | d) + (1 | dept)",
            data=insteval,
            text=("s", "d", "dept"),
            peers={"lme4": "insteval_lme4.R", "GPBoost": "gpboost_insteval.py"},
            bounds={"lme4": 0.10},
        ),
        Case(
            name="verbagg",
            formula="y ~ Anger + Gender + btype + situ + mode + (1 | id) + (1 | item)",
            data=verbagg,
            family="Binomial",
            text=("id", "item"),
            peers={"glmer": "verbagg_glmer.R", "glmmTMB": "verbagg_glmmtmb.R", "GPBoost": "gpboost_verbagg.py"},
            bounds={"glmmTMB": 0.3},
        ),
        Case(
            name="contraception",
            formula="use ~ age10 + I(age10**2) + urb + livch + (1 + urb | district)",
            data=contraception,
            family="Binomial",
            text=("district",),
            peers={"glmer": "contraception_glmer.R", "glmmTMB": "contraception_glmmtmb.R"},
            bounds={"glmmTMB": 0.5},
        ),
        Case(
            name="sleepstudy",
            formula="Reaction ~ Days + (Days | Subject)",
            data=sleepstudy,
            criterion="reml",
            text=("Subject",),
            peers={"lme4": "sleepstudy_lme4.R"},
            bounds={"lme4": 5.0},
        ),
        Case(
            name="million_rows",
            formula="y ~ x1 + x2 + x3 + (1 | group)",
            data=partial(simulated, 1_000_000),
            family="Binomial",
            peers={"GPBoost": "gpboost_simulated.py"},
            bounds={"GPBoost": 1.0},
            max_mb=2048,
        ),
        *(simulated_case(rows) for rows in (10_000, 100_000, 1_000_000)),
    )
}
