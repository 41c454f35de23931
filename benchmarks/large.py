"""A model of more than 2 GB of weights, written and loaded: offsets beyond what 32 bits hold.

    python benchmarks/large.py [--to onnx] [--type float32] [--blocks 10] [--hidden 2048]

Writes a synthetic Llama checkpoint (random bfloat16, 0.5 billion weights unless told otherwise),
converts it without data, and checks the output in its runtime on one short window. Prints a JSON
line: bytes, peak memory of the conversion, and what the runtime adds to the decoded output. Exits
with 1 when the check fails, or the output has no more than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from command import qconvert
from memory import write_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", default="onnx")
    parser.add_argument("--type", default="float32")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--ffn", type=int, default=6144)
    parser.add_argument("--length", type=int, default=64, help="tokens to check on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where everything is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model, out = Path(scratch) / "model", Path(scratch) / "output"
        block_bytes = write_checkpoint(model, options.blocks, options.hidden, options.ffn)
        made = qconvert(
            model, "--to", options.to, "--type", options.type, "--method", "rtn", "--out", out,
            "--threads", options.threads,
        )  # fmt: skip
        check = qconvert(
            "check", out, "--against", model, "--windows", 1, "--length", options.length,
            "--threads", options.threads, "--no-floor", fails=True,
        )  # fmt: skip
        source = (model / "model.safetensors").stat().st_size
    line = {
        "to": options.to, "type": options.type, "source_bytes": source,
        "output_bytes": made["bytes"], "block_bytes": block_bytes,
        "peak_bytes": made["peak_memory_bytes"], "convert_s": made["seconds"],
        "verdict": check["verdict"], "reasons": check["reasons"],
        "file_kl": check["quantization"]["kl_mean"],
        "runtime_adds_kl": (check["runtime_adds"] or {}).get("kl_mean"),
        "runtime": check["runtime"]["version"],
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    return int(check["verdict"] != "PASS" or made["bytes"] <= 2 << 30)


if __name__ == "__main__":
    sys.exit(main())
