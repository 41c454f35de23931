"""Scales of a KV cache beside the keys and values that a model really keeps: do they fit?

They are made of the largest magnitude that a calibration saw. What reaches to less than half of
what other text holds cuts keys or values off; what reaches much further, where other blocks' do
not, is no scale of this block (1, where a stored one was lost).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from qconvert.formats.target import CacheRounding, Reader
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.noise import attention_sources
from qconvert.runtimes.reach import ABSURD
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.rounding import E4M3_LARGEST

SHORT = 0.5
"""Of the largest magnitude. 0.74 to 1.55 was met on other text (smollm2-135m, 4 rows of 128)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The scale of one block's keys or values."""

    block: int
    which: str  # "k_scale", "v_scale"
    scale: float
    reach: float  # as a multiple of the largest magnitude that is kept

    @property
    def name(self) -> str:
        return f"model.layers.{self.block}.self_attn.{self.which}"


def cache_findings(model: Reference, reader: Reader, tokens: Sequence[int]) -> list[Finding]:
    """Scales of the cache that do not fit what the decoded model keeps over `tokens`."""
    cache: Mapping[int, CacheRounding] = getattr(reader, "cache_rounding", {})
    return list(judged(_measured(model, cache, tokens))) if cache else []


def judged(found: Sequence[Kept]) -> Iterator[Finding]:
    for which in ("k_scale", "v_scale"):
        alike = [one for one in found if one.which == which]
        measured = any(one.reach <= ABSURD for one in alike)  # and not 1 throughout
        for one in sorted(alike, key=lambda one: one.reach):
            if one.reach < SHORT or (one.reach > ABSURD and measured):
                told = f"{one.scale:.4g} reaches to {one.reach:.3g} times the largest that is kept"
                yield Finding("bytes", one.name, f"{one.name}: {told}")


def _measured(
    model: Reference, cache: Mapping[int, CacheRounding], tokens: Sequence[int]
) -> list[Kept]:
    largest: dict[tuple[int, str], float] = {}

    def watching(plain: Any) -> Any:
        def attention(
            module: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any
        ) -> Any:
            for which, states in (("k_scale", key), ("v_scale", value)):
                largest[module.layer_idx, which] = float(states.abs().max())
            return plain(module, query, key, value, *rest, **named)

        return attention

    with ExitStack() as stack:
        for source in attention_sources(model.model):
            plain = source.eager_attention_forward
            stack.callback(setattr, source, "eager_attention_forward", plain)
            source.eager_attention_forward = watching(plain)
        model.logits(tokens)
    return [
        Kept(block, which, scale, scale * E4M3_LARGEST / max(largest[block, which], 1e-30))
        for block, one in cache.items()
        for which, scale in (("k_scale", one.key), ("v_scale", one.value))
        if (block, which) in largest
    ]
