"""Every tensor of every mix is of the type that llama.cpp's own quantizer picks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.formats.gguf.mixes import ALIASES, BY_BITS, MIXES, choose_mix
from qconvert.formats.gguf.reader import open_reader
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request

QUANTIZED = [mix.name for mix in MIXES.values() if mix.quantized]

# What can change a choice: grouped heads, joined q/k/v, a tied head, positions, blocks enough for
# every eighth and sixteenth, rows that 256 or 32 does not divide, llama.cpp's "70B".
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_hidden_layers": 17}),
    "llama grouped": ("llama", {"num_hidden_layers": 9, "num_key_value_heads": 1}),
    "llama tied": ("llama", {"num_hidden_layers": 9, "tie_word_embeddings": True}),
    "llama wide": (
        "llama",
        {"num_hidden_layers": 80, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
    ),
    "llama 80 ungrouped": (
        "llama",
        {
            "num_hidden_layers": 80, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16,
            "num_key_value_heads": 4,
        },
    ),
    "llama 288": (
        "llama", {"hidden_size": 288, "num_attention_heads": 3, "num_key_value_heads": 1,
                  "head_dim": 96, "tie_word_embeddings": True},
    ),
    "llama 144": (
        "llama", {"hidden_size": 144, "num_attention_heads": 3, "num_key_value_heads": 1,
                  "head_dim": 48, "intermediate_size": 256},
    ),
    "qwen2 wide": (
        "qwen2",
        {"num_hidden_layers": 80, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
    ),
    "mistral": ("mistral", {"num_hidden_layers": 2}),
    "qwen2": ("qwen2", {"num_hidden_layers": 2}),
    "qwen3": ("qwen3", {"num_hidden_layers": 9, "num_key_value_heads": 1}),
    "smollm3": ("smollm3", {"num_hidden_layers": 2}),
    "gemma3_text": ("gemma3_text", {"num_hidden_layers": 9, "query_pre_attn_scalar": 64}),
    "phi3": ("phi3", {"num_hidden_layers": 9}),
    "gpt_neox": ("gpt_neox", {"num_hidden_layers": 9, "num_key_value_heads": 4}),
    "gpt_neox tied": (
        "gpt_neox",
        {"num_hidden_layers": 2, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "gpt2": ("gpt2", {"num_hidden_layers": 9, "num_key_value_heads": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_llama_model_quantize(
    name: str,
    fake_source: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model_type, settings = MODELS[name]
    source = fake_source(model_type, **settings)
    start = write(TARGET.plan(source, Request(type="BF16")), source, tmp_path / "bf16.gguf")
    names = list(open_reader(start).tensors)
    for mix in QUANTIZED:
        plan = TARGET.plan(source, Request(type=mix))
        ours = {tensor.name: tensor.dtype for tensor in plan.tensors}
        theirs = _quantized(start, tmp_path / "theirs.gguf", mix, names)
        assert ours == theirs, f"{name}: {mix}"


def _quantized(source: Path, out: Path, mix: str, names: list[str]) -> dict[str, str]:
    """name -> type of the file that llama.cpp makes of `source`."""
    llama = pytest.importorskip("llama_cpp")
    _quiet(llama)
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, int(MIXES[mix].file_type)
    reader = open_reader(source)
    lengths = [reader.tensors[name].shape[-1] for name in names]
    ones = [(ctypes.c_float * length)(*[1.0] * length) for length in lengths]
    table = (llama.llama_model_imatrix_data * (len(names) + 1))()
    for slot, name, values in zip(table, names, ones, strict=False):
        slot.name, slot.data, slot.size = name.encode(), values, len(values)
    if mix == "Q2_K_S":  # llama.cpp refuses it without importance, which does not change its types
        params.imatrix = table
    assert llama.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    return {name: tensor.dtype for name, tensor in open_reader(out).tensors.items()}


_CALLBACKS: list[Any] = []  # llama.cpp keeps the pointer


def _quiet(llama: Any) -> None:
    if not _CALLBACKS:
        _CALLBACKS.append(llama.llama_log_callback(lambda level, text, data: None))
        llama.llama_log_set(_CALLBACKS[0], ctypes.c_void_p(0))


def test_rows_of_odd_length_fall_back_and_say_so(fake_source: Callable[..., Any]) -> None:
    source = fake_source("llama", hidden_size=288, num_attention_heads=3, num_key_value_heads=1,
                         head_dim=96)  # fmt: skip
    plan = TARGET.plan(source, Request(type="Q4_K_M"))
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    query = by_name["blk.0.attn_q.weight"]
    assert query.dtype == "Q5_0"
    assert query.note == "Q5_0 instead of Q4_K: rows of 288 are not whole blocks of 256"
    assert by_name["blk.0.ffn_down.weight"].note == ""
    assert any(query.note in note for note in plan.notes)


@pytest.mark.parametrize("bits", BY_BITS)
def test_bits_pick_a_mix_of_as_many_bits(bits: int) -> None:
    assert choose_mix(Request(bits=bits)).bits == bits


def test_sixteen_bits_keep_the_half_of_the_source(fake_source: Callable[..., Any]) -> None:
    for dtype, expected in (("F16", "F16"), ("BF16", "BF16"), ("F32", "BF16")):
        source = fake_source("llama", dtype=dtype)
        assert TARGET.plan(source, Request(bits=16)).type == expected


@pytest.mark.parametrize(
    ("bits", "nearest"),
    [
        (7, "6 (Q6_K) or 8 (Q8_0)"),
        (1, "2 (Q2_K)"),
        (64, "32 (F32)"),
        (12, "8 (Q8_0) or 16 (BF16)"),
    ],
)
def test_other_bits_are_refused_with_the_nearest(bits: int, nearest: str) -> None:
    with pytest.raises(Refused) as refused:
        choose_mix(Request(bits=bits))
    assert refused.value.reasons[0].remedy == f"nearest: {nearest}"


def test_types_are_found_in_any_case_and_by_short_names() -> None:
    assert choose_mix(Request(type="q4_k_m")).name == "Q4_K_M"
    for short, name in ALIASES.items():
        assert choose_mix(Request(type=short)).name == name
    assert choose_mix(Request()).name == "Q4_K_M"


def test_an_unknown_type_and_bits_that_contradict_are_refused() -> None:
    with pytest.raises(Refused, match="unknown type 'Q9_K'"):
        choose_mix(Request(type="Q9_K"))
    with pytest.raises(Refused, match="Q8_0 has 8 bits, not 4"):
        choose_mix(Request(bits=4, type="Q8_0"))
