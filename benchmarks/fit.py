"""How fast each type is fitted and packed, beside ggml's own quantizer in the same run.

    python benchmarks/fit.py [--rows 4096] [--cols 1024] [--types Q4_K,Q4_0] [--model FOLDER]

One JSON line per type and importance: MB/s of bf16 input (two bytes a weight) per core with one and
with two threads, the same for `ggml_quantize_chunk` on the same matrix, the ratios, and the error
that is left relative to ggml's given the same importance. Both start from float32 and end with
packed bytes. Times are processor seconds, the best of `--repeat` runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.grids import GRIDS, GGUFGrid

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from ggml import Ggml


def _matrix(model: Path | None, rows: int, cols: int) -> np.ndarray:
    """Real weights when a model folder is named, else heavy-tailed random ones."""
    if model is None:
        rng = np.random.default_rng(0)
        return (rng.standard_t(5, (rows, cols)) * 0.02).astype(np.float32)
    source = open_checkpoint(model)
    tensor = next(t for t in source.tensors if t.role == "ffn_gate" and t.block == 3)
    return np.ascontiguousarray(source.rows(tensor, 0, tensor.shape[0]))


def _seconds(run: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Least processor and wall seconds of `repeat` runs."""
    cpu, wall = [], []
    for _ in range(repeat):
        start = time.process_time(), time.perf_counter()
        run()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return min(cpu), min(wall)


def _measure(
    ggml: Ggml, grid: GGUFGrid, w: np.ndarray, weight: np.ndarray | None, repeat: int
) -> dict[str, object]:
    def ours(threads: int) -> np.ndarray:
        return grid.pack(grid.quantize(w, weight, threads=threads))

    packed, theirs = ours(1), ggml.quantize(grid.name, w, weight, 1)
    importance = np.ones(w.shape[1], np.float32) if weight is None else weight
    kind = gguf.GGMLQuantizationType[grid.name]
    errors = [
        float((importance * (w - gguf.quants.dequantize(data, kind)) ** 2).sum())
        for data in (packed, theirs)
    ]
    megabytes = 2e-6 * w.size
    row: dict[str, object] = {"type": grid.name, "importance": weight is not None}
    for threads in (1, 2):
        our_cpu, our_wall = _seconds(lambda n=threads: ours(n), repeat)
        cpu, wall = _seconds(lambda n=threads: ggml.quantize(grid.name, w, weight, n), repeat)
        row[f"threads_{threads}"] = {
            "MB_per_cpu_s": round(megabytes / our_cpu, 1),
            "ggml_MB_per_cpu_s": round(megabytes / cpu, 1),
            "speed_ratio_cpu": round(cpu / our_cpu, 2),
            "speed_ratio_wall": round(wall / our_wall, 2),
        }
    return {**row, "error_ratio": round(errors[0] / errors[1], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="take block 3's gate projection of this folder")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--types", default=",".join(GRIDS))
    options = parser.parse_args()
    ggml = Ggml()
    w = _matrix(options.model, options.rows, options.cols)
    weight = np.exp(np.random.default_rng(1).standard_normal(w.shape[1])).astype(np.float32)
    about = {
        "benchmark": "fit", "rows": w.shape[0], "cols": w.shape[1], "ggml": ggml.package,
        "numba": importlib.metadata.version("numba"), "machine": platform.machine(),
    }  # fmt: skip
    for name in options.types.split(","):
        for importance in (None, weight):
            row = _measure(ggml, GRIDS[name], w, importance, options.repeat)
            print(json.dumps({**about, **row}), flush=True)


if __name__ == "__main__":
    main()
