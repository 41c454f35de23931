"""Codes to words and back, and words to floats, for every layout of `word_layouts`.

Tensors of torch, on any device. The bodies give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.word_layouts import Scales, WordLayout

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int]


def pack(codes: torch.Tensor, layout: WordLayout, *, body: Body | None = None) -> torch.Tensor:
    """Codes uint8 [rows, cols] -> words as `layout.shape` has them: uint8 or int32."""
    if codes.dim() != 2 or codes.element_size() != 1:
        raise ValueError(f"codes are bytes [rows, cols], not {codes.dtype} {tuple(codes.shape)}")
    packed: torch.Tensor = _of(codes, body).pack(_bytes(codes).contiguous(), layout)
    return packed


def unpack(
    words: torch.Tensor, layout: WordLayout, shape: Shape, *, body: Body | None = None
) -> torch.Tensor:
    """The inverse of `pack`: codes uint8 of `shape` [rows, cols]. A field that is no code's gives a
    number above all codes: files of others are to be checked for those."""
    codes: torch.Tensor = _of(words, body).unpack(_plain(words, layout, shape), layout, shape)
    return codes


def dequantize(
    words: torch.Tensor,
    scales: Scales,
    layout: WordLayout,
    shape: Shape,
    dtype: torch.dtype | None = None,
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """The values [rows, cols] that words and scales stand for: the float32 that the grid's `decode`
    gives, to the bit, rounded once where `dtype` is float16 or bfloat16. Where fields stand for no
    number: NaN."""
    import torch

    words = _plain(words, layout, shape)
    _check(scales, shape)
    wanted = dtype or torch.float32
    values: torch.Tensor = _of(words, body).dequantize(words, scales, layout, shape, wanted)
    return values


def _of(tensor: torch.Tensor, body: Body | None) -> Any:
    return module(body_for(tensor.device, body), "words")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.view(torch.uint8)


def _plain(words: torch.Tensor, layout: WordLayout, shape: Shape) -> torch.Tensor:
    """`words` as uint8 or int32, whatever type of that size a file tells."""
    import torch

    if tuple(words.shape) != layout.shape(shape) or words.element_size() * 8 != layout.word:
        raise ValueError(
            f"{layout.shape(shape)} words of {layout.word} bits are wanted for {shape}, "
            f"not {words.dtype} {tuple(words.shape)}"
        )
    return words.contiguous().view(torch.uint8 if layout.word == 8 else torch.int32)


def _check(scales: Scales, shape: Shape) -> None:
    rows, cols = shape
    groups = -(-cols // scales.group) if scales.group else 1
    wanted = (-(-rows // scales.together) if scales.together else 1, groups)
    if tuple(scales.values.shape) != wanted:
        raise ValueError(f"scales {wanted} are wanted, not {tuple(scales.values.shape)}")
    if scales.zero is not None and tuple(scales.zero.shape) != (rows, groups):
        raise ValueError(f"zeros {(rows, groups)} are wanted, not {tuple(scales.zero.shape)}")
    if (scales.values.element_size() == 1) != (scales.kind != "float"):
        raise ValueError(f"scales of kind {scales.kind} are not {scales.values.dtype}")
