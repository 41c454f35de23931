"""What `--type` and `--scheme` take of a program, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import family_of
from qconvert.formats.serving.wanted import FLOATS, Names, options_of, own_name


def listed(running: Sequence[Scheme], own: Names) -> tuple[tuple[str, str], ...]:
    """(name, summary): a program's `own` names, its `running` schemes, float types."""
    leading = {name: [one for one in running if own_name(one, own) == name] for name in own}
    return (
        *((name, _summary(found)) for name, found in leading.items() if found),
        *((one.name, _line(one, own)) for one in running if one.name not in own),
        *((name, f"not quantized, {dtype}") for name, dtype in FLOATS.items()),
    )


def _line(scheme: Scheme, own: Names) -> str:
    named = own_name(scheme, own) is not None
    return f"as {options_of(scheme, own)}" if named else _summary([scheme])


def _summary(found: Sequence[Scheme]) -> str:
    """Of schemes that differ in nothing but the group."""
    return ", ".join(_parts(found))


def _parts(found: Sequence[Scheme]) -> Iterator[str]:
    scheme = found[0]
    family = family_of(scheme)
    if scheme.static and not family.fixed:
        yield f"{family.summary.partition(':')[0]}, one fixed scale for what a linear reads"
        return
    yield family.summary
    if family.named_group:
        groups = " or ".join(str(one.group) for one in found if one.group)
        yield f"groups of {groups}" if groups else "a scale for each row"
    if not scheme.symmetric:
        yield "zero points"
