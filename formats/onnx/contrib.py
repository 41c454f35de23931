"""The dialect of ONNX Runtime: its own operators, as its builder for CPUs uses them.

MatMulNBits, GatherBlockQuantized, GroupQueryAttention, SkipSimplifiedLayerNormalization and
FusedMatMul of the domain com.microsoft; schemas: onnxruntime, `docs/ContribOperators.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import TensorProto

from qconvert.formats.onnx.drawing import MICROSOFT, Drawing
from qconvert.formats.onnx.matrices import Matrix
from qconvert.formats.onnx.model import Layer, Model
from qconvert.formats.onnx.parts import code_rows, float_rows, stacked, tables, vector
from qconvert.formats.onnx.stores import Part

ACCURACY = 4
"""accuracy_level of MatMulNBits: what is multiplied is rounded to int8 in blocks, as the builder
has it on CPUs. 1 multiplies floats."""


@dataclass(slots=True)
class Contrib:
    """`formats.onnx.dialect.Dialect`. One object draws one graph."""

    opsets: Mapping[str, int] = field(default_factory=lambda: {"": 22, MICROSOFT: 1})
    ir_version: int = 10
    joins: bool = True
    shares_buffer: bool = True
    _lengths: tuple[str, str] = ("", "")  # seqlens_k, total_sequence_length

    def begin(self, drawing: Drawing, model: Model) -> None:
        root = "/model/attn_mask_reformat/attn_mask_subgraph"
        one = drawing.constant([1])
        whole = drawing.node("ReduceSum", ["attention_mask", one], f"{root}/ReduceSum", keepdims=0)
        last = drawing.node("Sub", [whole, one], f"{root}/Sub")
        seqlens = drawing.node("Cast", [last], f"{root}/Sub/Cast", to=TensorProto.INT32)
        shape = drawing.node("Shape", ["attention_mask"], f"{root}/Shape")
        count = drawing.node("Gather", [shape, drawing.constant(1)], f"{root}/Gather", axis=0)
        total = drawing.node("Cast", [count], f"{root}/Gather/Cast", to=TensorProto.INT32)
        self._lengths = seqlens, total

    def embedding(self, drawing: Drawing, matrix: Matrix) -> str:
        root = f"/{matrix.name}"
        if not matrix.kind.bits:
            table = float_rows(drawing, matrix, "weight")
            return drawing.node("Gather", [table, "input_ids"], f"{root}/Gather")
        name = f"{root}/GatherBlockQuantized"
        codes, scales, zeros = code_rows(drawing, matrix, name, flat=True)
        return drawing.node(
            "GatherBlockQuantized",
            [codes, "input_ids", scales, *([zeros] if zeros else [])],
            name,
            domain=MICROSOFT,
            bits=matrix.kind.field,
            block_size=matrix.kind.group,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, drawing: Drawing, x: str, matrix: Matrix, output: str = "") -> str:
        outputs = [output] if output else []
        if not matrix.kind.bits:
            return self._float(drawing, x, matrix, outputs)
        name = f"/{matrix.name}/MatMulNBits"
        codes, scales, zeros = code_rows(drawing, matrix, name)
        inputs = [x, codes, scales, zeros, "", stacked(drawing, matrix, "MatMulNBits.bias")]
        while not inputs[-1]:
            inputs.pop()
        return drawing.node(
            "MatMulNBits", inputs, name, outputs=outputs, domain=MICROSOFT,
            K=matrix.cols, N=matrix.rows, bits=matrix.kind.field,
            block_size=matrix.kind.group, accuracy_level=ACCURACY,
        )  # fmt: skip

    def _float(self, drawing: Drawing, x: str, matrix: Matrix, outputs: Sequence[str]) -> str:
        """Rows as the checkpoint has them: FusedMatMul transposes as it multiplies."""
        name = f"/{matrix.name}/MatMul"
        weight = float_rows(drawing, matrix, "MatMul.weight")
        bias = stacked(drawing, matrix, "Add.bias")
        made = drawing.node("FusedMatMul", [x, weight], name, domain=MICROSOFT, transB=1,
                            outputs=[] if bias else outputs)  # fmt: skip
        if not bias:
            return made
        return drawing.node("Add", [made, bias], f"/{matrix.name}/Add", outputs=outputs)

    def norm(self, drawing: Drawing, model: Model, x: str, weight: Part, name: str) -> str:
        return drawing.node(
            "SimplifiedLayerNormalization", [x, vector(drawing, weight)], f"{name}/LayerNorm",
            axis=-1, epsilon=model.eps, stash_type=1,
        )  # fmt: skip

    def add_norm(
        self, drawing: Drawing, model: Model, residual: str, delta: str, weight: Part, name: str
    ) -> tuple[str, str]:
        name = f"{name}/SkipLayerNorm"
        normed, total = f"{name}/output_0", f"{name}/output_3"
        drawing.node(
            "SkipSimplifiedLayerNormalization", [residual, delta, vector(drawing, weight)], name,
            outputs=[normed, "", "", total], domain=MICROSOFT, epsilon=model.eps,
        )  # fmt: skip
        return normed, total

    def attention(
        self, drawing: Drawing, model: Model, at: int, layer: Layer, qkv: Sequence[str]
    ) -> str:
        past = [f"past_key_values.{at}.{part}" for part in ("key", "value")]
        present = [f"present.{at}.{part}" for part in ("key", "value")]
        name = f"/model/layers.{at}/attn/GroupQueryAttention"
        rotary = [] if layer.rope is None else tables(drawing, model, layer.rope)
        return drawing.node(
            "GroupQueryAttention",
            [*qkv, *[""] * (3 - len(qkv)), *past, *self._lengths, *rotary],
            name,
            outputs=[f"{name}/output_0", *present],
            domain=MICROSOFT,
            num_heads=model.heads,
            kv_num_heads=model.kv_heads,
            scale=model.score_scale,
            local_window_size=-1 if layer.window is None else layer.window,
            softcap=0.0,
            do_rotary=int(layer.rope is not None),
            rotary_interleaved=0,
        )
