"""Convert a tiny random model and read it back: the whole way, in a few seconds and no download.

    python examples/roundtrip.py        # without data: --method rtn

Shows the Python side of `qconvert MODEL --to gguf --type Q8_0 --method rtn`: `convert`, the
target's reader, and `weights`, which gives the decoded values under the checkpoint's own names.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import target_named
from qconvert.pipeline import convert

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def random_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A Llama of two blocks, under the names of Hugging Face."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, cols)) * 0.02).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(260, 256),
        "model.norm.weight": np.ones(256, np.float32),
    }
    shapes = {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (128, 256),
        "self_attn.v_proj": (128, 256),
        "self_attn.o_proj": (256, 256),
        "mlp.gate_proj": (512, 256),
        "mlp.up_proj": (512, 256),
        "mlp.down_proj": (256, 512),
    }
    for block in range(2):
        for name, shape in shapes.items():
            weights[f"model.layers.{block}.{name}.weight"] = matrix(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{block}.{name}.weight"] = np.ones(256, np.float32)
    return weights


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    save_file(random_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    facts = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def largest_error(model: Path, out: Path) -> float:
    """The largest difference between a source weight and what the file stands for."""
    source = load_file(model / "model.safetensors")
    decoded = target_named("gguf").reader(out).weights(open_checkpoint(model))
    if set(decoded) != set(source):
        raise SystemExit(f"tensors differ: {set(decoded) ^ set(source)}")
    return max(float(np.abs(decoded[name] - w).max()) for name, w in source.items())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        write_model(model)
        for kind in ("BF16", "Q8_0", "Q4_K_M"):
            path = Path(folder) / f"tiny-{kind}.gguf"
            done = convert(model, to="gguf", type=kind, out=path, asked=Asked(method="rtn"))
            error = largest_error(model, done.files[0])
            print(f"{kind}: {done.bits_per_weight:.2f} bits per weight, largest error {error:.5f}")


if __name__ == "__main__":
    main()
