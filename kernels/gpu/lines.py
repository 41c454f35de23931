"""Launches of `lines_kernels`. Satisfies what `kernels.plain.lines` does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from qconvert.kernels.gpu import lines_kernels as kernels
from qconvert.kernels.gpu.launch import Launch
from qconvert.kernels.plain import lines as plain
from qconvert.kernels.plain.lines import Levels, lines_of

__all__ = ["decoded", "lines_of", "nearest_codes"]

TILE = 1024  # weights of a program
OFFSET, ZERO = 1, 2
"""What is taken from weights, or added to levels: see `lines_kernels.encode`."""


@lru_cache(maxsize=64)
def tables(levels: Levels, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """(bits of a code, levels, middles) of a table, filled up to 2**bits; of whole levels, none:
    bits 0, and tensors that are not read."""
    if plain.whole(levels):
        none = torch.zeros(1, dtype=torch.float32, device=device)
        return 0, none, none
    bits = (len(levels) - 1).bit_length()
    full = torch.tensor([*levels, *levels[-1:] * (2**bits - len(levels))], dtype=torch.float32)
    middles = torch.full((2**bits - 1,), float("inf"))
    middles[: len(levels) - 1] = plain.middles(levels, torch.device("cpu"))
    return bits, full.to(device), middles.to(device)


def _tile(size: int) -> dict[str, int]:
    cols = min(TILE, 1 << (size - 1).bit_length())
    return {"GROUPS": TILE // cols, "COLS": cols}


@lru_cache(maxsize=64)
def decoding(size: int, bits: int, shifted: bool) -> Launch:
    """Of groups of `size` columns; `bits`: of a table, or 0."""
    return Launch(
        kernels.decode,
        {
            "codes": "*u8", "scale": "*fp32", "offset": "*fp32", "levels": "*fp32",
            "values": "*fp32", "groups": "i32", "size": "i32", "low": "fp32",
        },
        {"SHIFTED": shifted, "BITS": bits} | _tile(size),
    )  # fmt: skip


@lru_cache(maxsize=64)
def encoding(size: int, bits: int, shift: int) -> Launch:
    return Launch(
        kernels.encode,
        {
            "w": "*fp32", "scale": "*fp32", "offset": "*fp32", "middles": "*fp32", "codes": "*u8",
            "groups": "i32", "size": "i32", "low": "fp32", "high": "fp32",
        },
        {"SHIFT": shift, "BITS": bits} | _tile(size),
    )  # fmt: skip


def _programs(launch: Launch, groups: int, size: int) -> tuple[int, int]:
    tall, wide = launch.constants["GROUPS"], launch.constants["COLS"]
    return -(-groups // tall), -(-size // wide)


def decoded(codes: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    if not codes.numel():
        return plain.decoded(codes, scale, offset, levels)
    bits, table, _ = tables(levels, codes.device)
    groups = scale.numel()
    size = codes.numel() // groups
    values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    scale = scale.contiguous()
    shift = scale if offset is None else offset.contiguous()
    launch = decoding(size, bits, offset is not None)
    launch(
        _programs(launch, groups, size),
        codes.contiguous(), scale, shift, table, values, groups, size, float(levels[0]),
    )  # fmt: skip
    return values


def nearest_codes(w: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    return encoded(w, scale, offset, levels, 0 if offset is None else OFFSET)


def encoded(w: Tensor, scale: Tensor, shift: Tensor | None, levels: Levels, kind: int) -> Tensor:
    """Nearest codes; what `shift` is, `kind` says: 0, OFFSET or ZERO."""
    if not w.numel():
        return torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    bits, _, middles = tables(levels, w.device)
    groups = scale.numel()
    size = w.numel() // groups
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    scale = scale.contiguous()
    launch = encoding(size, bits, kind)
    launch(
        _programs(launch, groups, size),
        w.contiguous(), scale, scale if shift is None else shift.contiguous(), middles, codes,
        groups, size, float(levels[0]), float(levels[-1]),
    )  # fmt: skip
    return codes


VARIANTS: Mapping[str, Callable[[], Launch]] = MappingProxyType({
    "decode-32": lambda: decoding(32, 0, True),
    "decode-table": lambda: decoding(32, 4, False),
    "encode-128": lambda: encoding(128, 0, 0),
    "encode-row-zero": lambda: encoding(14336, 0, ZERO),
    "encode-table": lambda: encoding(32, 4, OFFSET),
})  # fmt: skip
