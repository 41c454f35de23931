"""Where a launch runs, and when it does not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from qconvert.kernels.gpu.launch import Launch

SIGNATURE = {"x": "*fp32", "out": "*fp32", "n": "i32"}


class Kernel:
    """What it was launched with, and on which device."""

    def __init__(self) -> None:
        self.current = 0
        self.launched: list[tuple[int, Any, dict[str, Any]]] = []

    def __getitem__(self, programs: tuple[int, ...]) -> Any:
        return lambda **given: self.launched.append((self.current, programs, given))


class On:
    """A tensor of a GPU, as far as a launch looks."""

    def __init__(self, device: int) -> None:
        self.device = device

    def get_device(self) -> int:
        return self.device


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()

    @contextmanager
    def device(index: int) -> Any:
        before, kernel.current = kernel.current, index
        yield
        kernel.current = before

    monkeypatch.setattr(torch.cuda, "device", device)
    return kernel


def test_the_device_of_the_tensors_is_current(kernel: Kernel) -> None:
    Launch(kernel, SIGNATURE, {"BLOCK": 8}, warps=2)((3,), On(1), On(1), 4)
    ((current, programs, given),) = kernel.launched
    assert (current, programs, kernel.current) == (1, (3,), 0)
    assert given["n"] == 4
    assert (given["BLOCK"], given["num_warps"], given["enable_fp_fusion"]) == (8, 2, False)


def test_tensors_of_the_processor_go_to_the_interpreter(kernel: Kernel) -> None:
    Launch(kernel, SIGNATURE, {})((1,), torch.zeros(1), torch.zeros(1), 1)
    assert len(kernel.launched) == 1


@pytest.mark.parametrize("other", [On(0), torch.zeros(1)])
def test_tensors_of_two_devices_are_refused(kernel: Kernel, other: Any) -> None:
    with pytest.raises(ValueError, match="devices"):
        Launch(kernel, SIGNATURE, {})((1,), On(1), other, 1)
    assert kernel.launched == []


@pytest.mark.parametrize("programs", [(0,), (4, 0), (0, 4)])
def test_no_programs_are_no_launch(kernel: Kernel, programs: tuple[int, ...]) -> None:
    Launch(kernel, SIGNATURE, {})(programs, On(0), On(0), 0)
    assert kernel.launched == []
