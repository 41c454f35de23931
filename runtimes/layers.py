"""Which block goes wrong first? Hidden states after each block, beside those of the reference.

The error at a position is the length of the difference over the length of the reference's hidden
state; that of a block is its mean over positions. So every position counts the same: the first one
of many models is a hundred times longer than all others (the "attention sink"), and would be all
that a sum over positions sees. On SmolLM2-135M in llama.cpp, whose activations are rounded to 8
bits, this mean lies within 3 % of what that rounding explains in each of 30 blocks, where the root
of the summed squares is off by up to 46 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.findings import LayerError

Blocks = NDArray[np.float32]
"""[blocks, positions, hidden], of the same positions wherever two are compared."""

FLOOR = 1e-5
"""Relative. What float32 in another order adds: 2e-6 at most in ONNX Runtime and TVM on
SmolLM2-135M, whatever its 30 blocks."""
FIRST = 1.4
"""Times what is expected, in the first block. Good files: 0.9 to 1.02, and 1.2 in vLLM's float16,
which rounds more often than the reference does."""
JUMP = 1.15
"""Times the largest such ratio of the blocks before. Good files: at most 1.05."""


def layer_errors(
    source: Blocks | None,
    decoded: Blocks,
    runtime: Blocks | None = None,
    rounded: Blocks | None = None,
) -> tuple[LayerError, ...]:
    """Of each block: the file as decoded beside the source (0 without one), the runtime beside the
    decoded file, and the decoded file with rounded activations beside the same without.

    Infinite where something is not finite. `ValueError` when shapes differ: another model.
    """
    costs = [0.0] * len(decoded) if source is None else relative_errors(decoded, source)
    adds = None if runtime is None else relative_errors(runtime, decoded)
    expected = None if rounded is None else relative_errors(rounded, decoded)
    return tuple(
        LayerError(
            block,
            cost,
            None if adds is None else adds[block],
            None if expected is None else expected[block],
        )
        for block, cost in enumerate(costs)
    )


def relative_errors(found: Blocks, reference: Blocks) -> list[float]:
    """Of each block, the mean over positions of |found - reference| / |reference|."""
    if found.shape != reference.shape:
        raise ValueError(f"blocks of the shape {found.shape} beside those of {reference.shape}")
    errors = []
    for here, there in zip(found, reference, strict=True):
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(there.astype(np.float64), axis=-1)
            apart = np.linalg.norm(here.astype(np.float64) - there, axis=-1)
            error = float((apart / np.maximum(lengths, np.finfo(np.float32).tiny)).mean())
        errors.append(error if math.isfinite(error) else math.inf)
    return errors


def merged(parts: Sequence[Sequence[LayerError]]) -> tuple[LayerError, ...]:
    """The mean over windows of as many positions each; a figure that one of them lacks is left
    out. Empty without windows."""
    return tuple(
        LayerError(
            of_block[0].block,
            sum(one.quantization for one in of_block) / len(of_block),
            _mean([one.runtime for one in of_block]),
            _mean([one.expected for one in of_block]),
        )
        for of_block in zip(*parts, strict=True)
    )


def first_outside(
    runtime: Sequence[float], expected: Sequence[float], floor: float = FLOOR
) -> int | None:
    """The first block whose output leaves the noise: whose error, in units of the expected one (and
    of no less than `floor`), is beyond FIRST, or jumps by JUMP above those before it. None where
    none does.

    Rounding of which nothing is expected raises that ratio in all blocks alike. A fault raises it
    in its own; from there it falls, because the noise of later blocks comes on top.
    """
    highest = 1.0
    for at, (found, known) in enumerate(zip(runtime, expected, strict=True)):
        ratio = found / max(known, floor)
        if not ratio <= (JUMP * highest if at else FIRST):
            return at
        highest = max(highest, ratio)
    return None


def culprit_block(layers: Sequence[LayerError]) -> int | None:
    """The first block whose output leaves the noise in the runtime; None where none does, or where
    the runtime showed none. Without an expectation, what is beyond float arithmetic counts."""
    if any(one.runtime is None for one in layers):
        return None
    at = first_outside(
        [one.runtime or 0.0 for one in layers], [one.expected or 0.0 for one in layers]
    )
    return None if at is None else layers[at].block


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
