"""Accuracy of calibrated methods beside ggml's quantizers with importance, at equal bytes.

    python benchmarks/calibrated.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \\
        --text wikitext-2/test.txt --skip 2000 --pure Q4_K,Q4_0,Q3_K --types Q4_K_M --methods best

`--pure`: one type on all linears of the blocks, embedding and head judged in float. `--types`:
whole files by their usual names. ggml's importance matrix is the second moments of the float
model's inputs on the same rows. Where llama.cpp's mix differs with importance, its file is made
twice: as it is, and with the types of ours. All is decoded from finished files by qconvert's reader
(pure types: by pure.py, ggml's by the `gguf` package) and judged by the same reference. One JSON
line each, the figures that a person wants on standard error. `--methods` compares several, and
`--methods ''` asks for ggml alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from ggml import Ggml
from llama_quantize import by_file_name, llama_quantize, quantized_types
from moments import second_moments
from protocol import Judge, add_options, brief, calibration_rows, judge_of
from pure import FILE, Decoded, convert_pure
from weights import pure_ggml

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import Reader, Target, target_named
from qconvert.job import prepare
from qconvert.pipeline import Conversion, convert

GGML = "ggml+importance"
SAME_TYPES = "ggml+importance, types of qconvert"

Line = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    options: argparse.Namespace
    source: Checkpoint
    target: Target
    judge: Judge
    moments: Mapping[str, NDArray[np.float32]]  # empty when ggml is left out
    folder: Path  # scratch


def asked_for(options: argparse.Namespace, method: str) -> Asked:
    """`method`, calibrated on the rows that ggml's importance is of."""
    rows, length = options.calib_rows, options.calib_length
    return Asked(method=method, calib=str(options.calib), calib_rows=rows, calib_length=length)


def convert_with(setting: Setting, type: str, method: str, out: Path) -> Line:
    """qconvert's own file; what its making took."""
    begin = time.process_time()
    done = convert(
        setting.source.folder,
        setting.target.name,
        type=type,
        out=out,
        threads=setting.options.threads,
        force=True,
        asked=asked_for(setting.options, method),
    )
    return cost(begin, done)


def cost(begin: float, done: Conversion) -> Line:
    """Processor seconds since `begin`, and wall seconds."""
    return {"cpu_s": round(time.process_time() - begin, 1), "wall_s": round(done.seconds, 1)}


def pure_lines(setting: Setting, kind: str, methods: list[str]) -> Iterator[Line]:
    if setting.moments:
        begin = time.process_time()
        found = setting.judge(pure_ggml(setting.source, kind, setting.moments, Ggml()))
        cpu = round(time.process_time() - begin, 1)
        yield {"type": kind, "pure": True, "by": GGML, "cpu_s_with_judging": cpu, **found}
    out, grid = setting.folder / FILE, grid_named(kind)
    for method in methods:
        begin = time.process_time()
        asked = asked_for(setting.options, method)
        done = convert_pure(setting.source.folder, grid, out, asked, setting.options.threads)
        made = cost(begin, done)
        found = setting.judge(Decoded(out, setting.source))
        yield {"type": kind, "pure": True, "by": f"qconvert {method}", **made, **found}


def whole_lines(setting: Setting, type: str, methods: list[str]) -> Iterator[Line]:
    if setting.moments:
        yield from _ggml_files(setting, type)
    out = setting.folder / "ours.gguf"
    for method in methods:
        made = convert_with(setting, type, method, out)
        yield _judged(setting, type, f"qconvert {method}", out, made)


def _ggml_files(setting: Setting, type: str) -> Iterator[Line]:
    """llama.cpp's file with importance, and one with our types where those differ."""
    planned = _planned_types(setting, type)
    importance = by_file_name(setting.source, setting.moments)
    out, original = setting.folder / "ggml.gguf", _original(setting)
    forced: Mapping[str, str] = {}
    for by in (GGML, SAME_TYPES):
        begin = time.process_time()
        llama_quantize(
            original, out, type,
            threads=setting.options.threads, importance=importance, types=forced,
        )  # fmt: skip
        made = {"cpu_s": round(time.process_time() - begin, 1)}
        stored = quantized_types(setting.target.reader(out))
        unlike = {name: kind for name, kind in planned.items() if stored[name] != kind}
        if forced and unlike:
            raise SystemExit(f"{type}: llama.cpp did not take the types of {sorted(unlike)[:5]}")
        said = {"types_unlike_qconvert": {name: stored[name] for name in unlike}}
        yield _judged(setting, type, by, out, {**made, **said})
        if not unlike:
            return
        forced = planned  # all: an override of one shifts llama.cpp's count of the others


def _planned_types(setting: Setting, type: str) -> dict[str, str]:
    plan = prepare(setting.source.folder, setting.target.name, type=type).plan
    return {tensor.name: tensor.dtype for tensor in plan.tensors if len(tensor.shape) > 1}


def _original(setting: Setting) -> Path:
    """The unquantized GGUF that llama.cpp starts from."""
    path = setting.folder / "original.gguf"
    if not path.exists():
        half = "F16" if all(one.dtype == "F16" for one in setting.source.tensors) else "BF16"
        convert(setting.source.folder, setting.target.name, type=half, out=path,
                threads=setting.options.threads)  # fmt: skip
    return path


def _judged(setting: Setting, type: str, by: str, path: Path, made: Mapping[str, Any]) -> Line:
    reader: Reader = setting.target.reader(path)
    return {
        "type": type,
        "pure": False,
        "by": by,
        "tensor_bytes": sum(tensor.nbytes for tensor in reader.tensors.values()),
        "file_bytes": sum(file.stat().st_size for file in reader.files),
        **made,
        **setting.judge(reader.weights(setting.source)),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--pure", type=_names, default=[], help="types, by comma")
    parser.add_argument("--types", type=_names, default=[], help="mixes, by comma")
    parser.add_argument("--methods", type=_names, default=["best"], help="by comma; may be empty")
    parser.add_argument("--no-ggml", action="store_true", help="qconvert alone")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def main() -> None:
    options = _options()
    source = open_checkpoint(options.model)
    moments: Mapping[str, NDArray[np.float32]] = {}
    if not options.no_ggml:
        rows = calibration_rows(source, options.calib, options.calib_rows, options.calib_length)
        moments = second_moments(source, rows.tokens, options.threads)
    with (
        judge_of(source, options) as judge,
        tempfile.TemporaryDirectory(prefix="qconvert-calibrated-") as name,
    ):
        setting = Setting(options, source, target_named("gguf"), judge, moments, Path(name))
        for lines, types in ((pure_lines, options.pure), (whole_lines, options.types)):
            for type in types:
                for line in lines(setting, type, options.methods):
                    print(json.dumps(line), flush=True)
                    judged = {key: line[key] for key in judge.texts}
                    print(f"{type} {line['by']}: {brief(judged)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
