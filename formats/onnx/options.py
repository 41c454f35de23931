"""Options of `--to onnx` alone."""

from __future__ import annotations

from qconvert.formats.option import Option

FORM = "onnx-form"

OPTIONS = (
    Option(
        FORM,
        "onnx",
        "How quantized weights stand in the graph. matmulnbits: the operator that ONNX Runtime and"
        " onnxruntime-genai compute with. qdq: DequantizeLinear of the ONNX standard, for other"
        " runtimes; ONNX Runtime fuses it. Default: matmulnbits.",
        choices=("matmulnbits", "qdq"),
    ),
)
