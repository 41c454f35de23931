"""Where linears run: the kernels of a program, held against schemes and shapes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qconvert.formats.refusal import Reason
from qconvert.formats.serving.fused import Shard
from qconvert.formats.serving.kernel import GPUS, HARDWARE, USUAL, Kernel, Setting
from qconvert.formats.serving.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where linears of some schemes run."""

    where: frozenset[str]
    schemes: Mapping[str, str]  # hardware without a kernel for a scheme -> which
    shapes: Mapping[str, tuple[Reason, ...]]  # hardware whose kernels do not take a shape -> why
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> list[str]:
        """`where` in the order of HARDWARE."""
        return [place for place in HARDWARE if place in self.where]

    def why_not(self, place: str) -> tuple[Reason, ...]:
        found = self.shapes.get(place)
        return found or (Reason(f"no kernel there takes {self.schemes[place]}"),)


def judge(
    kernels: Sequence[Kernel],
    container: str,
    wanted: Iterable[tuple[Scheme, Shard]],
    setting: Setting = USUAL,
) -> Verdict:
    """The hardware on which every shard has a kernel that takes it, and why the rest has not."""
    pairs = _distinct(wanted)
    none: dict[str, str] = {}
    shapes: dict[str, list[Reason]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for place in HARDWARE:
        here = [one for one in kernels if place in one.where]
        for scheme, shard in pairs:
            suiting = [one for one in here if one.suits(scheme, container)]
            reasons = [tuple(one.problems(shard, setting)) for one in suiting]
            if not suiting:
                none.setdefault(place, scheme.name)
            elif all(reasons):
                fewest: tuple[Reason, ...] = min(reasons, key=len)
                shapes.setdefault(place, []).extend(fewest)
            elif note := suiting[reasons.index(())].note:
                notes.setdefault((scheme.name, note), []).append(place)
    where = frozenset(HARDWARE) - none.keys() - shapes.keys()
    told = [
        (name, note, [place for place in HARDWARE if place in where and place in places])
        for (name, note), places in notes.items()
    ]
    lines = (f"{name} on {places_of(places)}: {note}" for name, note, places in told if places)
    found = {place: tuple(dict.fromkeys(reasons)) for place, reasons in shapes.items()}
    return Verdict(where, none, found, tuple(lines))


def _distinct(wanted: Iterable[tuple[Scheme, Shard]]) -> list[tuple[Scheme, Shard]]:
    """One of each shape: blocks are alike."""
    found: dict[object, tuple[Scheme, Shard]] = {}
    for scheme, shard in wanted:
        of = shard.of.biased, shard.cached, shard.stored_joined
        key = scheme.name, shard.cols, shard.parts, shard.cut, shard.heads, of
        found.setdefault(key, (scheme, shard))
    return list(found.values())


def places_of(places: Collection[str]) -> str:
    """As people say it: "cpu, ampere and later"."""
    have = [name for name in GPUS if name in places]
    words = [name for name in HARDWARE if name in places and name not in GPUS]
    if len(have) > 1 and have == list(GPUS[GPUS.index(have[0]) :]):
        words.append(f"{have[0]} and later")
    else:
        words += have
    return ", ".join(words)


def where_it_runs(places: Collection[str]) -> str:
    return f"{places_of(places)}{'' if 'cpu' in places else '; not on cpu'}"


def told(verdict: Verdict) -> Iterator[str]:
    """What a user who named no hardware should know."""
    reasons: dict[str, list[str]] = {}
    for place, why in verdict.shapes.items():
        if place not in verdict.schemes:
            reasons.setdefault(why[0].problem, []).append(place)
    for first, places in reasons.items():
        yield f"not on {places_of(places)}: {first}"
    yield from verdict.notes


def nearness(scheme: Scheme, other: Scheme) -> tuple[float, ...]:
    """How far `other` is from `scheme` to one who asked for that: smaller is nearer."""
    return (
        abs(other.bits - scheme.bits),
        (other.activations is None) != (scheme.activations is None),
        other.form != scheme.form,
        other.static != scheme.static,
        other.symmetric != scheme.symmetric,
        abs(_steps(other.group) - _steps(scheme.group)),
    )


def _steps(group: int) -> float:
    """Groups on a scale of doublings; a whole row is longer than any."""
    return math.log2(group or 1 << 12)
