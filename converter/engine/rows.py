"""Hidden states of all calibration rows, in a file that is mapped: pages of it come and go."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.engine.aside import part_of, publish, unwritable

Shape = tuple[int, int, int]  # rows, length, hidden


def open_rows(path: Path, shape: Shape) -> torch.Tensor | None:
    """What `written` left, [rows, length, hidden] float32; None when it is not there, or not
    whole."""
    try:
        if path.stat().st_size != 4 * math.prod(shape):
            return None
        mapped: NDArray[np.float32] = np.memmap(path, np.float32, "c", shape=shape)
    except OSError:
        return None
    return torch.from_numpy(mapped)


@contextmanager
def written(path: Path, shape: Shape) -> Iterator[torch.Tensor]:
    """A tensor to fill, whole at `path` when the block ends well; else nothing is left."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            _reserve(file.fileno(), 4 * math.prod(shape))
        mapped = np.memmap(part, np.float32, "r+", shape=shape)
        yield torch.from_numpy(mapped)
        mapped.flush()
        publish(part, path)
    except OSError as fault:
        raise unwritable(fault, path) from fault
    finally:
        part.unlink(missing_ok=True)


def _reserve(handle: int, nbytes: int) -> None:
    """Take the space now: writing into a map of a full disk kills the process, without an error."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, nbytes)
    else:
        os.truncate(handle, nbytes)
