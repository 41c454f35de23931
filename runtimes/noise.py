"""What a correct runtime is expected to add: the reference again, with its activations rounded.

llama.cpp's CPU kernels round every row of activations to 8 bits before they multiply it with a
quantized weight, one scale per 32 or 256 columns. On real models that alone moves the logits far
more than float rounding does, and by an amount that depends on the model's outliers. It can be
repeated in the reference: then what the runtime adds is compared with what it should add.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from qconvert.formats.target import Reader
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.runtime import Runtime

Blocks = Mapping[tuple[int, ...], int]
"""Shape [out, in] of a matrix -> columns of its input that share a scale."""


def activation_blocks(runtime: Runtime, reader: Reader) -> Blocks:
    """What `runtime` does with this file, by its own table of stored types (`activation_blocks`, an
    optional attribute); the larger where matrices of one shape differ. Empty for floats."""
    known: Mapping[str, int] = getattr(runtime, "activation_blocks", {})
    found: dict[tuple[int, ...], int] = {}
    for tensor in reader.tensors.values():
        if tensor.dtype in known:
            found[tensor.shape] = max(found.get(tensor.shape, 0), known[tensor.dtype])
    return found


@contextlib.contextmanager
def rounded_activations(reference: Reference, blocks: Blocks) -> Iterator[None]:
    """Within: the input of every linear is rounded to bfloat16 and then, where `blocks` has its
    shape, to 8 bits with one scale per block."""
    hooks = []
    for module in reference.model.modules():
        kind = type(module).__name__
        if kind in ("Linear", "Conv1D"):  # the latter, GPT-2's, stores [in, out]
            shape = tuple(module.weight.shape)
            block = blocks.get(shape if kind == "Linear" else shape[::-1])
            hooks.append(module.register_forward_pre_hook(_hook(block)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(block: int | None) -> Any:
    def rounded(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = inputs[0].bfloat16().float()
        return (values if block is None else _to_8_bits(values, block), *inputs[1:])

    return rounded


def _to_8_bits(values: Any, block: int) -> Any:
    """Nearest multiples of largest / 127 in each block of `block` columns (ggml's Q8_0, Q8_K)."""
    import torch

    pieces = values.reshape(*values.shape[:-1], -1, block)
    scale = pieces.abs().amax(dim=-1, keepdim=True) / 127.0
    codes = torch.round(pieces / scale.clamp_min(1e-30))
    return (codes * scale).reshape(values.shape)
