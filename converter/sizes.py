"""What the memory and time of a calibrated conversion follow from: sizes, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qconvert import estimate
from qconvert.engine.block import READS
from qconvert.engine.ends import Roles
from qconvert.engine.rounding import is_fixed
from qconvert.job import Job
from qconvert.models import dimensions
from qconvert.recipe import usual_scales


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory and time follow from."""

    blocks: int
    block: int  # weights of the largest
    largest: int  # weights of its largest linear
    inputs: Mapping[str, int]  # by the names of READS: channels
    hidden: int
    vocabulary: int
    attended: int  # channels of all query heads
    heads: int
    mixed: bool
    outside: int  # bytes while tensors outside the blocks are fitted, and while output is written
    ends: bool  # embedding or head are optimised
    ahead: bool  # rows go through the model in float first
    sampled: tuple[int, ...]  # channels of the inputs that a fixed scale rounds
    scales: str  # how those are chosen when the user does not say


def sizes_of(job: Job) -> Sizes:
    """From headers and configuration alone."""
    assert job.recipe is not None
    blocks: dict[int, int] = {}
    inputs: dict[str, int] = {}
    largest = 0
    for tensor in job.source.tensors:
        if tensor.block is None:
            continue
        weights = math.prod(tensor.shape)
        blocks[tensor.block] = blocks.get(tensor.block, 0) + weights
        if tensor.role in READS and tensor.part == "weight":
            inputs[READS[tensor.role]] = tensor.shape[1]
            largest = max(largest, weights)
    roles = Roles.of(job.source, job.plan)
    found = dimensions(job.source.config)
    embedding = next(one for one in job.source.tensors if one.role == "embedding")
    return Sizes(
        len(blocks),
        max(blocks.values()),
        largest,
        inputs,
        inputs["attn_in"],
        embedding.shape[0],
        found["q"],
        max(1, found["q"] // max(1, found["head"])),
        job.recipe.mixed,
        estimate.peak_of(job.plan),
        job.recipe.calibrated and bool(roles.optimised),
        job.recipe.calibrated and bool(roles.ahead),
        _sampled(job, inputs),
        usual_scales(job.plan),
    )


def _sampled(job: Job, inputs: Mapping[str, int]) -> tuple[int, ...]:
    names = {
        READS[one.source.role]
        for one in job.plan.tensors
        if one.source and one.input_rounding and is_fixed(one.input_rounding)
    }
    return tuple(cols for name, cols in inputs.items() if name in names)


def states_bytes(s: Sizes, rows: int, length: int) -> int:
    return 4 * rows * length * s.hidden
