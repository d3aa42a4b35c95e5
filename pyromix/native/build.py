"""The system's C compiler, run once on a source; the result lives in this process alone."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from pyromix.native.prelude import MATHS
from pyromix.native.values import Unsupported

CC_NAMES = ("cc", "gcc", "clang")
COMMON = ("-shared", "-fPIC", "-std=gnu11", "-w", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
FAST = (*COMMON, "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp-simd")
PLAIN = (*COMMON, "-O2", "-DPLAIN")
SECONDS = 120


def compiler() -> list[str] | None:
    """The command that compiles C, ``$CC`` if that is set; ``None`` if there is none."""
    named = os.environ.get("CC")
    candidates = [shlex.split(named)] if named else [[name] for name in CC_NAMES]
    return next((words for words in candidates if words and shutil.which(words[0])), None)


def compiler_problem() -> str | None:
    """Why no C can be compiled here, or ``None``."""
    if compiler() is not None:
        return None
    named = os.environ.get("CC")
    return f"CC={named} is not there" if named else "no C compiler was found (set CC, or install gcc)"


def vector_functions() -> list[str]:
    """The C library's functions that have versions for vectors of doubles (glibc's libmvec)."""
    if platform.machine() != "x86_64":
        return []
    try:
        library = ctypes.CDLL("libmvec.so.1")
    except OSError:
        return []
    return [name for name, count in MATHS.items() if hasattr(library, f"_ZGVbN2{'v' * count}_{name}")]


def load(source: str, vectorised: bool) -> ctypes.PyDLL:
    """Compile and load a source.

    Raises
    ------
    Unsupported
        There is no compiler, or it fails.
    """
    command = compiler()
    if command is None:
        raise Unsupported(str(compiler_problem()))
    libraries = ["-lmvec", "-lm"] if vectorised else ["-lm"]
    with tempfile.TemporaryDirectory(prefix="pyromix-", ignore_cleanup_errors=True) as folder:
        path, library = Path(folder, "graph.c"), Path(folder, "graph.so")
        path.write_text(source, encoding="ascii")
        # an older or another compiler may not know the fast flags; plain C it knows
        for flags in (
            [*FAST, "-o", str(library), str(path), *libraries],
            [*PLAIN, "-o", str(library), str(path), "-lm"],
        ):
            try:
                done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unsupported(f"{command[0]}: {error}") from error
            if done.returncode == 0 and library.exists():
                try:
                    # holds Python's lock in a call, so that two threads never share the static memory at once
                    return ctypes.PyDLL(str(library))
                except OSError as error:
                    done.stderr = str(error)
    lines = " ".join(done.stderr.split("\n")[:3])
    raise Unsupported(f"{command[0]} failed: {lines}")
