"""Hidden states of all calibration rows, in a file that is mapped: pages of it come and go.

The file ends with a seal: the job that it is of, and the sha256 of the states. One that does not
fit is as good as none, and is made again.
"""

from __future__ import annotations

import hashlib
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
_SEAL = 128  # two digests in hexadecimal
_AT_ONCE = 1 << 24


def kept_rows(path: Path, shape: Shape, job: str) -> torch.Tensor | None:
    """What `written` left for the same job, [rows, length, hidden] float32; None when it is not
    there, of another job, or not what was written."""
    size = 4 * math.prod(shape)
    try:
        if path.stat().st_size != size + _SEAL or _stored(path, size) != _sealed(path, size, job):
            return None
        return mapped_rows(path, shape)
    except OSError:
        return None


def mapped_rows(path: Path, shape: Shape) -> torch.Tensor:
    """The states in a file that is known to be whole."""
    mapped: NDArray[np.float32] = np.memmap(path, np.float32, "c", shape=shape)
    return torch.from_numpy(mapped)


@contextmanager
def written(path: Path, shape: Shape, job: str) -> Iterator[torch.Tensor]:
    """A tensor to fill, whole at `path` when the block ends well; else nothing is left. `job`
    stands for what the states depend on."""
    part, size = part_of(path), 4 * math.prod(shape)
    try:
        with part.open("wb") as file:
            _reserve(file.fileno(), size + _SEAL)
        mapped = np.memmap(part, np.float32, "r+", shape=shape)
        yield torch.from_numpy(mapped)
        mapped.flush()
        with part.open("r+b") as file:
            file.seek(size)
            file.write(_sealed(part, size, job))
            file.flush()
            os.fsync(file.fileno())
        publish(part, path)
    except OSError as fault:
        raise unwritable(fault, path) from fault
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path, shape: Shape) -> Iterator[torch.Tensor]:
    """A tensor to fill, in a file beside `path` that is gone when the block ends."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            _reserve(file.fileno(), 4 * math.prod(shape))
        yield torch.from_numpy(np.memmap(part, np.float32, "r+", shape=shape))
    except OSError as fault:
        raise unwritable(fault, path) from fault
    finally:
        part.unlink(missing_ok=True)


def _stored(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(size)
        return file.read(_SEAL)


def _sealed(path: Path, size: int, job: str) -> bytes:
    """The seal that belongs behind the first `size` bytes."""
    found, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(left, _AT_ONCE))
            found.update(piece)
            left -= len(piece) or left
    return f"{job}{found.hexdigest()}".encode("ascii")


def _reserve(handle: int, nbytes: int) -> None:
    """Take the space now: writing into a map of a full disk kills the process, without an error."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, nbytes)
    else:
        os.truncate(handle, nbytes)
