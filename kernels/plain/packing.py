"""Packing and unpacking of blocks in torch: the truth, on any device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qconvert.kernels.layouts import BlockLayout, Codes, Half, Numbers, Plane, Term

KINDS = {"float16": torch.float16, "int8": torch.int8, "uint8": torch.uint8}


def pack(codes: Tensor, params: Mapping[str, Tensor], layout: BlockLayout) -> Tensor:
    rows, cols = codes.shape
    blocks = rows * (cols // layout.cols)
    out = codes.new_empty((blocks, layout.nbytes))
    codes = codes.reshape(blocks, layout.cols)
    split = {
        name: params[name].reshape(blocks, count) for name, (count, _) in layout.parameters.items()
    }
    for at, part in layout.placed:
        match part:
            case Half(name):
                found = split[name].contiguous().view(torch.uint8)
            case Codes(plane, _, flip):
                found = _pack_plane(codes, plane) ^ flip
            case Numbers():
                found = _pack_numbers(split, part)
        out[:, at : at + part.nbytes] = found
    return out.reshape(rows, layout.row_bytes(cols))


def unpack(packed: Tensor, layout: BlockLayout, cols: int) -> tuple[Tensor, dict[str, Tensor]]:
    rows, per_row = packed.shape[0], cols // layout.cols
    blocks = packed.reshape(rows * per_row, layout.nbytes)
    codes = packed.new_zeros((len(blocks), layout.cols))
    found: dict[str, Tensor] = {}
    for at, part in layout.placed:
        some = blocks[:, at : at + part.nbytes]
        match part:
            case Half(name):
                found[name] = some.contiguous().view(torch.float16)
            case Codes(plane, _, flip):
                codes |= _unpack_plane(some ^ flip, plane)
            case Numbers():
                found |= _unpack_numbers(some, part)
    params = {
        name: found[name].reshape(rows, per_row * count)
        for name, (count, _) in layout.parameters.items()
    }
    return codes.reshape(rows, cols), params


def dequantize(packed: Tensor, layout: BlockLayout, cols: int, dtype: torch.dtype) -> Tensor:
    codes, params = unpack(packed, layout, cols)
    levels = torch.tensor(layout.levels, dtype=torch.float32, device=packed.device)
    values = levels[codes.int()].reshape(len(codes), cols // layout.size, layout.size)
    values *= _line(params, layout.scale, values.shape[1])[..., None]
    if layout.offset is not None:
        values += _line(params, layout.offset, values.shape[1])[..., None]
    return values.reshape(len(codes), cols).to(dtype)


def _line(params: Mapping[str, Tensor], term: Term, groups: int) -> Tensor:
    """float32 [rows, groups]"""
    half = params[term.half].float()
    line = half.repeat_interleave(groups // max(half.shape[1], 1), 1)
    if term.whole is not None:
        line = line * params[term.whole]
    return -line if term.minus else line


def _pack_plane(codes: Tensor, plane: Plane) -> Tensor:
    parts = (codes >> plane.shift) & ((1 << plane.width) - 1)
    runs = codes.shape[1] // plane.group
    parts = parts.reshape(len(codes), runs, plane.share, plane.stride)
    packed = parts[:, :, 0].clone()
    for k in range(1, plane.share):
        packed |= parts[:, :, k] << (k * plane.width)
    return packed.reshape(len(codes), codes.shape[1] * plane.width // 8)


def _unpack_plane(packed: Tensor, plane: Plane) -> Tensor:
    """The plane's part of each code, already shifted to its place."""
    blocks, nbytes = packed.shape
    runs, mask = (
        packed.reshape(blocks, nbytes // plane.stride, plane.stride),
        (1 << plane.width) - 1,
    )
    parts = [(runs >> (k * plane.width)) & mask for k in range(plane.share)]
    return (torch.stack(parts, 2) << plane.shift).reshape(blocks, nbytes * plane.share)


def _pack_numbers(params: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
    each = [params[name].contiguous().view(torch.uint8) for name in numbers.names]
    stored = torch.cat(each, 1) + numbers.bias  # modulo 256
    out = stored.new_zeros((len(stored), numbers.nbytes))
    for run in numbers.runs:
        part = stored[:, run.first : run.first + run.count] >> run.shift & ((1 << run.width) - 1)
        out[:, run.at : run.at + run.count] |= part << run.lift
    return out


def _unpack_numbers(packed: Tensor, numbers: Numbers) -> dict[str, Tensor]:
    stored = packed.new_zeros((len(packed), numbers.total))
    for run in numbers.runs:
        part = packed[:, run.at : run.at + run.count] >> run.lift & ((1 << run.width) - 1)
        stored[:, run.first : run.first + run.count] |= part << run.shift
    stored = stored - numbers.bias  # modulo 256
    each = stored.split(numbers.count, 1)
    kind = torch.int8 if numbers.signed else torch.uint8
    return {
        name: one.contiguous().view(kind) for name, one in zip(numbers.names, each, strict=True)
    }
