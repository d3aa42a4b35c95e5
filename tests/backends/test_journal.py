"""A search that is stopped at any evaluation goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import pyromix as pmx
from pyromix.backends.quasi_newton import Objective

MODELS = {
    "gaussian": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", None, None),
    "binomial": ("cbind(incidence, other) ~ period + (1 | herd)", "cbpp", pmx.Binomial(), pmx.Laplace()),
    "quadrature": ("cbind(incidence, other) ~ period + (1 | herd)", "cbpp", pmx.Binomial(), pmx.GaussHermite(5)),
}


def fit(kind: str, checkpoint: Path | None) -> pmx.Fit:
    formula, name, family, marginal = MODELS[kind]
    df = pmx.datasets.load(name)
    if name == "cbpp":
        df["other"] = df["size"] - df["incidence"]
    return pmx.model(formula, df, family).fit(pmx.MaximumLikelihood(marginal, checkpoint=checkpoint), progress=False)


class Stopped(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("after", [1, 4, 9])
def test_resumed_is_uninterrupted(kind: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(kind, None)
    path = tmp_path / "search.checkpoint"
    calls, evaluate = [], Objective._evaluate

    def cut(self: Objective, t: np.ndarray) -> tuple[float, np.ndarray]:
        if len(calls) == after:
            raise Stopped
        calls.append(t)
        return evaluate(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "_evaluate", cut)
        patch.setattr("pyromix.backends.checkpoint.time.monotonic", _always_due())
        with pytest.raises(Stopped):
            fit(kind, path)
    fresh = []
    monkeypatch.setattr(Objective, "_evaluate", lambda self, t: fresh.append(t) or evaluate(self, t))
    resumed = fit(kind, path)
    assert len(fresh) == whole.estimate.settings["evaluations"] - after
    assert resumed.log_likelihood == whole.log_likelihood
    for site, value in whole.estimate.point.items():
        np.testing.assert_array_equal(resumed.estimate.point[site], value)
    fresh.clear()
    again = fit(kind, path)  # a finished search is read, not run
    assert not fresh and again.log_likelihood == whole.log_likelihood


def _always_due():
    clock = [0.0]

    def monotonic() -> float:
        clock[0] += 1e3
        return clock[0]

    return monotonic


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.checkpoint"
    fit("gaussian", path)
    with pytest.raises(pmx.CheckpointError, match="belongs to another fit"):
        fit("binomial", path)


def test_killed_for_real(tmp_path: Path) -> None:
    """SIGKILL in the middle of a search; a second process ends where an undisturbed one does."""
    path = tmp_path / "search.checkpoint"
    script = textwrap.dedent(
        """
        import os, signal, sys
        import pyromix as pmx
        from pyromix.backends.quasi_newton import Objective
        evaluate, left = Objective._evaluate, [int(sys.argv[2])]
        def counted(self, t):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return evaluate(self, t)
        Objective._evaluate = counted
        df = pmx.datasets.load("sleepstudy")
        backend = pmx.MaximumLikelihood(checkpoint=sys.argv[1], training=pmx.Training(checkpoint_every=0.0))
        fit = pmx.model("Reaction ~ Days + (Days | Subject)", df).fit(backend, progress=False)
        print(fit.log_likelihood.hex())
        """
    )

    def process(evaluations: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, str(path), str(evaluations)]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)

    assert process(6).returncode == -signal.SIGKILL
    assert path.exists()
    assert process(10**6).stdout.strip() == fit("gaussian", None).log_likelihood.hex()
