"""No good output is blamed, and a fault is told in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.told import Told
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.told import compare_told

FAMILIES = ("mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2")
SCALED = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
             "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "default": {"rope_type": "default", "rope_theta": 1234567.0},
}  # fmt: skip


@pytest.mark.parametrize("target", ["gguf", "vllm", "trtllm", "onnx", "mlc"])
def test_a_good_output_says_what_the_model_says(target: str, bench: Any) -> None:
    assert bench.found(bench.good[target], target) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_blamed(
    family: str, tiny_model: Callable[..., Path], told_of: Callable[..., list[Finding]]
) -> None:
    checked = 0
    for target in ("gguf", "vllm", "onnx", "mlc"):
        try:
            assert told_of(tiny_model(family), target) == [], target
        except Refused:
            continue
        checked += 1
    assert checked


@pytest.mark.parametrize("kind", SCALED)
def test_positions_of_each_kind_are_understood(
    kind: str, tiny_model: Callable[..., Path], told_of: Callable[..., list[Finding]]
) -> None:
    folder = tiny_model("llama", rope_parameters=SCALED[kind])
    assert told_of(folder, "gguf") == []
    assert told_of(folder, "onnx") == []
    assert told_of(folder, "onnx", onnx_form="qdq") == []


def test_longrope_with_its_two_lists(
    tiny_model: Callable[..., Path], told_of: Callable[..., list[Finding]]
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 128,
            "short_factor": [1 + 0.01 * at for at in range(32)],
            "long_factor": [2 + 0.1 * at for at in range(32)]}  # fmt: skip
    folder = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=128)
    assert told_of(folder, "gguf") == []
    assert told_of(folder, "onnx") == []


def test_a_reader_that_does_not_tell_is_not_blamed(told_model: Path) -> None:
    assert compare_told(object(), open_checkpoint(told_model)) == []  # type: ignore[arg-type]


def test_what_a_format_does_not_hold_is_no_fault(told_model: Path) -> None:
    class Silent:
        def told(self, source: Any) -> Told:
            return Told(holds_chat_template=False)

    assert compare_told(Silent(), open_checkpoint(told_model)) == []  # type: ignore[arg-type]


def test_several_faults_are_each_named(bench: Any) -> None:
    keys = {"llama.rope.freq_base": 1e4, "llama.context_length": 77,
            "tokenizer.ggml.eos_token_id": 300}  # fmt: skip
    wrong = bench.culprits(bench.rewritten(bench.copy("gguf"), keys), "gguf")
    assert {"rope_theta", "max_position_embeddings", "eos_token_id"} <= set(wrong)


def test_a_sentence_names_both_values(bench: Any) -> None:
    path = bench.rewritten(bench.copy("gguf"), {"llama.rope.freq_base": 10000.0})
    (wrong,) = bench.found(path, "gguf")
    assert wrong.problem == "rope_theta is 10000 in the file and 500000 in the model"
    assert replace(wrong, problem="") == Finding("settings", "rope_theta", "")
