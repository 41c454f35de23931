"""Accuracy of each type beside ggml's own quantizer without importance, on the same text.

    python benchmarks/accuracy.py models/smollm2-135m-wide --text wikitext-2/test.txt --skip 2000

Per type, one file is made by qconvert and one by llama.cpp (`llama_model_quantize`, from a 16-bit
GGUF written by qconvert). Both must hold the same tensors in the same types and bytes. Both are
decoded by qconvert's reader and evaluated by the same reference (transformers, float32) against the
source model. Prints one JSON line per file, and ours over theirs on standard error.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import refuse
from qconvert.formats.target import Reader, Target, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.measure import Distance, compare, summarise
from qconvert.runtimes.spool import Spool
from qconvert.runtimes.text import Windows, cut, encoder, prefix, read_text, read_tokenizer

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,Q3_K_M,Q2_K"


@dataclass(frozen=True)
class Setting:
    source: Checkpoint
    target: Target
    pieces: Windows
    spool: Spool  # the source's logits
    threads: int


def quantize_with_ggml(original: Path, out: Path, type: str, threads: int) -> None:
    """llama.cpp's own conversion of a 16-bit GGUF, without importance."""
    import llama_cpp.llama_cpp as binding

    api: Any = binding

    @api.llama_log_callback
    def silent(level: int, text: bytes, data: Any) -> None:
        pass

    api.llama_log_set(silent, None)
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{type}")
    params.nthread = threads
    if api.llama_model_quantize(bytes(original), bytes(out), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not make {type} of {original}")


def cut_windows(arguments: argparse.Namespace, source: Checkpoint) -> Windows:
    tokenizer = read_tokenizer(source.folder)
    if tokenizer is None:
        raise refuse(f"{source.folder} has no tokenizer.json")
    whole = read_text(arguments.text)
    text = replace(whole, content=whole.content[arguments.skip :])
    front = prefix(source.folder, tokenizer)
    count, length = arguments.windows, arguments.length
    return cut(text, encoder(tokenizer), count=count, length=length, prefix=front)


def spool_source(source: Checkpoint, pieces: Windows, threads: int) -> Spool:
    model = reference.from_folder(source.folder, threads=threads)
    spool = Spool(len(pieces.tokens), pieces.length, model.vocab)
    for number, tokens in enumerate(pieces.tokens):
        spool.put(number, model.logits(tokens))
    return spool


def evaluate(setting: Setting, reader: Reader) -> Distance:
    """The decoded file against the source."""
    weights = reader.weights(setting.source)
    model = reference.from_weights(setting.source, weights, threads=setting.threads)
    return summarise(
        [
            compare(setting.spool.get(number), model.logits(tokens), tokens)
            for number, tokens in enumerate(setting.pieces.tokens)
        ]
    )


def differences(ours: Reader, theirs: Reader) -> list[str]:
    """Tensors that the two files do not store alike; there should be none."""
    names = sorted(set(ours.tensors) | set(theirs.tensors))
    return [
        f"{name}: {ours.tensors.get(name)} and {theirs.tensors.get(name)}"
        for name in names
        if ours.tensors.get(name) != theirs.tensors.get(name)
    ]


def pair(setting: Setting, type: str, original: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """One line for our file and one for ggml's."""
    own, peer = folder / "ours.gguf", folder / "ggml.gguf"
    begin = time.perf_counter()
    convert(
        setting.source.folder,
        setting.target.name,
        type=type,
        out=own,
        threads=setting.threads,
        force=True,
        asked=Asked(method="rtn"),  # as the peer: without data
    )
    middle = time.perf_counter()
    quantize_with_ggml(original, peer, type, setting.threads)
    seconds = {"qconvert": middle - begin, "ggml": time.perf_counter() - middle}
    readers = {"qconvert": setting.target.reader(own), "ggml": setting.target.reader(peer)}
    unlike = differences(readers["qconvert"], readers["ggml"])
    if unlike:
        raise SystemExit(f"{type}: the files differ in layout:\n" + "\n".join(unlike[:20]))
    for name, reader in readers.items():
        yield {
            "type": type,
            "by": name,
            "tensor_bytes": sum(tensor.nbytes for tensor in reader.tensors.values()),
            "file_bytes": sum(file.stat().st_size for file in reader.files),
            "seconds": round(seconds[name], 2),
            **asdict(evaluate(setting, reader)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--text", type=Path, help="default: the excerpt that qconvert brings")
    parser.add_argument("--skip", type=int, default=0, help="characters of the text to skip")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    source, target = open_checkpoint(arguments.model), target_named("gguf")
    pieces = cut_windows(arguments, source)
    with (
        spool_source(source, pieces, arguments.threads) as spool,
        tempfile.TemporaryDirectory(prefix="qconvert-accuracy-") as name,
    ):
        setting = Setting(source, target, pieces, spool, arguments.threads)
        folder = Path(name)
        original = folder / "original.gguf"
        half = "F16" if all(tensor.dtype == "F16" for tensor in source.tensors) else "BF16"
        convert(arguments.model, target.name, type=half, out=original, threads=arguments.threads)
        for type in arguments.types.split(","):
            lines = list(pair(setting, type, original, folder))
            for line in lines:
                print(json.dumps(line), flush=True)
            ours, theirs = (line["kl_mean"] for line in lines)
            said = f"{type}: KL {ours:.4f}, ggml {theirs:.4f}, ratio {ours / theirs:.3f}"
            print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
