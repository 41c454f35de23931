"""onnxruntime-genai's own builder, with its defaults for 4 bits on a CPU, or in float.

    python benchmarks/peer_onnx_builder.py MODEL OUT int4|fp32 CACHE

Run by an interpreter that has onnxruntime-genai, onnx-ir, torch and transformers. The builder reads
the weights in float and rounds them by itself, head and embedding included.
"""

from __future__ import annotations

import sys


def main() -> None:
    model, out, precision, cache = sys.argv[1:]
    from onnxruntime_genai.models.builder import create_model, parse_extra_options  # type: ignore

    prepared = parse_extra_options(None, model, out, precision, "cpu", cache, [])
    create_model(None, model, out, precision, "cpu", cache, **prepared)


if __name__ == "__main__":
    main()
