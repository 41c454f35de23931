"""The inverse of a triangular root of a large matrix, in the memory of that matrix and a panel.

H = R R' with R upper triangular, from the last block of columns to the first; then U = R^-1 in its
place, so that H^-1 = U'U. Blocks are cut by the size alone and each strip of one is computed by one
thread, so the bits do not depend on the number of threads. Sources: Golub and Van Loan, "Matrix
Computations", 4.2 (block Cholesky, here the other way round); Du Croz and Higham, "Stability of
methods for matrix inversion", 1992 (the inverse, with its sums taken as soon as they can be).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

BLOCK = 256
"""Columns that are eliminated together: of 64 to 1024 the fastest on a processor, measured."""
STRIP = 512
"""Rows or columns of a panel that one thread takes; at least a block."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Strips:
    """Cuts a range and works on its strips; without a pool, on all of it."""

    pool: ThreadPoolExecutor | None

    def map(self, work: Callable[[slice], Found], start: int, stop: int) -> list[Found]:
        """What `work` gives for each strip of [start, stop), in order."""
        step = max(1, stop - start) if self.pool is None else STRIP
        strips = [slice(one, min(one + step, stop)) for one in range(start, stop, step)]
        return (
            [work(one) for one in strips] if self.pool is None else [*self.pool.map(work, strips)]
        )


@contextmanager
def strips_of(device: torch.device, threads: int) -> Iterator[Strips]:
    """On a processor `threads` that each compute with one of their own; a GPU takes all at once."""
    if device.type != "cpu":
        yield Strips(None)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield Strips(pool)


def inverse_root(h: torch.Tensor, threads: int = 1) -> torch.Tensor | None:
    """Upper triangular U with H^-1 = U'U, float32 [n, n]; None where H is not positive definite.

    h: float64 [n, n], contiguous; only its upper triangle is read, and all of it is overwritten.
    Beside `h` and U, a few panels of n * BLOCK numbers are held.
    """
    blocks = [slice(start, min(start + BLOCK, len(h))) for start in range(0, len(h), BLOCK)]
    with strips_of(h.device, threads) as strips:
        if not all(_eliminate(h, own, strips) for own in reversed(blocks)):
            return None
        for own in blocks:
            _invert(h, own, strips)
    found = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
    for own in blocks:
        found[own, own.start :] = h[own, own.start :]
    return found


def _eliminate(h: torch.Tensor, own: slice, strips: Strips) -> bool:
    """Columns `own` of R over those of `h`, where the columns after them are R already; zeros below
    the diagonal of their block. False, with `h` half done, where it does not factor."""
    root, after = h[own, own], slice(own.stop, len(h))

    def less(rows: slice) -> None:
        h[rows, own].addmm_(h[rows, after], h[own, after].t(), alpha=-1)

    def diagonal(_: slice) -> bool:
        lower, failed = torch.linalg.cholesky_ex(root.flip(0, 1))
        root.copy_(lower.flip(0, 1))
        return not int(failed)

    def above(rows: slice) -> None:
        h[rows, own] = torch.linalg.solve_triangular(
            root.t(), h[rows, own], upper=False, left=False
        )

    if own.stop < len(h):
        strips.map(less, 0, own.stop)
    if not all(strips.map(diagonal, own.start, own.stop)):
        return False
    strips.map(above, 0, own.start)
    return True


def _invert(r: torch.Tensor, own: slice, strips: Strips) -> None:
    """Columns `own` of U = R^-1 over those of R, where the columns before them are U already. In
    the rows of those, what follows them is kept as U R up to here."""
    inverse, after = r[own, own], slice(own.stop, len(r))

    def diagonal(_: slice) -> None:
        unit = torch.eye(len(inverse), dtype=r.dtype, device=r.device)
        inverse.copy_(torch.linalg.solve_triangular(inverse, unit, upper=True))

    def above(rows: slice) -> None:
        r[rows, own] = -(r[rows, own] @ inverse)
        r[rows, after].addmm_(r[rows, own], r[own, after])

    def beside(cols: slice) -> None:
        r[own, cols] = inverse @ r[own, cols]

    strips.map(diagonal, own.start, own.stop)
    strips.map(above, 0, own.start)
    strips.map(beside, own.stop, len(r))
