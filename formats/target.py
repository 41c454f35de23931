"""Target: how a format names, lays out and writes a model. One module or package per target.

A module of `qconvert.formats` that has an attribute `TARGET` is a target: nothing is registered
anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.discovery import offered
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of a target. `None` leaves the choice to it.

    A target names the fields that it can follow in `Target.takes`; the others are refused when they
    are set, before it is asked for a plan.
    """

    bits: int | None = None
    type: str | None = None  # "Q4_K_M": a target's own name for a mix of grids
    split_bytes: int | None = None  # largest size of one file
    scheme: str | None = None  # how weights and activations are stored: "w4a16", "fp8-block"
    group: int | None = None  # columns that share a scale; 0: the whole row
    symmetric: bool | None = None
    static: bool | None = None  # activation scales fixed by calibration, not made for each token
    container: str | None = None  # the layout that holds the scheme: "gptq"
    kv: str | None = None  # type of the KV cache that scales are written for: "fp8", "nvfp4"
    layers: tuple[tuple[str, str], ...] = ()  # (pattern of linears, scheme or "float"), first wins
    hardware: str | None = None  # what must run it: "cpu", "hopper"; None: any at all
    tp: int | None = None  # ranks of tensor parallelism that every shape must be cut for
    own: tuple[tuple[str, str], ...] = ()  # the target's own options that are set: `formats.option`

    def option(self, name: str) -> str | None:
        """What the target's own option `name` is set to."""
        return dict(self.own).get(name)


Kind = Literal["input", "key", "value"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number that calibration finds and a file holds, made of a largest magnitude.

    "input": of what the linear of the source tensor `tensor` reads; "key" and "value": of what
    enters the KV cache in the block of `tensor`, keys after RoPE.
    """

    kind: Kind
    tensor: str  # name of a source tensor in a block
    divide: float  # what is stored is largest / divide
    inverse: bool = False  # what is stored is divide / largest

    def stored(self, largest: float) -> np.float32:
        """1 where nothing was ever seen: a scale must not be zero."""
        if not largest > 0:
            return np.float32(1)
        return np.float32(self.divide / largest if self.inverse else largest / self.divide)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output, known before any weight is read."""

    name: str  # in the output: "blk.0.attn_q.weight"
    shape: tuple[int, ...]  # [out, in] as in the source; [n] for vectors
    grid: Grid | None  # None: kept in float, as `dtype` says
    dtype: str  # the stored type: "Q4_K", or "F32" / "F16" / "BF16" when kept
    nbytes: int
    source: SourceTensor | None  # None: made from the configuration, in `values`, or measured
    values: NDArray[np.float32] | None = None
    row_order: NDArray[np.intp] | None = None  # output row r is source row row_order[r]
    add: float = 0.0  # added to kept floats (Gemma norms are stored as w + 1)
    note: str = ""  # why this type, when it is not the one asked for
    statistic: Statistic | None = None  # `source` and `values` are None: one number, measured
    shares: tuple[str, ...] = ()
    """Source tensors, this one among them, whose grid has one scale for all their rows together:
    `grid.bound(largest of them all)` is what they are fitted to. Empty: nothing is shared."""
    input_rounding: InputRounding | None = None
    """How a runtime rounds what this linear reads; a `per` of -1 without a `scale` is fixed by
    calibration, and so is the scale of the tensor beside those of 16 columns in fp4."""
    column_scale: str = ""
    """Not empty: `source` and `values` are None, and this is the vector [in] by which a runtime
    multiplies what the linear with this source weight reads, before it rounds that: a scale of the
    channels that a transform leaves to the file to hold. 1 where none does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about an output but its weights. Making one refuses what cannot work."""

    target: str
    type: str  # the mix: "Q4_K_M"
    tensors: tuple[OutputTensor, ...]  # in the order in which they are written
    default_name: str  # of the output, when the user gives none: "smollm2-135m-Q4_K_M.gguf"
    notes: tuple[str, ...] = ()  # one line each: fallbacks and the like
    overhead_bytes: int = 0  # headers, metadata, tokenizer
    details: Mapping[str, Any] = field(default_factory=dict)  # the target's own
    rule: str = ""  # why weights are rounded by the grids' own rule alone, without a method; ""

    @property
    def nbytes(self) -> int:
        return self.overhead_bytes + sum(tensor.nbytes for tensor in self.tensors)

    @property
    def weights(self) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors)


