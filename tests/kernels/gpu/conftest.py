"""Kernels for a GPU, tested on one where there is one, else under Triton's interpreter.

The variable is read when a kernel is defined, so it is set before any of ours is imported. What
must be compiled (`test_compiled.py`) runs in a process of its own without it.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run here: a CUDA device, or tensors of the processor for the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
