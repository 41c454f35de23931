"""How a block of quantized weights lies in bytes, as data that every body of `packing` reads.

A block is some columns of one row: parts in file order, of which halves and numbers say what the
codes stand for. Codes and numbers of a few bits share bytes in planes; every block of GGUF is made
of planes, halves and one table of six-bit pairs (`block_*` in llama.cpp's ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Plane:
    """`width` bits (1, 2, 4 or 8) of each code, from bit `shift` up, in runs of `group` codes.

    Within a run, `8 / width` codes that lie `stride` apart share one byte, the first in the lowest
    bits.
    """

    width: int
    group: int
    shift: int = 0

    @property
    def stride(self) -> int:
        """Bytes of one run."""
        return self.group * self.width // 8

    @property
    def share(self) -> int:
        """Codes in one byte."""
        return 8 // self.width


@dataclass(frozen=True, slots=True)
class Half:
    """One float16."""

    name: str
    nbytes: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Codes:
    """Some bits of every code of the block. `flip` turns offset codes into two's complement."""

    plane: Plane
    cols: int
    flip: int = 0

    @property
    def nbytes(self) -> int:
        return self.cols * self.plane.width // 8


@dataclass(frozen=True, slots=True)
class Run:
    """Bits `shift` up, `width` of them, of numbers `first`, `first + 1`, ... (`count` in all).

    Each lies in a byte of its own, from byte `at` on, and there from bit `lift` up.
    """

    first: int
    count: int
    at: int
    lift: int
    width: int
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whole sub-scales: `count` of each name, those of one name after those of the other.

    `planes`: (first byte, plane) of each; a plane's runs go over the numbers of all names. Where
    numbers do not lie in planes, `pieces` says where instead. What is stored is the number plus
    `bias`, modulo 256; `signed` ones are int8, others uint8.
    """

    names: tuple[str, ...]
    count: int
    nbytes: int
    planes: tuple[tuple[int, Plane], ...] = ()
    bias: int = 0
    signed: bool = False
    pieces: tuple[Run, ...] = ()

    @property
    def total(self) -> int:
        return self.count * len(self.names)

    def plane_bytes(self, plane: Plane) -> int:
        return self.total * plane.width // 8

    @property
    def runs(self) -> tuple[Run, ...]:
        """Where every bit of every number lies."""
        return self.pieces or tuple(
            Run(run + k * plane.stride, plane.stride, at + run * plane.width // 8,
                k * plane.width, plane.width, plane.shift)
            for at, plane in self.planes
            for run in range(0, self.total, plane.group)
            for k in range(plane.share)
        )  # fmt: skip


SIX_BIT_PAIRS = (
    Run(0, 4, at=0, lift=0, width=6), Run(4, 4, at=0, lift=6, width=2, shift=4),
    Run(8, 4, at=4, lift=0, width=6), Run(12, 4, at=4, lift=6, width=2, shift=4),
    Run(4, 4, at=8, lift=0, width=4), Run(12, 4, at=8, lift=4, width=4),
)  # fmt: skip
"""Eight 6-bit numbers and eight more in twelve bytes; kernels for a GPU know no other pieces.

Byte j < 4: number j, and the two high bits of number j + 4. Byte 4 + j: the same of the second
eight. Byte 8 + j: the low nibbles of number j + 4 of the first and of the second eight.
"""

Part = Half | Codes | Numbers


@dataclass(frozen=True, slots=True)
class Term:
    """A half, or its product with the whole number of each group; taken off where `minus`."""

    half: str
    whole: str | None = None
    minus: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """One block: `cols` columns, of which `size` share a scale (and offset).

    A code stands for scale * levels[code] + offset; each operation rounds to float32.
    """

    cols: int
    size: int
    parts: tuple[Part, ...]  # in file order
    levels: tuple[int, ...]  # ascending
    scale: Term
    offset: Term | None = None

    @cached_property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @cached_property
    def placed(self) -> tuple[tuple[int, Part], ...]:
        """(first byte, part) of each part."""
        ends = [sum(part.nbytes for part in self.parts[:i]) for i in range(len(self.parts))]
        return tuple(zip(ends, self.parts, strict=True))

    @cached_property
    def codes(self) -> tuple[tuple[int, Codes], ...]:
        """(first byte, codes) of each plane of the codes."""
        return tuple((at, part) for at, part in self.placed if isinstance(part, Codes))

    @cached_property
    def halves(self) -> tuple[tuple[int, Half], ...]:
        """(first byte, half) of each half."""
        return tuple((at, part) for at, part in self.placed if isinstance(part, Half))

    @cached_property
    def numbers(self) -> tuple[int, Numbers] | None:
        """First byte of the sub-scales, and their layout."""
        found = [(at, part) for at, part in self.placed if isinstance(part, Numbers)]
        return found[0] if found else None

    @cached_property
    def is_table(self) -> bool:
        """Whether levels are other than whole numbers in a row."""
        return self.levels != tuple(range(self.levels[0], self.levels[0] + len(self.levels)))

    @cached_property
    def parameters(self) -> dict[str, tuple[int, str]]:
        """(how many in a block, dtype) of each parameter: halves, then whole numbers."""
        return dict(self._parameters())

    def _parameters(self) -> Iterator[tuple[str, tuple[int, str]]]:
        yield from ((half.name, (1, "float16")) for _, half in self.halves)
        if self.numbers is not None:
            _, numbers = self.numbers
            kind = "int8" if numbers.signed else "uint8"
            yield from ((name, (numbers.count, kind)) for name in numbers.names)

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row. `ValueError` where its columns are not whole blocks."""
        if cols % self.cols:
            raise ValueError(f"{cols} columns are not whole blocks of {self.cols}")
        return cols // self.cols * self.nbytes
