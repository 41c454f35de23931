"""What is planted into the keys of a GGUF file is found, and named."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

TOKENS = "tokenizer.ggml."
GGUF_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "rope base": ({"llama.rope.freq_base": 10000.0}, "rope_theta"),
    "rope base lost": ({"llama.rope.freq_base": None}, "rope_theta"),
    "rotated": ({"llama.rope.dimension_count": 32}, "head_dim"),
    "eps": ({"llama.attention.layer_norm_rms_epsilon": 1e-5}, "rms_norm_eps"),
    "eps lost": ({"llama.attention.layer_norm_rms_epsilon": None}, "rms_norm_eps"),
    "heads": ({"llama.attention.head_count": 8}, "num_attention_heads"),
    "kv heads": ({"llama.attention.head_count_kv": 4}, "num_key_value_heads"),
    "kv heads lost": ({"llama.attention.head_count_kv": None}, "num_key_value_heads"),
    "blocks": ({"llama.block_count": 1}, "num_hidden_layers"),
    "context": ({"llama.context_length": 2048}, "max_position_embeddings"),
    "ffn": ({"llama.feed_forward_length": 256}, "intermediate_size"),
    "bos": ({f"{TOKENS}bos_token_id": 7}, "bos_token_id"),
    "bos lost": ({f"{TOKENS}bos_token_id": None}, "bos_token_id"),
    "eos": ({f"{TOKENS}eos_token_id": 9}, "eos_token_id"),
    "eos is bos": ({f"{TOKENS}eos_token_id": 1}, "eos_token_id"),
    "pad lost": ({f"{TOKENS}padding_token_id": None}, "pad_token_id"),
    "add bos": ({f"{TOKENS}add_bos_token": False}, "add_bos_token"),
    "add bos lost": ({f"{TOKENS}add_bos_token": None}, "add_bos_token"),
    "template": ({"tokenizer.chat_template": "{{ messages[0]['content'] }}"}, "chat_template"),
    "template lost": ({"tokenizer.chat_template": None}, "chat_template"),
    "pre": ({f"{TOKENS}pre": "llama-bpe"}, "pre_tokenizer"),
    "pre lost": ({f"{TOKENS}pre": None}, "pre_tokenizer"),
    "kind": ({f"{TOKENS}model": "llama"}, "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_faults_of_a_gguf(fault: str, bench: Any) -> None:
    keys, culprit = GGUF_FAULTS[fault]
    assert bench.culprits(bench.rewritten(bench.copy("gguf"), keys), "gguf")[0] == culprit


def test_an_end_of_turn_that_is_lost_is_an_end(bench: Any) -> None:
    """llama.cpp knows <|im_end|> by its text: the list of ends is told apart from it."""
    path = bench.copy("gguf")
    texts = gguf.GGUFReader(path).fields[f"{TOKENS}tokens"].contents()
    other = ["<|other|>" if text == "<|im_end|>" else text for text in texts]
    wrong = bench.found(bench.rewritten(path, {f"{TOKENS}tokens": other}), "gguf")
    assert {"tokenizer"} <= {one.culprit for one in wrong}
    lost = bench.rewritten(path, {f"{TOKENS}tokens": other, f"{TOKENS}eot_token_id": None})
    assert {"tokenizer", "eos_token_id"} <= set(bench.culprits(lost, "gguf"))


@pytest.mark.parametrize("what", ["tokens", "merges", "special"])
def test_faults_of_a_ggufs_tokenizer(what: str, bench: Any) -> None:
    path = bench.copy("gguf")
    fields = gguf.GGUFReader(path).fields
    key = f"{TOKENS}{'token_type' if what == 'special' else what}"
    values = list(fields[key].contents())
    if what == "special":
        values[3] = 1  # <|im_start|>
    else:
        values[40], values[41] = values[41], values[40]
    (wrong,) = bench.found(bench.rewritten(path, {key: values}), "gguf")
    assert (wrong.stage, wrong.culprit) == ("tokens", "tokenizer")
    named = {"tokens": "40 is", "merges": "number 40", "special": "<|im_start|>"}
    assert named[what] in wrong.problem


def test_lost_scaling_of_a_gguf(bench: Any) -> None:
    """Frequencies of Llama 3 are a tensor: one that is all ones scales nothing."""
    path = bench.copy("gguf")
    reader = gguf.GGUFReader(path)
    held = next(one for one in reader.tensors if one.name == "rope_freqs.weight")
    raw = bytearray(path.read_bytes())
    ones = np.ones(held.data.size, np.float32).tobytes()
    raw[held.data_offset : held.data_offset + len(ones)] = ones
    path.write_bytes(raw)
    (wrong,) = bench.found(path, "gguf")
    assert wrong.culprit == "rope_parameters"
    assert "frequencies" in wrong.problem
