"""Launches of the kernels that round to small floats and measure what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qconvert.kernels.gpu import small_float_kernels as kernels
from qconvert.kernels.gpu.launch import Launch
from qconvert.kernels.minifloat import E2M1, E4M3, MiniFloat
from qconvert.kernels.pairwise import joined, leaves

_ROWS, _COLS = 4, 1024  # of a program
_FLAT = 4096  # columns of what has none
_LANES = 64


def rounded(v: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    flat = v.contiguous().view(-1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=v.device)
    whole = flat.numel() // _FLAT * _FLAT
    _nearest(flat[:whole].view(-1, _FLAT), None, kind, codes[:whole])
    _nearest(flat[whole:].view(1, -1), None, kind, codes[whole:])
    return codes.view(v.shape)


def nearest(w: torch.Tensor, scale: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    _nearest(w, scale, kind, codes)
    return codes


def errors(
    w: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, kind: MiniFloat
) -> torch.Tensor:
    (rows, cols), groups = w.shape, scale.shape[1]
    size = cols // groups
    runs = list(leaves(size))
    edges = [(group * size + at, count) for group in range(groups) for at, count in runs]
    starts, counts = torch.tensor(edges, dtype=torch.int32, device=w.device).T.contiguous()
    sums = torch.empty(rows, len(edges), dtype=torch.float32, device=w.device)
    most = max(count for _, count in runs)
    launch = measuring(kind, most // 8, any(count % 8 for _, count in runs))
    launch(
        (-(-sums.numel() // _LANES),), w, weight, scale, starts, counts, sums,
        sums.numel(), cols, groups, len(edges), len(runs),
    )  # fmt: skip
    found: torch.Tensor = joined(sums.view(rows, groups, -1), size)
    return found


def measuring(kind: MiniFloat, eights: int, rest: bool) -> Launch:
    arrays = {"w": "*fp32", "weight": "*fp32", "scale": "*fp32", "starts": "*i32",
              "counts": "*i32", "sums": "*fp32", "lanes": "i64"}  # fmt: skip
    sizes = {name: "i32" for name in ("cols", "groups", "leaves", "share")}
    constants = {**_kind(kind), "SIGN": kind.sign, "EIGHTS": eights, "REST": rest, "LANES": _LANES}
    return Launch(kernels.errors_kernel, {**arrays, **sizes}, constants)


def rounding(kind: MiniFloat, group: int | None) -> Launch:
    """group: columns under one scale, 0: the whole row, None: no scale."""
    arrays = {"w": "*fp32", "scale": "*fp32", "codes": "*u8"}
    sizes = {name: "i32" for name in ("rows", "cols", "groups")}
    constants = {**_kind(kind), "MAGNITUDES": kind.magnitudes, "SCALED": group is not None,
                 "GROUP": group or 0, "BR": _ROWS, "BC": _COLS}  # fmt: skip
    return Launch(kernels.nearest_kernel, {**arrays, **sizes}, constants)


def _nearest(
    w: torch.Tensor, scale: torch.Tensor | None, kind: MiniFloat, codes: torch.Tensor
) -> None:
    """Fill `codes`."""
    (rows, cols), groups = w.shape, 1 if scale is None else scale.shape[1]
    whole = cols // groups if groups > 1 else 0
    launch = rounding(kind, None if scale is None else whole)
    programs = (-(-rows // _ROWS), -(-cols // _COLS))
    launch(programs, w, w if scale is None else scale, codes, rows, cols, groups)


def _kind(kind: MiniFloat) -> dict[str, Any]:
    return {"MANTISSA": kind.mantissa, "BIAS": kind.bias, "TOP": kind.top}


VARIANTS: Mapping[str, Callable[[], Launch]] = {
    "codes nvfp4": lambda: rounding(E2M1, 16),
    "codes fp8": lambda: rounding(E4M3, 0),
    "errors nvfp4": lambda: measuring(E2M1, 2, False),
    "errors fp8": lambda: measuring(E4M3, 16, True),
}
