"""Calibration rows through one block at a time, and what its linears read on the way.

Work is cut into pieces of a size that depends on the model alone, each piece is computed by one
thread, and sums are taken in the order of the pieces: so the bits do not depend on the number of
threads. Arithmetic is float32 on every device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qconvert.engine.block import Block
from qconvert.engine.skeleton import Call, Skeleton

WAVE_BYTES = 1 << 28
"""Captured inputs that are held at once."""



class Workers:
    """Threads that each compute with one thread of their own. On a CUDA device there is one."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.count = threads if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Results in the order of `items`."""
        return list(self._pool.map(work, items))

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def workers(threads: int, device: torch.device) -> Iterator[Workers]:
    """A pool; outside of it, too, torch computes with one thread until it is closed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    pool = Workers(threads, device)
    try:
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = tf32


@dataclass(frozen=True, slots=True)
class Stream:
    """Runs blocks of one skeleton."""

    skeleton: Skeleton
    calls: Sequence[Call]  # how each block is called, for one row
    pool: Workers

    def forward(self, block: Block, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Fill `out` with the hidden states [rows, length, hidden] behind `block`."""
        with self.skeleton.loaded(block) as module:

            def work(index: int) -> None:
                out[index] = self._call(module, block, rows[index : index + 1])[0]

            self.pool.map(work, range(len(rows)))

    def captured(
        self, block: Block, rows: torch.Tensor, names: Sequence[str]
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """The inputs `names` of `block`, each [tokens, cols], of wave after wave of rows."""
        step = wave_rows(block, rows.shape[1])
        with self.skeleton.loaded(block) as module, self._taps(module, block, names) as local:

            def work(row: torch.Tensor) -> dict[str, torch.Tensor]:
                local.seen = {}
                self._call(module, block, row)
                return dict(local.seen)

            for wave in rows.split(step):
                found = self.pool.map(work, wave.split(1))
                yield {name: torch.cat([seen[name] for seen in found]) for name in names}

    @contextmanager
    def _taps(
        self, module: torch.nn.Module, block: Block, names: Sequence[str]
    ) -> Iterator[threading.local]:
        """While it is open, each thread that runs `module` finds its inputs in `.seen`."""
        local = threading.local()

        def tap(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
            def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
                local.seen[name] = args[0].flatten(0, 1)

            return hook

        hooks = [
            self.skeleton.reader(module, block, name).register_forward_pre_hook(tap(name))
            for name in names
        ]
        try:
            yield local
        finally:
            for one in hooks:
                one.remove()

    def _call(self, module: torch.nn.Module, block: Block, row: torch.Tensor) -> torch.Tensor:
        call = self.calls[block.index]
        with torch.inference_mode():
            out = module(row.to(self.skeleton.device), *call.args, **call.kwargs)
        found: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return found


def wave_rows(block: Block, length: int) -> int:
    """Rows that are captured at once, from sizes alone."""
    return max(1, WAVE_BYTES // (4 * length * sum(block.inputs.values())))
