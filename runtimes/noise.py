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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qconvert.formats.source import Source
from qconvert.formats.target import CacheRounding, InputRounding, Reader
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.runtime import Runtime, Session

FLOAT_TYPE = "bfloat16"  # of a runtime that names none
E4M3_LARGEST = 448.0
E2M1_LARGEST = 6.0
E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between 0, .5, 1, 1.5, 2, 3, 4, 6
E2M1_COLUMNS = 16  # that share a scale of NVFP4


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a runtime rounds."""

    float_type: str = FLOAT_TYPE  # of what linears read: a torch dtype's name
    everywhere: bool = False  # also of what every module and block gives
    inputs: Mapping[str, InputRounding] = field(default_factory=dict)  # by a weight's name
    by_shape: Mapping[tuple[int, ...], InputRounding] = field(default_factory=dict)
    """Shape [out, in] -> the rounding, where names do not tell."""
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
        getattr(reader, "cache_rounding", {}),
        bool(getattr(runtime, "cuts_cache", "")),
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
    with contextlib.ExitStack() as stack:
        for name, module in reference.model.named_modules():
            kind = type(module).__name__
            if kind in ("Linear", "Conv1D"):  # the latter, GPT-2's, stores [in, out]
                shape = tuple(module.weight.shape)
                shape = shape if kind == "Linear" else shape[::-1]
                one = inputs.get(f"{name}.weight") or rounding.by_shape.get(shape)
                hook = module.register_forward_pre_hook(_hook(rounding.float_type, one))
                stack.callback(hook.remove)
        if rounding.everywhere:
            for module in _givers(reference.model):
                hook = module.register_forward_hook(_after(rounding.float_type))
                stack.callback(hook.remove)
        if rounding.cache:
            for source in _attention_sources(reference.model):
                stack.enter_context(_rounded_cache(source, rounding))
        yield


def _hook(float_type: str, rounding: InputRounding | None) -> Any:
    import torch

    dtype = getattr(torch, float_type)

    def before(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = inputs[0].to(dtype).float()
        return (values if rounding is None else round_inputs(values, rounding), *inputs[1:])

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


def round_inputs(values: Any, rounding: InputRounding) -> Any:
    """A tensor [..., columns] as `rounding` leaves it.

    A scale of the values at hand maps the largest of them to the type's largest number, as in
    ggml's Q8_0 and Q8_K, in vLLM's dynamic_scaled_int8_quant and per-token FP8, and in ONNX
    Runtime's MatMulNBits, whose last columns may be fewer.
    """
    import torch

    per = values.shape[-1] if rounding.per <= 0 else rounding.per
    if rounding.kind == "fp4":
        per = min(per, E2M1_COLUMNS)
    columns = values.shape[-1]
    whole = torch.nn.functional.pad(values, (0, -columns % per))
    pieces = whole.reshape(*values.shape[:-1], -1, per)
    found = _KINDS[rounding.kind](pieces, rounding.scale)
    return found.reshape(whole.shape)[..., :columns]


def _largest(pieces: Any) -> Any:
    return pieces.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30)


def _to_int8(pieces: Any, fixed: float | None) -> Any:
    import torch

    scale = _largest(pieces) / 127.0 if fixed is None else fixed
    return torch.round(pieces / scale).clamp(-128, 127) * scale


def _to_e4m3(pieces: Any, fixed: float | None) -> Any:
    import torch

    scale = _largest(pieces) / E4M3_LARGEST if fixed is None else fixed
    inside = (pieces / scale).clamp(-E4M3_LARGEST, E4M3_LARGEST)
    return inside.to(torch.float8_e4m3fn).float() * scale


def _cut_to_e4m3(pieces: Any, fixed: float) -> Any:
    """The neighbour in e4m3 that is not larger than the value."""
    import torch

    inside = (pieces / fixed).clamp(-E4M3_LARGEST, E4M3_LARGEST)
    nearest = inside.to(torch.float8_e4m3fn)
    beyond = nearest.float().abs() > inside.abs()
    smaller = nearest.view(torch.uint8) - beyond.to(torch.uint8)  # bits order magnitudes
    return smaller.view(torch.float8_e4m3fn).float() * fixed


def _to_e2m1(pieces: Any, fixed: float | None) -> Any:
    """NVFP4: a scale per piece, itself in e4m3 times the fixed one of the tensor."""
    import torch

    scale = _largest(pieces) / E2M1_LARGEST
    if fixed is not None:
        scale = _to_e4m3(scale, fixed).clamp_min(1e-30)
    levels = pieces.new_tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
    nearest = torch.bucketize((pieces / scale).abs(), pieces.new_tensor(E2M1_MIDDLES))
    return levels[nearest] * pieces.sign() * scale


_KINDS: Mapping[str, Callable[[Any, float | None], Any]] = {
    "int8": _to_int8,
    "fp8": _to_e4m3,
    "fp4": _to_e2m1,
}


def _attention_sources(model: Any) -> list[Any]:
    """The modules of transformers from which the model's attention is taken."""
    names = {type(one).__module__ for one in model.modules() if hasattr(one, "layer_idx")}
    sources = [sys.modules[name] for name in sorted(names)]
    return [source for source in sources if hasattr(source, "eager_attention_forward")]


@contextlib.contextmanager
def _rounded_cache(source: Any, rounding: Rounding) -> Iterator[None]:
    """Within: the eager attention of `source` sees keys and values that went through the cache."""
    plain, cache = source.eager_attention_forward, rounding.cache
    keep = _cut_to_e4m3 if rounding.cache_cut else _to_e4m3

    def attention(module: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        kept = cache.get(module.layer_idx)
        if kept is not None:
            key, value = keep(key, kept.key), keep(value, kept.value)
        return plain(module, query, key, value, *rest, **named)

    source.eager_attention_forward = attention
    try:
        yield
    finally:
        source.eager_attention_forward = plain
