"""LightLLM: AWQ of 4 bits, FP8 blocks, a YAML where a linear stays float, a JSON of cache scales.

Source: LightLLM 87881ae, lightllm/common/quantization and kv_cache_mem_manager; nothing was run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import LIGHTLLM
from qconvert.formats.serving.container import Container, Entry, Measured
from qconvert.formats.serving.fused import KV_AND_GATE_UP, linears_of, module_of
from qconvert.formats.serving.model_files import ARCHITECTURES, as_json
from qconvert.formats.serving.planning import CacheRule, Drawn, Extras
from qconvert.formats.serving.wanted import Wanted
from qconvert.formats.target import Statistic

MIX, CACHE = "quant_cfg.yml", "kv_cache.json"
NAMES = {
    "attn_q": "q_proj", "attn_k": "kv_proj", "attn_v": "kv_proj", "attn_o": "o_proj",
    "ffn_gate": "gate_up_proj", "ffn_up": "gate_up_proj", "ffn_down": "down_proj",
}  # fmt: skip
"""Role -> what LightLLM calls it in a mix: k and v are one, and gate and up."""
E4M3 = 448.0


def extras(drawn: Drawn) -> Extras:
    """The mix of floats and the scales of the cache, with the flags that name their files."""
    files, made, flags = {}, {}, []
    kept = _kept(drawn)
    if kept:
        files[MIX] = _mix(kept, _blocks(drawn)).encode()
        flags.append(f"--quant_cfg {{folder}}/{MIX}")
    if drawn.kv is not None:
        made[CACHE] = lambda scales: _cache(drawn, scales)
        flags.append("--llm_kv_type fp8kv_spt --kv_quant_calibration_config_path"
                     f" {{folder}}/{CACHE}")  # fmt: skip
    return Extras(files, made, tuple(_notes(drawn, flags)), tuple(flags))


def _notes(drawn: Drawn, flags: list[str]) -> Iterator[str]:
    if flags:
        told = " ".join(flags).replace("{folder}", "DIR")
        yield f"LightLLM must be started with {told}"
    quantized = {one.module for one in drawn.linears.values()}
    biased = [one for one in drawn.source.tensors if one.part == "bias"]
    if any(module_of(one) in quantized for one in biased):
        yield (
            "biases: LightLLM's AWQ product gives them to its kernel and seems to add them once "
            "more; compare its answers with the model's before you rely on them"
        )


def _blocks(drawn: Drawn) -> int:
    return 1 + max(one.block for one in drawn.source.tensors if one.block is not None)


def _kept(drawn: Drawn) -> Mapping[str, list[int]]:
    """LightLLM's name -> the blocks in which it stays float, beside quantized linears."""
    found: dict[str, list[int]] = {}
    for one in linears_of(drawn.source) if drawn.linears else ():
        if one.name not in drawn.linears and one.block is not None:
            blocks = found.setdefault(NAMES[one.role], [])
            blocks += [one.block] if one.block not in blocks else []
    return found


def _mix(kept: Mapping[str, list[int]], blocks: int) -> str:
    """A file for `--quant_cfg`. `layer_nums` left out: all of them."""
    lines = ["quant_type: none", "mix_bits:"]
    for name, where in kept.items():
        lines += [f"  - name: {name}", "    quant_type: none"]
        if len(where) < blocks:
            lines.append(f"    layer_nums: [{', '.join(map(str, where))}]")
    return "\n".join([*lines, ""])


def _scales(
    container: Container | None, modules: tuple[str, str], weights: tuple[str, str], kv: str
) -> tuple[Measured, ...]:
    """Of keys after RoPE and of values; found whatever the container, and stored in no tensor."""
    return (
        Measured(Entry(f"{modules[0]}.k_scale", "F32", (1,)), Statistic("key", weights[0], E4M3)),
        Measured(Entry(f"{modules[1]}.v_scale", "F32", (1,)), Statistic("value", weights[1], E4M3)),
    )


def _cache(drawn: Drawn, scales: Mapping[str, float]) -> bytes:
    """A file for `--kv_quant_calibration_config_path`, a scale for each tensor."""
    config, blocks = drawn.source.config, _blocks(drawn)
    weights = {
        (one.block, one.role): module_of(one)
        for one in drawn.source.tensors
        if one.part == "weight"
    }
    pairs = [
        [float(scales[f"{weights[block, 'attn_k']}.k_scale"]),
         float(scales[f"{weights[block, 'attn_v']}.v_scale"])]
        for block in range(blocks)
    ]  # fmt: skip
    return as_json(
        {
            "version": "1.0",
            "architectures": drawn.architecture,
            "quant_type": "per_tensor",
            "qmin": -E4M3,
            "qmax": E4M3,
            "num_layers": blocks,
            "num_head": config.get("num_key_value_heads") or config["num_attention_heads"],
            "scales_shape": [blocks, 2],
            "scales": pairs,
        }
    )


TARGET = ServingTarget(
    name="lightllm",
    summary="folders for LightLLM: AWQ of 4 bits and FP8 in blocks; LightLLM itself was not run",
    containers=("awq", "fp8"),
    by_bits={4: Wanted("w4a16", symmetric=False), 8: Wanted("fp8-block")},
    kernels=LIGHTLLM,
    fusing=KV_AND_GATE_UP,
    serve="python -m lightllm.server.api_server --model_dir {folder}",
    architectures={name: ARCHITECTURES[name] for name in ("llama", "mistral", "qwen2", "qwen3")},
    extras=extras,
    cache=CacheRule(_scales, stored=False),
    also=("vllm",),
)
