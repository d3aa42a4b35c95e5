"""Fixtures and guards shared by the whole suite."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

# One thread a process: the suite runs one process a core, and results must not depend on how work is split.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

UNLOCK_SEED = os.environ.get("PYROMIX_UNLOCK_SEED", "") == "1"

hypothesis.settings.register_profile("fixed", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("free", deadline=None, max_examples=500)
hypothesis.settings.load_profile("free" if UNLOCK_SEED else "fixed")


@pytest.fixture
def seed() -> int:
    """Seed of a test: fixed, or fresh under PYROMIX_UNLOCK_SEED=1, which is how luck with a seed is found."""
    value = random.SystemRandom().randrange(2**31) if UNLOCK_SEED else 20240229
    print(f"seed {value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """NumPy generator of this test alone."""
    return np.random.default_rng(seed)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """Torch generator of this test alone."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _isolated_globals() -> Iterator[None]:
    """Fresh random states and parameter store for every test; no process-wide setting may be left changed."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    pyro.clear_param_store()
    before = _settings()
    yield
    after = _settings()
    pyro.clear_param_store()
    assert after == before, f"the test changed process-wide settings: {before} became {after}"


def _settings() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "torch threads": torch.get_num_threads(),
        "gradients enabled": torch.is_grad_enabled(),
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "pyro handler stack": len(pyro.poutine.runtime._PYRO_STACK),
        "working directory": os.getcwd(),
    }
