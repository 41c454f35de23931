"""How codes lie in words or bytes, as data: every layout but GGUF's blocks.

A code becomes a field of a few bits (`Coding`); fields share words, the first in the lowest bits
unless an order is told (`WordLayout`). What a field stands for before scale and zero point is a
level. Scales and zero points are arrays of their own: `Scales`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.minifloat import E2M1, E4M3, MiniFloat

if TYPE_CHECKING:
    import torch

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NO_CODE = 255
"""What a field that stands for no finite number is read as: it is above every code."""


class Coding(Protocol):
    """`bits`: of a field."""

    def __hash__(self) -> int: ...

    @property
    def negated(self) -> bool:
        """Whether scales are stored with the other sign, too."""
        ...

    def fields(self, bits: int) -> Bytes:
        """[256]: the field of each code; of what is no code, anything."""
        ...

    def codes(self, bits: int) -> Bytes:
        """[2^bits]: the code of each field. One that is no code's gives what is above all codes."""
        ...

    def levels(self, bits: int) -> Floats:
        """[2^bits]: what each field stands for; NaN where that is no number."""
        ...


@dataclass(frozen=True, slots=True)
class Integers:
    """field = code + added, or added - code where it is negated, in as many bits as a field has.
    A code stands for the whole number code + lowest."""

    lowest: int = 0
    added: int = 0
    negated: bool = False

    def fields(self, bits: int) -> Bytes:
        codes = np.arange(256)
        found = self.added - codes if self.negated else codes + self.added
        return (found & (1 << bits) - 1).astype(np.uint8)

    def codes(self, bits: int) -> Bytes:
        fields = np.arange(1 << bits)
        found = self.added - fields if self.negated else fields - self.added
        return (found & (1 << bits) - 1).astype(np.uint8)

    def levels(self, bits: int) -> Floats:
        return self.codes(bits).astype(np.float32) + np.float32(self.lowest)


