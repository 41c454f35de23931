"""From schemes to a container and to hardware: what holds them, and what runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qconvert.formats.refusal import Reason, Refused, raise_if_any
from qconvert.formats.serving.capability import (
    HARDWARE,
    Kernel,
    Verdict,
    judge,
    nearness,
    places_of,
)
from qconvert.formats.serving.container import Container, containers
from qconvert.formats.serving.fused import Shard
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.serving.wanted import options_of

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


def place(
    program: str,
    kernels: Sequence[Kernel],
    known: Mapping[str, Container],
    pairs: Pairs,
    asked: str | None,
    hardware: str | None,
) -> Place:
    """The first container that holds all of `pairs` and in which they run; `Refused`, with the
    nearest scheme that works."""
    choice = [known[asked]] if asked is not None else list(known.values())
    used = list(dict.fromkeys(scheme for scheme, _ in pairs))
    holding = [one for one in choice if not _problems(one, used)]
    if not holding:
        raise Refused(*_unheld(program, kernels, known, choice, pairs, used, hardware))
    found = [Place(one, judge(kernels, one.name, pairs)) for one in holding]
    running = [one for one in found if _runs(one.verdict, hardware)]
    if not running:
        reason = _unrun(program, kernels, known, found[0], pairs, hardware)
        raise_if_any([reason])
    return max(running, key=lambda one: len(one.verdict.where)) if hardware is None else running[0]


def _problems(container: Container, used: Iterable[Scheme]) -> list[Reason]:
    return list(dict.fromkeys(reason for one in used for reason in container.problems(one)))


def _runs(verdict: Verdict, hardware: str | None) -> bool:
    return bool(verdict.where) if hardware is None else hardware in verdict.where


def _unheld(
    program: str,
    kernels: Sequence[Kernel],
    known: Mapping[str, Container],
    choice: Sequence[Container],
    pairs: Pairs,
    used: Sequence[Scheme],
    hardware: str | None,
) -> list[Reason]:
    """Why none of `choice` holds the schemes: its own reasons where one was asked for."""
    others = [one.name for one in known.values() if one not in choice and not _problems(one, used)]
    if len(choice) == 1 and len(known) > 1:
        own = _problems(choice[0], used)
        better = f"--container {others[0]}" if others else ""
        if not others or any(others[0] in one.remedy for one in own):
            return own
        return [Reason(one.problem, " or ".join(filter(None, (one.remedy, better)))) for one in own]
    reasons = []
    for scheme in used:
        if all(container.problems(scheme) for container in choice):
            near = _nearest(kernels, known.values(), pairs, scheme, hardware)
            held = ", ".join(known)
            reasons.append(Reason(f"{program} reads no {scheme.name} (it reads {held})", near))
    if not reasons:
        names = " and ".join(one.name for one in used)
        reasons.append(Reason(f"no container that {program} reads holds {names} together",
                              "take one scheme for all linears"))  # fmt: skip
    return reasons


def _unrun(
    program: str,
    kernels: Sequence[Kernel],
    known: Mapping[str, Container],
    found: Place,
    pairs: Pairs,
    hardware: str | None,
) -> Reason:
    """Why what the container holds does not run where it must, and what does."""
    verdict = found.verdict
    if hardware is not None:
        why = verdict.why_not(hardware)
        problem = f"{program} on {hardware}: {why}"
        bad = verdict.schemes.get(hardware)
    else:
        shaped = list(dict.fromkeys(verdict.shapes.values()))
        why = shaped[0] if shaped else f"no kernel takes {next(iter(verdict.schemes.values()))}"
        problem = f"{program} runs this nowhere: {why}"
        bad = None
    scheme = next((one for one, _ in pairs if one.name == bad), pairs[0][0])
    remedy = _nearest(kernels, known.values(), pairs, scheme, hardware)
    if hardware is not None and verdict.where:
        elsewhere = f"leave out --hardware: it runs on {places_of(verdict.where)}"
        remedy = elsewhere if not remedy or "--hardware" in remedy else f"{remedy}; or {elsewhere}"
    return Reason(problem, remedy)


def _nearest(
    kernels: Sequence[Kernel],
    known: Iterable[Container],
    pairs: Pairs,
    scheme: Scheme,
    hardware: str | None,
) -> str:
    """The options of the scheme nearest to `scheme` that runs in its place; empty without one."""
    known = list(known)

    def works(other: Scheme) -> Container | None:
        rest = [(other if one == scheme else one, shard) for one, shard in pairs]
        if any(one.group and shard.cols % one.group for one, shard in rest):
            return None
        used = list(dict.fromkeys(one for one, _ in rest))
        return next(
            (one for one in known
             if not _problems(one, used) and _runs(judge(kernels, one.name, rest), hardware)),
            None,
        )  # fmt: skip

    others = [one for one in schemes().values() if one != scheme]
    for other in sorted(others, key=lambda one: nearness(scheme, one)):
        if works(other) is not None:
            return options_of(other)
    if hardware is None:
        return ""
    elsewhere = _nearest(kernels, known, pairs, scheme, None)
    return f"{elsewhere}, without --hardware {hardware}" if elsewhere else ""
