"""Fixed scales of activations beside what linears really read: do they fit?

A file that fixes the scale of what a linear reads has it from a calibration, by one of two rules:
to reach to the largest magnitude that was seen, or to round with the least squared error. Both can
be repeated on other text. By which rule a file was made shows in most of its linears; one that
leaves the rule of the others by far has a scale that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from qconvert.formats.source import Source
from qconvert.formats.target import InputRounding, Reader
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.noise import input_rounding
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.rounding import E2M1_LARGEST, E4M3_LARGEST, round_inputs

LARGEST: Mapping[str, float] = {
    "int8": 127.0,
    "fp8": E4M3_LARGEST,
    "fp4": E4M3_LARGEST * E2M1_LARGEST,  # of the scale that the scales of 16 columns have
}
"""What a fixed scale is multiplied by to reach the largest number of a type."""

STEPS = tuple(2.0 ** (step / 2) for step in range(-8, 9))
"""Scales that are tried, as multiples of the stored one."""

MOST = 0.75  # of the linears follow the rule of the file
FITS = 1.5  # times the least squared error, or the largest magnitude: by the rule
OFF = 2.5  # times: by no rule. Twice a scale is four times the squared error of integers
BEYOND = 1.75  # times the largest magnitude: what has the least error met 1.52 on other text
ENOUGH = 512  # tokens: the loudest values of less text say little of the rule
ABSURD = 8.0  # times the largest magnitude, or its share: by no rule, whatever the others say
"""Between them, to reach less far than the text at hand does is no fault: a calibration on 512
tokens has left 0.26 of the largest magnitude, at 32 times the least error (smollm2-135m, down_proj
and o_proj)."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The scale of one linear's input, beside the text."""

    name: str  # of its weight
    scale: float
    reach: float  # as a multiple of the largest magnitude that was read
    loss: float
    """Squared error of the rounding, as a multiple of the least that a scale gives: over all tokens
    or over all but the loudest, whichever is kinder."""


def scale_findings(
    model: Reference, reader: Reader, source: Source, tokens: Sequence[int]
) -> list[Finding]:
    """Fixed scales of inputs that do not fit what the decoded model's linears read."""
    fixed = {
        name: one
        for name, one in input_rounding(reader, source).items()
        if one.scale is not None and one.per < 0
    }
    if not fixed:
        return []
    columns = getattr(reader, "column_scales", {})
    found = _measured(model, fixed, columns, tokens)
    return list(judged(found, by_rule=len(tokens) >= ENOUGH))


def judged(found: Sequence[Fixed], *, by_rule: bool = True) -> Iterator[Finding]:
    """Those that leave the rule that most follow; where most follow none, or without `by_rule`, the
    absurd ones alone."""
    by_error = by_rule and _most(one.loss <= FITS for one in found)
    by_size = by_rule and _most(1 / FITS <= one.reach <= FITS for one in found)
    for one in sorted(found, key=lambda one: -max(one.reach, 1 / max(one.reach, 1e-9))):
        absurd = not 1 / ABSURD <= one.reach <= ABSURD
        if absurd or (by_size and one.reach > OFF):
            told = f"reaches to {one.reach:.3g} times the largest value that is read"
        elif by_error and one.reach > BEYOND and one.loss > OFF:
            told = f"rounds with {one.loss:.3g} times the least squared error"
        else:
            continue
        usual = median(other.reach for other in found)
        yield Finding(
            "bytes",
            one.name,
            f"{one.name}: its fixed input scale, {one.scale:.4g}, {told}; the usual one of this"
            f" file reaches to {usual:.3g} times",
        )


def _most(fits: Iterable[bool]) -> bool:
    every = list(fits)
    return sum(every) >= MOST * len(every)


def _measured(
    model: Reference,
    fixed: Mapping[str, InputRounding],
    columns: Mapping[str, Any],
    tokens: Sequence[int],
) -> list[Fixed]:
    found: list[Fixed] = []
    modules = dict(model.model.named_modules())
    with ExitStack() as stack:
        for name, rounding in fixed.items():
            module = modules.get(model.names.get(name, name).removesuffix(".weight"))
            if module is not None:
                look = _looking(name, rounding, columns.get(name), found)
                stack.callback(module.register_forward_pre_hook(look).remove)
        model.logits(tokens)
    return found


def _looking(
    name: str, rounding: InputRounding, column_scale: Any, found: list[Fixed]
) -> Callable[[Any, tuple[Any, ...]], None]:
    import torch

    scale = float(rounding.scale or 0.0)
    columns = None if column_scale is None else torch.from_numpy(column_scale.copy())

    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].float()
        values = values if columns is None else values * columns
        largest = float(values.abs().max())
        rows = values.reshape(-1, values.shape[-1])
        errors = torch.stack([
            (round_inputs(rows, replace(rounding, scale=scale * step)) - rows).double().square()
            .sum(1)
            for step in STEPS
        ])  # fmt: skip
        loud = int(rows.abs().amax(1).argmax())
        whole = errors.sum(1)
        quiet = whole - errors[:, loud]
        own = STEPS.index(1.0)
        loss = min(float(one[own] / one.min().clamp_min(1e-30)) for one in (whole, quiet))
        reach = scale * LARGEST[rounding.kind] / max(largest, 1e-30)
        found.append(Fixed(name, scale, reach, loss))

    return look
