"""The one way to say no: every reason at once, each with what would work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

LONGEST = 2000
"""Characters of a problem or a remedy: either may quote a file, and a file may hold anything."""
MOST = 50
"""Reasons in one refusal: more are not read, and a damaged file can have one for every tensor."""
_CONTROLS = re.compile(r"[^\n\t -~\u00a0-\ud7ff\ue000-\uffff\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that cannot work, and the nearest thing that does. Control characters are spelt
    out, so that no name in a file can steer a terminal."""

    problem: str
    remedy: str = ""

    def __post_init__(self) -> None:
        for name in ("problem", "remedy"):
            object.__setattr__(self, name, _shown(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.problem}\n    -> {self.remedy}" if self.remedy else self.problem


def _shown(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ... ({len(text):,} characters)"
    return _CONTROLS.sub(lambda found: ascii(found.group())[1:-1], text)


class Refused(Exception):
    """The input or the request cannot be served; the command line exits with 2."""

    def __init__(self, *reasons: Reason) -> None:
        self.reasons = reasons
        super().__init__("\n".join(str(reason) for reason in reasons))


class MissingRuntime(Exception):
    """A runtime is not usable here; the command line exits with 3."""

    def __init__(self, runtime: str, reason: str, install: str) -> None:
        self.runtime, self.reason, self.install = runtime, reason, install
        super().__init__(f"{runtime} is not usable here: {reason}\n    -> {install}")


def refuse(problem: str, remedy: str = "") -> Refused:
    """A refusal with a single reason."""
    return Refused(Reason(problem, remedy))


def raise_if_any(reasons: Sequence[Reason]) -> None:
    """Raise one `Refused` that carries all `reasons`, or return when there are none. Of more than
    `MOST`, the first ones and how many there are."""
    more = len(reasons) - MOST
    if more > 0:
        reasons = [*reasons[:MOST], Reason(f"and {more:,} more reasons")]
    if reasons:
        raise Refused(*reasons)


@contextmanager
def collecting(reasons: list[Reason]) -> Iterator[None]:
    """Put the reasons of a refusal inside the block on the list, and go on after the block."""
    try:
        yield
    except Refused as refused:
        reasons += refused.reasons
