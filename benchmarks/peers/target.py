"""What the Python peers of the posterior benchmarks share: reading the model, printing draws. Needs numpy alone."""

import json
import sys
from types import SimpleNamespace

import numpy as np


def read():
    """The model of the file named on the command line; see benchmarks/posteriors.py for its fields."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        return json.load(stream, object_hook=_space)


def _space(fields):
    return SimpleNamespace(**fields)


def finish(version, draws, seconds, compiling):
    """Print the result: draws by name (chain, draw), seconds in all, and those before the first iteration (or nan)."""
    plain = {name: np.asarray(value, dtype=float).tolist() for name, value in draws.items()}
    result = {"version": version, "draws": plain, "seconds": seconds, "compile": compiling}
    print("RESULT " + json.dumps(result))
