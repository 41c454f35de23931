"""Faults of packing: codes, zero points and scales that are right, and lie or are read wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planting.fault import EMBEDDING, FINAL, here, linears, named, there
from planting.files import Inapplicable
from planting.output import Culprits, Fields, Output
from planting.quantized import again, plain

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
MIDDLES = {"gguf": 8, "vllm": 8, "onnx": 8, "mlc": 7}
"""The code of zero in four bits, where a format stores none."""


def everywhere(change: Callable[[Output, Fields], Fields]) -> Callable[[Output], Culprits]:
    """The same in every linear of the blocks, as a tool does it that is wrong."""

    def plant(out: Output) -> Culprits:
        touched = []
        for name in linears(out.facts):
            try:
                out.put(name, change(out, _quantized(out, name)))
            except Inapplicable:
                continue
            touched.append(name)
        if not touched:
            raise Inapplicable("no linear of this file has that")
        return touched

    return plant


def once(
    change: Callable[[Output, Fields], Fields], part: str = "down_proj"
) -> Callable[[Output], Culprits]:
    """In one linear alone."""

    def plant(out: Output) -> Culprits:
        name = named(here(out.facts), part)
        out.put(name, change(out, _quantized(out, name)))
        return (name,)

    return plant


def _quantized(out: Output, name: str) -> Fields:
    fields = out.get(name)
    if "code" not in fields:
        raise Inapplicable(f"{name} is not quantized")
    return fields


def _integers(fields: Fields) -> NDArray[np.int16]:
    if fields["code"].dtype.kind != "i":
        raise Inapplicable("codes are floats")
    return fields["code"]


def _four_bits(fields: Fields) -> NDArray[np.int16]:
    code = _integers(fields)
    if code.min() < 0 or code.max() > 15:
        raise Inapplicable("codes are not nibbles")
    return code


def nibbles(out: Output, fields: Fields) -> Fields:
    """The high nibble of each byte where the low one should be."""
    code = _four_bits(fields)
    if getattr(out, "method", "") == "awq":
        rows = code.reshape(-1, 8, code.shape[1])
        place = np.empty(8, np.intp)
        place[AWQ_ORDER] = np.array(AWQ_ORDER).reshape(4, 2)[:, ::-1].ravel()
        return {**fields, "code": rows[:, place].reshape(code.shape)}
    half = {"gguf": 32 if "sub" in fields else 16}.get(out.format, 1)
    pairs = code.reshape(len(code), -1, 2, half)[:, :, ::-1]
    return {**fields, "code": pairs.reshape(code.shape)}


def natural_order(out: Output, fields: Fields) -> Fields:
    """Nibbles of a word hold its columns in order, and are read in AWQ's."""
    if getattr(out, "method", "") != "awq":
        raise Inapplicable("only AWQ has an order of its own")

    def moved(rows: NDArray[Any]) -> NDArray[Any]:
        # written plainly: nibble i of a word is column i; read, it is column ORDER[i]
        grouped = rows.reshape(-1, 8, rows.shape[1])
        found = np.empty_like(grouped)
        found[:, AWQ_ORDER] = grouped
        return found.reshape(rows.shape)

    return {**fields, "code": moved(fields["code"]), "zero": moved(fields["zero"])}


def signed(out: Output, fields: Fields) -> Fields:
    """Two's complement where codes are read with an offset, or the reverse."""
    return {**fields, "code": _four_bits(fields) ^ 8}


def offset(by: int) -> Callable[[Output, Fields], Fields]:
    """The zero point off by one: the stored one, else the one that readers and writers agree on."""

    def change(out: Output, fields: Fields) -> Fields:
        if "zero" in fields:
            return {**fields, "zero": np.clip(fields["zero"] + by, 0, 15)}
        if "min" in fields:
            raise Inapplicable("blocks have minima")
        return {**fields, "code": np.clip(_four_bits(fields) - by, 0, 15)}

    return change


def zeros_negated(out: Output, fields: Fields) -> Fields:
    if "zero" in fields:
        return {**fields, "zero": (16 - fields["zero"]) & 15}
    if "min" in fields:
        return {**fields, "min": -fields["min"]}
    raise Inapplicable("there are no zero points")


def minima_lost(out: Output, fields: Fields) -> Fields:
    if "zero" in fields:
        return {**fields, "zero": np.full_like(fields["zero"], 8)}
    if "min" in fields:
        return {**fields, "min": np.zeros_like(fields["min"])}
    raise Inapplicable("there are no minima")


