"""The rules of TensorRT-LLM's loader, as `formats.trtllm.rules` restates them: a loader that is
always at hand, and that is not NVIDIA's. A folder that keeps them was not loaded by TensorRT-LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.source import Source
from qconvert.formats.trtllm.rules import broken_rules
from qconvert.formats.trtllm.told import AGAIN, CONFIG, told
from qconvert.runtimes.loader import Loaded

SHOWN = 8


@dataclass(frozen=True, slots=True)
class Rules:
    """The loader `trtllm-rules`."""

    name: str = "trtllm-rules"
    label: str = "it keeps the rules of TensorRT-LLM's loader, as qconvert restates them"
    targets: tuple[str, ...] = ("trtllm",)
    install: str = ""

    def unavailable(self) -> str | None:
        return None

    def passes_over(self, path: Path) -> str:
        quantized = told(path, read_json_object(path / CONFIG, AGAIN)) is not None
        return "" if quantized else "it is about quantized folders"

    def load(self, path: Path, source: Source) -> Loaded:
        """`Refused` where a file cannot be read."""
        lines = [str(one.reason()) for one in broken_rules(path)]
        more = [f"{len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return Loaded(tuple([*lines[:SHOWN], *more]))


LOADER = Rules()
