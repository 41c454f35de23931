"""Options of `--to trtllm` alone."""

from __future__ import annotations

from qconvert.formats.option import Option

COMPATIBLE = "trtllm-compatible"

OPTIONS = (
    Option(
        COMPATIBLE,
        "trtllm",
        "Round as NVIDIA ModelOpt 0.47 does, by the largest magnitudes: the same bytes of weights"
        " and scales as it writes, for comparison. Less accurate than any method here.",
    ),
)
