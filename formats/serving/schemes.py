"""The schemes that serving programs compute with, as data, and their names.

A *family* is what `--scheme` takes; group, zero points and fixed activation scales refine it. Each
scheme has one canonical name, which `--type` takes and a work folder remembers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.scheme import Activations, Form, Scheme
from qconvert.formats.target import InputRounding

CHANNEL = 0
"""The group of a scheme with one scale for each row."""


@dataclass(frozen=True, slots=True)
class Family:
    """Schemes that differ in what `--group`, `--asymmetric` and `--static` say."""

    name: str  # as after `--scheme`
    summary: str
    form: Form
    bits: int
    grid: str  # its name; {group}, {zero}: what a refinement puts there
    groups: tuple[int, ...]  # the best first
    named_group: bool = False  # whether the group is part of a scheme's name
    asymmetric: bool = False  # whether zero points can be had
    fixed: bool = False  # whether activation scales are fixed always
    dynamic: str | None = None  # name of the scheme without, where it is not the family's own
    static: str | None = None  # name of the scheme with fixed activation scales
    static_grid: str | None = None  # of that scheme, where it has another
    activations: Activations | None = None


FAMILIES: Mapping[str, Family] = {
    one.name: one
    for one in (
        Family("w4a16", "weights of 4 bits, computed in 16", "int", 4,
               "int4_{group}{zero}_portable", (128, 64, 32, CHANNEL), True, True),
        Family("w8a16", "weights of 8 bits, computed in 16", "int", 8,
               "int8_{group}{zero}_portable", (128, 64, 32, CHANNEL), True, True),
        Family("w8a8", "weights and activations in INT8: a scale for each row, and for each token",
               "int", 8, "int8_channel_f32", (CHANNEL,), static="w8a8-static", activations="int8"),
        Family("fp8", "weights and activations in FP8: a scale for each row, and for each token",
               "fp8", 8, "fp8_channel", (CHANNEL,), dynamic="fp8-channel", static="fp8-tensor",
               static_grid="fp8_tensor", activations="fp8"),
        Family("fp8-block", "FP8 with a scale for each 128 x 128 weights and 128 activations",
               "fp8", 8, "fp8_block128", (128,), activations="fp8"),
        Family("w4a8-fp8", "weights of 4 bits, activations in FP8 with one fixed scale", "int", 4,
               "int4_{group}_portable", (128,), True, fixed=True, activations="fp8"),
        Family("nvfp4", "weights and activations in FP4, groups of 16 (NVIDIA Blackwell)",
               "nvfp4", 4, "nvfp4", (16,), activations="fp4"),
        Family("nvfp4a16", "weights in FP4, groups of 16, computed in 16 bits",
               "nvfp4", 4, "nvfp4", (16,)),
        Family("mxfp4", "weights in FP4, groups of 32 with a power of two for a scale",
               "mxfp4", 4, "mxfp4", (32,)),
    )
}  # fmt: skip


def group_name(group: int) -> str:
    """As in names of schemes and grids: "g128", "channel"."""
    return f"g{group}" if group else "channel"


def scheme_of(
    family: Family, group: int, *, symmetric: bool = True, static: bool = False
) -> Scheme:
    """The scheme of `family` with these refinements, which the caller knows that it takes."""
    zero = "" if symmetric else "_asym"
    grid = family.grid.format(group=group_name(group), zero=zero)
    name = family.dynamic or family.name
    if family.named_group:
        name += f"-{group_name(group)}{zero.replace('_', '-')}"
    if static and not family.fixed:
        name, grid = family.static or name, family.static_grid or grid
    return Scheme(
        name, family.form, family.bits, group, grid, symmetric, family.activations,
        static or family.fixed,
    )  # fmt: skip


def members(family: Family) -> Iterator[Scheme]:
    """Every scheme of a family, the best known first."""
    for group in family.groups:
        yield scheme_of(family, group)
        if family.asymmetric:
            yield scheme_of(family, group, symmetric=False)
    if family.static is not None:
        yield scheme_of(family, family.groups[0], static=True)


@cache
def _known() -> Mapping[str, tuple[Family, Scheme]]:
    return {
        scheme.name: (family, scheme) for family in FAMILIES.values() for scheme in members(family)
    }


def schemes() -> Mapping[str, Scheme]:
    """Every scheme by its canonical name, in the order of the families."""
    return {name: scheme for name, (_, scheme) in _known().items()}


def family_of(scheme: Scheme) -> Family:
    return _known()[scheme.name][0]


def rounding_of(scheme: Scheme) -> InputRounding | None:
    """How a runtime rounds what linears of `scheme` read; None where it does not. INT8 and FP8 have
    a scale for each token, FP8 blocks and FP4 for as many columns as the weights have."""
    if scheme.activations is None:
        return None
    return InputRounding(scheme.activations, -1 if scheme.static else scheme.group)


def scheme_named(name: str) -> Scheme:
    """The scheme of a canonical name; `Refused` with the known names."""
    found = schemes().get(name.lower())
    if found is None:
        raise refuse(f"unknown scheme {name!r}", f"known: {', '.join(schemes())}")
    return found
