"""``python -m benchmarks.svi_coverage``: how often 80 % intervals of each guide hold the value that made the data.

Hyper-parameters, effects and data are drawn from a program, its posterior is approximated by each guide, and the
central intervals of coefficients, SDs and effects are counted: a calibrated posterior covers 80 % on average over its
prior, whatever the program.
"""

from __future__ import annotations

import argparse
import math
import warnings
from typing import Any

LEVEL = 0.8
GUIDES = ("group", "amortised", "full", "low_rank", "mean_field")


def program(family: Any, groups: int) -> Any:
    """A random intercept and slope with proper priors; without a response it draws one."""
    import pyro.distributions as dist
    import torch

    import pyromix as pmx

    def tensor(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64)

    def run(data: Any) -> None:
        columns = torch.stack([torch.ones_like(data["x"]), data["x"]], 1)
        eta = pmx.LinearEffect("beta", dist.Normal(tensor(0.0), tensor(1.0)))(columns)
        structure = pmx.Unstructured(sd=dist.HalfNormal(tensor(1.0)))
        eta = eta + pmx.RandomEffect("g", structure, levels=groups)(data["g"], columns)
        pmx.observe("y", family, eta, data.get("y"))

    return run


def simulated(model: Any, family: Any, groups: int, per_group: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data, and the values they were made with."""
    import torch

    from pyromix.running import run

    generator = torch.Generator().manual_seed(seed)
    n = groups * per_group
    data = {
        "x": torch.randn(n, generator=generator, dtype=torch.float64),
        "g": torch.arange(groups).repeat_interleave(per_group),
    }
    record = run(model, (data,), latents="prior", seed=seed)
    role = record.data["y"].role
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + 1)
        y = family.distribution(role.eta, None, **role.dispersion).sample().to(torch.float64)
    truth = {name: site.value for name, site in {**record.hypers, **record.latents}.items()}
    return {**data, "y": y}, truth


def study(family: Any, guides: tuple[str, ...], fits: int, steps: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Coverage by guide and kind of unknown: ``beta``, ``g.sd`` and ``g``."""
    import torch

    import pyromix as pmx
    from pyromix.backends.svi import SVI

    groups, per_group = 12, 6
    model = program(family, groups)
    hits: dict[str, dict[str, list[float]]] = {guide: {} for guide in guides}
    done = 0
    while done < fits:
        data, truth = simulated(model, family, groups, per_group, 1000 * seed + done)
        done += 1
        for guide in guides:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pmx.PyromixWarning)
                draws = pmx.fit(model, data, SVI(guide, steps=steps), seed=seed, progress=False).draws()
            for name in ("beta", "g.sd", "g"):
                low, high = torch.quantile(
                    draws[name], torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64), dim=0
                )
                inside = (low <= truth[name]) & (truth[name] <= high)
                hits[guide].setdefault(name, []).append(float(inside.double().mean()))
    return {guide: {name: sum(v) / len(v) for name, v in found.items()} for guide, found in hits.items()}


def main() -> int:
    import torch

    import pyromix as pmx

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=100)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--guides", nargs="*", default=list(GUIDES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    better = True
    for family in (pmx.Gaussian(sigma=0.7), pmx.Binomial(), pmx.Poisson()):
        found = study(family, tuple(options.guides), options.fits, options.steps)
        error = math.sqrt(LEVEL * (1 - LEVEL) / (2 * options.fits))
        print(f"{family!r}: coverage of {LEVEL:.0%} intervals, {options.fits} data sets (error of a pair {error:.3f})")
        for guide, coverage in found.items():
            print(f"  {guide:12s}" + "".join(f"  {name} {value:.3f}" for name, value in coverage.items()), flush=True)
        if {"group", "mean_field"} <= set(found):
            off = {g: sum(abs(v - LEVEL) for v in found[g].values()) for g in ("group", "mean_field")}
            better &= off["group"] < off["mean_field"]
    print("group is better calibrated than mean_field: " + ("met" if better else "NOT MET"))
    return 0 if better else 1


if __name__ == "__main__":
    raise SystemExit(main())
