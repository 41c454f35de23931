"""How a matrix is cut for algorithms that go over its columns: panels of columns, parts of rows.

Both depend on shapes, grid and device alone, never on the number of threads: so does every result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qconvert.algorithms.slots import Task
from qconvert.formats.tensor import QuantizedTensor

PANEL = 256
"""Columns that are processed together, at least: a multiple of every super-block."""
WIDEST = 1024
"""A group wider than this has its parameters fitted once, before its columns are processed."""
ROWS = {"cpu": 128}
"""Rows that one thread takes, by the type of the device; a GPU takes many at once."""
MOST_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Panels:
    columns: tuple[slice, ...]
    rows: tuple[slice, ...]
    whole_rows: bool  # groups are too wide for a panel
    threads: int

    @classmethod
    def of(cls, task: Task) -> Panels:
        """Panels of whole blocks of the grid; of PANEL columns where a row is one group."""
        rows, cols = task.w.shape
        block = task.grid.block
        whole_rows = not 0 < block <= WIDEST
        width = PANEL if whole_rows or PANEL % block == 0 else block * max(1, PANEL // block)
        kind = task.w.device.type
        part, threads = ROWS.get(kind, MOST_ROWS), task.setting.threads if kind in ROWS else 1
        return cls(_cut(cols, width), _cut(rows, part), whole_rows, threads)

    def map(self, work: Callable[[slice], Any]) -> list[Any]:
        """`work` on every part of the rows, in order; each part is one thread's."""
        with ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(work, self.rows))


def _cut(count: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + step, count)) for start in range(0, count, step))


def joined(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """One tensor of parts that follow each other along rows."""
    names = parts[0].params
    params = {name: np.concatenate([one.params[name] for one in parts]) for name in names}
    return QuantizedTensor(parts[0].grid, np.concatenate([one.codes for one in parts]), params)
