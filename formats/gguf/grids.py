"""The quantized types of GGUF: which values each can hold, its search, and its bytes.

One row of data per type; the arithmetic is in `kernels/`, the byte layout in `fields.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.gguf.fields import (
    NIBBLE_PAIRS,
    SIGNED_BYTES,
    SIX_BIT_PAIRS,
    SIX_BIT_SCALES,
    SPLIT_SIX_BIT_SCALES,
)
from qconvert.formats.gguf.parameters import (
    Parameters,
    Scale,
    ScaleAndOffset,
    SuperScale,
    SuperScaleAndOffset,
)
from qconvert.formats.grid import Lines
from qconvert.formats.grid import ScaleOverflow as ScaleOverflow
from qconvert.formats.nearest import nearest_codes, on_lines
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels import packing
from qconvert.kernels.bodies import Body
from qconvert.kernels.fit import fit
from qconvert.kernels.layouts import BlockLayout, Codes, Half, Part, Plane
from qconvert.kernels.searches import (
    Affine,
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GGUFGrid:
    """A quantized GGUF type; satisfies `qconvert.formats.grid.Grid`."""

    name: str
    block: int
    parameters: Parameters
    fields: tuple[Part, ...]

    @property
    def search(self) -> Fit:
        return self.parameters.search

    @property
    def group(self) -> int:
        return self.search.size

    @property
    def levels(self) -> Floats:
        return self.search.levels

    @property
    def has_offset(self) -> bool:
        return self.parameters.offset is not None

    @property
    def together(self) -> int:
        return 1

    @property
    def layout(self) -> BlockLayout:
        """What `kernels.packing` needs to know, on any device."""
        levels = tuple(int(level) for level in self.levels)
        terms = self.parameters.scale, self.parameters.offset
        return BlockLayout(self.block, self.group, self.fields, levels, *terms)

    @property
    def block_bytes(self) -> int:
        return sum(field.nbytes for field in self.fields)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block

    def row_bytes(self, cols: int) -> int:
        return cols // self.block * self.block_bytes

    def quantize(
        self,
        w: Floats,
        weight: Floats | None = None,
        *,
        threads: int = 1,
        body: Body = "cpu",
    ) -> QuantizedTensor:
        """Weighted least squares onto this grid; `ScaleOverflow` beyond float16's range."""
        codes, found = fit(w, weight, self.search, threads=threads, body=body)
        return QuantizedTensor(self.name, codes, self.stored(found))

    def place(self, w: Floats, lines: Lines, *, threads: int = 1) -> QuantizedTensor:
        """Stored parameters nearest to the wanted `lines`, then nearest codes."""
        params = self.stored(self.parameters.store(lines))
        codes = nearest_codes(w, self.parameters.lines(params), self.levels, threads=threads)
        return QuantizedTensor(self.name, codes, params)

    def stored(self, found: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """What the search found, as a tensor keeps it; `ScaleOverflow` beyond float16."""
        if not all(np.isfinite(values).all() for values in found.values()):
            raise ScaleOverflow(f"{self.name}: a scale is beyond float16 (65504)")
        return {name: found[name].astype(kind) for name, kind in self.parameters.stored.items()}

    def lines(self, tensor: QuantizedTensor) -> Lines:
        return self.parameters.lines(tensor.params)

    def decode(self, tensor: QuantizedTensor) -> Floats:
        return on_lines(tensor.codes, self.lines(tensor), self.levels)

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        return packing.pack(tensor.codes, tensor.params, self.layout)

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        codes, params = packing.unpack(packed, self.layout, cols)
        return QuantizedTensor(self.name, codes, params)


# Starting points of the searches, chosen on weights of a real model and on random ones by the error
# that is left (benchmarks/fit.py prints it). The closed-form re-fit makes their values uncritical.
_SPANS_ONE_LEVEL = (
    (0.5, 0.25), (0.5, 0.5), (0.5, 0.0), (-0.5, 0.25), (-0.5, -0.25),
    (-2.0, 0.0), (0.5, 0.75), (1.0, 0.0), (-1.0, -0.25),
)  # fmt: skip


def _span_grid(first: float, last: float, count: int) -> tuple[tuple[float, float], ...]:
    """All pairs of `count` reaches and five shifts of the start."""
    reaches = np.linspace(first, last, count)
    shifts = (-0.25, 0.0, 0.25, 0.5, 0.75)
    return tuple((float(reach), shift) for shift in shifts for reach in reaches)


_NIBBLES_16 = Codes(Plane(4, 32), 32)
_FIFTH_BITS = Codes(Plane(1, 8, shift=4), 32)
_LOW_PAIRS = Codes(Plane(2, 128), 256)
_NIBBLES_32 = Codes(Plane(4, 64), 256)

_ALL = (
    GGUFGrid(
        "Q8_0", 32, Scale(Symmetric(32, -128, 127, (-128.0, -127.6, -127.2, 127.0, 127.4))),
        (Half("d"), Codes(Plane(8, 32), 32, flip=0x80)),
    ),
    GGUFGrid(
        "Q4_0", 32, Scale(Symmetric(32, -8, 7, (-8.8, -8.2, -7.6, -7.0, 7.4))),
        (Half("d"), _NIBBLES_16),
    ),
    GGUFGrid(
        "Q4_1", 32, ScaleAndOffset(Affine(32, 15, _SPANS_ONE_LEVEL)),
        (Half("d"), Half("m"), _NIBBLES_16),
    ),
    GGUFGrid(
        "Q5_0", 32, Scale(Symmetric(32, -16, 15, (-16.8, -16.4, -16.0, -15.6, -15.2, 15.2, 15.7))),
        (Half("d"), _FIFTH_BITS, _NIBBLES_16),
    ),
    GGUFGrid(
        "Q5_1", 32, ScaleAndOffset(Affine(32, 31, (*_SPANS_ONE_LEVEL, (-3.0, 0.0)))),
        (Half("d"), Half("m"), _FIFTH_BITS, _NIBBLES_16),
    ),
    GGUFGrid(
        "Q2_K", 256, SuperScaleAndOffset(SuperAffine(16, 3, 15, _span_grid(-1.0, 0.6, 9))),
        (NIBBLE_PAIRS, _LOW_PAIRS, Half("d"), Half("dmin")),
    ),
    GGUFGrid(
        "Q3_K", 256,
        SuperScale(SuperSymmetric(
            16, -4, 3, -32, 31,
            (-4.8, -4.5, -4.2, -3.9, -3.6, -3.3, -3.0, 2.8, 3.1, 3.4, 3.7), refits=3,
        )),
        (Codes(Plane(1, 256, shift=2), 256), _LOW_PAIRS, SIX_BIT_SCALES, Half("d")),
    ),
    GGUFGrid(
        "Q4_K", 256, SuperScaleAndOffset(SuperAffine(32, 15, 63, _span_grid(-2.5, 0.6, 9))),
        (Half("d"), Half("dmin"), SIX_BIT_PAIRS, _NIBBLES_32),
    ),
    GGUFGrid(
        "Q5_K", 256, SuperScaleAndOffset(SuperAffine(32, 31, 63, _span_grid(-3.0, 0.6, 9))),
        (
            Half("d"), Half("dmin"), SIX_BIT_PAIRS,
            Codes(Plane(1, 256, shift=4), 256), _NIBBLES_32,
        ),
    ),
    GGUFGrid(
        "Q6_K", 256,
        SuperScale(SuperSymmetric(
            16, -32, 31, -128, 127,
            (*np.arange(-33.5, -28.9, 0.5).tolist(), 29.5, 30.0, 30.5, 31.0, 31.5), refits=3,
        )),
        (Codes(Plane(4, 128), 256), Codes(Plane(2, 128, shift=4), 256), SIGNED_BYTES, Half("d")),
    ),
    GGUFGrid(
        "IQ4_NL", 32,
        Scale(Symmetric(
            32, 0, 0, (*np.arange(-145.0, -99.0, 6.0).tolist(), 100.0, 106.0, 112.0, 118.0, 124.0),
            table=True,
        )),
        (Half("d"), _NIBBLES_16),
    ),
    GGUFGrid(
        "IQ4_XS", 256,
        SuperScale(SuperSymmetric(
            32, 0, 0, -32, 31,
            (*np.arange(-145.0, -99.0, 6.0).tolist(), 100.0, 106.0, 112.0, 118.0, 124.0),
            refits=2, table=True,
        )),
        (Half("d"), SPLIT_SIX_BIT_SCALES, Codes(Plane(4, 32), 256)),
    ),
)  # fmt: skip

GRIDS: dict[str, GGUFGrid] = {grid.name: grid for grid in _ALL}
"""Every quantized type that qconvert writes, by its GGUF name."""
