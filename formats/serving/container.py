"""Container: the tensors and the configuration by which a loader knows a quantized folder.

A module of `qconvert.formats.serving.containers` that has an attribute `CONTAINER` is one: nothing
is registered anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.discovery import offered
from qconvert.formats.refusal import Reason
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.target import InputRounding, Statistic
from qconvert.formats.tensor import QuantizedTensor

Array = NDArray[np.generic]

SIZES: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8,
}  # fmt: skip
"""Types of safetensors that are written here -> bytes. Arrays of BF16 are uint16, of F8_E4M3 uint8:
numpy has neither."""


CacheType = Literal["fp8", "nvfp4"]
"""Of a KV cache whose scales are stored."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor."""

    name: str
    dtype: str  # of SIZES
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Linear:
    """One quantized linear of an output."""

    module: str  # "model.layers.0.self_attn.q_proj"
    shape: tuple[int, int]  # [out, in]
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class Measured:
    """A stored number that calibration finds."""

    entry: Entry  # F32, of one element
    statistic: Statistic


@dataclass(frozen=True, slots=True)
class Joint:
    """A stored number that is equal in all linears that a program holds as one. It is made when the
    last of them is packed, and lies beside that one."""

    entry: Entry  # F32, of one element
    of: Callable[[QuantizedTensor], float]
    stored: Callable[[float], np.float32]  # made of the largest `of` among them


@dataclass(frozen=True, slots=True)
class Told:
    """What the configuration of an output is made of."""

    linears: Sequence[Linear]  # quantized, in the order of the file
    floats: Sequence[str]  # modules of linears that stay float, the head among them: "lm_head"
    kv: str | None = None  # "fp8", "nvfp4": scales of such a KV cache are stored
    architecture: str = ""  # of config.json
    names: Mapping[str, str] = field(default_factory=dict)  # module of a linear -> its role


@dataclass(frozen=True, slots=True)
class Config:
    """`quantization`: the value of `quantization_config` in config.json, None for none. `files`:
    more files by name."""

    quantization: Mapping[str, Any] | None
    files: Mapping[str, bytes] = field(default_factory=dict)


class Container(Protocol):
    @property
    def name(self) -> str:
        """As after `--container`: "gptq"."""
        ...

    @property
    def summary(self) -> str: ...
    def problems(self, scheme: Scheme) -> Sequence[Reason]:
        """Why it cannot hold linears of `scheme`; empty when it can."""
        ...

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        """What is stored of it, without what calibration measures. `float_type`: of the model's
        other tensors, which scales take where the layout leaves it open."""
        ...

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        """The arrays of `entries` by name, of the whole tensor; codes are copied, never made."""
        ...

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        """The inverse of `pack`."""
        ...

    def inputs(self, linear: Linear, source: str) -> tuple[Measured, ...]:
        """What is stored of its activations; `source`: name of the weight in the checkpoint."""
        ...

    def columns(self, linear: Linear, role: str, float_type: Dtype) -> Entry | None:
        """The vector [in] by which a loader has the inputs of the linear multiplied, where it wants
        one for a linear of this role."""
        ...

    def column_part(self, linear: Linear) -> str | None:
        """Last part of the name of that vector, of a linear of a folder that must have one."""
        ...

    def joint(self, linear: Linear) -> Joint | None: ...
    def cache(
        self, key: str, value: str, sources: tuple[str, str], kv: str
    ) -> tuple[Measured, ...]:
        """What is stored of a KV cache of the type `kv`, of the block with these k and v linears
        (modules; both are the joined one where q, k, v are one linear); `sources`: their
        weights."""
        ...

    def config(self, told: Told) -> Config:
        """How a loader is told of all this."""
        ...

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        """Whether config.json, or a file beside it, tells of this container."""
        ...

    def kv(self, config: Mapping[str, Any], folder: Path) -> CacheType | None:
        """Type of the KV cache that the configuration switches on."""
        ...

    def linears(
        self,
        config: Mapping[str, Any],
        stored: Mapping[str, Entry],
        folder: Path,
        tolerated: list[Reason] | None = None,
    ) -> Sequence[Linear]:
        """The quantized linears of a folder, from its configuration and headers; `Refused` where
        they contradict each other. Contradictions about which linears are quantized go into
        `tolerated`, where it is a list."""
        ...

    def input_rounding(
        self, linear: Linear, arrays: Callable[[str], Array]
    ) -> InputRounding | None:
        """How a runtime rounds what the linear reads; `arrays` reads a stored tensor."""
        ...


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """Everything about a folder but its weights; `Plan.details["folder"]`. By the names of the
    plan's output tensors."""

    entries: Mapping[str, tuple[Entry, ...]]  # one for a float tensor; none: stored nowhere itself
    linears: Mapping[str, Linear]  # of those that are quantized
    container: Container | None  # None: nothing is quantized
    float_type: Dtype
    files: Mapping[str, bytes]  # name -> content: config.json, ...
    copies: Mapping[str, Path]  # name -> the source's own file: tokenizer.json, ...
    joint: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The last of the linears that have a number in common -> all of them; `Container.joint`. All
    their entries of it are among those of the last."""
    made: Mapping[str, Callable[[Mapping[str, float]], bytes]] = field(default_factory=dict)
    """Files made of measured values at the end: each is given them by output tensor."""
    split_bytes: int = 5_000_000_000


def containers() -> dict[str, Container]:
    """Every container, by name."""
    return offered("qconvert.formats.serving.containers", "CONTAINER")
