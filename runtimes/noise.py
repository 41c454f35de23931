"""What a correct runtime is expected to add: the reference again, rounding as the runtime does.

Runtimes compute in 16 bits, and many round further before they multiply: llama.cpp's CPU kernels
make 8 bits of every row of activations that meets a quantized weight, one scale per 32 or 256
columns; a file for a serving program may ask for int8 or fp8 activations, or an fp8 cache. On real
models that alone moves the logits far more than float rounding does, and by an amount that depends
on the model's outliers. It can be repeated in the reference: then what the runtime adds is compared
with what it should add.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source
from qconvert.formats.target import CacheRounding, InputRounding, Reader
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.rounding import CACHES, cut_to_e4m3, round_inputs
from qconvert.runtimes.runtime import Runtime, Session

FLOAT_TYPE = "bfloat16"  # of a runtime that names none

Scales = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a runtime rounds."""

    float_type: str = FLOAT_TYPE  # of what linears read: a torch dtype's name
    everywhere: bool = False  # also of what every module and block gives
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)  # by a weight's name
    by_shape: Mapping[tuple[int, ...], InputRounding] = field(default_factory=dict)
    """Shape [out, in] -> the rounding, where names do not tell."""
    columns: Scales = field(default_factory=dict)
    """A weight's name -> the vector [in] by which what its linear reads is multiplied before it is
    rounded. The weights of the reference have taken it in, so that it is divided by again."""
    cache: Mapping[int, CacheRounding] = field(default_factory=dict)  # by block
    cache_cut: bool = False  # what the cache holds is cut towards zero, not rounded to nearest


def rounding_of(
    runtime: Runtime, session: Session | None, reader: Reader, source: Source
) -> Rounding:
    """What `runtime` does with this file, which was made of `source`: as the file says (see
    `Reader`), and by the runtime's own table of stored types (`activation_blocks`, `float_type`,
    `cuts_cache`: optional attributes). A session knows best in what type it computes. With
    `plain_inputs` a runtime multiplies what linears read as it is, whatever the file says."""
    named = getattr(session, "dtype", None) or getattr(runtime, "float_type", None)
    plain = bool(getattr(runtime, "plain_inputs", False))
    return Rounding(
        named or FLOAT_TYPE,
        named is not None,
        {} if plain else input_rounding(reader, source),
        {} if plain else activation_blocks(runtime, reader),
        {} if plain else getattr(reader, "column_scales", {}),
        getattr(reader, "cache_rounding", {}),
        bool(getattr(runtime, "cuts_cache", "")),
    )


def rounding_told(reader: Reader, source: Source) -> Rounding:
    """What any runtime must round because the file says so, and nothing else: no float type is
    rounded to. `inputs` and `cache` are empty where the file asks for none."""
    return Rounding(
        "float32",
        inputs=input_rounding(reader, source),
        columns=getattr(reader, "column_scales", {}),
        cache=getattr(reader, "cache_rounding", {}),
    )


def input_rounding(reader: Reader, source: Source) -> Mapping[str, InputRounding]:
    """Checkpoint name of a weight -> how the file has rounded what is multiplied with it."""
    of_source = getattr(reader, "input_rounding_of", None)
    found: Mapping[str, InputRounding] = (
        getattr(reader, "input_rounding", {}) if of_source is None else of_source(source)
    )
    return found


def activation_blocks(runtime: Runtime, reader: Reader) -> Mapping[tuple[int, ...], InputRounding]:
    """By shape of the matrix; the larger block where matrices of one shape differ."""
    known: Mapping[str, int] = getattr(runtime, "activation_blocks", {})
    found: dict[tuple[int, ...], int] = {}
    for tensor in reader.tensors.values():
        if tensor.dtype in known:
            found[tensor.shape] = max(found.get(tensor.shape, 0), known[tensor.dtype])
    return {shape: InputRounding("int8", block) for shape, block in found.items()}


@contextlib.contextmanager
def rounded(reference: Reference, rounding: Rounding) -> Iterator[None]:
    """Within: the input of every linear is rounded to the float type and then as `rounding` says;
    keys, after RoPE, and values are kept as the cache keeps them."""
    inputs = {reference.names.get(name, name): one for name, one in rounding.inputs.items()}
    columns = {reference.names.get(name, name): one for name, one in rounding.columns.items()}
    with contextlib.ExitStack() as stack:
        for name, module in reference.model.named_modules():
            kind = type(module).__name__
            if kind in ("Linear", "Conv1D"):  # the latter, GPT-2's, stores [in, out]
                shape = tuple(module.weight.shape)
                shape = shape if kind == "Linear" else shape[::-1]
                one = inputs.get(f"{name}.weight") or rounding.by_shape.get(shape)
                change = _hook(rounding.float_type, one, columns.get(f"{name}.weight"))
                stack.callback(module.register_forward_pre_hook(change).remove)
        if rounding.everywhere:
            for module in _givers(reference.model):
                hook = module.register_forward_hook(_after(rounding.float_type))
                stack.callback(hook.remove)
        if rounding.cache:
            for source in attention_sources(reference.model):
                stack.enter_context(_rounded_cache(source, rounding))
        yield


def _hook(
    float_type: str, rounding: InputRounding | None, scale: NDArray[np.float32] | None
) -> Any:
    import torch

    dtype = getattr(torch, float_type)
    columns = None
    if scale is not None:  # a column of 0 is one of the decoded weight, too: any input will do
        columns = torch.from_numpy(np.where(scale == 0, np.float32(1), scale))

    def before(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = inputs[0].to(dtype).float()
        if columns is not None:
            values = (values * columns).to(dtype).float()
        if rounding is not None:
            values = round_inputs(values, rounding)
        return (values if columns is None else values / columns, *inputs[1:])

    return before


def _after(float_type: str) -> Any:
    import torch

    dtype = getattr(torch, float_type)

    def after(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output.to(dtype).float()
        return output

    return after


def _givers(model: Any) -> list[Any]:
    """Modules without parts of their own, and the blocks: what they give is kept in memory."""
    return [
        module
        for module in model.modules()
        if not list(module.children()) or type(module).__name__.endswith(("Layer", "Block"))
    ]


def attention_sources(model: Any) -> list[Any]:
    """The modules of transformers from which the model's attention is taken."""
    names = {type(one).__module__ for one in model.modules() if hasattr(one, "layer_idx")}
    sources = [sys.modules[name] for name in sorted(names)]
    return [source for source in sources if hasattr(source, "eager_attention_forward")]


@contextlib.contextmanager
def _rounded_cache(source: Any, rounding: Rounding) -> Iterator[None]:
    """Within: the eager attention of `source` sees keys and values that went through the cache."""
    plain, cache = source.eager_attention_forward, rounding.cache

    def attention(module: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        kept = cache.get(module.layer_idx)
        if kept is not None:
            keep = cut_to_e4m3 if rounding.cache_cut else CACHES[kept.kind]
            key, value = keep(key, kept.key), keep(value, kept.value)
        return plain(module, query, key, value, *rest, **named)

    source.eager_attention_forward = attention
    try:
        yield
    finally:
        source.eager_attention_forward = plain
