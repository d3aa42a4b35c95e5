"""Fits made by hand, so that results are tested without a backend.

The estimates of `sleepstudy_fit` are those of ``lmer(Reaction ~ Days + (Days | Subject))`` in lme4 1.1-31 (REML).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import pyromix as pmx
from pyromix.errors import Status
from pyromix.results import Estimate, Fit, HealthRecord

REACTION = """
    249.56 258.7047 250.8006 321.4398 356.8519 414.6901 382.2038 290.1486 430.5853 466.3535
    222.7339 205.2658 202.9778 204.707 207.7161 215.9618 213.6303 217.7272 224.2957 237.3142
    199.0539 194.3322 234.32 232.8416 229.3074 220.4579 235.4208 255.7511 261.0125 247.5153
    321.5426 300.4002 283.8565 285.133 285.7973 297.5855 280.2396 318.2613 305.3495 354.0487
    287.6079 285 301.8206 320.1153 316.2773 293.3187 290.075 334.8177 293.7469 371.5811
    234.8606 242.8118 272.9613 309.7688 317.4629 309.9976 454.1619 346.8311 330.3003 253.8644
    283.8424 289.555 276.7693 299.8097 297.171 338.1665 332.0265 348.8399 333.36 362.0428
    265.4731 276.2012 243.3647 254.6723 279.0244 284.1912 305.5248 331.5229 335.7469 377.299
    241.6083 273.9472 254.4907 270.8021 251.4519 254.6362 245.4523 235.311 235.7541 237.2466
    312.3666 313.8058 291.6112 346.1222 365.7324 391.8385 404.2601 416.6923 455.8643 458.9167
    236.1032 230.3167 238.9256 254.922 250.7103 269.7744 281.5648 308.102 336.2806 351.6451
    256.2968 243.4543 256.2046 255.5271 268.9165 329.7247 379.4445 362.9184 394.4872 389.0527
    250.5265 300.0576 269.8939 280.5891 271.8274 304.6336 287.7466 266.5955 321.5418 347.5655
    221.6771 298.1939 326.8785 346.8555 348.7402 352.8287 354.4266 360.4326 375.6406 388.5417
    271.9235 268.4369 257.2424 277.6566 314.8222 317.2135 298.1353 348.1229 340.28 366.5131
    225.264 234.5235 238.9008 240.473 267.5373 344.1937 281.1481 347.5855 365.163 372.2288
    269.8804 272.4428 277.8989 281.7895 279.1705 284.512 259.2658 304.6306 350.7807 369.4692
    269.4117 273.474 297.5968 310.6316 287.1726 329.6076 334.4818 343.2199 369.1417 364.1236
