"""The sixteen levels of IQ4_NL and IQ4_XS, and what a search among them needs.

Source: `kvalues_iq4nl` of llama.cpp's ggml-common.h (also `gguf.quants.IQ4_NL.kvalues`).
"""

from __future__ import annotations

import numpy as np

IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
IQ4_LOWEST = IQ4_LEVELS[0]
IQ4_GAPS = np.diff(IQ4_LEVELS)
IQ4_MIDDLES = (IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2
"""A value above IQ4_MIDDLES[k] is nearer to level k + 1 than to level k."""
