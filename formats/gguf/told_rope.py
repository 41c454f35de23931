"""The angles that llama.cpp makes of a file's keys and frequency tensors.

Source: llama.cpp, `ggml/src/ggml-cpu/ops.cpp` (`ggml_rope_cache_init`, `rope_yarn`), `ggml.c`
(`ggml_rope_yarn_corr_dims`) and `src/llama-context.cpp` (what it multiplies by for yarn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.told import Angles, Floats

DEFAULT_BASE = 10000.0
BETA_FAST, BETA_SLOW = 32.0, 1.0
SHORT, LONG, PLAIN = "rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"

Get = Callable[[str], Any]  # "rope.freq_base" -> value, None where it is absent


def angles_of(get: Get, dims: int, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, Angles]:
    """ "full", with "long" and "sliding" where the file has those; `tensors`: the factors that it
    stores, by name."""
    base = float(get("rope.freq_base") or DEFAULT_BASE)
    scale = float(get("rope.scaling.attn_factor") or 1.0)
    kind = get("rope.scaling.type") or "none"
    plain = _powers(base, dims)
    if kind in ("linear", "yarn"):
        factor = float(get("rope.scaling.factor") or 1.0)
        if kind == "yarn":
            said = get("rope.scaling.original_context_length") or get("context_length")
            original = int(said) if isinstance(said, int | float) and said >= 1 else 1
            plain = _yarn(plain, base, dims, factor, original)
            scale *= 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
        else:
            plain = plain / factor
    found = {"full": Angles(_divided(plain, tensors.get(SHORT, tensors.get(PLAIN))), scale)}
    if LONG in tensors:
        found["long"] = Angles(_divided(plain, tensors[LONG]), scale)
    local = get("rope.freq_base_swa")
    if local is not None:
        found["sliding"] = Angles(_powers(float(local), dims))
    return found


def _powers(base: float, dims: int) -> Floats:
    found: Floats = base ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    return found


def _divided(plain: Floats, factors: NDArray[np.float32] | None) -> Floats:
    if factors is None or factors.shape != plain.shape:
        return plain
    found: Floats = plain / factors.astype(np.float64)
    return found


def _yarn(plain: Floats, base: float, dims: int, factor: float, original: int) -> Floats:
    """Each frequency between its own and its stretched value (arXiv 2309.00071)."""

    if base == 1:
        return plain

    def pair(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair(BETA_FAST)))
    high = min(dims - 1.0, math.ceil(pair(BETA_SLOW)))
    ramp = (np.arange(len(plain)) - low) / max(0.001, high - low)
    kept = 1.0 - np.clip(ramp, 0.0, 1.0)
    found: Floats = plain / factor * (1.0 - kept) + plain * kept
    return found
