"""Kind: how one matrix is stored. Names as `--type` takes them: "int4", "int4-g64-asym"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qconvert.formats.grid import Grid
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.refusal import refuse

GROUPS = (16, 32, 64, 128, 256)
"""block_size of MatMulNBits, as ONNX Runtime's CPU kernel takes it."""
USUAL_GROUP = 32
FIELDS: Mapping[int, int] = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits of a code -> bits it is stored in. The CPU kernel has 2, 4 and 8."""
FLOAT = "float32"
KEPT = "float"
"""A matrix that is not quantized, in `--layer`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Codes of `bits` in groups, or float32 where `bits` is 0."""

    bits: int
    group: int = USUAL_GROUP
    symmetric: bool = True

    @property
    def name(self) -> str:
        if not self.bits:
            return FLOAT
        group = f"-g{self.group}" if self.group != USUAL_GROUP else ""
        return f"int{self.bits}{group}{'' if self.symmetric else '-asym'}"

    @property
    def grid(self) -> Grid | None:
        """Scales are portable: the same codes serve other targets."""
        if not self.bits:
            return None
        return IntegerGrid(self.bits, self.group, self.symmetric, "portable")

    @property
    def field(self) -> int:
        return FIELDS[self.bits]

    @property
    def shift(self) -> int:
        """Added to codes so that the zero of a symmetric grid is that of its field."""
        return (1 << (self.field - 1)) - (1 << (self.bits - 1)) if self.symmetric else 0

    def groups(self, cols: int) -> int:
        return cols // self.group

    def zero_bytes(self, cols: int) -> int:
        """Of the packed zero points of a row."""
        return -(-self.groups(cols) * self.field // 8)


FLOATS = Kind(0, 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """A kind that is asked for; None is for the defaults to decide."""

    bits: int
    group: int | None = None
    symmetric: bool | None = None

    @property
    def name(self) -> str:
        """As `wish_named` reads it."""
        if not self.bits:
            return KEPT
        group = f"-g{self.group}" if self.group is not None else ""
        return f"int{self.bits}{group}{'-asym' if self.symmetric is False else ''}"


def wish_named(text: str) -> Wish:
    """What "int4", "int4-g64", "int4-g64-asym" or "float32" means; `Refused` otherwise."""
    head, *rest = text.strip().lower().split("-")
    if head in (FLOAT, KEPT, "f32") and not rest:
        return Wish(0)
    bits = int(head[3:]) if head.startswith("int") and head[3:].isdigit() else 0
    group, symmetric = None, None
    for word in rest:
        if word[:1] == "g" and word[1:].isdigit() and group is None:
            group = int(word[1:])
        elif word in ("asym", "sym") and symmetric is None:
            symmetric = word == "sym"
        else:
            bits = 0
    if bits not in FIELDS:
        raise refuse(f"unknown type {text!r}", f"known: {_known()}, each perhaps with a group and"
                     " zero points, as int4-g64-asym; and float32")  # fmt: skip
    if group is not None and group not in GROUPS:
        raise refuse(f"type {text!r}: {group_problem(group)}", _near(group))
    return Wish(bits, group, symmetric)


def group_problem(group: int) -> str:
    """Why a group is none of `GROUPS`."""
    shown = group or "a whole row"
    return f"MatMulNBits has no blocks of {shown}, only of {', '.join(map(str, GROUPS))}"


def _near(group: int) -> str:
    return f"--group {nearest_group(group)}"


def nearest_group(group: int) -> int:
    return min(GROUPS, key=lambda one: abs(one - (group or GROUPS[-1])))


def _known() -> str:
    return ", ".join(f"int{bits}" for bits in sorted(FIELDS, reverse=True))
