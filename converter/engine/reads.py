"""The inputs of a block, by name. Light to import: what reads a bundle needs it, and no torch."""

from __future__ import annotations

from collections.abc import Mapping

READS: Mapping[str, str] = {
    "attn_q": "attn_in", "attn_k": "attn_in", "attn_v": "attn_in", "attn_qkv": "attn_in",
    "attn_o": "attn_mid",
    "ffn_gate": "ffn_in", "ffn_up": "ffn_in", "ffn_gate_up": "ffn_in",
    "ffn_down": "ffn_mid",
}  # fmt: skip
"""The input that each linear of a block reads. Linears of one input share its statistics."""