class Sink(Protocol):
    """An output that is being written, tensors in the plan's order, rows in order."""

    def write(self, tensor: OutputTensor, rows: QuantizedTensor | NDArray[np.float32]) -> None:
        """Append some rows of `tensor`: neutral form where it has a grid, else float32.

        The sink applies `row_order` and `add`. A tensor with a `row_order` comes whole.
        """
        ...


class Target(Protocol):
    """One more attribute is looked for: `unquantized`, the type that quantizes nothing, of a target
    that does not know it by the names F32, F16 and BF16."""

    @property
    def name(self) -> str:
        """As after `--to`: "gguf"."""
        ...

    @property
    def summary(self) -> str:
        """One line for `qconvert targets`."""
        ...

    @property
    def types(self) -> Sequence[tuple[str, str]]:
        """What `--type` takes: (name, one line about it), best known first."""
        ...

    @property
    def takes(self) -> frozenset[str]:
        """Names of the fields of `Request` that it can follow."""
        ...

    @property
    def folder(self) -> bool:
        """True when an output is a folder, False when it is a file (or several beside it)."""
        ...

    def plan(self, source: Source, request: Request) -> Plan:
        """Decide every tensor's grid from headers and configuration; `Refused` with all reasons."""
        ...

    def writer(self, plan: Plan, path: Path) -> AbstractContextManager[Sink]:
        """Write aside; rename to `path` on a clean exit, leave nothing behind on any other."""
        ...

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        """The files that the writer will leave for `path`: several when split, or in a folder."""
        ...

    def recognises(self, path: Path) -> bool:
        """True when `path` looks like an output of this target."""
        ...

    def reader(self, path: Path) -> Reader:
        """Open an output; `Refused` when it is damaged."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor found in an output."""

    name: str
    shape: tuple[int, ...]  # [out, in]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class InputRounding:
    """How a runtime rounds what a linear reads before it multiplies, because the file says so."""

    kind: Literal["int8", "fp8", "fp4"]
    per: int  # columns that share a scale: 0 the whole token, -1 the whole tensor (`scale`)
    scale: float | None = None  # fixed by the file; None: made of the values at hand


@dataclass(frozen=True, slots=True)
class CacheRounding:
    """Scales of a KV cache, of one block: what is kept is value / scale, in e4m3; in nvfp4 it is
    e2m1 under an e4m3 scale for 16 columns of a head."""

    key: float
    value: float
    kind: Literal["fp8", "nvfp4"] = "fp8"


class Reader(Protocol):
    """The reading side of a target.

    A file that has activations or the KV cache rounded says so in more attributes, looked for
    by `runtimes.noise`: `input_rounding`, checkpoint name of a weight -> `InputRounding`;
    `column_scales`, the same name -> the vector [in] by which inputs are multiplied before they are
    rounded (what `decode` gives has taken it in); and `cache_rounding`, block -> `CacheRounding`.
    A file that does not hold the checkpoint's names has `input_rounding_of(source)` in place of the
    first.
    """

    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...
    def decode(self, name: str) -> NDArray[np.float32]:
        """The float32 values that the output stands for, in its own row order."""
        ...

    def weights(self, source: Source) -> Mapping[str, NDArray[np.float32]]:
        """A lazy mapping: checkpoint name -> decoded values, in the checkpoint's names, row order,
        conventions and *stored* orientation: what `load_state_dict` of the source's class takes."""
        ...


def targets() -> dict[str, Target]:
    """Every target, by name."""
    return offered("qconvert.formats", "TARGET", inside="target")


def target_named(name: str) -> Target:
    """The target called `name`; `Refused` with the known names otherwise."""
    known = targets()
    if name not in known:
        raise refuse(f"unknown target {name!r}", f"known targets: {', '.join(sorted(known))}")
    return known[name]
