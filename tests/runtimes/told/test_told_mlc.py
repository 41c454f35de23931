"""What is planted into mlc-chat-config.json is found, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

CONFIG = "mlc-chat-config.json"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "rope base": ({"model_config.position_embedding_base": 10000}, "rope_theta"),
    "rope base lost": ({"model_config.position_embedding_base": None}, "rope_theta"),
    "scaling lost": ({"model_config.rope_scaling": None}, "rope_scaling"),
    "scaling": ({"model_config.rope_scaling.factor": 4.0}, "rope_scaling"),
    "eps": ({"model_config.rms_norm_eps": 1e-5}, "rms_norm_eps"),
    "eps lost": ({"model_config.rms_norm_eps": None}, "rms_norm_eps"),
    "kv heads": ({"model_config.num_key_value_heads": 4}, "num_key_value_heads"),
    "blocks": ({"model_config.num_hidden_layers": 3}, "num_hidden_layers"),
    "tie": ({"model_config.tie_word_embeddings": True}, "tie_word_embeddings"),
    "context": ({"context_window_size": 4096}, "max_position_embeddings"),
    "vocabulary": ({"vocab_size": 500}, "vocab_size"),
    "bos": ({"bos_token_id": 7}, "bos_token_id"),
    "eos": ({"eos_token_id": 3}, "eos_token_id"),
    "stops": ({"conv_template.stop_token_ids": [2]}, "eos_token_id"),
    "stops in plain text": ({"conv_template.stop_token_ids": [2, 4, 300]}, "eos_token_id"),
    "stops lost": ({"conv_template.stop_token_ids": None}, "eos_token_id"),
    "pad": ({"pad_token_id": 3}, "pad_token_id"),
    "temperature": ({"temperature": 1.0}, "temperature"),
    "top p": ({"top_p": 1.0}, "top_p"),
    "roles": ({"conv_template.roles": {"user": "USER", "assistant": "ASSISTANT"}},
              "chat_template"),
    "ends of turns": ({"conv_template.seps": ["\n"]}, "chat_template"),
    "system": ({"conv_template.system_template": "{system_message}\n"}, "chat_template"),
    "first token": ({"conv_template.system_prefix_token_ids": [1]}, "chat_template"),
    "template lost": ({"conv_template": {"name": "LM"}}, "chat_template"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_configuration(fault: str, bench: Any) -> None:
    fields, culprit = FAULTS[fault]
    path = bench.copy("mlc")
    bench.edit(path / CONFIG, fields)
    assert culprit in bench.culprits(path, "mlc")


def test_plain_text_in_place_of_a_template(bench: Any) -> None:
    """MLC's LM, whole: what the writer falls back to where a template cannot be said."""
    path = bench.copy("mlc")
    template = json.loads((path / CONFIG).read_text())["conv_template"]
    plain = {"name": "LM", "system_template": "{system_message}", "system_message": "",
             "roles": {"user": "", "assistant": ""}, "seps": [""]}  # fmt: skip
    bench.edit(path / CONFIG, {"conv_template": {**template, **plain}})
    (wrong,) = bench.found(path, "mlc")
    assert wrong.culprit == "chat_template"
    assert "im_start" in wrong.problem
