"""From schemes to a container and to hardware: what holds them, and what runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qconvert.formats.refusal import Reason, Refused
from qconvert.formats.serving.container import Container, containers
from qconvert.formats.serving.fused import Shard
from qconvert.formats.serving.kernel import HARDWARE, USUAL, Kernel, Setting
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.serving.verdict import Verdict, judge, nearness, places_of
from qconvert.formats.serving.wanted import KEPT, Names, options_of

Pairs = Sequence[tuple[Scheme, Shard]]


@dataclass(frozen=True, slots=True)
class Place:
    """How all that is quantized is stored, and where that runs."""

    container: Container
    verdict: Verdict


def known_containers(names: Iterable[str]) -> dict[str, Container]:
    """Those of `names` that there are, in their order."""
    found = containers()
    return {name: found[name] for name in names if name in found}


def name_problems(
    program: str, names: Sequence[str], container: str | None, hardware: str | None
) -> Iterator[Reason]:
    """`--container` and `--hardware` that nothing is called."""
    if container is not None and container not in names:
        yield Reason(
            f"--container {container}: {program} is not known to read it",
            " or ".join(f"--container {name}" for name in names),
        )
    if hardware is not None and hardware not in HARDWARE:
        listed = ", ".join(f"{name} ({what})" for name, what in HARDWARE.items())
        yield Reason(f"unknown hardware {hardware!r}", f"known: {listed}")


@dataclass(frozen=True, slots=True)
class Field:
    """All that placing goes by: a program, and what is asked of it."""

    program: str
    kernels: Sequence[Kernel]
    known: Mapping[str, Container]  # that it reads, the preferred one first
    pairs: Pairs
    asked: str | None = None  # a container
    hardware: str | None = None
    setting: Setting = USUAL
    names: Names = field(default_factory=dict)  # the program's own, of schemes
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Canonical name of a scheme -> the options by which another program takes it."""

    @property
    def choice(self) -> list[Container]:
        return list(self.known.values()) if self.asked is None else [self.known[self.asked]]

    def judged(self, container: Container, pairs: Pairs) -> Verdict:
        return judge(self.kernels, container.name, pairs, self.setting)


def place(of: Field) -> Place:
    """The first container that holds all pairs and in which they run; `Refused` with all reasons,
    each with the nearest scheme that works."""
    used = list(dict.fromkeys(scheme for scheme, _ in of.pairs))
    holding = [one for one in of.choice if not _problems(one, used)]
    if not holding:
        raise Refused(*_unheld(of, used))
    found = [Place(one, of.judged(one, of.pairs)) for one in holding]
    running = [one for one in found if _runs(one.verdict, of.hardware)]
    if not running:
        raise Refused(*_unrun(of, found[0].verdict))
    if of.hardware is not None:
        return running[0]
    return max(running, key=lambda one: len(one.verdict.where))


def _problems(container: Container, used: Iterable[Scheme]) -> list[Reason]:
    return list(dict.fromkeys(reason for one in used for reason in container.problems(one)))


def _runs(verdict: Verdict, hardware: str | None) -> bool:
    return bool(verdict.where) if hardware is None else hardware in verdict.where


def _unheld(of: Field, used: Sequence[Scheme]) -> list[Reason]:
    """Why no container holds the schemes: its own reasons where one was asked for."""
    others = [
        one.name for one in of.known.values() if one not in of.choice and not _problems(one, used)
    ]
    if len(of.choice) == 1 and len(of.known) > 1:
        own = _problems(of.choice[0], used)
        better = f"--container {others[0]}" if others else ""
        if not others or any(others[0] in one.remedy for one in own):
            return own
        return [Reason(one.problem, _either(one.remedy, better)) for one in own]
    reasons = []
    for scheme in used:
        if all(container.problems(scheme) for container in of.choice):
            held = ", ".join(of.known)
            remedy = _either(_nearest(of, scheme), of.elsewhere.get(scheme.name, ""))
            reasons.append(Reason(f"{of.program} reads no {scheme.name} (it reads {held})", remedy))
    if not reasons:
        names = " and ".join(one.name for one in used)
        reasons.append(Reason(f"no container that {of.program} reads holds {names} together",
                              "take one scheme for all linears"))  # fmt: skip
    return reasons


def _unrun(of: Field, verdict: Verdict) -> list[Reason]:
    """Why what the container holds does not run where it must, and what does."""
    better = _better(of)
    start = f"{of.program} runs this nowhere"
    if of.hardware is not None:
        bad = verdict.schemes.get(of.hardware)
        start, found = f"{of.program} on {of.hardware}", verdict.why_not(of.hardware)
    elif verdict.shapes:
        bad, found = None, min(verdict.shapes.values(), key=len)
    else:
        bad = next(iter(verdict.schemes.values()))
        found = (Reason(f"no kernel takes {bad}"),)
    if better:
        start = f"{start} in the {of.asked} container"
        return [Reason(f"{start}: {one.problem}", f"--container {better}") for one in found]
    used = dict.fromkeys(one for one, _ in of.pairs if bad in (None, one.name))
    nearest = next(filter(None, (_nearest(of, one) for one in used)), "")
    near = _either(nearest, of.elsewhere.get(next(iter(used)).name, ""))
    if of.hardware is not None and verdict.where:
        elsewhere = f"leave out --hardware: it runs on {places_of(verdict.where)}"
        near = elsewhere if not near or "--hardware" in near else f"{near}; or {elsewhere}"
    kept = f"leave it in float: --layer PATTERN={KEPT}"
    return [Reason(f"{start}: {one.problem}", _either(near, one.remedy) or kept) for one in found]


def _better(of: Field) -> str:
    """The container in which all runs, in place of the one that was asked for; empty without."""
    if of.asked is not None:
        with suppress(Refused):
            return place(replace(of, asked=None)).container.name
    return ""


def _either(first: str, second: str) -> str:
    return " or ".join(filter(None, (first, second)))


def _nearest(of: Field, scheme: Scheme) -> str:
    """The options of the scheme nearest to `scheme` that runs in its place; empty without one."""

    def works(other: Scheme) -> bool:
        rest = [(other if one == scheme else one, shard) for one, shard in of.pairs]
        if any(one.group and shard.cols % one.group for one, shard in rest):
            return False
        used = list(dict.fromkeys(one for one, _ in rest))
        return any(
            not _problems(one, used) and _runs(of.judged(one, rest), of.hardware)
            for one in of.known.values()
        )

    others = [one for one in schemes().values() if one != scheme]
    for other in sorted(others, key=lambda one: nearness(scheme, one)):
        if works(other):
            return options_of(other, of.names)
    if of.hardware is None:
        return ""
    elsewhere = _nearest(replace(of, hardware=None), scheme)
    return f"{elsewhere}, without --hardware {of.hardware}" if elsewhere else ""
