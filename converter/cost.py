"""What a calibrated conversion will cost.

Imports torch: only `pipeline`, and only when a recipe looks at data. Sizes follow from the plan
alone; times from trials of the machine (`rates`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from qconvert import estimate
from qconvert.algorithms.root import BLOCK
from qconvert.asked import Asked
from qconvert.calibrate import device_of, setting_of, tokens_of
from qconvert.calibration.rows import SELF
from qconvert.calibration.selfmade import BATCH, WholeModel
from qconvert.engine.ahead import TOKENS
from qconvert.engine.ends import ROWS, Roles, setting_for
from qconvert.engine.observe import held_rows
from qconvert.engine.reach import BYTES, MAX, PASSES
from qconvert.engine.sample import sampled_tokens
from qconvert.engine.stream import WAVE_BYTES, compute_type
from qconvert.engine.work import work_bytes
from qconvert.estimate import Calibrating, Estimate
from qconvert.job import Job, work_folder
from qconvert.rates import Rates, measured, seconds_to_search, seconds_to_solve
from qconvert.sizes import Sizes, sizes_of, states_bytes

_INTERPRETER = 560_000_000
"""Python with torch, transformers, a tokenizer and loaded kernels, measured."""
_RETAINED = 1 << 26
"""What the C library keeps of freed memory, for each thread and for two more, measured."""
_SWEEP = 28
"""Bytes for each weight of a linear in a sweep: what is left of it, gradients, levels, values."""
_CONTEXT = 800_000_000
"""What a CUDA context, its libraries and the fragments of its allocator take; not measured yet."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Largest memory in bytes, of the processor and of a CUDA device."""

    host: int
    device: int
    waits: bool = False  # what is not at work leaves the device: `peak_of`


def cost_of(job: Job, asked: Asked, threads: int) -> Estimate:
    """What `run` would take. Reads the calibration text, as far as it is needed, so that its faults
    are told as well; `Refused` with them."""
    assert job.recipe is not None
    assert job.checkpoint is not None
    rows, length, notes = asked.calib_rows, asked.calib_length, tuple[str, ...]()
    if asked.calib != SELF:
        text = tokens_of(job.checkpoint, asked)
        (rows, length), notes = text.tokens.shape, text.notes
    exact = replace(asked, calib_rows=rows, calib_length=length)
    device = device_of(asked)
    compute = compute_type(asked.compute, device)
    sizes = sizes_of(job)
    peak = placed(job, exact, threads, sizes)
    calibrating = Calibrating(
        origin=text.origin if asked.calib != SELF else SELF,
        rows=rows,
        length=length,
        held_rows=len(held_rows(rows)),
        chat=asked.calib_chat,
        compute=str(compute).removeprefix("torch."),
        device=asked.device,
        device_bytes=peak.device,
        waits=peak.waits,
        work=work_folder(job, asked),
        work_bytes=work_bytes(job.plan),
        states_bytes=2 * states_bytes(sizes, rows, length),
        notes=notes,
    )
    seconds = _seconds(job, exact, threads, sizes, device, compute)
    return Estimate(peak.host, job.plan.nbytes, seconds, calibrating)


def placed(job: Job, asked: Asked, threads: int, sizes: Sizes | None = None) -> Peak:
    """`peak_of` as it will be: where all of it fits on the device, all of it stays there."""
    sizes = sizes_of(job) if sizes is None else sizes
    whole = peak_of(job, asked, threads, sizes)
    if whole.device <= free_on_device(asked):
        return whole
    return peak_of(job, asked, threads, sizes, waits=True)


def free_on_device(asked: Asked) -> int:
    """Bytes of a CUDA device that are free; 0 on the processor."""
    return int(torch.cuda.mem_get_info()[0]) if asked.device != "cpu" else 0


def peak_of(
    job: Job, asked: Asked, threads: int, sizes: Sizes | None = None, *, waits: bool = False
) -> Peak:
    """The largest of all stages, each the sum of what is alive in it. `waits`: on a device, while
    one linear is solved, the moments of the others and what became of them wait on the processor.
    """
    s = sizes_of(job) if sizes is None else sizes
    rows, length = asked.calib_rows, asked.calib_length
    states, block = states_bytes(s, rows, length), 4 * s.block
    sides = sum(cols * cols for cols in s.inputs.values())
    sides += s.mixed * s.inputs["attn_in"] ** 2
    moments = 2 * 4 * sides
    widest = max(s.inputs.values())
    on_cpu = asked.device == "cpu"
    passing = (threads if on_cpu else 1) * 4 * length * (4 * sum(s.inputs.values()) + 3 * length)
    solving = _solving(widest, s.largest)
    samples = _samples(s, asked)
    narrow = 0 if on_cpu else 2 * s.block  # the matrices of a block in the type they multiply in
    kept = 4 * widest * widest if waits else block + moments  # beside the block, while one solves
    stages = {
        "embedding": (2 * states + 4 * min(s.vocabulary, rows * length) * s.hidden, 0),
        "observing": (
            2 * states,
            block
            + narrow
            + moments
            + _captured(s, rows, length, asked.device)
            + passing
            + 2 * 4 * sum(samples),
        ),
        "searching": (states, 2 * block + moments + 4 * sum(samples) + BYTES * max(samples)),
        "solving": (states, block + kept + 4 * sum(samples) + solving),
        "passing on": (2 * states, 2 * block + narrow + passing),
        "ends": (states, s.ends * _of_ends(s)),
    }
    if on_cpu:
        host, device = max(sum(stage) for stage in stages.values()), 0
        host += min(host, (threads + 2) * _RETAINED)
    else:  # a block is read ahead, what one became is written, by the processor; states wait there
        host = 2 * states + 3 * block + waits * (moments + block)
        device = _CONTEXT + max(one for _, one in stages.values())
    host = max(_INTERPRETER + host, s.outside + _INTERPRETER - estimate.INTERPRETER)
    if asked.calib == SELF:
        assert job.checkpoint is not None
        whole = WholeModel(job.checkpoint.folder, job.checkpoint.config)
        host = max(host, _INTERPRETER + whole.needs(rows, length))
    return Peak(host, device, waits)


