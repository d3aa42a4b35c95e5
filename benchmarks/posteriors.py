"""The posteriors that are timed: data, priors and requirements, each written once and handed to every side as JSON.

Numeric columns are centred (and scaled where that is natural) before any side sees them. The intercept then means the
same to all: rstanarm and Bambi put its prior on centred columns in any case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DATA = Path(__file__).resolve().parent / "data"
NUTS, LAPLACE, EXACT, NESTED = "NUTS", "NUTS(marginal=Laplace())", "NUTS(marginal=Exact())", "NestedLaplace"
QUADRATURE, NESTED_QUADRATURE = "NUTS(marginal=GaussHermite(25))", "NestedLaplace(marginal=GaussHermite(25))"
CORRECTED = "NestedLaplace(correct=20)"
FASTEST = "the fastest reliable method"
APPROXIMATE = (LAPLACE, NESTED)  # equal to the joint posterior up to the error of Laplace's approximation
NUMPYRO, BAMBI, PYMC, RSTANARM = "NumPyro", "Bambi + nutpie", "PyMC + nutpie", "rstanarm"


@dataclass(frozen=True)
class Prior:
    """Scales of the priors: coefficients are normal about 0, SDs ``half_normal`` or ``exponential`` (its mean).

    `sd` is of every random effect, `sigma` the half-normal scale of a Gaussian response's residual SD.
    """

    intercept: float
    slope: float
    sd: float
    sd_family: str = "half_normal"
    sigma: float | None = None


@dataclass(frozen=True)
class MixedModel:
    """Random intercepts: ``y ~ columns + (1 | group) ...``, with numbers for columns and codes for groups."""

    family: str
    y: list[float]
    columns: Mapping[str, list[float]]
    groups: Mapping[str, list[int]]
    prior: Prior
    kind: str = "mixed"

    @property
    def formula(self) -> str:
        """As lme4, Bambi and pyromix write it."""
        return " + ".join(["y ~ 1", *self.columns, *(f"(1 | {group})" for group in self.groups)])

    @property
    def names(self) -> list[str]:
        """The hyper-parameters, in the order of every table."""
        residual = [] if self.prior.sigma is None else ["sigma"]
        return ["Intercept", *self.columns, *(f"{group}.sd" for group in self.groups), *residual]


@dataclass(frozen=True)
class Schools:
    """``y_j ~ N(theta_j, s_j)``, ``theta_j ~ N(mu, tau)``, ``mu ~ N(0, 5)``, ``tau ~ half-Cauchy(5)``; s is known."""

    y: list[float]
    s: list[float]
    kind: str = "schools"
    formula: str = "y_j ~ N(mu + tau z_j, s_j), s_j known"
    names: tuple[str, ...] = ("mu", "tau")


@dataclass(frozen=True)
class Network:
    """Regression by one hidden layer of tanh units, every weight ``N(0, 1)``, ``sigma ~ half-normal(1)``.

    Units can be exchanged and change sign, so single weights have no posterior of their own. Compared are `sigma` and
    the function's values at the rows of `grid`, named ``f[0]``, ``f[1]``, ...
    """

    x: list[list[float]]
    y: list[float]
    grid: list[list[float]]
    hidden: int
    kind: str = "network"

    @property
    def formula(self) -> str:
        n_inputs = len(self.x[0])
        count = (n_inputs + 2) * self.hidden + 1
        return f"y ~ N(f(x), sigma), f a network {n_inputs}-{self.hidden}-1 of {count} weights, N(0, 1) each"

    @property
    def names(self) -> list[str]:
        return [*(f"f[{i}]" for i in range(len(self.grid))), "sigma"]


Target = MixedModel | Schools | Network


@dataclass(frozen=True)
class Requirement:
    """Effective draws a second of `method`: at least `floor`, or `ratio` times those of a peer (or the ``"best"``).

    `FASTEST` stands for whichever of pyromix's methods is fastest among those that agree with the reference and do not
    call themselves unreliable.
    """

    method: str
    floor: float | None = None
    ratio: float | None = None
    against: str = "best"


@dataclass(frozen=True)
class PosteriorCase:
    """One timed posterior.

    Attributes
    ----------
    target
        Makes data, model and priors.
    methods
        What pyromix runs.
    peers
        Label of each peer -> its script in ``benchmarks/peers``.
    required
        What is held against the result.
    draws
        Draws a chain, and as many warm-up iterations.
    fewer
        The same for a side that takes long.
    """

    name: str
    target: Callable[[], Target]
    methods: tuple[str, ...]
    peers: Mapping[str, str]
    required: tuple[Requirement, ...] = ()
    draws: int = 1000
    fewer: Mapping[str, int] = field(default_factory=dict)


def write_target(target: Target, path: Path, **settings: Any) -> None:
    """The JSON file that every side reads: the model's fields, its names, and settings of the run."""
    described = {**asdict(target), "formula": target.formula, "names": list(target.names), **settings}
    path.write_text(json.dumps(described), encoding="utf-8")


def centred(values: Any, *, scale: bool = False) -> list[float]:
    import numpy as np

    array = np.asarray(values, dtype=float)
    array = array - array.mean()
    return [float(value) for value in (array / array.std() if scale else array)]


def codes(column: pd.Series) -> list[int]:
    """Levels as 0, 1, ... in their order, whatever their labels."""
    return [int(code) for code in column.astype("category").cat.remove_unused_categories().cat.codes]