@dataclass(frozen=True, slots=True)
class SmallFloats:
    """Sign, exponent, mantissa; codes count values from the lowest up. `zeros`: 1, or 2 where -0
    has a code of its own (`formats/trtllm/signed.py`)."""

    kind: MiniFloat
    zeros: int = 1

    @property
    def negated(self) -> bool:
        return False

    @property
    def middle(self) -> int:
        """The code of +0."""
        return self.kind.magnitudes + self.zeros - 2

    def fields(self, bits: int) -> Bytes:
        codes = np.arange(256)
        below = codes < self.middle
        magnitude = np.where(below, self.kind.magnitudes - 1 - codes, codes - self.middle)
        return (magnitude & self.kind.sign - 1 | np.where(below, self.kind.sign, 0)).astype(
            np.uint8
        )

    def codes(self, bits: int) -> Bytes:
        below, magnitude = self._parts(bits)
        found = np.where(below, self.kind.magnitudes - 1 - magnitude, self.middle + magnitude)
        return np.where(magnitude < self.kind.magnitudes, found, NO_CODE).astype(np.uint8)

    def levels(self, bits: int) -> Floats:
        below, magnitude = self._parts(bits)
        finite = magnitude < self.kind.magnitudes
        whole = self.kind.levels[self.kind.magnitudes - 1 :]
        value = np.where(finite, whole[np.where(finite, magnitude, 0)], np.float32(np.nan))
        turned = below & ((magnitude > 0) | (self.zeros > 1))
        return np.where(turned, -value, value).astype(np.float32)

    def _parts(self, bits: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        fields = np.arange(1 << bits)
        return (fields & self.kind.sign) != 0, fields & self.kind.sign - 1


@dataclass(frozen=True, slots=True)
class WordLayout:
    """Where the codes of a matrix [rows, cols] lie.

    Neighbours `along` a row ("cols") or a column ("rows") share a word; the words form a matrix
    [rows, words] or [words, cols], stored transposed where `transposed`. Field i of a word holds
    code `order[i]` of those that share it. What fills up the last word is 0, and a row is filled up
    to a multiple of `whole` codes.
    """

    bits: int  # of a field
    word: int = 32  # bits: 8, or 32 little-endian
    along: Literal["cols", "rows"] = "cols"
    transposed: bool = False
    order: tuple[int, ...] = ()
    whole: int = 1
    coding: Coding = Integers()

    @property
    def per(self) -> int:
        """Codes in a word."""
        return self.word // self.bits

    @property
    def places(self) -> tuple[int, ...]:
        """The field of each of the codes that share a word."""
        order = self.order or tuple(range(self.per))
        return tuple(order.index(code) for code in range(self.per))

    def natural(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Words of a matrix of this shape, before a transposition."""
        rows, cols = shape
        if self.along == "rows":
            return self._words(rows), cols
        return rows, self._words(cols)

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Words of a matrix of this shape, as they are stored."""
        first, second = self.natural(shape)
        return (second, first) if self.transposed else (first, second)

    def tables(self) -> tuple[Bytes, Bytes, Floats]:
        """[256] fields of codes, [2^bits] codes of fields, [2^bits] their levels."""
        return _tables(self.coding, self.bits)

    def _words(self, count: int) -> int:
        filled = -(-count // self.whole) * self.whole
        return -(-filled // self.per)


@lru_cache(maxsize=64)
def _tables(coding: Coding, bits: int) -> tuple[Bytes, Bytes, Floats]:
    return coding.fields(bits), coding.codes(bits), coding.levels(bits)


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a matrix as a file has them; the value is level * scale, and with zero points
    code * scale - scale * zero, in float32, each product rounded.

    Views are welcome: a file that has [groups, rows] gives its transposed view.
    """

    values: torch.Tensor  # [ceil(rows / together), groups]: floats, or uint8 as `kind` says
    group: int  # columns that share one; 0: all. The last group may be shorter
    together: int = 1  # rows that share one; 0: all
    zero: torch.Tensor | None = None  # [rows, groups] uint8
    kind: Literal["float", "e4m3", "e8m0"] = "float"
    whole: torch.Tensor | None = None  # float32, one element: a scale is values * whole


# The layouts that formats have. Sources are named where each format describes itself.


def along_inputs(bits: int, lowest: int) -> WordLayout:
    """compressed-tensors `pack-quantized`: [N, ceil(K * bits / 32)]. `lowest`: -2^(bits-1), or 0
    with zero points."""
    return WordLayout(bits, coding=Integers(lowest))


def along_outputs(bits: int) -> WordLayout:
    """The zero points of compressed-tensors: [ceil(N * bits / 32), groups]."""
    return WordLayout(bits, along="rows")


def gptq(bits: int) -> WordLayout:
    """qweight of GPTQ: [K * bits / 32, N]; codes are offset binary."""
    return WordLayout(bits, transposed=True, coding=Integers(-(1 << bits - 1)))


def gptq_zeros(bits: int) -> WordLayout:
    """qzeros of GPTQ, of a matrix [N, groups]: [groups, N * bits / 32], the zero minus one."""
    return WordLayout(bits, along="rows", transposed=True, coding=Integers(added=-1))


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq(lowest: int) -> WordLayout:
    """qweight [K, N/8] and, with `lowest` 0, qzeros [groups, N/8] of AWQ."""
    return WordLayout(4, along="rows", transposed=True, order=AWQ_ORDER, coding=Integers(lowest))


def in_bytes(bits: int, lowest: int, added: int = 0) -> WordLayout:
    """ONNX: fields of 2, 4 or 8 bits in bytes along the inputs, of a row the last perhaps in part.
    `added`: what makes the zero of a code that of its field, modulo the field."""
    return WordLayout(bits, 8, coding=Integers(lowest, added))


def mlc(bits: int, group: int, *, own: bool, transposed: bool) -> WordLayout:
    """MLC's q_weight: [N, words] of whole groups, or transposed. `own`: codes and scales are as
    MLC's rule found them; else those of an integer grid, stored turned round."""
    top, half = (1 << bits) - 1, 1 << bits - 1
    coding = Integers(1 - half) if own else Integers(-half, top, negated=True)
    return WordLayout(bits, whole=group, transposed=transposed, coding=coding)


INT4_ROWS = WordLayout(4, 8, along="rows", coding=Integers(-8, -8))
"""ModelOpt's 4-bit integers: [N/2, K], two rows in a byte, two's complement."""
INT8 = WordLayout(8, 8, coding=Integers(-128, -128))
"""A byte for each weight, two's complement."""


def fp8(zeros: int = 1) -> WordLayout:
    """A byte of e4m3 for each weight."""
    return WordLayout(8, 8, coding=SmallFloats(E4M3, zeros))


def fp4(zeros: int = 1) -> WordLayout:
    """NVFP4 and MXFP4: two nibbles of e2m1 in a byte, along the inputs."""
    return WordLayout(4, 8, coding=SmallFloats(E2M1, zeros))
