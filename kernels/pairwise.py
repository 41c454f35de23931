"""The order of numpy's sums, which do not depend on threads or vectors: up to 128 terms in eight
columns, more in halves (numpy, `loops_utils.h.src`, `pairwise_sum`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LEAF = 128


def leaves(count: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(start, terms) of the runs that are added without a further cut."""
    if count <= LEAF:
        yield start, count
        return
    half = cut(count)
    yield from leaves(half, start)
    yield from leaves(count - half, start + half)


def joined(sums: Any, count: int) -> Any:
    """The sum of `count` terms from those of its leaves: the last axis of an array or tensor."""
    if count <= LEAF:
        return sums[..., 0]
    half = cut(count)
    first = len(list(leaves(half)))
    return joined(sums[..., :first], half) + joined(sums[..., first:], count - half)


def cut(count: int) -> int:
    """Terms of the first of two halves."""
    return count // 2 - count // 2 % 8
