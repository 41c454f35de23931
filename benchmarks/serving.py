"""Every form that vLLM can compute with here: written, then checked in the real vLLM.

    python benchmarks/serving.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \
        --text wikitext-2/test.txt [--forms w4a16-g128/gptq,fp8/modelopt]

Runs `qconvert MODEL --to vllm --type TYPE --container CONTAINER` and `qconvert check` as a user
would, and prints one JSON line each: from the source to the file as decoded, from there to vLLM,
what the rounding of activations explains of that, and what is left beyond it. A type is calibrated
once: its other containers are written from the kept work folder, so they hold the same codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from command import Line, parser_of, print_lines, qconvert

FORMS = (
    "w4a16-g128/compressed-tensors",
    "w4a16-g128/gptq",
    "w4a16-g128/awq",
    "w4a16-g128-asym/compressed-tensors",
    "w4a16-g128-asym/awq",
    "w8a8/compressed-tensors",
    "w8a8-static/compressed-tensors",
    "fp8/compressed-tensors",
    "fp8/modelopt",
    "w4a16-g128/compressed-tensors/fp8",
)
"""Type / container; a third part names the KV cache's type."""


def lines(options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    works: dict[str, Path] = {}
    for form in options.forms:
        kind, container, *kv = form.split("/")
        out = folder / form.replace("/", "-")
        method: list[object] = []
        origin = works.get(kind, options.model)
        if kind not in works:
            works[kind] = folder / f"{kind}.work"
            method = [
                *([] if options.method is None else ["--method", options.method]),
                "--calib", options.calib,
                "--calib-rows", options.calib_rows, "--calib-length", options.calib_length,
                "--work", works[kind], "--keep-work",
            ]  # fmt: skip
        cache = ["--kv", kv[0]] if kv else []
        made = qconvert(
            origin, "--to", "vllm", "--type", kind, "--container", container, *cache,
            "--out", out, "--threads", options.threads, *method,
        )  # fmt: skip
        text = [] if options.text is None else ["--text", options.text]
        found = qconvert(
            "check", out, "--against", options.model, "--windows", options.windows,
            "--length", options.length, "--threads", options.threads, *text, fails=True,
        )  # fmt: skip
        steps = (made["calibrated"] or {}).get("steps")  # None: from the kept work folder
        yield {"form": form, "steps": steps, **summary(made, found)}


def summary(made: Line, found: Line) -> Line:
    """What the table in docs/serving.md shows, and all the rest of the check."""
    tensors = found.pop("tensors", [])
    return {
        "bytes": found["file"]["nbytes"],
        "bits_per_weight": found["file"]["bits_per_weight"],
        "convert_s": made["seconds"],
        "worst_tensor": max((one["error"] for one in tensors), default=None),
        "check": found,
    }


def brief(line: Line) -> str:
    check = line["check"]
    parts = [
        f"{line['form']}: {check['verdict']}",
        f"file KL {check['quantization']['kl_mean']:.4f}",
    ]
    if check["runtime_adds"]:
        parts.append(f"vLLM adds {check['runtime_adds']['kl_mean']:.2g}")
        parts.append(f"total {check['total']['kl_mean']:.4f}")
    if check["noise"]:
        noise = check["noise"]
        parts.append(f"expected {noise['expected']['kl_mean']:.2g}")
        parts.append(f"beyond {noise['beyond']['kl_mean']:.2g}")
    return ", ".join(parts)


def main() -> None:
    parser = parser_of(__doc__, threads=1)
    parser.add_argument("--forms", default=",".join(FORMS), type=lambda text: text.split(","))
    print_lines(parser.parse_args(), lines, brief)


if __name__ == "__main__":
    main()
