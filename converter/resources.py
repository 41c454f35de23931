"""What this machine gives a conversion: cores, memory, disk."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from qconvert.formats.refusal import Reason


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_resident_bytes() -> int:
    """The largest resident size so far of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's size before exec too
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The resident size of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Bytes that may still be taken: of the machine, and of the control groups of this process."""
    import psutil

    return min([int(psutil.virtual_memory().available), *group_rooms()])


def group_rooms(
    listing: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What is left in each control group of this process that has a limit (Linux), version 1 or 2.

    Pages that the kernel drops when memory is short do not count as used.
    """
    try:
        lines = [line.split(":", 2) for line in listing.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, place in lines:
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        folder = base / place.strip("/")
        for one in (folder, *folder.parents):
            room = _group_room(one)
            if room is not None:
                found.append(room)
            if one == base:
                break
    return found


def _group_room(folder: Path) -> int | None:
    """Of one control group; None without a limit. "max", and near 2^63 in version 1, is none."""
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text().strip()
            if most.isdigit() and int(most) < 1 << 60:
                stat = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                taken = int((folder / used).read_text()) - int(stat.get(dropped, 0))
                return max(0, int(most) - taken)
        except OSError:
            continue
    return None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 when it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def free_bytes(folder: Path) -> int | None:
    """Free space where `folder` lies, or None when the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def output_problems(files: tuple[Path, ...], nbytes: int, *, force: bool) -> list[Reason]:
    """Why `nbytes` could not be written to `files`, which lie in one folder; writes nothing."""
    folder = files[0].absolute().parent
    if not folder.is_dir():
        return _no_folder(folder)
    problems = [
        Reason(f"{file} is a folder", "name a file with --out") for file in files if file.is_dir()
    ]
    if not force:
        problems += [
            Reason(f"{file} exists", "replace it with --force, or name another with --out")
            for file in files
            if file.is_file()
        ]
    return [*problems, *place_problems(folder, nbytes)]


def folder_problems(
    path: Path, nbytes: int, inputs: tuple[Path, ...], *, replaces: bool, forced: bool
) -> list[Reason]:
    """Why `nbytes` could not be written to the folder `path`, to replace what is there where
    `replaces`; `forced`: that was asked for. Writes nothing."""
    above = path.absolute().parent
    if not above.is_dir():
        return _no_folder(above)
    here = path.resolve()
    if any(here == one.resolve().parent or here in one.resolve().parents for one in inputs):
        return [Reason(f"{path} holds the model itself", "name another folder with --out")]
    problems = []
    if path.exists() and not path.is_dir():
        problems.append(Reason(f"{path} is a file", "name a folder with --out"))
    elif path.is_dir() and any(path.iterdir()) and not replaces:
        problems.append(
            Reason(f"{path} holds files that are not such an output: it is not replaced",
                   "name another folder with --out")
            if forced
            else Reason(f"{path} is a folder with files in it",
                        "replace it with --force, or name another with --out")
        )  # fmt: skip
    elif replaces:
        inner = [one.name for one in sorted(path.iterdir()) if one.is_dir()]
        problems += [
            Reason(f"{path} holds the folder {name}, which would be lost", "name another folder")
            for name in inner[:1]
        ]
    return [*problems, *place_problems(above, nbytes)]


def _no_folder(folder: Path) -> list[Reason]:
    return [Reason(f"no such folder to write to: {folder}", f"create it: mkdir -p {folder}")]


def place_problems(folder: Path, nbytes: int) -> list[Reason]:
    """Why `nbytes` could not be written below `folder`, which exists."""
    problems = []
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        problems.append(
            Reason(f"cannot write to {folder}: {fault.strerror}", "name another place with --out")
        )
    free = free_bytes(folder)
    if free is not None and free < nbytes:
        problems.append(
            Reason(
                f"not enough disk space in {folder}: {free / 1e6:,.0f} MB are free, "
                f"{nbytes / 1e6:,.0f} MB are needed",
                "free some space, name another place with --out, or choose fewer bits",
            )
        )
    return problems
