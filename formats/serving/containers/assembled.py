"""A container put together of layouts and of functions on its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import (
    Array,
    CacheType,
    Config,
    Entry,
    Joint,
    Linear,
    Measured,
    Told,
)
from qconvert.formats.serving.containers.claims import Claims, read_linears
from qconvert.formats.serving.containers.names import JOINED
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST
from qconvert.formats.serving.scheme import Activations, Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.target import InputRounding, Statistic
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class InputScale:
    """A stored number for the activations of a linear."""

    part: str  # last part of its name
    shape: tuple[int, ...]  # of one element
    divide: float  # as in `Statistic`
    inverse: bool = False


@dataclass(frozen=True, slots=True)
class CacheScales:
    """Names of the scales of a KV cache, of the modules of k and v."""

    key: Callable[[str], str]
    value: Callable[[str], str]
    shape: tuple[int, ...]  # of one element
    divide: Mapping[str, float] = field(default_factory=lambda: {"fp8": E4M3_LARGEST})
    """Type of the cache -> as in `Statistic`."""


@dataclass(frozen=True, slots=True)
class ColumnScale:
    """A stored vector [in] by which inputs are multiplied, in the float type of the model."""

    part: str  # last part of its name
    roles: frozenset[str]  # of the linears that must have one; no other may
    joined: bool = False  # whether linears that programs join with others are among them

    def on(self, module: str) -> bool:
        """Whether the linear of this name has such a role."""
        return self.joined or module.rpartition(".")[2] not in JOINED


@dataclass(frozen=True, slots=True)
class Assembled:
    """Satisfies `Container`."""

    name: str
    summary: str
    layout: Callable[[Scheme], Layout | None]  # None: it cannot hold the scheme
    unheld: Callable[[Scheme], Reason]  # why not, and what can
    tell: Callable[[Told], Config]
    claims: Callable[[Mapping[str, Any], Path], Claims | None]
    """What config.json, or a file beside it, says; None where that is of another container."""
    input_scales: Mapping[tuple[Activations, bool], InputScale] = field(default_factory=dict)
    """By what is rounded to, and whether the scheme is static."""
    cache_scales: CacheScales | None = None
    column_scale: Callable[[Scheme], ColumnScale | None] = lambda scheme: None
    joints: Callable[[Linear], Joint | None] = lambda linear: None

    def problems(self, scheme: Scheme) -> Sequence[Reason]:
        return [] if self.layout(scheme) is not None else [self.unheld(scheme)]

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        return self._layout(linear).entries(linear, float_type)

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        return self._layout(linear).pack(linear, tensor, float_type)

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        return self._layout(linear).unpack(linear, arrays)

    def inputs(self, linear: Linear, source: str) -> tuple[Measured, ...]:
        scale = self._input_scale(linear)
        if scale is None:
            return ()
        entry = Entry(f"{linear.module}.{scale.part}", "F32", scale.shape)
        return (Measured(entry, Statistic("input", source, scale.divide, scale.inverse)),)

    def columns(self, linear: Linear, role: str, float_type: Dtype) -> Entry | None:
        scale = self.column_scale(linear.scheme)
        if scale is None or role not in scale.roles:
            return None
        return Entry(f"{linear.module}.{scale.part}", float_type, (linear.shape[1],))

    def column_part(self, linear: Linear) -> str | None:
        scale = self.column_scale(linear.scheme)
        return scale.part if scale is not None and scale.on(linear.module) else None

    def joint(self, linear: Linear) -> Joint | None:
        return self.joints(linear)

    def cache(
        self, key: str, value: str, sources: tuple[str, str], kv: str
    ) -> tuple[Measured, ...]:
        scales = self.cache_scales
        if scales is None or kv not in scales.divide:
            return ()
        divide = scales.divide[kv]
        return (
            Measured(
                Entry(scales.key(key), "F32", scales.shape),
                Statistic("key", sources[0], divide),
            ),
            Measured(
                Entry(scales.value(value), "F32", scales.shape),
                Statistic("value", sources[1], divide),
            ),
        )

    def config(self, told: Told) -> Config:
        """`Refused` where it cannot hold all of it together."""
        scales = self.cache_scales
        if told.kv is not None and (scales is None or told.kv not in scales.divide):
            raise refuse(
                f"{self.name} has no place for scales of a KV cache in {told.kv}",
                "--container compressed-tensors, or leave out --kv",
            )
        return self.tell(told)

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        return self.claims(config, folder) is not None

    def kv(self, config: Mapping[str, Any], folder: Path) -> CacheType | None:
        claims = self.claims(config, folder)
        return None if claims is None else claims.kv

    def linears(
        self,
        config: Mapping[str, Any],
        stored: Mapping[str, Entry],
        folder: Path,
        tolerated: list[Reason] | None = None,
    ) -> Sequence[Linear]:
        claims = self.claims(config, folder)
        assert claims is not None, "a folder of another container"
        tied = bool(config.get("tie_word_embeddings"))
        return read_linears(self, claims, stored, tied=tied, tolerated=tolerated)

    def input_rounding(
        self, linear: Linear, arrays: Callable[[str], Array]
    ) -> InputRounding | None:
        scheme = linear.scheme
        if scheme.activations is None:
            return None
        scale = self._input_scale(linear)
        per = -1 if scheme.static else scheme.group
        if scale is None:
            return InputRounding(scheme.activations, per)
        stored = np.asarray(arrays(f"{linear.module}.{scale.part}"), np.float32).item()
        if not (np.isfinite(stored) and stored > 0):
            raise refuse(f"{linear.module}.{scale.part} is {stored}")
        return InputRounding(scheme.activations, per, 1 / stored if scale.inverse else stored)

    def _layout(self, linear: Linear) -> Layout:
        layout = self.layout(linear.scheme)
        assert layout is not None, f"{self.name} cannot hold {linear.scheme.name}"
        return layout

    def _input_scale(self, linear: Linear) -> InputScale | None:
        activations = linear.scheme.activations
        if activations is None:
            return None
        return self.input_scales.get((activations, linear.scheme.static))
