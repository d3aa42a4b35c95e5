"""Saving and loading fits: a description of the model beside the estimate, never code.

A formula fit stores its formula, the raw columns that the formula reads, and plain descriptions of family, covariances
and priors. Loading applies the formula to those columns again, which restores every transform's state bit for bit.
Programs, modules and functions are the user's: they are handed over again at loading, and recognised by a hash.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyromix import covariances, families, marginal
from pyromix.backends.point import point_sampler
from pyromix.composition import Composition
from pyromix.errors import CheckpointError, ConfigError
from pyromix.formula.design import Design
from pyromix.parameters import decode, encode
from pyromix.results import Fit
from pyromix.results.storage import estimate_from_payload, pack, read_container, split_payload, unpack
from pyromix.running import Program, run

Arrays = dict[str, np.ndarray]


def describe_model(design: Design, program: Composition) -> tuple[dict[str, Any], Arrays]:
    """What a saved formula fit needs beside its estimate."""
    arrays: Arrays = {}
    spec: dict[str, Any] = {
        "kind": "formula",
        "design": describe_design(design, arrays),
        "family": program.family.config(),
        "covariances": {name: structure.config() for name, structure in program.covariances.items()},
        "linear": encode(program.linear, "priors['beta']"),
        "module": None,
    }
    if program.network is not None:
        spec["module"] = describe_module(program.network, arrays)
    return spec, arrays


def describe_design(design: Design, arrays: Arrays, prefix: str = "") -> dict[str, Any]:
    """A formula, the raw columns it reads and the arguments beside them: enough to build the design again."""
    state = design.state
    assert state is not None
    arguments = {
        "offset": state.offset if isinstance(state.offset, str) else state.offset_values,
        "precision_weights": _array(design.precision_weights),
        "frequency_weights": _array(design.frequency_weights),
    }
    return {
        "formula": design.formula.text,
        "frame": pack(design.frame(), arrays, f"{prefix}frame"),
        "categories": pack(design.categories, arrays, f"{prefix}categories"),
        "index": describe_index(design.index, arrays, f"{prefix}index"),
        "arguments": pack(arguments, arrays, f"{prefix}arguments"),
        "functions": sorted(state.functions),
        "proper_priors": state.proper_priors,
        "correlated": list(state.correlated),
        "anywhere": list(state.anywhere),
        "n_dropped": design.n_dropped,
    }


def describe_index(index: pd.Index, arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Row labels: numbers, times and text come back as they were, other labels as text."""
    if isinstance(index, pd.MultiIndex):
        parts = [index.get_level_values(k) for k in range(index.nlevels)]
        return {"levels": [describe_index(part, arrays, f"{prefix}.{k}") for k, part in enumerate(parts)]}
    name = index.name if isinstance(index.name, str) else None
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex):
        return {"values": pack(index.asi8, arrays, prefix), "dtype": str(index.dtype), "name": name}
    values = index.to_numpy()
    if values.dtype.kind not in "iufb":
        values = np.array([v if isinstance(v, str | int | float) else str(v) for v in values], dtype=object)
    return {"values": pack(values, arrays, prefix), "dtype": None, "name": name}


def restore_index(described: Mapping[str, Any], arrays: Arrays) -> pd.Index:
    """The inverse of `describe_index`."""
    if "levels" in described:
        parts = [restore_index(part, arrays) for part in described["levels"]]
        return pd.MultiIndex.from_arrays(parts, names=[part.name for part in parts])
    values = pd.Series(unpack(described["values"], arrays))
    return pd.Index(values if described["dtype"] is None else values.astype(described["dtype"]), name=described["name"])


