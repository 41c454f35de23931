"""A decoded folder as a model: transformers in float32, rounding what the folder says.

Independent of qconvert, as `decoder.py` is: `decoded` is what that gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensor = torch.Tensor
LARGEST_E4M3, LARGEST_E2M1 = 448.0, 6.0
TINY = 1e-30
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
EVEN_FIRST = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # argmin takes the first of equals


def e4m3(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).float()


def e2m1(values: Tensor) -> Tensor:
    """Nearest, ties to the even code."""
    distance = (values.abs().unsqueeze(-1) - LEVELS[EVEN_FIRST]).abs()
    return LEVELS[EVEN_FIRST[distance.argmin(-1)]] * values.sign()


def fixed_fp8(x: Tensor, scale: float) -> Tensor:
    return e4m3(x / scale) * scale


def own_fp8(x: Tensor, width: float) -> Tensor:
    """A scale for each row, or for each `width` columns of it."""
    parts = x.reshape(*x.shape[:-1], -1, int(width) or x.shape[-1])
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(TINY) / LARGEST_E4M3
    return (e4m3(parts / scale) * scale).reshape(x.shape)


def fixed_fp4(x: Tensor, scale: float) -> Tensor:
    """An e4m3 scale for each 16 columns, under the fixed one."""
    parts = x.reshape(*x.shape[:-1], -1, 16)
    largest = parts.abs().amax(-1, keepdim=True)
    block = (e4m3(largest / LARGEST_E2M1 / scale) * scale).clamp_min(TINY)
    return (e2m1(parts / block) * block).reshape(x.shape)


def fixed_int8(x: Tensor, scale: float) -> Tensor:
    return (x / scale).round().clamp(-128, 127) * scale


KINDS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "fp8": fixed_fp8, "fp8 of": own_fp8, "fp4": fixed_fp4, "int8": fixed_int8,
}  # fmt: skip
CACHES: Mapping[str, Callable[[Tensor, float], Tensor]] = {"FP8": fixed_fp8, "NVFP4": fixed_fp4}


def model_of(decoded: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The model of transformers with these weights; KeyError where one is missing or left over."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        key: one for key, one in decoded.config.items() if key not in ("dtype", "torch_dtype")
    }
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    missing, unexpected = model.load_state_dict(decoded.state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise KeyError(f"missing: {missing}; left over: {unexpected}")
    return model.eval()


def logits(
    decoded: Any, tokens: Tensor, *, rounding: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Of `tokens` [rows, length]; activations and the KV cache rounded as the folder says if
    `rounding`. `dtype`: of all else, as a runtime has it."""
    from transformers import DynamicCache

    model = model_of(decoded, dtype)
    keep = CACHES.get(decoded.cache_kind or "")

    class Rounded(DynamicCache):
        """Keys arrive after RoPE."""

        def update(self, key: Tensor, value: Tensor, layer: int, *more: Any, **named: Any) -> Any:
            if rounding and keep is not None and layer in decoded.cache:
                scales = decoded.cache[layer]
                key = keep(key.float(), scales[0]).to(dtype)
                value = keep(value.float(), scales[1]).to(dtype)
            return super().update(key, value, layer, *more, **named)

    for name, module in model.named_modules():
        if rounding and name in decoded.rounding:
            vector = decoded.columns.get(name, torch.ones(()))
            module.register_forward_pre_hook(_hook(decoded.rounding[name], vector, dtype))
    with torch.no_grad():
        found: Tensor = model(tokens, past_key_values=Rounded(), use_cache=True).logits
    return found.float()


def _hook(rounding: tuple[str, float], vector: Tensor, dtype: torch.dtype) -> Any:
    """The weight has taken the vector in, so what is rounded behind it is divided by it again."""
    kind, number = rounding

    def before(module: Any, inputs: Any) -> Any:
        scaled = (inputs[0] * vector.to(dtype)).float()
        return ((KINDS[kind](scaled, number) / vector).to(dtype), *inputs[1:])

    return before
