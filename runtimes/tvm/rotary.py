"""Angles of rotary positions, and Llama 3's stretching of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tables(
    positions: int, head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [positions, head_dim / 2]; element i belongs to i and i + head_dim / 2."""
    rates = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling:
        rates = stretched(rates, scaling)
    # Hugging Face's rates and angles are float32: at the last positions that is what is seen.
    angles = np.arange(positions, dtype=np.float32)[:, None] * rates.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def stretched(rates: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Llama 3: slow rates are divided by `factor`, fast ones kept, those between blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * rates / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    found: NDArray[np.float64] = rates * (kept + (1 - kept) / factor)
    return found
