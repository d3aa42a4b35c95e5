"""C from kernels: functions, each with its intermediate results in one static piece of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from pyromix.native import lapack
from pyromix.native.kernels import Builder, Line, Loop, Raw, Write
from pyromix.native.prelude import FUNCTIONS, MATHS
from pyromix.native.values import BOOL, BYTES, Buffer, Row

ALIGNMENT = 64
SHORT = 8  # an innermost loop below this length is not worth a vector
STORED = {BOOL: "unsigned char"}
OPERATORS = {"+": "{0} += {1};", "*": "{0} *= {1};", "|": "{0} |= {1};", "&": "{0} &= {1};"} | {
    # a NaN stays, as in torch
    name: f"if ({{1}} {sign} {{0}} || {{1}} != {{1}}) {{0}} = {{1}};"
    for name, sign in (("max", ">"), ("min", "<"))
}


def program(builder: Builder, inputs: Sequence[Buffer], vectorised: Sequence[str]) -> str:
    """The source of ``void run(inputs..., outputs...)``.

    Parameters
    ----------
    vectorised
        Functions of which the C library has versions for vectors.
    """
    return library([function("run", builder, inputs)], vectorised)


def library(texts: Sequence[str], vectorised: Sequence[str]) -> str:
    """A source of several pieces, with what they call."""
    body = "\n".join(texts)
    return "\n".join([*_prelude(body, vectorised), body])


def function(name: str, builder: Builder, inputs: Sequence[Buffer]) -> str:
    """The text of ``void name(inputs..., outputs...)``."""
    kernels = _without_unread(builder)
    starts, arena = _plan(builder, kernels)
    body = "\n".join(_kernel_text(number, kernel, starts) for number, kernel in enumerate(kernels))
    untouched = set(builder.outputs) - set().union(*[kernel.touched for kernel in kernels])
    body += "\n" + "\n".join(_fill(buffer) for buffer in builder.outputs if buffer in untouched)
    declared = [
        f"  {buffer.ctype} {buffer.name} = {buffer.initial or 0};"
        for buffer in builder.buffers
        if buffer.kind == "scalar"
    ]
    parameters = [f"const {_memory(buffer)} *restrict {buffer.name}" for buffer in inputs]
    parameters += [f"{_memory(buffer)} *restrict {buffer.name}" for buffer in builder.outputs]
    # visible from outside, for where the compiler knows an address it makes no vectors
    constants = [
        f"const {_memory(buffer)} *at_{buffer.name} = (void *){tensor.untyped_storage().data_ptr():#x}L;"
        for buffer, tensor in builder.constants.values()
    ]
    return "\n".join(
        [
            *constants,
            f"void {name}({', '.join(parameters)}) {{",
            f"static double memory[{arena // 8 + 1}] __attribute__((aligned({ALIGNMENT})));",
            *declared,
            body,
            "}\n",
        ]
    )


def _memory(buffer: Buffer) -> str:
    return STORED.get(buffer.ctype, buffer.ctype)


def _prelude(body: str, vectorised: Sequence[str]) -> list[str]:
    """What the body calls, and what that calls; no header, for reading those takes longer than our code."""
    used: set[str] = set()
    waiting = [body]
    text: list[str] = []
    while waiting:
        for name in sorted(set(re.findall(r"\b([a-z_][a-z0-9_]*)\(", waiting.pop())) - used):
            used.add(name)
            if name in FUNCTIONS:
                text.insert(0, FUNCTIONS[name])
                waiting.append(FUNCTIONS[name])
    declared = ["#if defined(__GNUC__) && !defined(__clang__) && !defined(PLAIN)"]
    declared += ['#define VECTORISED __attribute__((simd("notinbranch")))', "#else", "#define VECTORISED", "#endif"]
    declared += [
        f"{'VECTORISED ' if name in vectorised else ''}double {name}({', '.join(['double'] * count)});"
        for name, count in MATHS.items()
        if name in used
    ]
    called = [lapack.declarations()] if used & set(lapack.FUNCTIONS) else []
    return declared + called + text


# -- memory ----------------------------------------------------------------------------------------------------------
def _without_unread(builder: Builder) -> list[Loop | Raw]:
    """Kernels that do something, without the stores that nothing reads."""
    read = set(builder.outputs).union(*[kernel.reads for kernel in builder.kernels])
    kept: list[Loop | Raw] = []
    for kernel in builder.kernels:
        if isinstance(kernel, Loop):
            kernel.writes = [write for write in kernel.writes if write.buffer in read]
            if not kernel.writes:
                continue
        kept.append(kernel)
    return kept


def _plan(builder: Builder, kernels: Sequence[Loop | Raw]) -> tuple[dict[int, list[Buffer]], int]:
    """Offsets in the arena, where a buffer takes the place of those that nobody needs any more.

    Returns the buffers that come to life with each kernel, and the bytes of the arena.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for number, kernel in enumerate(kernels):
        for buffer in kernel.touched:
            first.setdefault(buffer, number)
            last[buffer] = number
    starts: dict[int, list[Buffer]] = {}
    living: list[tuple[int, int, Buffer]] = []
    total = 0
    for buffer in builder.buffers:
        if buffer in first:
            starts.setdefault(first[buffer], []).append(buffer)
    for number in sorted(starts):
        living = [entry for entry in living if last[entry[2]] >= number]
        for buffer in starts[number]:
            if buffer.kind != "arena":
                continue
            size = -(-max(buffer.size * BYTES[buffer.ctype], 1) // ALIGNMENT) * ALIGNMENT
            offset = 0
            for begin, end, _ in sorted(living, key=lambda entry: entry[0]):
                if offset + size <= begin:
                    break
                offset = max(offset, end)
            living.append((offset, offset + size, buffer))
            buffer.offset = offset
            total = max(total, offset + size)
    return starts, total


# -- kernels ---------------------------------------------------------------------------------------------------------
def _kernel_text(number: int, kernel: Loop | Raw, starts: dict[int, list[Buffer]]) -> str:
    lines = []
    for buffer in sorted(kernel.touched, key=lambda buffer: buffer.name):
        if buffer.kind == "arena":
            memory = _memory(buffer)
            lines.append(f"{memory} *restrict {buffer.name} = ({memory} *)((char *)memory + {buffer.offset});")
        elif buffer.kind == "constant":
            lines.append(f"const {_memory(buffer)} *restrict {buffer.name} = at_{buffer.name};")
    lines += [_fill(buffer) for buffer in starts.get(number, ()) if buffer.kind in ("arena", "output")]
    lines += [kernel.text] if isinstance(kernel, Raw) else list(_loop_text(kernel))
    return "{\n" + "\n".join(line for line in lines if line) + "\n}"


def _fill(buffer: Buffer) -> str:
    if buffer.initial is None:
        return ""
    return f"for (long i = 0; i < {buffer.size}; i++) {buffer.name}[i] = {buffer.initial};"


def _loop_text(loop: Loop) -> Iterator[str]:
    groups = _nest(loop)
    extents = []
    for group in groups:
        extent = 1
        for dim in group:
            extent *= loop.domain[dim]
        extents.append(extent)

    def address(row: Row) -> str:
        terms = [str(row[0])] if row[0] else []
        for k, group in enumerate(groups):
            step = row[1 + group[-1]]
            if step:
                terms.append(f"i{k}" if step == 1 else f"i{k} * {step}")
        return " + ".join(terms) or "0"

    inner = len(groups) - 1
    kept: list[tuple[str, Write]] = []  # combined in a variable while the innermost loop runs
    if groups:
        kept = [
            (f"r{k}", write)
            for k, write in enumerate(loop.writes)
            if write.operation and not write.row[1 + groups[-1][-1]]
        ]
    accumulators = {id(write): name for name, write in kept}
    for k in range(inner):
        yield f"for (long i{k} = 0; i{k} < {extents[k]}; i{k}++) {{"
    for name, write in kept:
        yield f"{write.buffer.ctype} {name} = {IDENTITY[write.operation]};"
    if groups:
        if not loop.serial and extents[inner] >= SHORT:
            clauses: dict[str, list[str]] = {}
            for name, write in kept:
                clauses.setdefault(write.operation, []).append(name)
            text = "".join(f" reduction({operation}: {', '.join(names)})" for operation, names in clauses.items())
            yield f"#pragma omp simd{text}"
        yield f"for (long i{inner} = 0; i{inner} < {extents[inner]}; i{inner}++) {{"
    for line in loop.lines:
        yield f"const {line.ctype} {line.name} = {_expression(line, address)};"
    for write in loop.writes:
        target = accumulators.get(id(write)) or _entry(write.buffer, address(write.row))
        yield OPERATORS[write.operation].format(target, write.name) if write.operation else f"{target} = {write.name};"
    if groups:
        yield "}"
    for name, write in kept:
        yield OPERATORS[write.operation].format(_entry(write.buffer, address(write.row)), name)
    yield "}" * inner


def _entry(buffer: Buffer, place: str) -> str:
    return buffer.name if buffer.kind == "scalar" else f"{buffer.name}[{place}]"


def _expression(line: Line, address: Callable[[Row], str]) -> str:
    if line.buffer is None:
        return line.text
    return _entry(line.buffer, line.position if line.row is None else address(line.row))


def _nest(loop: Loop) -> list[list[int]]:
    """The loops from the outermost in, each over dimensions that are one run in every buffer."""
    rows = [line.row for line in loop.lines if line.row is not None] + [write.row for write in loop.writes]
    steps = [sum(abs(row[1 + dim]) for row in rows) for dim in range(len(loop.domain))]
    groups: list[list[int]] = []
    for dim in sorted(range(len(loop.domain)), key=lambda dim: -steps[dim]):
        extent = loop.domain[dim]
        if groups and all(row[1 + groups[-1][-1]] == extent * row[1 + dim] for row in rows):
            groups[-1].append(dim)
        else:
            groups.append([dim])
    sizes = []
    for group in groups:
        size = 1
        for dim in group:
            size *= loop.domain[dim]
        sizes.append(size)
    if len(groups) > 1 and sizes[-1] < SHORT:
        longest = max(range(len(groups)), key=lambda k: sizes[k])
        groups.append(groups.pop(longest))
    return groups


IDENTITY = {"+": "0", "*": "1", "|": "0", "&": "1", "max": "(-__builtin_inf())", "min": "__builtin_inf()"}
