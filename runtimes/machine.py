"""What this machine offers a runtime: cores, and how much of them is free."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def physical_cores() -> int:
    """Cores that this process may keep busy: physical ones, within its affinity and quota.

    Runtimes spin at barriers, so that one thread too many costs more than one too few.
    """
    limits = [_psutil().cpu_count(logical=False) or os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    quota = _cgroup_cores(Path("/sys/fs/cgroup/cpu.max"))
    if quota is not None:
        limits.append(max(1, int(quota)))
    return max(1, min(limits))


def busy_share(seconds: float = 0.5) -> float:
    """Share of all cores that is in use, over the next `seconds`."""
    return float(_psutil().cpu_percent(interval=seconds)) / 100.0


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_bytes() -> int:
    """Memory that programs may still take."""
    return int(_psutil().virtual_memory().available)


def peak_bytes() -> int:
    """Largest resident size so far of this process, mapped files included.

    Linux: VmHWM and not ru_maxrss, which a child inherits from the parent that forked it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info: Any = _psutil().Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _cgroup_cores(path: Path) -> float | None:
    """Cores that a Linux control group grants, or None when it sets no limit."""
    try:
        quota, period = path.read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def nvidia_gpu() -> bool:
    """Whether NVIDIA's driver knows a GPU here."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def _psutil() -> Any:
    """Imported late: a worker's interpreter may lack it, and needs it on no Linux."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return psutil
