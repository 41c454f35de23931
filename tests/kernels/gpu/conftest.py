"""Kernels for a GPU, tested on one where there is one, else under Triton's interpreter.

`tests/conftest.py` chooses. What must be compiled (`test_compiled.py`) has a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qconvert.kernels.gpu.launch import Launch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run here: a CUDA device, or tensors of the processor for the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
MOST = ((1 << 31) - 1, 65535, 65535)
"""Programs along each axis, at most."""


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lets pass: arguments of another type than what is compiled, numbers too
    large for it, grids that CUDA refuses."""
    usual = Launch.__call__

    def checked(launch: Launch, programs: tuple[int, ...], *arguments: Any) -> None:
        for kind, given in zip(launch.signature.values(), arguments, strict=True):
            if isinstance(given, torch.Tensor):
                assert POINTERS[given.dtype] == kind
            elif kind.startswith("i"):
                assert isinstance(given, int)
                assert abs(given) < 1 << int(kind[1:]) - 1
            elif kind == "fp32":
                assert isinstance(given, float)
        assert all(some <= most for some, most in zip(programs, MOST, strict=False))
        usual(launch, programs, *arguments)

    monkeypatch.setattr(Launch, "__call__", checked)


@pytest.fixture(autouse=True)
def _memory_is_never_clean() -> Iterator[None]:
    """New tensors hold NaN or the largest number: nothing may be left unwritten, or read before."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
