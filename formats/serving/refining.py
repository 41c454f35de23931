"""The one scheme that a request means; contradictions are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType

from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.serving.schemes import FAMILIES, group_name
from qconvert.formats.serving.wanted import Names, Wanted, choices, named
from qconvert.formats.source import Dtype
from qconvert.formats.target import Request

HALF = 16
NO_KERNEL: Mapping[int, str] = {
    **dict.fromkeys((3, 5, 6, 7), "readers disagree on how codes of this width are packed"),
    2: "no usual kernel computes with them",
}
"""Bits -> why no scheme has them."""


def asked(
    request: Request,
    by_bits: Mapping[int, Wanted],
    half: Dtype,
    own: Names = MappingProxyType({}),
) -> Wanted:
    """The one scheme that `request` means for all that it does not name by `--layer`.

    `by_bits`: what a number of bits stands for, 4 where nothing is asked; `half`: for 16 bits;
    `own`: as in `named`.
    """
    reasons: list[Reason] = []
    parts: list[tuple[str, Wanted]] = []
    for option, text in (("--type", request.type), ("--scheme", request.scheme)):
        if text is not None:
            with collecting(reasons):
                parts.append((f"{option} {text}", named(text, own)))
    if request.bits is not None:
        with collecting(reasons):
            parts += _of_bits(request.bits, parts, by_bits, half)
    raise_if_any(reasons)
    if not parts:
        parts.append(("", next(iter(by_bits.values()))))
    found = _merged(parts)
    refined = _refined(found, request, own)
    raise_if_any(list(problems(refined, own)))
    return refined


def _of_bits(
    bits: int, parts: Sequence[tuple[str, Wanted]], by_bits: Mapping[int, Wanted], half: Dtype
) -> Iterator[tuple[str, Wanted]]:
    """What `--bits` says: a scheme by itself, else nothing but that it fits."""
    choice = {**by_bits, HALF: Wanted(floats=half)}
    if bits not in choice:
        why = f": {NO_KERNEL[bits]}" if bits in NO_KERNEL else ""
        near = ", ".join(f"--bits {known}" for known in choice)
        raise refuse(f"--bits {bits}: no serving program takes it{why}", near)
    for option, one in parts:
        have = HALF if one.family is None else FAMILIES[one.family].bits
        if have != bits or one.floats == "F32":
            raise refuse(
                f"{option} and --bits {bits} contradict each other", f"leave out --bits {bits}"
            )
    if not parts:
        yield f"--bits {bits}", choice[bits]


def _merged(parts: Sequence[tuple[str, Wanted]]) -> Wanted:
    """All of `parts` together; `Refused` where they say different things."""
    (first, found), *others = parts
    for option, other in others:
        both = {one.name: (getattr(found, one.name), getattr(other, one.name))
                for one in fields(Wanted)}  # fmt: skip
        if any(None not in pair and pair[0] != pair[1] for pair in both.values()) or (
            found.quantizes != other.quantizes
        ):
            raise refuse(f"{first} and {option} contradict each other", "leave one of them out")
        found = Wanted(**{name: a if a is not None else b for name, (a, b) in both.items()})
    return found


def _refined(found: Wanted, request: Request, own: Names) -> Wanted:
    """With `--group`, `--symmetric` and `--static`; `Refused` where the name said otherwise."""
    reasons = []
    named_so = request.type is not None or request.scheme is not None
    for field, words in _refinements(request):
        have, wish = getattr(found, field), getattr(request, field)
        fixed = named_so and have is not None and have != wish
        if not found.quantizes:
            reasons.append(Reason(f"{words}: nothing is quantized", f"leave out {words}"))
        elif fixed and _is_choice(found, field):
            name = request.type or request.scheme
            other = _named_so(replace(found, **{field: wish, "groups": None}), own)
            remedy = f"--scheme {other} {words}" if other else "leave one of them out"
            reasons.append(Reason(f"{name} and {words} contradict each other", remedy))
        else:
            found = replace(found, **{field: wish})
    raise_if_any(reasons)
    return found


def _refinements(request: Request) -> Iterator[tuple[str, str]]:
    """Fields of `request` that are set, and the options that set them."""
    if request.group is not None:
        yield "group", f"--group {request.group or group_name(request.group)}"
    if request.symmetric is not None:
        yield "symmetric", "--symmetric" if request.symmetric else "--asymmetric"
    if request.static is not None:
        yield "static", "--static" if request.static else "--no-static"


def _is_choice(wanted: Wanted, field: str) -> bool:
    """Whether the family leaves this open, so that a name that settles it is contradicted."""
    family = FAMILIES[wanted.family or ""]
    return {
        "group": len(family.groups) > 1,
        "symmetric": family.asymmetric,
        "static": family.static is not None,
    }[field]


def _named_so(wanted: Wanted, own: Names) -> str | None:
    """The name of a program's `own` that can be refined to `wanted`."""
    fields = ("group", "symmetric", "static")
    for name, one in own.items():
        pairs = [(getattr(one, field), getattr(wanted, field)) for field in fields]
        if (
            one.family == wanted.family
            and wanted.group in (None, *choices(one))
            and all(None in pair or pair[0] == pair[1] for pair in pairs)
        ):
            return name
    return None


def problems(wanted: Wanted, own: Names = MappingProxyType({})) -> Iterator[Reason]:
    """Refinements that its family, or the program by its `own` name of it, does not take."""
    if wanted.family is None:
        return
    family = FAMILIES[wanted.family]
    if wanted.group is not None and wanted.group not in choices(wanted):
        yield _bad_group(wanted, wanted.group, own)
    if wanted.symmetric is False and not family.asymmetric:
        names = [one.name for one in FAMILIES.values() if one.asymmetric]
        yield Reason(
            f"{family.name} has no zero points: it cannot be asymmetric",
            f"leave out --asymmetric, or take --scheme {' or '.join(names)}",
        )
    if wanted.static and family.static is None:
        names = [one.name for one in FAMILIES.values() if one.static]
        what = "its activations are not rounded" if family.activations is None else "none is known"
        yield Reason(
            f"{family.name} has no fixed activation scales: {what}",
            f"leave out --static, or take --scheme {' or '.join(names)}",
        )


def _bad_group(wanted: Wanted, group: int, own: Names) -> Reason:
    """The nearest group that can be had; by another name of the family where that takes this."""
    known = choices(wanted)
    same = (name for name, one in own.items()
            if (one.family, one.groups) == (wanted.family, wanted.groups))  # fmt: skip
    near = min(known, key=lambda one: abs(one - group))
    remedy = f"--group {near or group_name(near)}"
    other = next((name for name, one in own.items()
                  if one.family == wanted.family and one.group == group), None)  # fmt: skip
    listed = ", ".join(str(one or group_name(one)) for one in known)
    name = next(same, wanted.family)
    return Reason(
        f"--group {group or group_name(group)}: {name} is computed with {listed}",
        f"--scheme {other}" if other else remedy,
    )
