"""Logits of one model kept on disk while another model takes its place in memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse


class Spool:
    """`count` arrays [length, vocab] in a temporary file that is gone when the spool is closed."""

    def __init__(self, count: int, length: int, vocab: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qconvert-logits-")
        need, free = count * length * vocab * 4, shutil.disk_usage(self._folder.name).free
        if need > free:
            self._folder.cleanup()
            raise refuse(
                f"the source's logits take {need:,} bytes of {tempfile.gettempdir()}, which has"
                f" {free:,}",
                "measure fewer windows (--windows), or set TMPDIR to a larger disk",
            )
        path = Path(self._folder.name) / "logits.f32"
        self._array = np.memmap(path, np.float32, "w+", shape=(count, length, vocab))

    def put(self, number: int, logits: NDArray[np.float32]) -> None:
        self._array[number] = logits

    def get(self, number: int) -> NDArray[np.float32]:
        return np.asarray(self._array[number])

    def close(self) -> None:
        del self._array
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
