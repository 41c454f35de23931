"""A Triton kernel with all that is fixed when it is compiled: what is launched is what is proved.

Files named `*_kernels.py` hold kernels and nothing else: no torch, no environment. Beside each, the
module of the operation makes `Launch`es; its `VARIANTS` name some of them, and the tests compile
those ahead of time for every architecture, without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a compiled kernel may take at most, on any architecture that it is compiled for."""

    registers: int = 255  # of a thread
    shared: int = 99 * 1024  # bytes of a program; sm_80 has 163 KiB, sm_90 227 KiB
    spills: int = 0  # bytes of a thread that leave the registers


@dataclass(frozen=True, slots=True)
class Launch:
    """`signature`: Triton's type of each argument ("*fp32", "i32"); `constants`: the rest of them,
    known at compile time. `fused`: products and sums may round once; never where bits must equal
    those of another body."""

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    fused: bool = False
    instruction: str | None = None  # that the PTX must contain: "mma.sync", or "wgmma" from sm_90
    bounds: Bounds = field(default_factory=Bounds)

    def __call__(self, programs: tuple[int, ...], *arguments: Any) -> None:
        """Run on the arguments in the order of `signature`."""
        named = dict(zip(self.signature, arguments, strict=True))
        self.kernel[programs](
            **named,
            **self.constants,
            num_warps=self.warps,
            num_stages=self.stages,
            enable_fp_fusion=self.fused,
        )
