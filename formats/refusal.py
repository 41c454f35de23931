"""The one way to say no: every reason at once, each with what would work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that cannot work, and the nearest thing that does."""

    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.problem}\n    -> {self.remedy}" if self.remedy else self.problem


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
    """Raise one `Refused` that carries all `reasons`, or return when there are none."""
    if reasons:
        raise Refused(*reasons)


@contextmanager
def collecting(reasons: list[Reason]) -> Iterator[None]:
    """Put the reasons of a refusal inside the block on the list, and go on after the block."""
    try:
        yield
    except Refused as refused:
        reasons += refused.reasons
