"""Folders for TensorRT-LLM beside those of NVIDIA ModelOpt, from the same rows, at equal bytes.

    python benchmarks/trtllm.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \\
        --text wikitext-2/test.txt --skip 2000 [--schemes w4a16-awq,nvfp4] \\
        [--methods awq+best,rtn] [--modelopt ENV/bin/python]

Writes each scheme with `qconvert MODEL --to trtllm --scheme NAME`, by the default method and those
of --methods; with --modelopt also by NVIDIA ModelOpt in the environment of that interpreter.
All folders are decoded by one reader and judged by the protocol of protocol.py: nothing here runs
TensorRT-LLM. Prints one JSON line each: distances with activations in float32, and again with them
rounded, where the folder says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from command import qconvert
from peers import run_script
from protocol import Judge, add_options, brief, calibration_rows, judge_of

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.serving.folder.reader import open_reader
from qconvert.runtimes.noise import rounding_told

Line = dict[str, Any]

CONFIGS: Mapping[str, str] = {
    "w4a16-awq": "INT4_AWQ_CFG",
    "w4a8-awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "fp8-channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "fp8-block": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "w8a16": "INT8_WEIGHT_ONLY_CFG",
}
"""Scheme -> the configuration of `modelopt.torch.quantization` for such a folder."""


def judged(source: Checkpoint, judge: Judge, folder: Path) -> Line:
    """Bytes of the weights, and distances to the source."""
    reader = open_reader(folder)
    weights, told = reader.weights(source), rounding_told(reader, source)
    return {
        "bytes": sum(one.nbytes for one in reader.tensors.values()),
        "weights": judge(weights),
        "rounded": judge(weights, rounding=told) if told.inputs or told.cache else None,
    }


def own(scheme: str, method: str, folder: Path, options: argparse.Namespace) -> Path:
    out = folder / f"{scheme}-{method or 'default'}"
    kind, _, scales = method.partition("/")
    qconvert(
        options.model, "--to", "trtllm", "--scheme", scheme, "--out", out,
        "--calib", options.calib.resolve(), "--calib-rows", options.calib_rows,
        "--calib-length", options.calib_length, "--threads", options.threads,
        *(["--method", kind] if kind else []),
        *(["--activation-scales", scales] if scales else []),
    )  # fmt: skip
    return out


def theirs(
    source: Checkpoint, scheme: str, folder: Path, options: argparse.Namespace
) -> tuple[Path, Line]:
    rows = calibration_rows(source, options.calib, options.calib_rows, options.calib_length)
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(rows.tokens), encoding="utf-8")
    python, out = Path(os.path.abspath(options.modelopt)), folder / f"{scheme}-modelopt"  # noqa: PTH100
    given = (options.model, tokens, out, options.threads, CONFIGS[scheme])
    return out, run_script("peer_modelopt.py", python, out, given, options.threads)


def lines(
    source: Checkpoint, judge: Judge, folder: Path, options: argparse.Namespace
) -> Iterator[Line]:
    for scheme in options.schemes:
        for method in ("", *options.methods):
            out = own(scheme, method, folder, options)
            yield {
                "scheme": scheme,
                "by": f"qconvert {method}".strip(),
                **judged(source, judge, out),
            }
        if options.modelopt is not None and scheme in CONFIGS:
            out, said = theirs(source, scheme, folder, options)
            yield {"scheme": scheme, "by": "ModelOpt", **said, **judged(source, judge, out)}


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--schemes", type=_names, default=list(CONFIGS), help="by comma")
    parser.add_argument(
        "--methods", type=_names, default=[],
        help="besides the default, by comma; METHOD/RULE also sets --activation-scales",
    )  # fmt: skip
    parser.add_argument("--modelopt", type=Path, help="the Python that has NVIDIA ModelOpt")
    parser.add_argument("--keep", type=Path, help="folder for all that is written")
    return parser.parse_args()


def main() -> None:
    options = _options()
    options.model = options.model.resolve()
    source = open_checkpoint(options.model)
    with tempfile.TemporaryDirectory(prefix="qconvert-trtllm-") as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with judge_of(source, options) as judge:
            for line in lines(source, judge, folder, options):
                print(json.dumps(line), flush=True)
                told = brief(line["rounded"] or line["weights"])
                print(f"{line['scheme']}, {line['by']}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
