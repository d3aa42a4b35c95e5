"""The public names of the package: they resolve, lazily, and whatever was imported before."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pyromix as pmx

ROOT = Path(__file__).resolve().parents[1]


def _python(code: str) -> str:
    """Output of a fresh interpreter, which has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_heavy_package() -> None:
    heavy = "{'torch', 'pyro', 'numpy', 'scipy', 'pandas', 'patsy', 'arviz', 'matplotlib', 'tqdm'}"
    assert _python(f"import sys, pyromix; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_listing_the_names_loads_no_heavy_package() -> None:
    assert _python("import sys, pyromix; print('model' in dir(pyromix), 'torch' in sys.modules)") == "True False"


@pytest.mark.parametrize("name", pmx.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(pmx, name)
    assert getattr(value, "__name__", name).rpartition(".")[2] in (name, "Status")
    assert name in dir(pmx)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pyromix' has no attribute 'glmer'"):
        _ = pmx.glmer


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "pyromix" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "`X as X` marks a re-export"
            seen[alias.name] = node.module
    homes = {name: f"pyromix.{module}" for name, module in pmx._HOME.items()}
    assert seen == homes | dict.fromkeys(pmx._SUBMODULES, "pyromix")


def test_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert pmx.__version__ == project["version"]


ORDERS = [
    "import pyromix as pmx",
    "import pyromix as pmx; pmx.model",
    "import pyromix as pmx; pmx.fit",
    "from pyromix.model import Model; import pyromix as pmx",
    "import pyromix.model; import pyromix as pmx",
    "import pyromix as pmx; pmx.model; import pyromix.model; from pyromix.model import Model",
    "import importlib; importlib.import_module('pyromix.model'); import pyromix as pmx",
    "import pyromix.cli; import pyromix as pmx",
    "from pyromix import model, fit; import pyromix as pmx; assert pmx.model is model",
]


# One interpreter for all orders, as the packages pyromix imports take seconds to load; pyromix itself is loaded afresh.
EACH_ORDER = """
import inspect, sys
for order in {orders!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyromix"]:
        del sys.modules[name]
    space = {{}}
    exec(order, space)
    pmx = space["pmx"]
    right = inspect.isfunction(pmx.model) and inspect.isfunction(pmx.fit)
    module = sys.modules["pyromix.model"]
    right &= pmx.model is module.model and pmx.fit is module.fit and pmx.Model is module.Model
    print(right, order)
"""


def test_model_is_the_function_in_every_import_order() -> None:
    """The submodule of the same name must not take its place."""
    wrong = [line for line in _python(EACH_ORDER.format(orders=ORDERS)).splitlines() if not line.startswith("True")]
    assert wrong == []