def describe_program(
    program: Program, args: tuple[Any, ...], modules: Mapping[str, torch.nn.Module]
) -> tuple[dict[str, Any], Arrays]:
    """What a saved program fit needs: a hash of its source, its data, its networks' weights.

    Raises
    ------
    DataTypeError
        Data that are no design, tensors, arrays, numbers, text or containers of these: they cannot be stored.
    """
    arrays: Arrays = {}
    data = [
        {"design": describe_design(arg, arrays, f"args.{k}.")}
        if isinstance(arg, Design)
        else {"plain": pack(arg, arrays, f"args.{k}")}
        for k, arg in enumerate(args)
    ]
    described = {name: describe_module(module, arrays, f"{name}.") for name, module in modules.items()}
    return {"kind": "program", "hash": source_hash(program), "args": data, "modules": described}, arrays


def describe_module(module: torch.nn.Module, arrays: Arrays, prefix: str = "") -> dict[str, Any]:
    """A module's structure hash; its weights go to `arrays`."""
    state = module.state_dict()
    for key, value in state.items():
        arrays[f"weights/{prefix}{key}"] = value.detach().cpu().numpy()
    return {"class": type(module).__name__, "hash": module_hash(module), "keys": list(state)}


def module_hash(module: torch.nn.Module) -> str:
    """Hash of a module's printed structure and the names and shapes of its weights."""
    shapes = [(key, tuple(value.shape), str(value.dtype)) for key, value in module.state_dict().items()]
    return hashlib.sha256(f"{module!r}{shapes}".encode()).hexdigest()


