"""Names for orders in which rows or columns lie, where they should lie as 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.prints import Match

MOST = 0.95  # of the lines follow the order that is named
BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256)
Lines = NDArray[np.intp]


def named(match: Match, what: str, head: int | None) -> str:
    """A few words for the order of `match`; `what` is "rows" or "columns", `head` the size of an
    attention head where the lines belong to heads."""
    moved = match.at != match.holds
    for order, words in _known(match, what, head):
        if _follows(order == match.holds, moved):
            return words
    if head and (found := _blocks(match, what, head, (head,))):
        return found
    return _within(match, what) or _blocks(match, what, head, BLOCKS[2:]) or _single(match, what)


def _follows(same: NDArray[np.bool_], moved: NDArray[np.bool_]) -> bool:
    """Whether the lines follow an order, and those that have moved do."""
    return bool(same.mean() >= MOST and same[moved].mean() >= MOST)


def _known(match: Match, what: str, head: int | None) -> Iterator[tuple[Lines, str]]:
    at, count = match.at, match.count
    if head:
        inner, half = at % head, head // 2
        start = at - inner
        yield (
            start + inner % 2 * half + inner // 2,
            f"has its {what} in interleaved rotary order instead of half-split (heads of {head})",
        )
        yield (
            start + inner % half * 2 + inner // half,
            f"has its {what} in half-split rotary order where the format means interleaved, or as"
            f" if put back twice (heads of {head})",
        )
    yield at ^ 1, f"has neighbouring {what} exchanged (the order of the nibbles of a byte)"
    if count % 2 == 0:
        yield (at + count // 2) % count, f"has the two halves of its {what} exchanged"
    yield count - 1 - at, f"has its {what} in reverse order"
    turns, seen = np.unique((match.at - match.holds) % count, return_counts=True)
    turn = int(turns[seen.argmax()])
    if turn:
        signed = turn if 2 * turn <= count else turn - count
        yield (at - turn) % count, f"has its {what} shifted by {signed:+d}"


def _within(match: Match, what: str) -> str:
    """The same order in every group of some consecutive lines."""
    for size in BLOCKS:
        inner, goes = match.at % size, match.holds - (match.at - match.at % size)
        if match.count % size or match.count == size:
            continue
        if ((goes < 0) | (goes >= size)).mean() > 1 - MOST:
            continue
        order = np.full(size, -1)
        for place in range(size):
            found = goes[inner == place]
            found = found[(found >= 0) & (found < size)]
            if len(found):
                order[place] = np.bincount(found).argmax()
        if not _follows(order[inner] == goes, inner != goes):
            continue
        shown = ", ".join(map(str, order[:8])) + (", ..." if size > 8 else "")
        return f"has its {what} in another order within groups of {size}{_packing(order)}: {shown}"
    return ""


def _packing(order: Lines) -> str:
    size = len(order)
    place = np.arange(size)
    half = size // 2
    packings = (
        (place ^ half, " (the halves exchanged, as when the nibbles of each byte are)"),
        (place % 2 * half + place // 2, " (nibbles taken as neighbours, not as halves)"),
        (place % half * 2 + place // half, " (nibbles taken as halves, not as neighbours)"),
    )
    return next((words for packed, words in packings if (packed == order).all()), "")


def _blocks(match: Match, what: str, head: int | None, sizes: Sequence[int]) -> str:
    """Whole blocks of lines in other places, each in order."""
    moved = match.at != match.holds
    for size in reversed(sizes):
        if match.count % size or match.count == size:
            continue
        if _follows(match.at % size == match.holds % size, moved) and moved.mean() > 1 - MOST:
            kind = "heads" if size == head else f"blocks of {size} {what}"
            first = int(moved.argmax())
            return (
                f"has its {kind} in another order: {match.at[first] // size} holds"
                f" {match.holds[first] // size}"
            )
    return ""


def _single(match: Match, what: str) -> str:
    moved = np.flatnonzero(match.at != match.holds)
    one = what.removesuffix("s")
    first = f"{one} {match.at[moved[0]]} holds {one} {match.holds[moved[0]]} of the source"
    if len(moved) < 0.5 * len(match.at):
        return f"has {len(moved)} of {len(match.at)} {what} looked at in other places: {first}"
    return f"has its {what} in an order of no pattern: {first}"
