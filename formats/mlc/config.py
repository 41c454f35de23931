"""mlc-chat-config.json.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/interface/gen_config.py` and
`protocol/mlc_chat_config.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qconvert.formats.mlc.model import Model
from qconvert.formats.mlc.schemes import Scheme
from qconvert.formats.mlc.tokenizer import Tokenizer

CONFIG = "mlc-chat-config.json"
VERSION = "0.1.0"
_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "top_p": 1.0,
}  # fmt: skip
_TOKENS: Mapping[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def chat_config(
    model_type: str,
    model: Model,
    scheme: Scheme,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    conversation: Mapping[str, Any],
) -> bytes:
    """The file. What the model's own files do not say is as MLC's converter has it."""
    facts, generation = model.facts, tokenizer.files.generation
    sink = facts["attention_sink_size"] if "attention_sink_size" in model.arch.fields else -1
    fields = {
        "version": VERSION,
        "model_type": model_type,
        "quantization": scheme.name,
        "model_config": model.config(scheme.dtype),
        "vocab_size": facts["vocab_size"],
        "context_window_size": facts["context_window_size"],
        "sliding_window_size": facts["sliding_window_size"],
        "prefill_chunk_size": facts["prefill_chunk_size"],
        "attention_sink_size": sink,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": tokenizer.size,
        **{name: _first(name, generation, config, usual) for name, usual in _SAMPLING.items()},
        "tokenizer_files": list(tokenizer.copies),
        "tokenizer_info": dict(tokenizer.info),
        "conv_template": dict(conversation),
        **{name: _first(name, generation, config, usual) for name, usual in _TOKENS.items()},
        "model_task": "chat",
        "embedding_metadata": None,
    }
    return json.dumps(fields, indent=2).encode()


def _first(name: str, generation: Mapping[str, Any], config: Mapping[str, Any], usual: Any) -> Any:
    for said in (generation, config):
        if said.get(name) is not None:
            return said[name]
    return usual
