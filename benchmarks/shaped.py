"""A checkpoint with the shapes of Llama 3.1 in any of its sizes, of random weights.

    python benchmarks/shaped.py 8B FOLDER                    # 16 GB, at the speed of the disk
    python benchmarks/shaped.py 405B FOLDER --blocks 2       # blocks of its size, fewer of them
    python benchmarks/shaped.py 70B FOLDER --scale tiny      # narrow: for smoke tests
    python benchmarks/shaped.py 405B FOLDER --hollow         # no data: enough for --plan

What time and memory of a conversion depend on is as in the model, so they can be measured without
it. Weights are bfloat16, normal with a standard deviation of 0.02 (what Llama's configuration calls
`initializer_range`), norms 1, so that activations stay finite through all blocks. All matrices are
cut from one buffer of random numbers, each from another place; its length is a prime, so that rows
differ and matrices have full rank. The tokenizer is a small byte-level BPE; the vocabulary of the
model is larger, as the sizes ask for. The same arguments give the same bytes. Prints a JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np

from qconvert.runtimes.machine import peak_bytes

Tensor = tuple[str, tuple[int, ...]]

DEVIATION = 0.02
POOL = 8_388_593  # random values; the largest prime below 2^23
SHARD_BYTES = 5_000_000_000
TOKENS = 1024  # of the tokenizer, where the vocabulary is no smaller
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    blocks: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int = 128_256
    head_dim: int = 128

    def block(self, index: int) -> Iterator[Tensor]:
        """(name, shape) of the tensors of one block, in the order of the file."""
        path, queries, keys = f"model.layers.{index}", self.heads, self.kv_heads
        yield f"{path}.input_layernorm.weight", (self.hidden,)
        for name, heads in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{path}.self_attn.{name}_proj.weight", (heads * self.head_dim, self.hidden)
        yield f"{path}.self_attn.o_proj.weight", (self.hidden, queries * self.head_dim)
        yield f"{path}.post_attention_layernorm.weight", (self.hidden,)
        for name in ("gate", "up"):
            yield f"{path}.mlp.{name}_proj.weight", (self.ffn, self.hidden)
        yield f"{path}.mlp.down_proj.weight", (self.hidden, self.ffn)

    def tensors(self) -> Iterator[Tensor]:
        """Of the whole model."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for index in range(self.blocks):
            yield from self.block(index)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def block_bytes(self) -> int:
        return sum(nbytes_of(one) for one in self.block(0))

    @property
    def nbytes(self) -> int:
        return sum(nbytes_of(one) for one in self.tensors())


SHAPES: dict[str, Shape] = {
    "8B": Shape(4096, 32, 14_336, 32, 8),
    "70B": Shape(8192, 80, 28_672, 64, 8),
    "405B": Shape(16_384, 126, 53_248, 128, 8),
}
"""Of Llama 3.1: "The Llama 3 Herd of Models" (arXiv 2407.21783), table 3."""
NARROW = 512  # hidden size at the scale "tiny"; its vocabulary is 64 times smaller
SCALES = ("full", "tiny")


def shape_of(size: str, *, blocks: int | None = None, scale: str = "full") -> Shape:
    """The sizes of `size`, one of `SHAPES`; with fewer blocks, or every width divided."""
    shape = SHAPES[size]
    if scale == "tiny":
        by = shape.hidden // NARROW
        shape = replace(
            shape, hidden=NARROW, ffn=shape.ffn // by, heads=shape.heads // by,
            kv_heads=max(shape.kv_heads // by, 1), vocab=shape.vocab // 64,
        )  # fmt: skip
    return shape if blocks is None else replace(shape, blocks=blocks)


def nbytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor in bfloat16."""
    return 2 * prod(tensor[1])


def write(
    folder: Path,
    shape: Shape,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    hollow: bool = False,
) -> Path:
    """Write the checkpoint to `folder`, which is made; returns it. `hollow`: all weights are zeros
    that take no room on a disk that can leave holes in files.

    Shards end before `shard_bytes`, but for a single tensor that is larger. Takes about 100 MB of
    memory whatever the size.
    """
    folder.mkdir(parents=True)
    pool = _pool(seed)
    shards = list(_shards(shape.tensors(), shard_bytes))
    names = [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
    start = 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            if hollow:
                file.truncate(file.tell() + sum(nbytes_of(tensor) for tensor in shard))
                continue
            for tensor in shard:
                start = _write_tensor(file, tensor, pool, start)
    index = {
        "metadata": {"total_size": shape.nbytes},
        "weight_map": {
            tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        },
    }
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", _config(shape))
    _write_tokenizer(folder, min(TOKENS, shape.vocab))
    return folder


def _pool(seed: int) -> memoryview:
    """Bytes of POOL random bfloat16 values."""
    values = np.random.default_rng(seed).standard_normal(POOL, np.float32)
    values *= np.float32(DEVIATION)
    bits = (values.view(np.uint32) + np.uint32(0x8000)) >> 16
    return memoryview(bits.astype("<u2").tobytes())


def _shards(tensors: Iterator[Tensor], most: int) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        nbytes = nbytes_of(tensor)
        if shard and filled + nbytes > most:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += nbytes
    yield shard


def _header(shard: list[Tensor]) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        span = [end, end := end + nbytes_of(tensor)]
        described[tensor[0]] = {"dtype": "BF16", "shape": tensor[1], "data_offsets": span}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, tensor: Tensor, pool: memoryview, start: int) -> int:
    """The next bytes of the pool, around and around; where the tensor behind it starts."""
    nbytes = nbytes_of(tensor)
    if len(tensor[1]) == 1:
        file.write(np.full(tensor[1], 0x3F80, "<u2").tobytes())  # 1.0
        return start
    while nbytes:
        piece = pool[start : start + nbytes]
        file.write(piece)
        nbytes -= len(piece)
        start = (start + len(piece)) % len(pool)
    return start


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "initializer_range": DEVIATION,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _write_tokenizer(folder: Path, tokens: int) -> None:
    """A byte-level BPE, trained on the text that `qconvert check` judges on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = files("qconvert.runtimes") / "data" / "wikitext-2-test.txt"
    tokenizer.train_from_iterator([text.read_text("utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131_072,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("size", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--blocks", type=click.IntRange(min=1), help="so many; default: all of them")
@click.option("--scale", type=click.Choice(SCALES), default=SCALES[0], show_default=True)
@click.option("--shard-bytes", type=click.IntRange(min=1), default=SHARD_BYTES, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--hollow", is_flag=True, help="headers and holes: no data")
def main(
    size: str,
    folder: Path,
    blocks: int | None,
    scale: str,
    shard_bytes: int,
    seed: int,
    hollow: bool,
) -> None:
    if folder.exists():
        raise click.UsageError(f"{folder} exists")
    shape = shape_of(size, blocks=blocks, scale=scale)
    started = time.perf_counter()
    write(folder, shape, shard_bytes=shard_bytes, seed=seed, hollow=hollow)
    line = {
        "size": size, "scale": scale, "blocks": shape.blocks, "bytes": shape.nbytes,
        "block_bytes": shape.block_bytes, "seconds": round(time.perf_counter() - started, 2),
        "peak_bytes": peak_bytes(),
    }  # fmt: skip
    click.echo(json.dumps(line))


if __name__ == "__main__":
    sys.exit(main())
