"""Names of schemes: what they mean, and the options that lead to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import (
    FAMILIES,
    family_of,
    group_name,
    schemes,
)
from qconvert.formats.source import Dtype

FLOATS: Mapping[str, Dtype] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
"""Types of `--type` that quantize nothing."""
KEPT = "float"
"""As a scheme in `--layer`: not quantized."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A scheme, perhaps not yet complete: None is for the defaults to decide."""

    family: str | None = None  # of FAMILIES; None together with `floats`: nothing is quantized
    group: int | None = None
    symmetric: bool | None = None
    static: bool | None = None
    floats: Dtype | None = None  # the type that all is stored in
    groups: tuple[int, ...] | None = None  # to choose from; None: all of the family's

    @property
    def quantizes(self) -> bool:
        return self.family is not None


Names = Mapping[str, Wanted]
"""A program's own names of schemes; they come before the names that all have."""


def named(text: str, own: Names = MappingProxyType({})) -> Wanted:
    """What a program's `own` name of a scheme, or that of a family ("w4a16"), of a scheme
    ("w4a16-g64-asym") or of a float type means; `Refused` with the known names."""
    key = text.strip().lower()
    if key in own:
        return own[key]
    if key in FLOATS:
        return Wanted(floats=FLOATS[key])
    if key in FAMILIES and (FAMILIES[key].named_group or FAMILIES[key].dynamic):
        return Wanted(key)
    found = schemes().get(key)
    if found is None:
        raise refuse(
            f"unknown type {text!r}",
            f"known: {', '.join({**own, **FAMILIES})}, each perhaps with a group, as w4a16-g64; "
            f"and {', '.join(FLOATS)}",
        )
    return of_scheme(found)


def of_scheme(scheme: Scheme) -> Wanted:
    """All that makes up `scheme`."""
    family = family_of(scheme)
    static = scheme.static if family.static else None
    # w8a8 and fp8 are names of families, too: --static may still refine them
    bare = scheme.name == family.name
    return Wanted(family.name, scheme.group, scheme.symmetric, None if bare else static)


def options_of(scheme: Scheme, own: Names = MappingProxyType({})) -> str:
    """The options that ask for `scheme`, by a program's `own` name where one leads to it."""
    family = family_of(scheme)
    name = own_name(scheme, own)
    if name is None and family.name in own:
        return f"--scheme {scheme.name}"  # the family's name means something else there
    known = Wanted(family.name) if name is None else own[name]
    words = [f"--scheme {name or family.name}"]
    if family.named_group and known.group is None and len(choices(known)) > 1:
        words.append(f"--group {scheme.group or group_name(scheme.group)}")
    if not scheme.symmetric and known.symmetric is None:
        words.append("--asymmetric")
    if scheme.static and not family.fixed and known.static is None:
        words.append("--static")
    return " ".join(words)


def own_name(scheme: Scheme, own: Names) -> str | None:
    """The name of a program's `own` that leads to `scheme`, perhaps with refinements."""
    family = family_of(scheme)
    fixed = scheme.static and not family.fixed
    for name, one in own.items():
        if (
            one.family == family.name
            and one.group in (None, scheme.group)
            and scheme.group in choices(one)
            and one.symmetric in (None, scheme.symmetric)
            and one.static in (None, fixed)
        ):
            return name
    return None


def choices(wanted: Wanted) -> tuple[int, ...]:
    """The groups that are left to choose from, the best first."""
    groups = FAMILIES[wanted.family or ""].groups
    if wanted.groups is not None:
        groups = tuple(one for one in groups if one in wanted.groups)
    return groups
