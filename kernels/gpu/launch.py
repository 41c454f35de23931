"""A Triton kernel with all that is fixed when it is compiled: what is launched is what is proved.

Files named `*_kernels.py` hold kernels and nothing else: no torch, no environment. Beside each, the
module of the operation makes `Launch`es; its `VARIANTS` name some of them, and the tests compile
those ahead of time for every architecture, without a GPU.

Triton compiles anew for a number that is 1, or a multiple of 16, or neither. Numbers of tokens and
of blocks are exempt (`do_not_specialize`): they only end loops and masks, and any of them is to run
the code that was proved.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

POINTERS = {
    "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "uint8": "*u8",
}  # fmt: skip


def pointer_to(kind: Any) -> str:
    """Triton's type of a tensor of this torch.dtype. `ValueError` for one that no kernel takes."""
    name = str(kind).removeprefix("torch.")
    if name not in POINTERS:
        raise ValueError(f"no kernel takes {name}: one of {', '.join(POINTERS)} is wanted")
    return POINTERS[name]


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
        """Run on the arguments in the order of `signature`, on the device of its tensors, whichever
        is current. Nothing happens where there are no programs. `ValueError` for tensors of several
        devices: their memory cannot be reached, and CUDA gives up the whole process for it."""
        named = dict(zip(self.signature, arguments, strict=True))
        devices = {one.get_device() for one in arguments if hasattr(one, "get_device")}
        if len(devices) > 1:
            raise ValueError(f"tensors of one launch on devices {sorted(devices)} (-1: no GPU)")
        if not all(programs):
            return
        with _current(devices.pop()):
            self.kernel[programs](
                **named,
                **self.constants,
                num_warps=self.warps,
                num_stages=self.stages,
                enable_fp_fusion=self.fused,
            )


def _current(device: int) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors are on. -1: the interpreter."""
    if device < 0:
        return nullcontext()
    import torch

    return torch.cuda.device(device)
