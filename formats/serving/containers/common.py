"""What several containers ask of schemes, and check of what they are told."""

from __future__ import annotations

from typing import Literal

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Told
from qconvert.formats.serving.containers.names import mistaken
from qconvert.formats.serving.scheme import Scheme

Span = Literal["block", "group", "tensor", "channel"]


def span_of(scheme: Scheme) -> Span:
    """Which weights share a scale."""
    if scheme.grid.together > 1:
        return "block"
    if scheme.group:
        return "group"
    return "tensor" if scheme.shared else "channel"


def one_scheme(container: str, told: Told) -> Scheme | None:
    """The scheme of all linears, None without any; `Refused` where there are several."""
    found = dict.fromkeys(one.scheme for one in told.linears)
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        raise refuse(
            f"{container} holds one scheme, not {names}",
            "take one scheme for all linears, or --container compressed-tensors",
        )
    return next(iter(found), None)


def by_parts(container: str, told: Told) -> list[str]:
    """Names of the linears that stay float, for loaders that look for them inside other names;
    `Refused` where one is part of the name of a quantized linear."""
    for kept, quantized in mistaken(told.floats, [one.module for one in told.linears]):
        raise refuse(
            f"{container} cannot keep {kept} in float: its loaders would keep {quantized}, too",
            "quantize both or none, or --container compressed-tensors",
        )
    return list(told.floats)
