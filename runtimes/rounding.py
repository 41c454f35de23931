"""How values are rounded to eight and four bits, in torch: the kinds that files ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qconvert.formats.target import InputRounding

E4M3_LARGEST = 448.0
E2M1_LARGEST = 6.0
E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between 0, .5, 1, 1.5, 2, 3, 4, 6
E2M1_COLUMNS = 16  # that share a scale of NVFP4


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


def cut_to_e4m3(pieces: Any, fixed: float) -> Any:
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
    nearest = torch.bucketize((pieces / scale).abs().contiguous(), pieces.new_tensor(E2M1_MIDDLES))
    return levels[nearest] * pieces.sign() * scale


_KINDS: Mapping[str, Callable[[Any, float | None], Any]] = {
    "int8": _to_int8,
    "fp8": _to_e4m3,
    "fp4": _to_e2m1,
}


def _kept_in_e2m1(values: Any, fixed: float) -> Any:
    """Of an NVFP4 cache: each 16 columns of a head have a scale in e4m3, times the stored one,
    which is the largest magnitude / 448 in ModelOpt 0.47 (`export/unified_export_hf.py`).

    TensorRT-LLM takes the stored scale as it is (modules/linear.py @ 00bbf71). Read, not run.
    """
    return round_inputs(values, InputRounding("fp4", E2M1_COLUMNS, fixed))


CACHES: Mapping[str, Callable[[Any, float], Any]] = {"fp8": _to_e4m3, "nvfp4": _kept_in_e2m1}
"""What a KV cache of each type keeps of keys or values [..., head_dim]."""
