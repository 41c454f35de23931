"""What kinds of values a JSON object must have, as data, and where a file has others.

A reader names the keys that it looks at, and what each may be; what it does not look at may be
anything. A key that is absent fits any shape but `required` ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from qconvert.formats.refusal import Reason, raise_if_any

MOST = 8  # misfits that are told of one file
LARGEST = 1 << 53  # of whole numbers: a float holds them all, and none is more


class Shape(Protocol):
    """`wanted` says in words what fits."""

    @property
    def wanted(self) -> str: ...
    def misfits(self, value: Any, where: str) -> Iterator[Reason]: ...
    def all_fit(self, values: Collection[Any]) -> bool:
        """True when all fit, found quickly: half a million merges are looked at. False is no
        verdict."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A value of one of some types; numbers are finite and of sane size."""

    wanted: str
    types: tuple[type, ...]
    least: float = -LARGEST
    most: float = LARGEST

    def misfits(self, value: Any, where: str) -> Iterator[Reason]:
        fits = type(value) in self.types
        if fits and isinstance(value, int | float) and not isinstance(value, bool):
            fits = self.least <= value <= self.most  # never of NaN
        if not fits:
            yield _misfit(where, value, self.wanted)

    def all_fit(self, values: Collection[Any]) -> bool:
        if not set(map(type, values)) <= set(self.types):
            return False
        if not {int, float} & set(self.types) or not values:
            return True
        return self.least <= min(values) and max(values) <= self.most and self.types == (int,)


@dataclass(frozen=True, slots=True)
class Each:
    """A list whose elements all fit."""

    one: Shape
    length: int | None = None

    @property
    def wanted(self) -> str:
        return "a list" if self.length is None else f"a list of {self.length}"

    def misfits(self, value: Any, where: str) -> Iterator[Reason]:
        if not isinstance(value, list) or len(value) != (self.length or len(value)):
            yield _misfit(where, value, self.wanted)
            return
        if not self.one.all_fit(value):
            for at, one in enumerate(value):
                yield from self.one.misfits(one, f"{where}[{at}]")

    def all_fit(self, values: Collection[Any]) -> bool:
        if not set(map(type, values)) <= {list}:
            return False
        if self.length is not None and set(map(len, values)) - {self.length}:
            return False
        return self.one.all_fit([one for value in values for one in value])


@dataclass(frozen=True, slots=True)
class Values:
    """An object whose values all fit, whatever their names."""

    one: Shape
    wanted: str = "an object"

    def misfits(self, value: Any, where: str) -> Iterator[Reason]:
        if not isinstance(value, Mapping):
            yield _misfit(where, value, self.wanted)
            return
        if not self.one.all_fit(value.values()):
            for key, one in value.items():
                yield from self.one.misfits(one, f"{where}.{key}")

    def all_fit(self, values: Collection[Any]) -> bool:
        return not values


@dataclass(frozen=True, slots=True)
class Keys:
    """An object with some keys that are looked at. A shape that stands in itself has an empty
    `keys` at first, which is filled in."""

    keys: Mapping[str, Shape] = field(default_factory=dict)
    required: Sequence[str] = ()
    wanted: str = "an object"

    def misfits(self, value: Any, where: str) -> Iterator[Reason]:
        if not isinstance(value, Mapping):
            yield _misfit(where, value, self.wanted)
            return
        for key in self.required:
            if key not in value:
                yield Reason(f"{where} has no {key}")
        for key, shape in self.keys.items():
            if key in value:
                yield from shape.misfits(value[key], f"{where}.{key}" if where else key)

    def all_fit(self, values: Collection[Any]) -> bool:
        return not values


@dataclass(frozen=True, slots=True)
class Either:
    """What fits one of several."""

    ones: tuple[Shape, ...]

    @property
    def wanted(self) -> str:
        return " or ".join(one.wanted for one in self.ones)

    def misfits(self, value: Any, where: str) -> Iterator[Reason]:
        found = [list(islice(one.misfits(value, where), 1)) for one in self.ones]
        if all(found):
            # the only shape of the value's own kind knows better what is wrong inside of it
            inner = [one for (one,) in found if not one.problem.startswith(f"{where} is ")]
            yield inner[0] if len(inner) == 1 else _misfit(where, value, self.wanted)

    def all_fit(self, values: Collection[Any]) -> bool:
        return any(one.all_fit(values) for one in self.ones)


TEXT = Plain("text", (str,))
FLAG = Plain("true or false", (bool,))
WHOLE = Plain("a whole number", (int,))
COUNT = Plain("a whole number, 0 or more", (int,), 0, (1 << 31) - 1)
SIZE = Plain("a whole number", (int,), -1, (1 << 31) - 1)
NUMBER = Plain("a number", (int, float))
NULL = Plain("null", (type(None),))
TEXTS = Each(TEXT)


def maybe(*shapes: Shape) -> Either:
    """Null, or what fits one of these."""
    return Either((*shapes, NULL))


def check(value: Any, shape: Shape, where: str, remedy: str) -> None:
    """`Refused` with the first `MOST` places that do not fit in `value`, the content of `where`."""
    found = islice(shape.misfits(value, ""), MOST)
    raise_if_any([Reason(f"{where}: {one.problem}", remedy) for one in found])


def _misfit(where: str, value: Any, wanted: str) -> Reason:
    shown = repr(value) if not isinstance(value, list | Mapping) else f"a {type(value).__name__}"
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return Reason(f"{where or 'its content'} is {shown}, where {wanted} is needed")
