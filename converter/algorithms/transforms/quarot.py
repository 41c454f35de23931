"""Rotations of the residual stream and of the values, folded into the weights.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs": a random Hadamard
matrix mixes all channels, so that none stands out. Only what can be folded offline is done (the
stream, and v against o head by head), so every runtime computes as before; the Hadamard matrices
that the paper puts before o and down at run time are left out. `rotated.py` has the algebra.

A norm that subtracts the mean, or stands after a linear that writes to the stream, does not commute
with a rotation: those families are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvert.algorithms.rotated import NORMS, rotated
from qconvert.algorithms.slots import Setting
from qconvert.engine.block import Block
from qconvert.engine.moments import Change, Observed
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source

IN_THE_WAY: Mapping[str, str] = {
    "attn_post_norm": "has norms after its linears, whose gains a rotation would have to cross",
    "ffn_post_norm": "has norms after its linears, whose gains a rotation would have to cross",
    "embedding_norm": "has a norm between the embedding and the blocks",
    "position": "adds learned positions to the embedding",
}
REMEDY = "use a method without rotation: gptq and awq serve every family"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarot:
    """`algorithms.slots.Transform`."""

    name: str = "quarot"
    summary: str = "offline rotations of the stream and of values (Ashkboos et al. 2024)"

    def problems(self, source: Source) -> Sequence[Reason]:
        roles = {tensor.role for tensor in source.tensors}
        found = [text for role, text in IN_THE_WAY.items() if role in roles]
        if any(tensor.role in NORMS and tensor.part == "bias" for tensor in source.tensors):
            found.append("has LayerNorm, which subtracts a mean that a rotation does not keep")
        kind = source.model_type
        return [
            Reason(f"quarot cannot rotate a {kind} model: it {text}", REMEDY)
            for text in dict.fromkeys(found)
        ]

    def notes(self, source: Source) -> Sequence[str]:
        return ()

    def source(self, source: Source, setting: Setting) -> Source:
        """A `Rotated`, which also has the other attributes of a checkpoint: files and notes."""
        return rotated(source, setting.seed)

    def block(
        self,
        source: Source,
        block: Block,
        inputs: Mapping[str, Observed],
        grids: Mapping[str, Grid],
        setting: Setting,
    ) -> tuple[Block, Mapping[str, Change]]:
        return block, {}


TRANSFORM = Quarot()