def source_hash(program: Program) -> str:
    """Hash of a program's source text, or of its qualified name where Python cannot show the source."""
    try:
        text = inspect.getsource(program if inspect.isroutine(program) else type(program))
    except (OSError, TypeError):
        text = getattr(program, "__qualname__", type(program).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()


def load(
    path: str | PathLike[str],
    program: Program | None = None,
    module: torch.nn.Module | Mapping[str, torch.nn.Module] | None = None,
    *,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Fit:
    """Read a fit that ``fit.save(path)`` wrote. No code in the file is run.

    Parameters
    ----------
    program
        For the fit of a program: that program; its source must be unchanged. The saved weights are loaded into the
        networks it holds.
    module
        For a fit with a neural mean: a module of the same structure; a copy of it gets the saved weights. For a program
        with a network: that network, which gets the saved weights; for several, a mapping from their sites' names.
    functions
        The functions that the formula calls, where it was given any.

    Raises
    ------
    CheckpointError
        The file is damaged, or program or module differ from those that were fitted.
    UnsafeFileError
        The file is not a saved fit.
    ConfigError
        A program, module or function that the fit needs was not given.
    """
    spec, estimate_arrays, extra, arrays = split_payload(*read_container(path))
    if extra.get("kind") == "formula":
        parts = _load_formula(path, extra, arrays, module, functions)
    elif extra.get("kind") == "program":
        parts = _load_program(path, extra, arrays, program, module, functions)
    else:
        raise CheckpointError(f"{path}: holds a fit of unknown kind {extra.get('kind')!r}.")
    return _rebuild(spec, estimate_arrays, extra, arrays, *parts)


def _rebuild(
    spec: Any,
    estimate_arrays: Arrays,
    extra: dict[str, Any],
    arrays: Arrays,
    program: Program,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
) -> Fit:
    holder: dict[str, Any] = {}

    def draw(n: int, seed: int) -> dict[str, torch.Tensor]:
        """Bind the marginaliser when draws are first asked for; a loaded fit that only predicts needs none."""
        if "draw" not in holder:
            estimate = fit.estimate
            rule = marginal.from_config(estimate.settings["marginal"])
            holder["draw"] = point_sampler(
                program,
                args,
                rule.prepare(program, args),
                estimate.point,
                SavedCovariance(estimate),
                tuple(estimate.settings["out"]),
            )
        return holder["draw"](n, seed)

    fit = Fit(estimate_from_payload(spec, estimate_arrays, draw), program, args, **keywords)
    fit.describe = lambda: (extra, arrays)
    return fit


class SavedCovariance:
    """The covariances of a loaded estimate, as `point_sampler` reads them."""

    def __init__(self, estimate: Any) -> None:
        self._estimate = estimate

    @property
    def natural(self) -> torch.Tensor:
        """Covariance on the natural chart."""
        return self._estimate.state["natural"]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._estimate.covariance[name]


def _load_formula(
    path: Any,
    extra: Mapping[str, Any],
    arrays: Arrays,
    module: torch.nn.Module | None,
    functions: Mapping[str, Any] | None,
) -> tuple[Program, tuple[Any, ...], dict[str, Any]]:
    family = families.from_config(extra["family"])
    design = _load_design(path, extra["design"], arrays, family, functions)
    network = None
    if extra["module"] is not None:
        # a copy: the module may serve other fits too
        network = _restore(path, extra["module"], arrays, copy.deepcopy(module), "")
    structures = {name: covariances.from_config(config) for name, config in extra["covariances"].items()}
    program = Composition(family, decode(extra["linear"]), structures, network)
    keywords = {"design": design, "family": family, "formula_text": design.formula.text, "new_design": design.new}
    return program, (design,), keywords


class _AnyFamily:
    """Stands for the family of a program's data: their responses were checked when the program was fitted."""

    has_residual = False


def _load_design(
    path: Any, described: Mapping[str, Any], arrays: Arrays, family: Any, functions: Mapping[str, Any] | None
) -> Design:
    missing = sorted(set(described["functions"]) - set(functions or {}))
    if missing:
        raise ConfigError(
            f"{path}: the formula calls {', '.join(missing)}; pass functions={{{missing[0]!r}: ...}} to load."
        )
    design = Design.from_frame(
        described["formula"],
        unpack(described["frame"], arrays),
        unpack(described["categories"], arrays),
        index=restore_index(described["index"], arrays),
        family=family,
        functions={name: (functions or {})[name] for name in described["functions"]},
        proper_priors=described["proper_priors"],
        correlated=described["correlated"],
        anywhere=described["anywhere"],
        **unpack(described["arguments"], arrays),
    )
    return replace(design, n_dropped=described["n_dropped"])


def _load_program(
    path: Any,
    extra: Mapping[str, Any],
    arrays: Arrays,
    program: Program | None,
    module: torch.nn.Module | None,
    functions: Mapping[str, Any] | None,
) -> tuple[Program, tuple[Any, ...], dict[str, Any]]:
    if program is None:
        raise ConfigError(f"{path}: this fit is of a program; pass it: pyromix.load(path, program=...).")
    if source_hash(program) != extra["hash"]:
        raise CheckpointError(f"{path}: the program given is not the one that was fitted (its source has changed).")
    args = tuple(
        _load_design(path, arg["design"], arrays, _AnyFamily(), functions)
        if "design" in arg
        else unpack(arg["plain"], arrays)
        for arg in extra["args"]
    )
    own = {name: site.role.module for name, site in run(program, args, hypers="moderate", seed=0).functions.items()}
    for name, described in extra["modules"].items():
        given = module.get(name) if isinstance(module, Mapping) else module
        _restore(path, described, arrays, own.get(name) if given is None else given, f"{name}.")
    return program, args, {}


def _restore(
    path: Any, described: Mapping[str, Any], arrays: Arrays, module: torch.nn.Module | None, prefix: str
) -> torch.nn.Module:
    if module is None:
        raise ConfigError(
            f"{path}: this fit has a network ({described['class']}); pass a module of the same structure: module=."
        )
    if not getattr(module, "built", True):
        width = arrays[f"weights/{prefix}input_mean"].shape[0]
        module.build(width, torch.zeros(2, width, dtype=torch.float64))
    if module_hash(module) != described["hash"]:
        raise CheckpointError(
            f"{path}: the module given does not have the structure of the fitted {described['class']}."
        )
    state = {key: torch.from_numpy(np.array(arrays[f"weights/{prefix}{key}"])) for key in described["keys"]}
    module.load_state_dict(state)
    return module.eval()


def _array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()
