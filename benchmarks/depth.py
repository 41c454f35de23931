"""Peak memory of a calibrated conversion as the model gets deeper, and of one larger than memory.

    python -P benchmarks/depth.py                   # 8, 16, 32 and 64 blocks of 8.4 MB
    python -P benchmarks/depth.py --blocks 8 64 --hidden 1024 --ffn 4096 --method gptq
    python -P benchmarks/depth.py --blocks 64 --hidden 2048 --ffn 8192 --times 4

Writes synthetic Llama checkpoints (bfloat16, blocks of one shape, a temporary folder, one at a
time), converts each in a process of its own and prints one JSON line per depth: the peak resident
memory that the system has counted for it (VmHWM; mapped pages of the calibration rows are in it),
its share of the checkpoint, and what the process took before it read a weight (interpreter,
libraries). Exits with 1 when the deepest needs SLACK more than the shallowest. `--times` T: also
when the last checkpoint is not T times larger than the peak. `--limit-mb` M: the process may map no
more than M MB of data (RLIMIT_DATA, which, unlike RLIMIT_AS, leaves libraries out).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from memory import write_checkpoint

SLACK = 1.05
CHILD = """
import json, sys
import torch, transformers
from qconvert.asked import Asked
from qconvert.kernels import cpu
from qconvert.pipeline import convert
from qconvert.resources import peak_resident_bytes
model, out, given = sys.argv[1:]
given = json.loads(given)
before = peak_resident_bytes()
done = convert(model, type=given.pop("type"), threads=given.pop("threads"), out=out,
               asked=Asked(**given))
blocks = done.calibrated.blocks
print(json.dumps({"output_bytes": done.nbytes, "seconds": round(done.seconds, 1),
                  "block_s": round(sum(one.seconds for one in blocks) / len(blocks), 2),
                  "before_bytes": before, "first_block_bytes": blocks[0].peak_bytes,
                  "peak_bytes": peak_resident_bytes()}))
"""


def main() -> int:
    options = _options()
    found = [facts(blocks, options) for blocks in options.blocks]
    grown = found[-1]["peak_bytes"] / found[0]["peak_bytes"]
    times = found[-1]["source_bytes"] / found[-1]["peak_bytes"]
    print(
        json.dumps(
            {"deepest_over_shallowest": round(grown, 3), "source_over_peak": round(times, 2)}
        )
    )
    return int(grown > SLACK or times < options.times)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of a calibrated conversion.")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=2048)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--method", default="best")
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--calib-rows", type=int, default=8)
    parser.add_argument("--calib-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=float, default=0)
    parser.add_argument("--limit-mb", type=int)
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are written")
    return parser.parse_args()


def facts(blocks: int, options: argparse.Namespace) -> dict[str, Any]:
    """Write a checkpoint, convert it, and print what that took."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model = Path(scratch) / "model"
        block_bytes = write_checkpoint(model, blocks, options.hidden, options.ffn)
        found = {
            "blocks": blocks,
            "block_bytes": block_bytes,
            "source_bytes": (model / "model.safetensors").stat().st_size,
            "method": options.method,
            "effort": options.effort,
            "rows": [options.calib_rows, options.calib_length],
            **converted(model, options),
        }
    found["source_over_peak"] = round(found["source_bytes"] / found["peak_bytes"], 2)
    print(json.dumps(found), flush=True)
    return found


def converted(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Convert in a fresh process; what it measured of itself."""
    names = ("type", "threads", "method", "effort", "calib_rows", "calib_length")
    given = json.dumps({name: getattr(options, name) for name in names})
    command = [sys.executable, "-P", "-c", CHILD]
    command += [str(model), str(model.parent / "out.gguf"), given]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=model.parent,
        preexec_fn=None if options.limit_mb is None else lambda: _limit(options.limit_mb),
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def _limit(megabytes: int) -> None:
    nbytes = megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


if __name__ == "__main__":
    sys.exit(main())