def swapped_bytes(out: Output, fields: Fields) -> Fields:
    """Scales in the other byte order."""
    scale = fields["scale"]
    as_bytes = np.ascontiguousarray(scale).view(np.uint8).reshape(*scale.shape, scale.itemsize)
    turned = np.ascontiguousarray(as_bytes[..., ::-1])
    return {**fields, "scale": turned.view(scale.dtype).reshape(scale.shape)}


def group_axis(out: Output, fields: Fields) -> Fields:
    """[groups, out] written where [out, groups] is read."""
    scale = fields["scale"]
    if scale.ndim < 2 or 1 in scale.shape:
        raise Inapplicable("one scale for each row")
    return {**fields, "scale": np.ascontiguousarray(scale.T).reshape(scale.shape)}


def transposed(out: Output, fields: Fields) -> Fields:
    """A square matrix, quantized the other way round."""
    code = _integers(fields)
    if code.shape[0] != code.shape[1]:
        raise Inapplicable("the matrix is not square")
    wide = bool(code.min() < 0)
    zero = 0 if wide else MIDDLES[out.format]
    values = plain(fields, zero)
    return again(fields, np.ascontiguousarray(values.T), zero, 127 if wide else 7)


def reciprocal(out: Output, fields: Fields) -> Fields:
    """A divisor where a multiplier is read."""
    if "sub" in fields:
        raise Inapplicable("scales of scales")
    wide = fields["scale"].astype(np.float64)
    return {**fields, "scale": (1 / np.where(wide == 0, 1, wide)).astype(fields["scale"].dtype)}


def as_half(out: Output, fields: Fields) -> Fields:
    """Bytes of bfloat16 scales, read as float16, or the reverse."""
    scale = fields["scale"]
    pairs = {np.dtype(np.float16): ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16): np.float16}
    if scale.dtype not in pairs:
        raise Inapplicable("scales have four bytes")
    return {**fields, "scale": scale.astype(pairs[scale.dtype]).view(scale.dtype)}


def not_a_number(out: Output, fields: Fields) -> Fields:
    scale = fields["scale"].copy()
    scale.reshape(-1)[scale.size // 3] = np.nan
    return {**fields, "scale": scale}


def infinite(out: Output, fields: Fields) -> Fields:
    """The largest scales overflowed."""
    scale = fields["scale"].copy()
    flat = scale.reshape(-1)
    flat[np.argsort(flat.astype(np.float32))[-3:]] = np.inf
    return {**fields, "scale": scale}


def flushed(out: Output, fields: Fields) -> Fields:
    """The smallest fifth of the scales underflowed."""
    scale = fields["scale"].copy()
    flat = scale.reshape(-1)
    flat[np.argsort(np.abs(flat.astype(np.float32)))[: len(flat) // 5]] = 0
    return {**fields, "scale": scale}


def shuffled_columns(out: Output, fields: Fields) -> Fields:
    """Columns in the order in which they were quantized; nothing says so."""
    order = np.random.default_rng(5).permutation(fields["code"].shape[1])
    return {**fields, "code": fields["code"][:, order]}


def permuted_groups(out: Any) -> Culprits:
    """g_idx of a GPTQ linear is not the identity."""
    name = named(here(out.facts), "down_proj").removesuffix(".weight")
    if out.format != "vllm" or not out.tensors.has(f"{name}.g_idx"):
        raise Inapplicable("there is no g_idx")
    order = np.random.default_rng(5).permutation(out.tensors.get(f"{name}.g_idx"))
    out.tensors.put(f"{name}.g_idx", order.astype(np.int32))
    return (f"{name}.weight", f"{name}.g_idx", "g_idx")


def stale_scales(out: Output) -> Culprits:
    """Codes of this linear, scales of the same one in another block."""
    name = named(here(out.facts), "up_proj")
    own, other = _quantized(out, name), _quantized(out, named(there(out.facts), "up_proj"))
    if own["scale"].shape != other["scale"].shape:
        raise Inapplicable("their types differ")
    out.put(name, {**own, "scale": other["scale"]})
    return (name,)


def half_read(out: Any) -> Culprits:
    """A tensor of bfloat16 with float16 in the header, or its bytes in the other's place."""
    name = EMBEDDING if "value" in out.get(EMBEDDING) else FINAL
    value = out.get(name)["value"]
    if out.format == "gguf":
        import gguf

        if value.dtype != np.dtype(ml_dtypes.bfloat16):
            raise Inapplicable("it is not bfloat16")
        out.retype(name, gguf.GGMLQuantizationType.F16)
    elif value.dtype == np.dtype(ml_dtypes.bfloat16):
        out.tensors.retype(name, "F16")
    elif value.dtype == np.float16:
        out.put(name, {"value": value.astype(ml_dtypes.bfloat16).view(np.float16)})
    else:
        raise Inapplicable("it has four bytes")
    return (name,)