"""
SUBJECTS = "308 309 310 330 331 332 333 334 335 337 349 350 351 352 369 370 371 372".split()
MODES = [
    [2.25856469312662, 9.19897202446763],
    [-40.3985830628459, -8.61970220957352],
    [-38.9602520981588, -5.44887892104761],
    [23.6905032910964, -4.81433205530467],
    [22.2602070707903, -3.06989527403304],
    [9.03952755282523, -0.272170913508098],
    [16.8404341828073, -0.223624914733418],
    [-7.23258061704356, 1.07457629684944],
    [-0.333694592566005, -10.7521592917969],
    [34.8903559925201, 8.62828313594296],
    [-25.2101150252386, 1.17341497552023],
    [-13.0699598285338, 6.61420548433376],
    [4.57783635064327, -3.01525736852281],
    [20.8635957626089, 3.53601279487552],
    [3.27545349888873, 0.872216524602025],
    [-25.6128745792785, 4.82246542232814],
    [0.807040007345866, -0.988155132097089],
    [12.3145414010062, 1.28402942169374],
]
FITTED = [253.663669541612, 273.329927525676, 292.996185509739, 312.662443493803]
BETA = [251.405104848485, 10.4672859595962]
BETA_COVARIANCE = [[46.5745819608847, -1.45109622955408], [-1.45109622955408, 2.38946330859791]]
SD = [24.7404552501459, 5.92213311498092]
RHO = 0.0655512392395956
SIGMA = 25.5918153159308
LOG_LIKELIHOOD = -871.814135979246


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sleepstudy() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Reaction": np.array(REACTION.split(), dtype=float),
            "Days": np.tile(np.arange(10.0), 18),
            "Subject": np.repeat(SUBJECTS, 10),
        }
    )


@dataclass(frozen=True)
class Term:
    """What a program needs of a grouping factor."""

    name: str
    group: str
    index: torch.Tensor
    design: torch.Tensor
    levels: tuple[str, ...]
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """A stand-in for a design: one grouping factor, named columns."""

    response: str
    y: torch.Tensor | None
    x: torch.Tensor
    columns: tuple[str, ...]
    terms: tuple[Term, ...]
    index: pd.Index
    trials: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    unseen: dict[str, list[str]] = field(default_factory=dict)

    def new(self, frame: pd.DataFrame, distinct: bool = True) -> Rows:
        """Rows of new data: unseen levels are -1, -2, ..., or all -1."""
        (term,) = self.terms
        known = {level: k for k, level in enumerate(term.levels)}
        fresh = list(dict.fromkeys(v for v in frame[term.group] if v not in known))
        codes = {level: -1 - k if distinct else -1 for k, level in enumerate(fresh)}
        index = torch.tensor([known.get(v, codes.get(v, 0)) for v in frame[term.group]], dtype=torch.long)
        x = torch.stack([torch.ones(len(frame), dtype=torch.float64), tensor(frame[self.columns[1]].tolist())], 1)
        unseen = {term.group: fresh} if fresh else {}
        trials = None if self.trials is None else tensor(frame["trials"].tolist())
        z = replace(term, index=index, design=x[:, : len(term.terms)])
        return replace(self, y=None, x=x, terms=(z,), index=frame.index, unseen=unseen, trials=trials)


def slope_program(family: Any, covariance: Any = None, prior: Any = None):
    """Fixed intercept and slope, random intercept and slope of one grouping factor."""

    def program(d: Rows) -> None:
        (term,) = d.terms
        effect = pmx.RandomEffect(term.name, covariance or pmx.Unstructured(), levels=term.levels, terms=term.terms)
        eta = pmx.LinearEffect("beta", labels=d.columns)(d.x) + effect(term.index, term.design)
        pmx.observe(d.response, family, eta, d.y, trials=d.trials, offset=d.offset)

    return program


def sleepstudy_rows() -> Rows:
    frame = sleepstudy()
    days = tensor(frame["Days"].tolist())
    x = torch.stack([torch.ones(180, dtype=torch.float64), days], 1)
    names = ("Intercept", "Days")
    term = Term("Subject", "Subject", torch.arange(18).repeat_interleave(10), x, tuple(SUBJECTS), names)
    return Rows("Reaction", tensor(frame["Reaction"].tolist()), x, names, (term,), frame.index)


def corr_cholesky(rho: float) -> torch.Tensor:
    return tensor([[1.0, 0.0], [rho, (1 - rho**2) ** 0.5]])


def gaussian_draws(point: dict, latents: dict, covariance: dict, latent_sd: dict):
    """Draws of coefficients from their Gaussian, of effects from independent ones, of a residual SD within 3 per cent.

    The rest stays where it is.
    """

    def draw(count: int, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draws = {}
        for name, value in point.items():
            noise = torch.randn(count, value.numel(), dtype=torch.float64, generator=generator)
            if name in covariance and value.dim() == 1:
                draws[name] = value + noise @ torch.linalg.cholesky(covariance[name]).T
            elif name.endswith(".sigma"):
                draws[name] = value * (0.03 * noise[:, 0]).exp()
            else:
                draws[name] = value.expand(count, *value.shape)
        for name, value in latents.items():
            noise = torch.randn(count, *value.shape, dtype=torch.float64, generator=generator)
            draws[name] = value + latent_sd[name] * noise
        return draws

    return draw


def sleepstudy_estimate(**changes: Any) -> Estimate:
    point = {
        "beta": tensor(BETA),
        "Subject.sd": tensor(SD),
        "Subject.corr_cholesky": corr_cholesky(RHO),
        "Reaction.sigma": tensor(SIGMA),
    }
    latents = {"Subject": tensor(MODES)}
    latent_sd = {"Subject": tensor([[12.0708374395604, 2.30483708127945]] * 18)}
    covariance = {"beta": tensor(BETA_COVARIANCE)}
    estimate = Estimate(
        kind="point",
        inference="REML, Exact",
        point=point,
        latents=latents,
        latent_sd=latent_sd,
        covariance=covariance,
        draw=gaussian_draws(point, latents, covariance, latent_sd),
        log_likelihood=LOG_LIKELIHOOD,
        n_parameters=6,
        status=Status.CONVERGED,
        settings={"criterion": "reml", "marginal": "Exact"},
    )
    return replace(estimate, **changes)


def sleepstudy_fit(**changes: Any) -> Fit:
    rows = sleepstudy_rows()
    return Fit(
        sleepstudy_estimate(**changes),
        slope_program(pmx.Gaussian()),
        (rows,),
        design=rows,
        formula_text="Reaction ~ Days + (Days | Subject)",
        new_design=rows.new,
    )


def glmm_fit(family: Any, trials: bool = False, sd: float = 0.8, **changes: Any) -> Fit:
    """Forty rows in eight groups with a random intercept, at made-up values."""
    generator = np.random.default_rng(5)
    index = torch.arange(8).repeat_interleave(5)
    x = torch.stack([torch.ones(40, dtype=torch.float64), tensor(generator.normal(size=40).tolist())], 1)
    count = tensor([3.0 + k % 4 for k in range(40)]) if trials else None
    y = tensor([float(k % 3 if count is not None or family.link.name == "log" else k % 2) for k in range(40)])
    levels = tuple("abcdefgh")
    term = Term("g", "g", index, x[:, :1], levels, ("Intercept",))
    rows = Rows("y", y, x, ("Intercept", "x"), (term,), pd.RangeIndex(40), trials=count)
    latents = {"g": tensor([[v] for v in generator.normal(size=8) * sd])}
    point = changes.get("point", {"beta": tensor([0.3, -0.5]), "g.sd": tensor(sd)})
    latents = changes.get("latents", latents)
    latent_sd = {name: torch.full_like(value, 0.3) for name, value in latents.items()}
    covariance = changes.get("covariance", {"beta": tensor([[0.04, 0.01], [0.01, 0.02]])})
    estimate = Estimate(
        kind="point",
        inference="ML, Laplace",
        point=point,
        latents=latents,
        latent_sd=latent_sd,
        covariance=covariance,
        draw=gaussian_draws(point, latents, covariance, latent_sd),
        log_likelihood=-60.0,
        n_parameters=3,
        status=Status.CONVERGED,
        settings={"criterion": "ml"},
    )
    program = slope_program(family, pmx.IID())
    estimate = replace(estimate, **changes)
    return Fit(estimate, program, (rows,), design=rows, formula_text="y ~ x + (1 | g)", new_design=rows.new)


def warning(severity: str = "warn", code: str = "singular") -> HealthRecord:
    return HealthRecord(code, severity, 1e-6, 1e-4, "Subject.sd", "Drop the term or give its SD a prior.")
