r"""A neural mean against a straight line on the sleepstudy data, both with a random intercept and slope per subject.

.. math:: Reaction = \beta_0 + f(Days) + u_{0,s} + u_{1,s} Days + e

One program serves both; the network's output is in units of 50 ms, about the response's SD. The likelihood alone would
flatter the network, so three more numbers are printed: the ceiling (a coefficient for every day, which no function of
Days can beat), AIC with the weights counted as parameters, and the log marginal likelihood of held-out subjects.

    python examples/sleepstudy_neural.py --folds 6
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import pyromix as pmx
from pyromix.running import run

Data = dict[str, torch.Tensor]
TRAINING = pmx.Training(lr=0.01, epochs=600, validation=0.0)


def load() -> Data:
    """Days, subjects and reaction times as tensors."""
    frame = pmx.datasets.load("sleepstudy")
    return {
        "days": torch.tensor(frame["Days"].to_numpy(dtype=float)),
        "subject": torch.tensor(frame["Subject"].astype("category").cat.codes.to_numpy(dtype=np.int64)),
        "reaction": torch.tensor(frame["Reaction"].to_numpy(dtype=float)),
    }


def program_with(mean: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Data], None]:
    """The program around a mean: days (n,) -> its part of the predictor (n,)."""

    def program(data: Data) -> None:
        days = data["days"]
        eta = pmx.LinearEffect("beta", labels=("Intercept",))(torch.ones_like(days)[:, None]) + mean(days)
        subjects = pmx.RandomEffect("Subject", pmx.Unstructured(), levels=18, terms=("Intercept", "Days"))
        eta = eta + subjects(data["subject"], torch.stack([torch.ones_like(days), days], dim=1))
        pmx.observe("Reaction", pmx.Gaussian(), eta, data["reaction"])

    return program


def linear() -> Callable[[Data], None]:
    return program_with(lambda days: pmx.LinearEffect("slope", labels=("Days",))(days[:, None]))


def every_day() -> Callable[[Data], None]:
    days_after_first = torch.arange(1, 10, dtype=torch.float64)
    return program_with(lambda days: pmx.LinearEffect("day")((days[:, None] == days_after_first).to(torch.float64)))


def neural(seed: int = 0) -> Callable[[Data], None]:
    network = pmx.networks.MLP(1, (8,), activation="tanh", seed=seed)
    return program_with(lambda days: 50.0 * pmx.NeuralEffect("f", network)((days[:, None] - 4.5) / 2.9))


MEANS: dict[str, Callable[[], Callable[[Data], None]]] = {
    "linear": linear,
    "neural": neural,
    "a mean per day": every_day,
}


def fit(program: Callable[[Data], None], data: Data) -> Any:
    return pmx.fit(program, data, pmx.MaximumLikelihood(training=TRAINING), progress=False)


def held_out(mean: str, data: Data, folds: int) -> float:
    """Log marginal likelihood of every subject under the fit to the other folds, summed."""
    fold_of = np.random.default_rng(0).permutation(18) % folds
    total = 0.0
    for fold in range(folds):
        rows = torch.from_numpy(fold_of[data["subject"].numpy()] == fold)
        train, test = ({name: column[keep] for name, column in data.items()} for keep in (~rows, rows))
        program = MEANS[mean]()
        point = fit(program, train).estimate.point
        with torch.no_grad():
            total += float(pmx.Exact().prepare(program, (test,)).log_marginal(run(program, (test,), point)))
    return total


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Print the table; log-likelihood and held-out log-likelihood of each mean."""
    parser = argparse.ArgumentParser(description="Linear and neural means on the sleepstudy data.")
    parser.add_argument("--folds", type=int, default=6, help="folds of subjects for the held-out score")
    folds = parser.parse_args(arguments).folds
    data, results = load(), {}
    print(f"{'mean':<16} {'log-lik.':>9} {'parameters':>11} {'AIC':>9} {'held out':>10}")
    for name, make in MEANS.items():
        fitted = fit(make(), data)
        results[name] = (fitted.log_likelihood, held_out(name, data, folds))
        count = fitted.estimate.n_parameters
        inside, outside = results[name]
        print(f"{name:<16} {inside:>9.2f} {count:>11} {fitted.aic:>9.1f} {outside:>10.2f}", flush=True)
    gain, ahead = (results["neural"][k] - results["linear"][k] for k in (0, 1))
    ceiling = results["a mean per day"][0] - results["linear"][0]
    print(f"\nMarginal likelihood: the neural mean is {gain:+.2f} nats from the line;")
    print(f"no function of Days gains more than {ceiling:.2f}. Held-out subjects: {ahead:+.2f} nats.")
    verdict = "predicts new subjects better" if ahead > 0 else "does not predict new subjects better"
    print(f"So the neural mean fits {'better' if gain > 0 else 'worse'}, and {verdict} than the line.")
    print("AIC counts every weight; a function of ten days has at most ten degrees of freedom, so it is too severe.")
    return results


if __name__ == "__main__":
    main()
