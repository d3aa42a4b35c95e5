"""Reference fits and how to repeat them: data as R had them, the formula of R's call, the same criterion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import pyromix as pmx

HERE = Path(__file__).parent
SHIPPED = {name.lower(): name for name in pmx.datasets.names()}


def _factor(*levels: str) -> Callable[[pd.Series], pd.Categorical]:
    return lambda column: pd.Categorical(column, categories=list(levels))


def _rasch(df: pd.DataFrame) -> pd.DataFrame:
    long = df.assign(id=range(len(df))).melt(id_vars="id", var_name="item", value_name="y")
    return long.assign(item=long["item"].str.removeprefix("Item.").astype("category"))


def _verbagg(df: pd.DataFrame) -> pd.DataFrame:
    levels = {
        "Gender": ("F", "M"),
        "btype": ("curse", "scold", "shout"),
        "situ": ("other", "self"),
        "mode": ("want", "do"),
    }
    factors = {name: _factor(*order)(df[name]) for name, order in levels.items()}
    return df.assign(y=(df["r2"] == "Y").astype(float), **factors)


def _unordered(df: pd.DataFrame) -> pd.DataFrame:
    return df.assign(**{name: df[name].astype(str).astype("category") for name in ("studage", "lectage")})


PREPARE: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "chem97": lambda df: df,
    "contraception": lambda df: df.assign(
        use=(df["use"] == "Y").astype(float), age10=df["age"] / 10, urb=(df["urban"] == "Y").astype(float)
    ),
    "egsingle": lambda df: df.assign(lowinc=df["lowinc"] / 100),
    "exam": lambda df: df.assign(
        sex=_factor("F", "M")(df["sex"]), schgend=_factor(*df["schgend"].unique())(df["schgend"])
    ),
    "grouseticks": lambda df: df.assign(h=(df["HEIGHT"] - df["HEIGHT"].mean()) / 100),
    "insteval": _unordered,
    "lsat7": _rasch,
    "nlschools": lambda df: df.assign(COMB=df["COMB"].astype(float)),
    "orthodont": lambda df: df.assign(age8=df["age"] - 8, Sex=_factor("Male", "Female")(df["Sex"])),
    "salamanders": lambda df: df.assign(
        mined=_factor("yes", "no")(df["mined"]), spp=_factor("GP", "PR", "DM", "EC-A", "EC-L", "DES-L", "DF")(df["spp"])
    ),
    "toenail": lambda df: df.assign(
        y=(df["outcome"] == "moderate or severe").astype(float), trt=(df["treatment"] == "terbinafine").astype(float)
    ),
    "verbagg": _verbagg,
}


@cache
def data(name: str) -> pd.DataFrame:
    """A data set, recoded as R had it."""
    if name in SHIPPED:
        df = pmx.datasets.load(SHIPPED[name])
    else:
        (path,) = (HERE / "data").glob(f"{name}.csv*")
        df = pd.read_csv(path)
    return PREPARE.get(name, lambda df: df)(df)


@dataclass(frozen=True)
class Reference:
    """One reference fit."""

    id: str

    @cached_property
    def told(self) -> dict[str, Any]:
        """What R said."""
        return json.loads((HERE / "fits" / f"{self.id}.json").read_text())

    @property
    def formula(self) -> str:
        """The formula of R's call, as it stands there."""
        found = re.match(r"\w+\((.*?), (REML|family|data)", self.told["call"])
        assert found is not None
        return found.group(1)

    @property
    def family(self) -> pmx.Gaussian | pmx.Binomial | pmx.Poisson:
        """The family of R's call."""
        call = self.told["call"]
        if "poisson" in call:
            return pmx.Poisson()
        link = re.search(r'link = "(\w+)"', call)
        return pmx.Binomial(link.group(1) if link else "logit") if "binomial" in call else pmx.Gaussian()

    @property
    def nodes(self) -> int | None:
        """Quadrature nodes, or None for Laplace and for linear models."""
        if self.id.startswith("exact"):
            return 200 if "toenail" in self.id else 50
        found = re.search(r"nAGQ=(\d+)", self.told["call"])
        return int(found.group(1)) if found and int(found.group(1)) > 1 else None

    @property
    def comparable(self) -> bool:
        """Whether R's log-likelihood has all constants."""
        return "lacks data constants" not in self.told.get("caution", "")

    @property
    def backend(self) -> pmx.MaximumLikelihood:
        """The same method here."""
        marginal = pmx.GaussHermite(self.nodes) if self.nodes else None
        return pmx.MaximumLikelihood(marginal, "reml" if "REML=TRUE" in self.told["call"] else "ml")

    def model(self) -> pmx.Model:
        """The model, not fitted."""
        return pmx.model(self.formula, data(self.told["dataset"]), self.family)


def r_name(name: str) -> str:
    """A coefficient's name in R's spelling: no brackets of factor levels, parts of interactions in one order."""
    name = re.sub(r"\[(T\.)?(.*?)\]", r"\2", name)
    name = name.replace("(Intercept)", "Intercept").replace("**", "^").replace(" ", "")
    return ":".join(sorted(name.split(":")))


ALL = tuple(Reference(path.stem) for path in sorted((HERE / "fits").glob("*.json")))
