"""Tiny random models of each family, each written as a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2",
)  # fmt: skip

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 64, "sliding_window": None},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 16,
        "tie_word_embeddings": True,
    },
    "gemma": {"head_dim": 64, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 16,
        "tie_word_embeddings": True,
    },
    "phi3": {"original_max_position_embeddings": 512},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt2": {
        "n_embd": 256,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "tie_word_embeddings": True,
        **dict.fromkeys(
            (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
            )
        ),
    },
}


def tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    dtype: str = "float32",
    shard_size: str | int | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random model (hidden 256, 2 layers, vocabulary 512) and its tokenizer to `folder`.

    `dtype` is a torch dtype's name, `shard_size` as in `save_pretrained` ("200KB"), `overrides` go
    to the family's transformers configuration. The same arguments give the same weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**_COMMON, **_OWN.get(family, {}), **overrides}
    settings = {key: value for key, value in settings.items() if _given(key, value)}
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for _, weight in sorted(model.named_parameters()):
                _randomise(weight)
    model.to(getattr(torch, dtype))
    extra = {} if shard_size is None else {"max_shard_size": shard_size}
    model.save_pretrained(folder, **extra)
    _write_tokenizer(folder, config.vocab_size)
    return folder


def _given(key: str, value: object) -> bool:
    """None takes a common setting away where a family does not know it."""
    return value is not None or key == "sliding_window"


def _randomise(weight: Any) -> None:
    """Matrices of unit gain; vectors moved off their 0 or 1, so that none can be forgotten."""
    import torch

    noise = torch.randn(weight.shape)
    if weight.dim() == 1:
        weight.add_(0.2 * noise)
    else:
        weight.copy_(noise / weight.shape[-1] ** 0.5)


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level BPE (GPT-2's pre-tokenizer) with `vocab` tokens, and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(argparse.__file__).read_text("utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
