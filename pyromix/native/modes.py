r"""C for modes of grouped Gaussian effects, Laplace's approximation there and its gradient.

One source for one level pattern and family: sizes are literals, so that the compiler unrolls what is short. With
:math:`u = \Lambda b` and :math:`A = \Lambda^T Z^T W Z \Lambda + I` (`pyromix.marginal.laplace`), the lead term's blocks
are eliminated first, :math:`A_{11} = R R^T`, :math:`V = R^{-1} A_{1r}`, :math:`S = A_{rr} - V^T V = U^T U`. S consists
of dense blocks: one where factors are crossed, many small ones where they are nested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pyromix.native import modes_text as fixed
from pyromix.native.values import CTYPES

FEW = 2  # rows a level on average, below which sums are made in memory, in the order of the rows
MANY = 8  # from which a level's rows are worth a vector


@dataclass(frozen=True)
class Slot:
    """One level a row belongs to: index (n,), design (n, q) or ``None`` for ones."""

    index: torch.Tensor
    design: torch.Tensor | None


@dataclass(frozen=True)
class Term:
    """One effect array (levels, q)."""

    levels: int
    q: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Pair:
    """Levels of two slots that occur together.

    Attributes
    ----------
    j, k
        Terms.
    left, right
        Slots of these.
    rows
        Row -> pair of levels, (n,).
    count
        Number of pairs of levels.
    own
        Whether it is one slot with itself.
    part
        ``"lead"`` (the lead term's own blocks), ``"border"`` (a block of V) or ``"rest"`` (a block of S).
    turned
        In the border: whether k is the lead term.
    at, mirror
        First entry of every pair's block in V or S, (count,); in S, that of the block turned over.
    stride
        From one row of the block to the next there, (count,).
    """

    j: int
    k: int
    left: Slot
    right: Slot
    rows: torch.Tensor
    count: int
    own: bool
    part: str
    turned: bool = False
    at: torch.Tensor | None = None
    mirror: torch.Tensor | None = None
    stride: torch.Tensor | None = None


@dataclass(frozen=True)
class Pattern:
    """All terms, and where everything is in the factor.

    Attributes
    ----------
    lead
        The term eliminated first, ``None`` for none.
    full
        Whether every row of V is dense over the one block of S.
    block_size
        Rows of every block of S, whose entries follow each other.
    scalars
        Position of every row of S among all effects, (border,).
    level_block, level_start, columns
        The block of every lead level; where its columns start, (levels + 1,); and these columns within the block.
    """

    rows: int
    terms: tuple[Term, ...]
    pairs: tuple[Pair, ...]
    lead: int | None
    full: bool
    block_size: tuple[int, ...]
    scalars: torch.Tensor
    level_block: torch.Tensor
    level_start: torch.Tensor
    columns: torch.Tensor


class Writer:
    """The source for one pattern; the family's functions ``rows`` and ``dispersion`` are written elsewhere.

    Parameters
    ----------
    parameters
        Number of the family's dispersion parameters; their gradient is a function where there are any.
    limits
        ``MAX_STEPS``, ``MAX_HALVINGS``, ``FLOOR``, ``ROUNDING`` of the ascent.

    Attributes
    ----------
    held
        Tables by name, whose addresses are in the text.
    total, factor_size
        Number of effects; entries of R, V and U side by side.
    """

    def __init__(self, pattern: Pattern, parameters: int, limits: Mapping[str, float]) -> None:
        self.pattern, self.parameters = pattern, parameters
        self.held: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}
        terms, lead = pattern.terms, pattern.lead
        sizes, squares = [term.levels * term.q for term in terms], [term.q**2 for term in terms]
        self.offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        self.tril = [sum(squares[:k]) for k in range(len(squares))]
        self.total = sum(sizes)
        first = Term(0, 1, ()) if lead is None else terms[lead]
        border = sum(pattern.block_size)
        columns = first.levels * border if pattern.full else len(pattern.columns)
        numbers = {
            "N": pattern.rows,
            "TOTAL": self.total,
            "TRIL": sum(squares),
            "G": first.levels,
            "Q": first.q,
            "LEAD": 0 if lead is None else self.offsets[lead],
            "M": border,
            "BLOCKS": len(pattern.block_size),
            "WIDEST": max(pattern.block_size, default=1),
            "NV": columns * first.q,
            "NS": sum(size**2 for size in pattern.block_size),
            "CELLS": max(squares),
        }
        self.factor_size = first.levels * first.q**2 + numbers["NV"] + numbers["NS"]
        self._defined = [f"#define {name} {value}L" for name, value in numbers.items()]
        self._defined += [f"#define {name} {value}" for name, value in limits.items()]

    def text(self) -> str:
        """All of it but the family's functions, which come before."""
        pattern = self.pattern
        size = torch.tensor(pattern.block_size or (0,), dtype=torch.int32)
        self.held["block_size"] = size
        self.held["block_row"] = (size.cumsum(0) - size).to(torch.int32)
        self.held["block_at"] = ((size**2).cumsum(0) - size**2).to(torch.int32)
        for name in ("scalars", "level_block", "level_start", "columns"):
            self.held[name] = getattr(pattern, name)
        disp = range(self.parameters)
        surrogate = ", ".join(["eta, spread, moved", *(f"disp[{k}]" for k in disp), *(f"d_disp[{k}]" for k in disp)])
        ascent = fixed.ASCENT.replace(" ARGUMENTS", "".join(f", disp[{k}]" for k in disp))
        ascent = ascent.replace("SURROGATE", f"dispersion({surrogate});" if disp else "")
        pieces = [
            *self._defined,
            fixed.STATE,
            *(f"static double cross{p}[{pair.count * self._cells(pair)}];" for p, pair in enumerate(pattern.pairs)),
            fixed.SMALL,
            fixed.CROSSED if pattern.full else fixed.NESTED,
            fixed.PRODUCTS_FULL if pattern.full else fixed.PRODUCTS_FEW,
            fixed.ROOTS,
            "static void back(const double *restrict from, double *restrict out);",
            fixed.SOLVES,
            fixed.INVERSES,
            *self._maps(),
            *self._row_loops(),
            self._gathered(),
            self._cross_products(),
            self._assembly(),
            self._inverse_blocks(),
            ascent,
        ]
        # visible from outside: where the compiler knows an address it makes no vectors
        tables = [f"const {CTYPES[x.dtype]} *{name} = (void *){x.data_ptr():#x}L;" for name, x in self.held.items()]
        return "\n".join([*tables, *pieces])

    def _name(self, tensor: torch.Tensor) -> str:
        """What the C text calls a table."""
        key = tensor.data_ptr()
        if key not in self._names:
            self._names[key] = f"t{len(self.held)}"
            self.held[self._names[key]] = tensor
        return self._names[key]

    # -- loops over rows -----------------------------------------------------------------------------------------------
    def _loop(self, body: Sequence[str]) -> str:
        """A loop over rows n."""
        text = "\n".join(body)
        return f"{{ {self._pointers(text)}\nfor (long n = 0; n < N; n++) {{\n{text}\n}} }}"

    def _pointers(self, text: str) -> str:
        """The tables that a text reads, as pointers of its own."""
        return "\n".join(
            f"const {CTYPES[x.dtype]} *restrict p_{name} = {name};"
            for name, x in self.held.items()
            if f"p_{name}[" in text
        )

    def _entry(self, slot: Slot, q: int, a: int) -> str:
        """Entry a of a row's design, as a factor."""
        return "" if slot.design is None else f" * p_{self._name(slot.design)}[n * {q} + {a}]"

    def _effects(self) -> list[tuple[str, str]]:
        """Place among all effects and design, of all effects of row n."""
        found = []
        for offset, term in zip(self.offsets, self.pattern.terms, strict=True):
            for slot in term.slots:
                index = f"p_{self._name(slot.index)}[n] * {term.q}"
                found += [(f"{offset + a} + {index}", self._entry(slot, term.q, a)) for a in range(term.q)]
        return found

    def _blocks(self) -> list[tuple[int, int, int, str, str]]:
        """Pair, row and column in the block, place and design, of all entries of row n in the pairs' blocks."""
        found = []
        for p, pair in enumerate(self.pattern.pairs):
            q_j, q_k = self._widths(pair)
            for a in range(q_j):
                for b in range(q_k):
                    place = f"p_{self._name(pair.rows)}[n] * {q_j * q_k} + {a * q_k + b}"
                    design = self._entry(pair.left, q_j, a) + self._entry(pair.right, q_k, b)
                    found.append((p, a, b, place, design))
        return found

    def _row_loops(self) -> list[str]:
        effects = " + ".join(f"u[{place}]{design}" for place, design in self._effects()) or "0"
        predictor = self._loop([f"out[n] = base[n] + {effects};"])
        variance = " + ".join(f"cross{p}[{place}]{design}" for p, _, _, place, design in self._blocks()) or "0"
        leverage = self._loop([f"const double h = {variance};", "spread[n] = h, tilt[n] = -0.5 * h * slope[n];"])
        body = [f"const double x = {effects};", "moved[n] = x, out[n] = score[n] + tilt[n] - weight[n] * x;"]
        return [
            f"static void predictor(const double *restrict base, double *restrict out) {{\n{predictor}\n}}",
            f"static void leverage(void) {{\n{leverage}\n}}",
            f"static void last_rows(double *restrict out) {{\n{self._loop(body)}\n}}",
        ]

    # -- sums over the rows of a level or pair of levels ---------------------------------------------------------------
    def _sums(self, index: torch.Tensor, count: int, sums: Sequence[tuple[str, str]]) -> str:
        """Add sums of row n's values to places of level i; each sum is in a register while its rows are met."""
        if len(index) < FEW * count:  # nearly every row has a level of its own
            each = "\n".join(f"{place} += {value};" for place, value in sums)
            return self._loop([f"const long i = p_{self._name(index)}[n];", each])
        order = torch.argsort(index, stable=True).to(torch.int32)
        start = torch.zeros(count + 1, dtype=torch.int32)
        start[1:] = torch.bincount(index.long(), minlength=count).cumsum(0)
        sorted_already = bool((order[1:] > order[:-1]).all())
        row = "k" if sorted_already else f"p_{self._name(order)}[k]"
        names = [f"r{k}" for k in range(len(sums))]
        clause = f"\n#pragma omp simd reduction(+: {', '.join(names)})" if len(index) >= MANY * count else ""
        first, last = (f"p_{self._name(start)}[i{shift}]" for shift in ("", " + 1"))
        text = "\n".join(
            [
                f"double {', '.join(f'{name} = 0' for name in names)};{clause}",
                f"for (long k = {first}; k < {last}; k++) {{ const long n = {row};",
                *(f"{name} += {value};" for name, (_, value) in zip(names, sums, strict=True)),
                "}",
                *(f"{place} += {name};" for name, (place, _) in zip(names, sums, strict=True)),
            ]
        )
        return f"{{ {self._pointers(text)}\nfor (long i = 0; i < {count}; i++) {{\n{text}\n}} }}"

    def _transposed(self, target: str, value: str) -> list[tuple[Term, Slot, list[tuple[str, str]]]]:
        """``Z^T x`` as sums by slot."""
        return [
            (
                term,
                slot,
                [
                    (f"{target}[{offset + a} + i * {term.q}]", f"{value}{self._entry(slot, term.q, a)}")
                    for a in range(term.q)
                ],
            )
            for offset, term in zip(self.offsets, self.pattern.terms, strict=True)
            for slot in term.slots
        ]

    def _gathered(self) -> str:
        """``Z^T x``."""
        text = [self._sums(slot.index, term.levels, sums) for term, slot, sums in self._transposed("g", "x[n]")]
        head = "static void gather(const double *restrict x) {\nfor (long i = 0; i < TOTAL; i++) g[i] = 0;"
        return "\n".join([head, *text, "}"])

    def _cross_products(self) -> str:
        """``Z^T s`` and the blocks of ``Z^T W Z``."""
        before, after = ["for (long i = 0; i < TOTAL; i++) s[i] = 0;"], []
        sums: dict[int, list[tuple[str, str]]] = {p: [] for p in range(len(self.pattern.pairs))}
        for p, pair in enumerate(self.pattern.pairs):
            q_j, q_k = self._widths(pair)
            before.append(f"for (long i = 0; i < {pair.count * q_j * q_k}; i++) cross{p}[i] = 0;")
            for a in range(q_j):
                for b in range(q_k):
                    place = f"cross{p}[i * {q_j * q_k} + {a * q_k + b}]"
                    if pair.own and b < a:
                        mirror = f"cross{p}[i * {q_j * q_k} + {b * q_k + a}]"
                        after.append(f"for (long i = 0; i < {pair.count}; i++) {place} = {mirror};")
                    else:
                        design = self._entry(pair.left, q_j, a) + self._entry(pair.right, q_k, b)
                        sums[p].append((place, f"weight[n]{design}"))
        for _, slot, scores in self._transposed("s", "score[n]"):
            own = next(p for p, pair in enumerate(self.pattern.pairs) if pair.own and pair.left is slot)
            sums[own] += scores
        text = [self._sums(pair.rows, pair.count, sums[p]) for p, pair in enumerate(self.pattern.pairs)]
        return "\n".join(["static void cross_products(void) {", *before, *text, *after, "}"])

    # -- loops over levels and pairs of levels -------------------------------------------------------------------------
    def _widths(self, pair: Pair) -> tuple[int, int]:
        return self.pattern.terms[pair.j].q, self.pattern.terms[pair.k].q

    def _cells(self, pair: Pair) -> int:
        q_j, q_k = self._widths(pair)
        return q_j * q_k

    def _maps(self) -> list[str]:
        """Between spherical effects and effects, and the gradient in every L."""

        def each(call: str) -> str:
            return "\n".join(
                call.format(f"{term.levels}, {term.q}", offset, f"tril + {tril}", tril)
                for term, offset, tril in zip(self.pattern.terms, self.offsets, self.tril, strict=True)
            )

        head = "(const double *restrict in, double *restrict out) {{\n{0}\n}}"
        into, back = (
            each("map_levels({0}, {2}, in + {1}, out + {1});"),
            each("map_back({0}, {2}, in + {1}, out + {1});"),
        )
        slopes = each("add_slopes({0}, g + {1}, in + {1}, s + {1}, d + {1}, traces + {3}, out + {3});")
        return [
            f"static void {name}{head.format(body)}"
            for name, body in (("to_effects", into), ("to_spherical", back), ("slopes", slopes))
        ]

    def _assembly(self) -> str:
        """Blocks of ``Lambda^T Z^T W Z Lambda`` at their places in R, V and S."""
        text = []
        for p, pair in enumerate(self.pattern.pairs):
            q_j, q_k = self._widths(pair)
            left, right = f"tril + {self.tril[pair.j]}", f"tril + {self.tril[pair.k]}"
            block = f"double b[{q_j * q_k}];\nsandwich({q_j}, {q_k}, {left}, cross{p} + i * {q_j * q_k}, {right}, b);"
            each = f"for (long a = 0; a < {q_j}; a++) for (long c = 0; c < {q_k}; c++)"
            value = f"b[a * {q_k} + c]"
            if pair.part == "lead":
                put = f"{each} R[i * Q * Q + a * Q + c] = {value};"
            elif pair.part == "border":
                put = f"{each} V[{self._place(pair)}] += {value};"
            else:
                mirror = "" if pair.own else f"S[{self._place(pair, mirrored=True)}] += {value};"
                put = f"{each} {{ S[{self._place(pair)}] += {value}; {mirror} }}"
            text.append(f"for (long i = 0; i < {pair.count}; i++) {{\n{block}\n{put}\n}}")
        start = "double *restrict R = factor, *restrict V = factor + G * Q * Q, *restrict S = V + NV;"
        clear = "for (long i = 0; i < NV + NS; i++) V[i] = 0;"
        return "\n".join(["static void assemble(void) {", start, clear, *text, "}"])

    def _place(self, pair: Pair, mirrored: bool = False) -> str:
        """Where entry (a, c) of block i is in V or S."""
        at = pair.mirror if mirrored else pair.at
        assert at is not None and pair.stride is not None
        row, column = ("c", "a") if pair.turned or mirrored else ("a", "c")
        return f"{self._name(at)}[i] + {row} * {self._name(pair.stride)}[i] + {column}"

    def _inverse_blocks(self) -> str:
        """Gradients of half ``log|A|`` in every L; then blocks of ``Lambda A^-1 Lambda^T`` in place of the products."""
        text = ["for (long i = 0; i < TRIL; i++) traces[i] = 0;"]
        for p, pair in enumerate(self.pattern.pairs):
            q_j, q_k = self._widths(pair)
            cells, factor = q_j * q_k, 1 if pair.own else 2
            left, right = f"tril + {self.tril[pair.j]}", f"tril + {self.tril[pair.k]}"
            block = [f"double p[{cells}], *m = cross{p} + i * {cells};"]
            if pair.part == "lead":
                block.append("lead_block(i, p);")
            else:
                source = "-spreads" if pair.part == "border" else "inverse"
                each = f"for (long a = 0; a < {q_j}; a++) for (long c = 0; c < {q_k}; c++)"
                block.append(f"{each} p[a * {q_k} + c] = {source}[{self._place(pair)}];")
            block += [
                f"add_traces({q_j}, {q_k}, {int(pair.own)}, {left}, m, {right}, p, of_j, of_k);",
                f"spread_out({q_j}, {q_k}, {factor}, {left}, p, {right}, m);",
            ]
            text += [
                f"{{ double of_j[{q_j**2}] = {{0}}, of_k[{q_k**2}] = {{0}};",
                f"for (long i = 0; i < {pair.count}; i++) {{",
                *block,
                "}",
                f"for (long a = 0; a < {q_j**2}; a++) traces[{self.tril[pair.j]} + a] += of_j[a];",
                f"for (long a = 0; a < {q_k**2}; a++) traces[{self.tril[pair.k]} + a] += of_k[a]; }}",
            ]
        return "\n".join(["static void inverse_blocks(void) {", *text, "}"])
