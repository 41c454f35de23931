"""Times on a device, and what the device can do at most, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

WARM = 3
GIB = 1 << 30


@dataclass(frozen=True)
class Clock:
    """Median seconds of `repeat` runs, each after the cache was overwritten.

    On a GPU by events of its stream: what the processor does beforehand costs nothing while the
    cache is being overwritten. Elsewhere the wall clock, one run.
    """

    device: torch.device
    repeat: int = 20
    large: bool = True  # ceilings on arrays as large as a GPU needs

    @property
    def judges(self) -> bool:
        """Whether its times mean anything."""
        return self.device.type == "cuda"

    def __call__(self, run: Callable[[], Any]) -> float:
        if not self.judges:
            return self.once(run)[1]
        for _ in range(WARM):
            run()
        found = []
        for _ in range(self.repeat):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(found)

    def once(self, run: Callable[[], Any]) -> tuple[Any, float]:
        """What the first run gives, with all that is compiled for it, and its seconds."""
        start = time.perf_counter()
        found = run()
        return found, time.perf_counter() - start

    @cached_property
    def copy(self) -> float:
        """Bytes a second, read and written, of torch's copy of a large array."""
        source = torch.zeros(GIB if self.large else 1 << 16, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self(lambda: target.copy_(source))

    @cached_property
    def matmul(self) -> float:
        """Products and sums a second of torch's product of large bfloat16 matrices."""
        size = 8192 if self.large else 64
        left, right = (
            torch.randn((size, size), device=self.device).bfloat16() for _ in range(2)
        )  # not constants: those draw less power and run faster
        return float(2 * size**3 / self(lambda: left @ right))

    @cached_property
    def _flush(self) -> torch.Tensor:
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return torch.empty(4 * cache, dtype=torch.uint8, device=self.device)
