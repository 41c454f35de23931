"""Files that appear whole or not at all, and one process at a time in a folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qconvert.formats.refusal import Refused, refuse

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def part_of(path: Path) -> Path:
    """Where this process writes `path` until it is whole; swept away when its process died."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, on the disk before it has the name.

    `Refused` where the system cannot write it; then, as on any failure, nothing is left of it and
    an older `path` stays as it was.
    """
    part = part_of(path)
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(part, path)
    except OSError as fault:
        raise unwritable(fault, path) from fault
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def publish(part: Path, path: Path) -> None:
    """Rename a file that is whole, and make the rename last."""
    part.replace(path)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep(path: Path, content: bytes) -> None:
    """Make `path` hold `content`; writes nothing when it does already."""
    try:
        if path.read_bytes() == content:
            return
    except OSError:
        pass
    with aside(path) as file:
        file.write(content)


def sweep(folder: Path) -> None:
    """Remove what dead processes left half-written. Call it only while holding the lock."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def unwritable(fault: OSError, path: Path) -> Refused:
    """An error of the system while writing into a work folder."""
    if fault.errno in FULL:
        return refuse(
            f"the disk is full: {path} could not be written ({fault.strerror}); "
            "everything finished before it is kept",
            "free some space, then give the same command again: it goes on from there",
        )
    return refuse(
        f"{path} could not be written: {fault.strerror or fault}",
        "everything finished before it is kept: give the same command again when it can be written",
    )


class Lock:
    """Held by the one process that works in a folder; the system lets go of it when that dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock, or `Refused` with the process that has it."""
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as fault:
            raise unwritable(fault, path) from fault
        try:
            _lock(self._file.fileno())
        except OSError as fault:
            self._file.seek(0)
            holder = self._file.read(32).decode("ascii", "replace").strip()
            self._file.close()
            raise _taken(fault, path, holder) from None
        self._file.truncate(0)
        with suppress(OSError):  # a full disk: the lock holds, only its label is missing
            self._file.write(f"{os.getpid()}\n".encode("ascii"))

    def release(self) -> None:
        """Let go. Does nothing the second time."""
        self._file.close()


def _taken(fault: OSError, path: Path, holder: str) -> Refused:
    if fault.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
        return refuse(
            f"{path} cannot be locked: {fault.strerror}", "name a work folder on a local disk"
        )
    return refuse(
        f"process {holder or '(unknown)'} is at work in {path.parent}",
        "wait for it or end it, or name another folder with --work",
    )


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the label, which others may read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
