"""The fits of `kernels.plain.fit` on a GPU, bit for bit: searches with columns first, then codes.

A search finds the best scale (and offset) of every group; what is stored of it is rounded by the
plain body, and the nearest codes are those of `lines`. Of super-blocks, a second kernel chooses the
whole numbers in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from qconvert.kernels.gpu import fit_kernels as kernels
from qconvert.kernels.gpu import fit_super_kernels as supers
from qconvert.kernels.gpu.launch import Bounds, Launch
from qconvert.kernels.gpu.lines import ZERO, encoded, nearest_codes, tables
from qconvert.kernels.levels import IQ4_LEVELS
from qconvert.kernels.plain.fit import SUPER
from qconvert.kernels.plain.scales import half, stored

Starts = list[float]

TABLE = tuple(IQ4_LEVELS.tolist())
WIDE = (128, 8)  # rows of a program, starts side by side: a thread a row
TALL = (32, 32)  # a thread a row and a quarter of the starts
FEW = 1024  # programs that leave much of a GPU idle
Tile = tuple[int, int]


def _tile(rows: int, groups: int, bits: int = 0) -> Tile:
    """Of levels of a table, which take more registers, half as many starts."""
    tall, starts = WIDE if -(-rows // WIDE[0]) * groups >= FEW else TALL
    return tall, starts // 2 if bits else starts


def _floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


_SIZES = dict.fromkeys(("rows", "size", "starts"), "i32")


@lru_cache(maxsize=64)
def symmetric(
    *, refits: int = 1, bits: int = 0, weighted: bool = True, tile: Tile = WIDE
) -> Launch:
    """`bits`: of codes of a table, or 0; `tile`: rows, starts."""
    return Launch(
        kernels.symmetric,
        _floats("x", "weight", "anchors", "levels", "middles", "scale")
        | _SIZES
        | {"low": "fp32", "high": "fp32"},
        {"REFITS": refits, "BITS": bits, "WEIGHTED": weighted}
        | {"ROWS": tile[0], "TOGETHER": tile[1]},
    )


@lru_cache(maxsize=64)
def affine(*, refits: int = 1, signed: bool, weighted: bool = True, tile: Tile = WIDE) -> Launch:
    return Launch(
        kernels.affine,
        _floats("x", "weight", "tops", "shifts", "scale", "offset") | _SIZES | {"top": "fp32"},
        {"REFITS": refits, "SIGNED": signed, "WEIGHTED": weighted}
        | {"ROWS": tile[0], "TOGETHER": tile[1]},
        bounds=Bounds(spills=4),  # of Triton before 3.9, which keeps to 80 registers
    )


@lru_cache(maxsize=64)
def zero_point(*, refits: int = 1, weighted: bool = True, tile: Tile = WIDE) -> Launch:
    return Launch(
        kernels.zero_point,
        _floats("x", "weight", "tops", "shifts", "scale", "zero") | _SIZES | {"top": "fp32"},
        {"REFITS": refits, "WEIGHTED": weighted} | {"ROWS": tile[0], "TOGETHER": tile[1]},
    )


@lru_cache(maxsize=64)
def super_symmetric(*, refits: int, size: int, bits: int = 0, weighted: bool = True) -> Launch:
    return Launch(
        supers.super_symmetric,
        _floats("x", "weight", "levels", "middles", "scales", "d")
        | {"rows": "i32"}
        | dict.fromkeys(("low", "high", "scale_low", "scale_high"), "fp32"),
        {"REFITS": refits, "SIZE": size, "SUBS": SUPER // size, "BITS": bits}
        | {"WEIGHTED": weighted, "ROWS": WIDE[0]},
    )


@lru_cache(maxsize=64)
def super_affine(*, refits: int, size: int, weighted: bool = True) -> Launch:
    return Launch(
        supers.super_affine,
        _floats("x", "weight", "scales", "mins", "d", "dmin")
        | {"rows": "i32", "top": "fp32", "scale_top": "fp32"},
        {"REFITS": refits, "SIZE": size, "SUBS": SUPER // size}
        | {"WEIGHTED": weighted, "ROWS": WIDE[0]},
    )


@lru_cache(maxsize=64)
def _starts(values: tuple[float, ...], together: int, device: torch.device) -> Tensor:
    """Filled up to a multiple of `together` with copies of the first; of none, none."""
    more = -len(values) % together
    return torch.tensor(values + values[:1] * more, dtype=torch.float32, device=device)


def _turned(x: Tensor) -> Tensor:
    return x.t().contiguous()


def _levels(lo: float, hi: float, table: bool) -> tuple[float, ...]:
    return TABLE if table else tuple(float(level) for level in range(int(lo), int(hi) + 1))


def _symmetric_scales(
    turned: Tensor, weight: Tensor | None, size: int, lo: float, hi: float, table: bool,
    anchors: Starts, rounds: int,
) -> Tensor:  # fmt: skip
    """[groups, rows], before they are rounded."""
    cols, rows = turned.shape
    groups = cols // size
    bits, levels, middles = tables(_levels(lo, hi, table), turned.device)
    tile = _tile(rows, groups, bits)
    tried = _starts(tuple(anchors), tile[1], turned.device)
    scale = turned.new_empty(groups, rows)
    symmetric(refits=rounds, bits=bits, weighted=weight is not None, tile=tile)(
        (-(-rows // tile[0]), groups),
        turned, scale if weight is None else weight, tried, levels, middles, scale,
        rows, size, len(tried), lo, hi,
    )  # fmt: skip
    return scale


def _affine_scales(
    turned: Tensor, weight: Tensor | None, size: int, top: float, signed: bool,
    tops: Starts, shifts: Starts, rounds: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    cols, rows = turned.shape
    groups = cols // size
    tile = _tile(rows, groups)
    tried, moved = (_starts(tuple(one), tile[1], turned.device) for one in (tops, shifts))
    scale, offset = turned.new_empty(groups, rows), turned.new_empty(groups, rows)
    affine(refits=rounds, signed=signed, weighted=weight is not None, tile=tile)(
        (-(-rows // tile[0]), groups),
        turned, scale if weight is None else weight, tried, moved, scale, offset,
        rows, size, len(tried), top,
    )  # fmt: skip
    return scale, offset


def fit_symmetric(
    x: Tensor, weight: Tensor | None, size: int, lo: float, hi: float, table: bool,
    anchors: Starts, rounds: int, shortened: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    found = _symmetric_scales(_turned(x), weight, size, lo, hi, table, anchors, rounds)
    d = stored(_turned(found), shortened)
    return nearest_codes(x, d, None, _levels(lo, hi, table)), d


def fit_affine(
    x: Tensor, weight: Tensor | None, size: int, top: float,
    tops: Starts, shifts: Starts, rounds: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    found = _affine_scales(_turned(x), weight, size, top, True, tops, shifts, rounds)
    d, m = (half(_turned(one)) for one in found)
    return nearest_codes(x, d, m, _levels(0, top, False)), d, m


def fit_zero_point(
    x: Tensor, weight: Tensor | None, size: int, top: float,
    tops: Starts, shifts: Starts, rounds: int, shortened: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    turned = _turned(x)
    cols, rows = turned.shape
    groups = cols // size
    tile = _tile(rows, groups)
    tried, moved = (_starts(tuple(one), tile[1], x.device) for one in (tops, shifts))
    scale, zero = turned.new_empty(groups, rows), turned.new_empty(groups, rows)
    zero_point(refits=rounds, weighted=weight is not None, tile=tile)(
        (-(-rows // tile[0]), groups),
        turned, scale if weight is None else weight, tried, moved, scale, zero,
        rows, size, len(tried), top,
    )  # fmt: skip
    d, zeros = stored(_turned(scale), shortened), _turned(zero)
    return encoded(x, d, zeros, _levels(0, top, False), ZERO), d, zeros


def fit_super_symmetric(
    x: Tensor, weight: Tensor | None, size: int, lo: float, hi: float, table: bool,
    scale_lo: float, scale_hi: float, anchors: Starts, rounds: int, refits: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    turned = _turned(x)
    cols, rows = turned.shape
    blocks = cols // SUPER
    found = _symmetric_scales(turned, weight, size, lo, hi, table, anchors, rounds)
    bits, levels, middles = tables(_levels(lo, hi, table), x.device)
    d = turned.new_empty(blocks, rows)
    super_symmetric(refits=refits, size=size, bits=bits, weighted=weight is not None)(
        (-(-rows // WIDE[0]), blocks),
        turned, d if weight is None else weight, levels, middles, found, d,
        rows, lo, hi, scale_lo, scale_hi,
    )  # fmt: skip
    d, scales = _turned(d), _turned(found)
    scale = d.repeat_interleave(SUPER // size, 1) * scales
    return nearest_codes(x, scale, None, _levels(lo, hi, table)), scales, d


def fit_super_affine(
    x: Tensor, weight: Tensor | None, size: int, top: float, scale_top: float,
    tops: Starts, shifts: Starts, rounds: int, refits: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    turned = _turned(x)
    cols, rows = turned.shape
    blocks = cols // SUPER
    scale, low = _affine_scales(turned, weight, size, top, False, tops, shifts, rounds)
    each, least = turned.new_empty(blocks, rows), turned.new_empty(blocks, rows)
    super_affine(refits=refits, size=size, weighted=weight is not None)(
        (-(-rows // WIDE[0]), blocks),
        turned, each if weight is None else weight, scale, low, each, least,
        rows, top, scale_top,
    )  # fmt: skip
    scales, mins, d, dmin = (_turned(one) for one in (scale, low, each, least))
    wide = [one.repeat_interleave(SUPER // size, 1) for one in (d, dmin)]
    codes = nearest_codes(x, wide[0] * scales, -(wide[1] * mins), _levels(0, top, False))
    return codes, scales, mins, d, dmin


VARIANTS: Mapping[str, Callable[[], Launch]] = MappingProxyType({
    "symmetric": symmetric,
    "symmetric-table": lambda: symmetric(bits=4, tile=_tile(4096, 128, 4)),
    "symmetric-rows": lambda: symmetric(tile=TALL),
    "affine": lambda: affine(signed=False),
    "affine-rows": lambda: affine(signed=True, tile=TALL),
    "zero-point": zero_point,
    "zero-point-rows": lambda: zero_point(tile=TALL),
    "super-symmetric": lambda: super_symmetric(refits=3, size=16),
    "super-affine": lambda: super_affine(refits=2, size=32),
})  # fmt: skip
