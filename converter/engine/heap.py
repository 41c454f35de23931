"""Memory that was freed goes back to the system, so that a deep model needs no more than a shallow.

glibc keeps what lies between blocks of memory that are still in use. The temporary matrices of a
block leave such holes, some MB with each block; benchmarks/depth.py measures it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Where the C library can do it; else nothing."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
