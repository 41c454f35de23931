"""What the engine says of each finished block; kept with the block, so a resumed job has it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LinearRecord:
    """One quantized linear. Errors are of its output on held-out rows, relative to the output's
    own mean square: 0.01 is one percent of the energy. Of an embedding, they are those of what the
    linears of the first block make of its rows (`engine.metric`)."""

    name: str  # of the tensor: "model.layers.0.self_attn.q_proj.weight"
    role: str
    grid: str
    plain_error: float  # of the fit alone, nearest codes
    error: float  # of what was kept
    steps: tuple[str, ...]  # what was kept, in order: ("weighted", "gptq", "descent")


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One input of the block: how hard it is to quantize for."""

    name: str  # one of the values of engine.block.READS
    channels: int
    dead: int  # channels that are zero on every token
    outlier: float  # largest magnitude over the root mean square
    kurtosis: float  # of all values, 3 for a Gaussian
    largest: tuple[float, ...] = ()  # largest magnitude of each channel; first block only


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One finished block."""

    index: int
    linears: tuple[LinearRecord, ...]
    inputs: tuple[InputRecord, ...]
    seconds: float
    peak_bytes: int  # largest resident size of the process so far
    largest: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Largest magnitudes over all rows of the block as it was stored: of its inputs, by the names
    of engine.block.READS, of "key" (after RoPE) and of "value", as they enter a cache. Of inputs
    that a fixed scale was chosen for by another rule, what that scale reaches to. Empty where an
    older qconvert made the block."""
    covered: Mapping[str, float] = field(default_factory=dict, hash=False)
    """What the fixed scales of inputs were taken to reach to, where activations were rounded as
    rows were passed on: by the usual rule, the largest magnitudes of the block in float, before
    `largest` could be seen."""
