"""The layout of the package, read from its imports: which layer may use which, and what must not appear at all."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyromix"

# Layer -> layers it may import. `errors` may be imported by every layer; a layer may import itself.
# `...` stands for everything.
LAYERS: dict[str, set[str] | type(...)] = {
    "__init__": ...,
    "errors": set(),
    "parameters": set(),
    "remembered": set(),
    "threads": set(),
    "linalg": {"threads"},
    "covariances": {"linalg", "parameters", "remembered"},
    "families": {"covariances", "parameters", "remembered"},
    "distributions": {"linalg"},
    "sites": set(),
    "running": {"sites"},
    "effects": {"covariances", "distributions", "linalg", "parameters", "remembered", "sites"},
    "networks": {"linalg"},
    "irt": {"effects", "families", "parameters", "sites"},
    "program": {"effects", "families", "parameters", "sites"},
    "composition": {"covariances", "effects", "families", "program"},
    "wrappers": {"covariances", "linalg"},
    "defaults": {"composition", "covariances", "families", "parameters", "wrappers"},
    "priors": {"composition", "covariances", "defaults", "families"},
    "source": {"composition", "parameters"},
    "native": set(),
    "compile": {"native", "running", "sites"},
    "potential": {"compile", "running"},
    "marginal": {"compile", "distributions", "linalg", "native", "running", "sites"},
    "backends": {"compile", "linalg", "marginal", "native", "potential", "results", "running", "sites", "threads"},
    "formula": set(),
    "results": {"linalg", "marginal", "program", "running", "sites", "threads"},
    "datasets": set(),
    "persistence": {
        *("backends", "composition", "covariances", "families", "formula"),
        *("marginal", "parameters", "results", "running"),
    },
    "model": ...,
    "__main__": {"cli"},
    "cli": {"backends", "datasets", "families", "formula", "marginal", "model", "networks", "results"},
    "testing": ...,
}

# Layer -> packages from outside the standard library it may import.
THIRD_PARTY: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "parameters": {"pyro", "torch"},
    "remembered": {"numpy", "torch"},
    "threads": {"scipy", "threadpoolctl"},
    "linalg": {"numpy", "scipy", "torch"},
    "covariances": {"numpy", "pyro", "torch"},
    "families": {"numpy", "pyro", "torch"},
    "distributions": {"pyro", "torch"},
    "sites": {"pyro", "torch"},
    "running": {"pyro", "torch"},
    "effects": {"numpy", "pyro", "torch"},
    "networks": {"torch"},
    "irt": {"pyro", "torch"},
    "program": {"pyro", "torch"},
    "composition": {"pyro", "torch"},
    "wrappers": set(),
    "defaults": {"numpy", "pyro", "torch"},
    "priors": {"pandas", "pyro", "torch"},
    "source": {"pyro", "torch"},
    "native": {"scipy", "torch"},
    "compile": {"pyro", "torch"},
    "potential": {"pyro", "torch"},
    "marginal": {"numpy", "pyro", "scipy", "torch"},
    "backends": {"numpy", "nutpie", "pyarrow", "pyro", "safetensors", "scipy", "torch", "tqdm"},
    "formula": {"numpy", "pandas", "patsy", "scipy", "torch"},
    "results": {"arviz", "h5netcdf", "matplotlib", "numpy", "pandas", "pyro", "safetensors", "scipy", "torch"}
    | {"tqdm", "xarray"},
    "datasets": {"numpy", "pandas"},
    "persistence": {"numpy", "pandas", "torch"},
    "model": {"numpy", "pandas", "pyro", "torch"},
    "__main__": set(),
    "cli": {"matplotlib", "numpy", "pandas", "torch"},
    "testing": {"hypothesis", "matplotlib", "numpy", "pandas", "pyro", "pytest", "scipy", "torch", "tqdm"},
}

# Packages confined to single files of their layer.
ONLY_IN = {"gpytorch": {"covariances/gp.py"}, "linear_operator": {"covariances/gp.py"}}

# Loading any of these formats runs code; `testing` pickles structures to check that users can.
CODE_LOADERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml"}
PICKLE_ALLOWED = {"testing"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
GLOBAL_SETTERS = {
    "set_default_dtype",
    "set_default_tensor_type",
    "set_default_device",
    "set_num_threads",
    "set_num_interop_threads",
    "use_deterministic_algorithms",
    "enable_validation",
    "clear_param_store",
}
OWN_PROCESS = {"backends/workers.py"}  # sets the threads of the processes that it forks
MAX_LINES = 600

FILES = sorted(PACKAGE.rglob("*.py"))


def _layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except the bodies of ``if TYPE_CHECKING:``, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _runtime_nodes(other)
            continue
        yield child
        yield from _runtime_nodes(child)


def _imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports, relative imports resolved."""
    package = ("pyromix", *path.relative_to(PACKAGE).parts[:-1])
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package):
                yield node.lineno, "<outside>"
                continue
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from pyromix import linalg` imports pyromix.linalg, not the package alone
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "pyromix" else [module]
            for name in names:
                yield node.lineno, name


def _layer_problems(source: str, path: Path) -> list[str]:
    layer, tree = _layer(path), ast.parse(source)
    where = path.relative_to(PACKAGE).as_posix()
    if layer not in LAYERS:
        return [f"{where}: layer {layer!r} is not in the table of this test"]
    problems = []
    for line, name in _imports(tree, path):
        top, *rest = name.split(".")
        if top == "<outside>":
            problems.append(f"{where}:{line}: relative import leaves the package")
        elif top == "pyromix":
            target = rest[0] if rest else "__init__"
            allowed = LAYERS[layer]
            if allowed is not ... and target not in allowed | {layer, "errors"} and target != "__version__":
                problems.append(f"{where}:{line}: {layer} may not import pyromix.{target}")
        elif top in ONLY_IN:
            if where not in ONLY_IN[top]:
                problems.append(f"{where}:{line}: {top} only in {sorted(ONLY_IN[top])}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY[layer]:
            problems.append(f"{where}:{line}: {layer} may not import {name}")
    return problems


def _safety_problems(source: str, path: Path) -> list[str]:
    layer, tree = _layer(path), ast.parse(source)
    where = path.relative_to(PACKAGE).as_posix()
    problems = []
    for line, name in _imports(tree, path):
        if name.split(".")[0] in CODE_LOADERS and layer not in PICKLE_ALLOWED:
            problems.append(f"{where}:{line}: imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
        last = called.rpartition(".")[2]
        if called in EVALUATORS or called.startswith("builtins."):
            problems.append(f"{where}:{node.lineno}: calls {called}")
        if last in ("read_pickle", "to_pickle") or called.endswith("get_param_store().load"):
            problems.append(f"{where}:{node.lineno}: calls {called}")
        if keywords.get("allow_pickle", "False") != "False":
            problems.append(f"{where}:{node.lineno}: allow_pickle={keywords['allow_pickle']}")
        if called == "torch.load" and keywords.get("weights_only") != "True":
            problems.append(f"{where}:{node.lineno}: torch.load without weights_only=True")
        if last in GLOBAL_SETTERS and where not in OWN_PROCESS:
            problems.append(f"{where}:{node.lineno}: calls {called}, which changes the whole process")
    return problems


def _size_problems(source: str, path: Path) -> list[str]:
    lines = source.count("\n")
    return [f"{path.relative_to(PACKAGE)}: {lines} lines, at most {MAX_LINES}"] if lines > MAX_LINES else []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
@pytest.mark.parametrize("check", [_layer_problems, _safety_problems, _size_problems])
def test_file_keeps_the_layout(path: Path, check) -> None:
    assert check(path.read_text(encoding="utf-8"), path) == []


def test_tables_name_the_same_layers() -> None:
    assert set(LAYERS) == set(THIRD_PARTY)


def test_layers_have_no_cycle() -> None:
    """A later layer may use an earlier one, never the other way: the table is a directed graph without a loop."""
    done: set[str] = {"errors"}
    waiting = {name: set(allowed) - done for name, allowed in LAYERS.items() if allowed is not ...} | {"model": set()}
    while waiting:
        free = {name for name, needs in waiting.items() if needs <= done}
        assert free, f"these layers import each other in a circle: {sorted(waiting)}"
        done |= free
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


BAD = [
    ("linalg/x.py", "import pyro", "linalg may not import pyro"),
    ("linalg/x.py", "import pandas as pd", "linalg may not import pandas"),
    ("backends/x.py", "from pyromix.covariances.iid import IID", "backends may not import pyromix.covariances"),
    ("backends/x.py", "from pyromix import families", "backends may not import pyromix.families"),
    ("backends/x.py", "def f():\n    from ..effects import random", "backends may not import pyromix.effects"),
    ("marginal/x.py", "import arviz", "marginal may not import arviz"),
    ("effects/x.py", "from patsy import dmatrix", "effects may not import patsy"),
    ("covariances/kernel.py", "import gpytorch", "gpytorch only in"),
    ("results/x.py", "from ... import secrets", "leaves the package"),
    ("results/x.py", "from .. import formula", "results may not import pyromix.formula"),
    ("utils.py", "import math", "not in the table"),
    ("errors.py", "from pyromix import linalg", "errors may not import pyromix.linalg"),
]


@pytest.mark.parametrize(("where", "source", "problem"), BAD)
def test_a_forbidden_import_is_found(where: str, source: str, problem: str) -> None:
    (found,) = _layer_problems(source, PACKAGE / where)
    assert problem in found


GOOD = [
    ("backends/x.py", "from pyromix.marginal.base import AbstractMarginal"),
    ("sites.py", "if TYPE_CHECKING:\n    from pyromix.families.base import AbstractFamily"),
    ("covariances/gp.py", "import gpytorch"),
    ("results/x.py", "from . import summary\nfrom .fit import Fit\nimport json"),
    ("model.py", "from pyromix import formula, results"),
]


@pytest.mark.parametrize(("where", "source"), GOOD)
def test_an_allowed_import_is_not_reported(where: str, source: str) -> None:
    assert _layer_problems(source, PACKAGE / where) == []


UNSAFE = [
    "import pickle",
    "from joblib import load",
    "eval('1')",
    "exec(text)",
    "compile(text, 'f', 'exec')",
    "__import__('os')",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "pyro.get_param_store().load(path)",
    "pd.read_pickle(path)",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_num_threads(1)",
    "pyro.enable_validation(False)",
]


@pytest.mark.parametrize("source", UNSAFE)
def test_unsafe_code_is_found(source: str) -> None:
    assert len(_safety_problems(source, PACKAGE / "results" / "x.py")) == 1


def test_safe_code_is_not_reported() -> None:
    source = textwrap.dedent(
        """
        module.eval()
        torch.compile(f)
        np.load(path, allow_pickle=False)
        torch.load(path, weights_only=True)
        torch.Generator().manual_seed(1)
        """
    )
    assert _safety_problems(source, PACKAGE / "results" / "x.py") == []
    assert _safety_problems("import pickle", PACKAGE / "testing" / "x.py") == []
