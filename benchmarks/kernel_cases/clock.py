"""Times on a device, and what the device can do at most, measured in the same run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

GIB = 1 << 30
ENOUGH = 0.25
"""Seconds that repeated runs take together, about; what takes longer alone, as loops of plain torch
do, runs once, by the wall clock."""
HIDDEN = 1e-2
"""Seconds of launching, at most, that are hidden behind the overwriting of the cache."""


@dataclass(frozen=True)
class Clock:
    """Median seconds of a run on a device, of at most `repeat`, each after the cache was filled
    with something else.

    On a GPU by events of its stream, around several runs where one is short: those of `runs` that
    follow each other are on copies of the data, more of them than the cache holds, so each reads
    from memory as the layers of a model do, and the time of an event is shared among them. The
    stream is kept busy for longer than it takes to launch them all, so that nothing waits for the
    processor: what launching costs is told apart (`launching`). Not captured into a CUDA graph,
    since a failed capture spoils the process. Elsewhere the wall clock, one run.
    """

    device: torch.device
    repeat: int = 20
    large: bool = True  # ceilings on arrays as large as a GPU needs

    @property
    def judges(self) -> bool:
        """Whether its times mean anything."""
        return self.device.type == "cuda"

    def __call__(self, *runs: Callable[[], Any]) -> float:
        if not self.judges:
            return self.once(runs[0])[1]
        host, whole = self._trial(runs)
        if whole > ENOUGH:  # neither launching nor the cache matters
            return whole / len(runs)
        before = 1 + (math.ceil(2 * host / self._filling) if host < HIDDEN else 0)
        events = [
            self._timed(runs, before) for _ in range(max(1, min(self.repeat, int(ENOUGH / whole))))
        ]
        torch.cuda.synchronize(self.device)
        return statistics.median(one.elapsed_time(end) for one, end in events) / 1e3 / len(runs)

    def launching(self, *runs: Callable[[], Any]) -> float:
        """Seconds of the processor for a run, the GPU being free."""
        return self._trial(runs)[0] / len(runs)

    def copies(self, nbytes: int) -> int:
        """How many copies of data of this size the cache does not hold."""
        return -(-self._fill.nbytes // nbytes) if self.judges else 1

    def _trial(self, runs: Sequence[Callable[[], Any]]) -> tuple[float, float]:
        """Seconds until all are launched, and until all are done; of short runs the second time,
        when memory is had and all is compiled."""
        for _ in range(2):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            for run in runs:
                run()
            host = time.perf_counter() - start
            torch.cuda.synchronize(self.device)
            whole = time.perf_counter() - start
            if whole > ENOUGH:
                break
        return host, whole

    def _timed(self, runs: Sequence[Callable[[], Any]], before: int) -> tuple[Any, Any]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(before):
            self._fill.sum()
        begin.record()
        for run in runs:
            run()
        end.record()
        return begin, end

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
    def _fill(self) -> torch.Tensor:
        """Read to fill the cache: written, it would have to be written back while others run."""
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return torch.zeros(cache, dtype=torch.float32, device=self.device)

    @cached_property
    def _filling(self) -> float:
        """Seconds that it takes."""
        begin, end = self._timed([self._fill.sum] * 8, 2)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 8e3
