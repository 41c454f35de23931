"""Peak memory of a conversion as the model gets deeper.

    python -P benchmarks/memory.py                    # 8, 16 and 32 blocks of 16.8 million weights
    python -P benchmarks/memory.py --blocks 8 --hidden 2048 --ffn 8192 --type Q8_0

Writes synthetic Llama checkpoints (bfloat16, blocks of one shape, a temporary folder, one at a
time), converts each in a process of its own and prints one JSON line per depth. Exits with 1 when a
conversion needs more than two blocks and 500 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 32_000
ALLOWANCE = 500_000_000
CHILD = """
import json, sys
from qconvert.asked import Asked
from qconvert.pipeline import convert
done = convert(sys.argv[1], "gguf", type=sys.argv[2], out=sys.argv[3], threads=int(sys.argv[4]),
               asked=Asked(method="rtn"))
print(json.dumps({"output_bytes": done.nbytes, "seconds": round(done.seconds, 2),
                  "peak_bytes": done.peak_bytes}))
"""


def main() -> int:
    options = _options()
    failed = False
    for blocks in options.blocks:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            model = Path(scratch) / "model"
            block_bytes = write_checkpoint(model, blocks, options.hidden, options.ffn)
            limit = 2 * block_bytes + ALLOWANCE
            facts = {
                "blocks": blocks,
                "block_bytes": block_bytes,
                "source_bytes": (model / "model.safetensors").stat().st_size,
                **convert_in_child(model, options.type, options.threads),
                "limit_bytes": limit,
            }
        print(json.dumps(facts), flush=True)
        failed |= facts["peak_bytes"] > limit
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of a conversion by depth.")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are written")
    return parser.parse_args()


def convert_in_child(model: Path, type_: str, threads: int) -> dict[str, Any]:
    """Convert in a fresh process; what it measured of itself."""
    command = [sys.executable, "-P", "-c", CHILD]
    command += [str(model), type_, str(model.parent), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=model.parent)
    return dict(json.loads(done.stdout))


def write_checkpoint(folder: Path, blocks: int, hidden: int, ffn: int) -> int:
    """A Llama checkpoint of random bfloat16 weights; returns the bytes of one block."""
    folder.mkdir()
    shapes = dict(_shapes(blocks, hidden, ffn))
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        span = [end, end + sizes[name]]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": span}
        end += sizes[name]
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)
    pool = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for nbytes in sizes.values():
            for start in range(0, nbytes, len(pool)):
                file.write(pool[: min(len(pool), nbytes - start)])
    _write_config(folder, blocks, hidden, ffn)
    _write_tokenizer(folder)
    return sum(nbytes for name, nbytes in sizes.items() if ".layers.0." in name)


def _shapes(blocks: int, hidden: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for index in range(blocks):
        path = f"model.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{path}.{name}.weight", (hidden,)
        for name in "qkvo":
            yield f"{path}.self_attn.{name}_proj.weight", (hidden, hidden)
        for name in ("gate", "up"):
            yield f"{path}.mlp.{name}_proj.weight", (ffn, hidden)
        yield f"{path}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def _write_config(folder: Path, blocks: int, hidden: int, ffn: int) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """All bytes as tokens, and reserved tokens up to the size of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = range(VOCABULARY - len(alphabet))
    tokenizer.add_special_tokens([AddedToken(f"<|{at}|>", special=True) for at in reserved])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|0|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
