"""What smoothing and rotations are worth where activations have outliers.

    python benchmarks/outliers.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \
        --text wikitext-2/test.txt [--types w8a8,fp8] [--methods rtn,smoothquant] [--factor 1]

Large models have a few channels whose activations are tens of times as large as the others in every
block; small ones do not. So a few gains of the norms before the linears are multiplied by a power
of two, and the columns that read them are divided by it: the float function is the same to the bit,
and activations have outliers. `--factor 1` leaves the model as it is.

Each folder is written as `qconvert --to vllm` writes it, and judged in transformers with its
decoded weights and with the inputs of its linears rounded as the folder says: dynamic INT8 and FP8
for each token, or with a fixed scale of the tensor. One JSON line for each text, type and method;
`ratio`: its KL beside that of rtn with the same type.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from protocol import Judge, add_options, judge_of
from safetensors import safe_open
from safetensors.torch import save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.engine.bundle import open_bundle
from qconvert.formats.source import Source
from qconvert.formats.target import target_named
from qconvert.pipeline import convert
from qconvert.runtimes.noise import Rounding

TYPES = ("w8a8", "w8a8-static", "fp8-channel", "fp8-tensor")
METHODS = ("rtn", "smoothquant", "osplus", "quarot+nearest", "gptq", "smoothquant+gptq",
           "osplus+gptq", "quarot+gptq")  # fmt: skip
BEHIND = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "ffn_norm": ("ffn_gate", "ffn_up", "ffn_gate_up"),
}
"""The linears that read what a norm makes."""


def with_outliers(model: Path, out: Path, *, channels: int, factor: float, seed: int = 0) -> Path:
    """`model` with `channels` channels, the same in all blocks, that are `factor` times as large
    behind the norms. A power of two: then no weight is rounded. Norms must not add to their gains,
    nor have biases."""
    source = open_checkpoint(model)
    loud = np.random.default_rng(seed).permutation(source.config["hidden_size"])[:channels]
    roles = {tensor.name: tensor.role for tensor in source.tensors if tensor.part == "weight"}
    readers = {role for linears in BEHIND.values() for role in linears}
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}
                for name, values in tensors.items():
                    if roles.get(name) in BEHIND:
                        values[loud] *= factor
                    elif roles.get(name) in readers:
                        values[:, loud] /= factor
                save_file(tensors, out / file.name, stored.metadata())
        elif file.is_file():
            shutil.copy(file, out / file.name)
    return out


def judged(
    source: Checkpoint, judge: Judge, kind: str, method: str, asked: Asked, folder: Path
) -> dict[str, dict[str, Any]]:
    """Text -> figures of `source` written as `kind` by `method`."""
    out, work = folder / "out", folder / "work"
    for old in (out, work):
        shutil.rmtree(old, ignore_errors=True)
    done = convert(source.folder, to="vllm", type=kind, out=out, asked=asked)
    facts: Source = source if done.calibrated is None else open_bundle(work)
    reader = target_named("vllm").reader(out)
    rounding = Rounding(float_type="float32", inputs=getattr(reader, "input_rounding", {}))
    weights: Mapping[str, NDArray[np.float32]] = reader.weights(facts)
    return judge(weights, facts, rounding)


def lines(options: argparse.Namespace, model: Path, folder: Path) -> None:
    source = open_checkpoint(model)
    with judge_of(source, options) as judge:
        for kind in options.types:
            plain: dict[str, float] = {}
            for method in options.methods:
                begin = time.perf_counter()
                asked = Asked(
                    method=method, calib=str(options.calib), calib_rows=options.calib_rows,
                    calib_length=options.calib_length, work=folder / "work", keep_work=True,
                )  # fmt: skip
                found = judged(source, judge, kind, method, asked, folder)
                for text, figures in found.items():
                    mean = figures["kl_mean"]
                    plain.setdefault(text, mean)
                    line = {
                        "type": kind, "method": method, "text": text, "factor": options.factor,
                        "channels": options.channels, "kl": mean, "ratio": mean / plain[text],
                        "perplexity": figures["perplexity_q"], "top1": figures["top1"],
                        "seconds": round(time.perf_counter() - begin, 1),
                    }  # fmt: skip
                    print(json.dumps(line), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--types", default=",".join(TYPES), type=lambda text: text.split(","))
    parser.add_argument("--methods", default=",".join(METHODS), type=lambda text: text.split(","))
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument("--factor", type=float, default=64.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qconvert-outliers-") as scratch:
        folder = Path(scratch)
        model = with_outliers(
            options.model, folder / "model", channels=options.channels, factor=options.factor
        )
        sys.stderr.write(f"{model}: {options.channels} channels times {options.factor:g}\n")
        lines(options, model, folder)


if __name__ == "__main__":
    main()