def _solving(cols: int, weights: int) -> int:
    """While a linear is solved: moments in float64 and their root in float32, with panels; then the
    root beside the sweep, or damped moments beside it."""
    factoring = (8 + 4) * cols * cols + 4 * 8 * BLOCK * cols
    return max(factoring, 2 * 4 * cols * cols + _SWEEP * weights)


def _of_ends(s: Sizes) -> int:
    """While some rows of an embedding or a head are solved."""
    square = s.hidden * s.hidden
    return 4 * 4 * square + _solving(s.hidden, min(ROWS, s.vocabulary) * s.hidden)


def _captured(s: Sizes, rows: int, length: int, device: str) -> int:
    """Inputs of a wave of rows: one by one and joined, those of the wave before, and squares."""
    cols = sum(s.inputs.values()) + s.mixed * s.inputs["attn_in"]
    step = max(1, WAVE_BYTES[device] // (4 * length * cols))
    fitted = rows - len(held_rows(rows))
    wave = 4 * min(step, max(1, fitted)) * length
    return wave * ((3 if fitted > step else 2) * cols + 2 * max(s.inputs.values()))


def _samples(s: Sizes, asked: Asked) -> tuple[int, ...]:
    """Numbers in the sample of each input that has one, and 0 for none."""
    if (asked.activation_scales or s.scales) == MAX:
        return (0,)
    tokens = asked.calib_rows * asked.calib_length
    return (0, *(min(tokens, sampled_tokens(cols)) * cols for cols in s.sampled))


def _seconds(
    job: Job, asked: Asked, threads: int, s: Sizes, device: torch.device, compute: torch.dtype
) -> float:
    """Rows through each block twice, sums of products, optimising, and what is outside."""
    assert job.recipe is not None
    rates = measured(s.hidden, max(s.inputs.values()), asked.calib_length, threads, device, compute)
    tokens = asked.calib_rows * asked.calib_length
    passes = s.blocks * tokens * _token_seconds(s, asked.calib_length, rates)
    passes += s.ahead * s.blocks * min(tokens, TOKENS) * _passing_seconds(s, asked, rates)
    inside = [one for one in job.plan.tensors if one.source and one.source.block is not None]
    ends = Roles.of(job.source, job.plan).optimised if s.ends else ()
    setting = setting_of(asked, threads)
    solving = seconds_to_solve(inside, job.recipe, setting, device)
    solving += seconds_to_solve(ends, job.recipe, setting_for(setting), device)
    searching = seconds_to_search(inside, job.recipe, setting, rates)
    passes += 8 * PASSES * s.blocks * sum(_samples(s, asked)) * threads / rates.moved  # in one
    outside = [one for one in job.plan.tensors if one not in inside and one not in ends]
    rest = estimate.seconds_of(job.plan, outside, threads)
    return passes + solving + searching + rest + _sampling(job, asked)


def _token_seconds(s: Sizes, length: int, rates: Rates) -> float:
    """One token through one block: observed without its last linear, then passed on in full."""
    linears = 2 * (2 * s.block - s.hidden * s.inputs.get("ffn_mid", 0))
    attention = 2 * 4 * length * s.attended
    sums = sum(cols * (cols + 256) for cols in s.inputs.values())
    if s.mixed:
        cols = s.inputs["attn_in"]
        sums += 2 * length * (s.attended + s.heads * length + cols) + cols * (cols + 256)
    vectors = 8 * sum(s.inputs.values())
    return (
        linears / rates.narrow
        + (attention + sums) / rates.wide
        + 2 * 4 * vectors / rates.moved
    )  # fmt: skip


def _passing_seconds(s: Sizes, asked: Asked, rates: Rates) -> float:
    """One token through one block, only passed on."""
    attention = 4 * asked.calib_length * s.attended
    return 2 * s.block / rates.narrow + attention / rates.wide


def _sampling(job: Job, asked: Asked) -> float:
    """Text that the model writes itself: all weights are read for each token of a batch."""
    if asked.calib != SELF:
        return 0.0
    batches = math.ceil(asked.calib_rows / BATCH)
    weights = sum(tensor.nbytes for tensor in job.source.tensors)
    return batches * asked.calib_length * weights / estimate.MEMORY