def verbagg() -> MixedModel:
    """Verbal aggression: 7,584 answers of 316 persons to 24 items. SDs are exponential: rstanarm has no half-normal."""
    import pyromix as pmx

    d = pmx.datasets.load("VerbAgg")
    columns = {
        "anger": centred(d["Anger"], scale=True),
        "male": centred(d["Gender"] == "M"),
        "scold": centred(d["btype"] == "scold"),
        "shout": centred(d["btype"] == "shout"),
        "situ_self": centred(d["situ"] == "self"),
        "mode_do": centred(d["mode"] == "do"),
    }
    y = [float(value == "Y") for value in d["r2"]]
    groups = {"person": codes(d["id"]), "item": codes(d["item"])}
    return MixedModel("binomial", y, columns, groups, Prior(2.5, 2.5, 1.0, "exponential"))


def radon() -> MixedModel:
    """Radon in 919 homes of 85 counties; the priors are those of posteriordb's hierarchical intercept model."""
    d = json.loads((DATA / "radon.json").read_text(encoding="utf-8"))
    columns = {"log_uppm": centred(d["log_uppm"]), "floor": centred(d["floor"])}
    groups = {"county": [code - 1 for code in d["county"]]}
    return MixedModel("gaussian", d["log_radon"], columns, groups, Prior(10.0, 10.0, 1.0, sigma=1.0))


def eight_schools() -> Schools:
    """Rubin (1981): effects of coaching in eight schools; priors as in posteriordb."""
    return Schools([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def toenail() -> MixedModel:
    """Toenail infection: 1,908 visits of 294 patients, most of whom never change; the SD is about 4."""
    import pyromix as pmx

    d = pmx.datasets.load("toenail")
    treated = (d["treatment"] == "terbinafine").to_numpy(float)
    time = d["time"].to_numpy(float) / d["time"].std()
    columns = {"treatment": centred(treated), "time": centred(time), "treatment_time": centred(treated * time)}
    y = [float(value == "moderate or severe") for value in d["outcome"]]
    return MixedModel("binomial", y, columns, {"patient": codes(d["patientID"])}, Prior(5.0, 2.5, 5.0))


def three_level() -> MixedModel:
    """Ticks on 403 grouse chicks in 118 broods in 63 locations, with a random effect at each level: a Poisson model."""
    import pyromix as pmx

    d = pmx.datasets.load("grouseticks")
    columns = {
        "year96": centred(d["YEAR"].astype(str) == "96"),
        "year97": centred(d["YEAR"].astype(str) == "97"),
        "height": centred(d["HEIGHT"], scale=True),
    }
    groups = {"location": codes(d["LOCATION"]), "brood": codes(d["BROOD"]), "chick": codes(d["INDEX"])}
    y = [float(value) for value in d["TICKS"]]
    return MixedModel("poisson", y, columns, groups, Prior(2.5, 2.5, 2.5))


def network() -> Network:
    """200 simulated rows of two inputs, 65 weights; fixed seed."""
    import numpy as np

    rng = np.random.default_rng(1729)
    x = rng.uniform(-2, 2, (200, 2))
    y = np.sin(1.5 * x[:, 0]) + 0.5 * x[:, 0] * x[:, 1] + 0.2 * rng.standard_normal(200)
    grid = rng.uniform(-1.8, 1.8, (10, 2))
    return Network(_rows(x), [float(value) for value in y], _rows(grid), hidden=16)


def _rows(matrix: np.ndarray) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix]


NUMPYRO_AND_BAMBI = {NUMPYRO: "numpyro_posterior.py", BAMBI: "bambi_posterior.py"}
NUMPYRO_AND_PYMC = {NUMPYRO: "numpyro_posterior.py", PYMC: "pymc_posterior.py"}
AT_LEAST_EACH = (Requirement(FASTEST, ratio=1.0), Requirement(NUTS, ratio=1.0))

POSTERIORS: dict[str, PosteriorCase] = {
    case.name: case
    for case in (
        PosteriorCase(
            "verbagg_posterior",
            verbagg,
            (NESTED, LAPLACE, NUTS),
            {**NUMPYRO_AND_BAMBI, RSTANARM: "rstanarm_posterior.R"},
            (
                Requirement(NESTED, floor=100.0),
                Requirement(LAPLACE, ratio=5.0, against=NUMPYRO),
                Requirement(NUTS, ratio=1.0),
            ),
            fewer={RSTANARM: 500},
        ),
        PosteriorCase("radon_posterior", radon, (NESTED, EXACT, NUTS), NUMPYRO_AND_BAMBI, AT_LEAST_EACH),
        PosteriorCase("eight_schools_posterior", eight_schools, (NESTED, EXACT, NUTS), NUMPYRO_AND_PYMC, AT_LEAST_EACH),
        PosteriorCase(
            "toenail_posterior",
            toenail,
            (NESTED, NESTED_QUADRATURE, QUADRATURE, NUTS),
            NUMPYRO_AND_BAMBI,
            AT_LEAST_EACH,
        ),
        PosteriorCase("three_level_posterior", three_level, (NESTED, LAPLACE, NUTS), NUMPYRO_AND_BAMBI, AT_LEAST_EACH),
        # fewer draws, so that PyMC ends within a few minutes
        PosteriorCase(
            "bayesian_network_posterior", network, (NUTS,), NUMPYRO_AND_PYMC, (Requirement(NUTS, ratio=1.0),), draws=500
        ),
    )
}
