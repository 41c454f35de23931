"""Regular expressions that files bring along: used only where they cannot take forever.

Python's `re` tries every way in which repetitions and alternatives can share a text between them.
A choice within a repetition makes that exponential, several in a row make it a product: so choices
within repetitions are refused, and so are too many in a row.
"""

from __future__ import annotations

import math
import re
import warnings
from functools import lru_cache
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from qconvert.formats.refusal import refuse

LONGEST = 20_000
MOST_WAYS = 1_000_000
LENGTH = 64  # characters of a long name: as many ways to end a repetition
_REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT}
_Ways = tuple[int, int]  # of the alternatives, and the repetitions


@lru_cache(maxsize=1024)
def pattern_of(text: str) -> re.Pattern[str]:
    """The compiled pattern; `Refused` where it is none, or could take too long."""
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it has {len(text):,} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python will read otherwise
            ways, repeats = _ways(parser.parse(text), within=False)
            if repeats > 8 or ways * LENGTH**repeats // math.factorial(repeats) > MOST_WAYS:
                raise ValueError("it could take very long")
            return re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError) as fault:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise refuse(f"the pattern {shown!r} is not used: {fault}",
                     "a simpler one, or the names themselves") from None  # fmt: skip


def matches(text: str, name: str) -> bool:
    """Whether the pattern `text` fits the beginning of `name`."""
    return pattern_of(text).match(name[:512]) is not None


def _ways(parsed: Any, *, within: bool) -> _Ways:
    """In how many ways a parsed pattern can go on; `ValueError` for a choice `within` a
    repetition."""
    ways, repeats = 1, 0
    for code, argument in parsed:
        if code in _REPEATS:
            least, most, inner = argument
            found = _ways(inner, within=within or most > 1)
            found = found[0], found[1] + int(most != least)
        elif code is codes.BRANCH:
            each = [_ways(one, within=within) for one in argument[1]]
            found = sum(one for one, _ in each), max(one for _, one in each)
        elif code in (codes.GROUPREF, codes.GROUPREF_EXISTS):
            raise ValueError("it refers back to a group")
        else:
            found = _product([_ways(one, within=within) for one in _inside(argument)])
        if within and found != (1, 0):
            raise ValueError("it repeats what can be read in several ways")
        ways, repeats = _product([(ways, repeats), found])
    return ways, repeats


def _product(each: list[_Ways]) -> _Ways:
    return math.prod(one for one, _ in each), sum(one for _, one in each)


def _inside(argument: Any) -> list[Any]:
    """Patterns in the argument of a code: of groups, and of what is looked ahead for."""
    if isinstance(argument, parser.SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [found for one in argument for found in _inside(one)]
    return []
