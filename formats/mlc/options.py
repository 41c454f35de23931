"""Options of `--to mlc` alone."""

from __future__ import annotations

from qconvert.formats.option import Option

COMPATIBLE = "mlc-compatible"

OPTIONS = (
    Option(
        COMPATIBLE,
        "mlc",
        "Round as `mlc_llm convert_weight` does, by the largest magnitude of each group: the same"
        " bytes as it writes, for comparison. Less accurate than any method here.",
    ),
)
