"""Rotary positions: config.json in either spelling -> frequencies -> tables of cosines and sines.

The formulas are those of transformers (`modeling_rope_utils.py`), rounded to float32 where it
rounds: an angle is a position times a float32 frequency, so a frequency that differs in its last
bit is off by whole millionths of a turn in a long text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.onnx.architectures import ROPES, Architecture
from qconvert.formats.settings import Settings, is_number, rope_kind

Floats = NDArray[np.float32]

_KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "partial_rotary_factor", "low_freq_factor", "high_freq_factor", "long_factor", "short_factor",
    "finetuned",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rope:
    """Angles of position p: p * frequencies, for pairs (i, i + n) of the first 2n of a head."""

    frequencies: tuple[float, ...]  # each a float32
    scale: float = 1.0  # of cosines and sines
    limit: int | None = None  # positions from here on would need other frequencies

    @property
    def width(self) -> int:
        """Columns of the tables."""
        return len(self.frequencies)

    def tables(self, start: int, stop: int) -> tuple[Floats, Floats]:
        """Cosines and sines of positions [start, stop), each [stop - start, width]."""
        positions = np.arange(start, stop, dtype=np.float32)[:, None]
        angles = (positions * np.array(self.frequencies, np.float32)).astype(np.float64)
        scale = np.float32(self.scale)
        return np.cos(angles).astype(np.float32) * scale, np.sin(angles).astype(np.float32) * scale


@dataclass(frozen=True, slots=True)
class _Given:
    """What the frequencies are made of."""

    settings: Settings
    fields: Mapping[str, Any]
    theta: float
    dims: int

    @property
    def powers(self) -> Floats:
        """theta ** (2i / dims), in float32."""
        exponents = np.arange(0, self.dims, 2, dtype=np.float32) / np.float32(self.dims)
        return np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)

    @property
    def plain(self) -> Floats:
        return np.float32(1) / self.powers

    def number(self, key: str, default: Any = None) -> float:
        return self.settings.number(key, self.fields, default)

    @property
    def original(self) -> int:
        """As transformers: a value beside the rope parameters wins; else the whole context."""
        outer = self.settings.get("original_max_position_embeddings")
        if outer is not None:
            return self.settings.count("original_max_position_embeddings")
        default = self.settings.get("max_position_embeddings")
        return int(self.number("original_max_position_embeddings", default))

    @property
    def factor(self) -> float:
        return self.number("factor", self.settings.count("max_position_embeddings") / self.original)


def read_ropes(settings: Settings, arch: Architecture, head_size: int) -> tuple[Rope, Rope]:
    """(rope of full attention, rope of sliding attention); what cannot be computed is noted."""
    full, local = settings.rope_parameters()
    rope = _rope(settings, arch, full, settings.get("rope_theta"), head_size)
    if not arch.local_rope:
        if local and dict(local) != dict(full):
            settings.refuse("rope parameters that differ by layer type",
                            f"a {arch.model_type} model has one rope for all layers")  # fmt: skip
        return rope, rope
    base = settings.get("rope_local_base_freq")
    return rope, _rope(settings, arch, local, base, head_size)


def _rope(
    settings: Settings, arch: Architecture, fields: Mapping[str, Any], base: Any, head_size: int
) -> Rope:
    if unknown := set(fields) - _KNOWN:
        settings.refuse(f"config.json: unknown rope parameters {', '.join(sorted(unknown))}")
    kind = rope_kind(fields)
    theta = settings.number("rope_theta", fields, base)
    dims = _rotated(settings, arch, fields, head_size)
    given = _Given(settings, fields, theta, dims)
    if kind not in ROPES:
        settings.refuse(
            f"rope of the kind {kind!r}: its angles depend on the length of the text",
            f"tables can hold {', '.join(sorted(ROPES))}",
        )
        return Rope(())
    return _KINDS[kind](given)


def _rotated(
    settings: Settings, arch: Architecture, fields: Mapping[str, Any], head_size: int
) -> int:
    """Values of a head that are rotated."""
    share = fields.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if share is None or share == 1:
        dims = head_size
    elif not is_number(share) or not 0 < share < 1:
        settings.refuse(f"config.json: partial_rotary_factor is {share!r}, not in (0, 1]")
        return head_size
    elif not arch.partial_rotary:
        settings.refuse(f"config.json: partial_rotary_factor is {share!r}",
                        f"a {arch.model_type} model rotates whole heads")  # fmt: skip
        return head_size
    else:
        dims = int(head_size * share)
    if dims % 2 or not dims:
        settings.refuse(f"{dims} rotated values per head: an even number is needed")
    return dims


def _made(frequencies: Floats, scale: float = 1.0, limit: int | None = None) -> Rope:
    return Rope(tuple(float(one) for one in frequencies.astype(np.float32)), scale, limit)


def _default(given: _Given) -> Rope:
    return _made(given.plain)


def _linear(given: _Given) -> Rope:
    return _made(given.plain / np.float32(given.number("factor")))


def _llama3(given: _Given) -> Rope:
    """Long waves are stretched, short ones kept, those between are blended."""
    factor = np.float32(given.number("factor"))
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if high <= low:
        given.settings.refuse(f"config.json: high_freq_factor {high} is not above {low}")
        return Rope(())
    plain, original = given.plain, given.original
    waves = np.float32(2 * math.pi) / plain
    smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * (plain / factor) + smooth * plain
    found = np.where(waves > original / low, plain / factor, plain)
    between = (waves >= original / high) & (waves <= original / low)
    return _made(np.where(between, blended, found))


def _yarn(given: _Given) -> Rope:
    """arXiv 2309.00071, section 3.2: each frequency between its own and its stretched value."""
    original, factor = given.original, given.factor
    fast, slow = given.number("beta_fast", 32), given.number("beta_slow", 1)

    def turning(rotations: float) -> float:
        """The pair that turns so often in the original context."""
        ratio = original / (rotations * 2 * math.pi)
        return given.dims * math.log(ratio) / (2 * math.log(given.theta))

    low, high = turning(fast), turning(slow)
    if given.fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, given.dims - 1)
    high = high + 0.001 if low == high else high
    ramp = (np.arange(given.dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1).astype(np.float32)
    stretched = np.float32(1) / (np.float32(factor) * given.powers)
    return _made(stretched * (1 - kept) + given.plain * kept, _yarn_scale(given, factor))


def _yarn_scale(given: _Given, factor: float) -> float:
    if given.fields.get("attention_factor") is not None:
        return given.number("attention_factor")

    def by(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    both = given.fields.get("mscale"), given.fields.get("mscale_all_dim")
    if all(is_number(one) and one for one in both):
        return by(given.number("mscale")) / by(given.number("mscale_all_dim"))
    return by(1.0)


def _longrope(given: _Given) -> Rope:
    """With the factors of short texts, and so for no longer ones."""
    original, factor = given.original, given.factor
    shrunk = given.fields.get("short_factor")
    right = isinstance(shrunk, list) and len(shrunk) == given.dims // 2
    if not right or not all(is_number(one) and one > 0 for one in shrunk or ()):
        given.settings.refuse(
            f"config.json: short_factor is not {given.dims // 2} positive numbers"
        )
        return Rope(())
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(2, original)))
    scale = given.number("attention_factor", default)
    factors = np.array(shrunk, np.float32)
    return _made(np.float32(1) / (factors * given.powers), scale, original)


_KINDS: Mapping[str, Callable[[_Given], Rope]] = {
    "default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn,
    "longrope": _longrope,
}  # fmt: skip
