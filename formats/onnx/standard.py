"""The dialect of the ONNX standard alone, opset 23: for runtimes without ONNX Runtime's operators.

Quantized weights are DequantizeLinear of INT4 or INT8 (UINT4, UINT8 with zero points), [K, N] with
blocks along K, before MatMul: ONNX Runtime makes one MatMulNBits of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from qconvert.formats.onnx.drawing import Drawing
from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.onnx.matrices import Matrix
from qconvert.formats.onnx.model import Layer, Model
from qconvert.formats.onnx.parts import code_rows, dotted, float_rows, stacked, tables, vector
from qconvert.formats.onnx.stores import CodeColumns, Part

_TYPES = {
    (4, True): TensorProto.INT4, (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8, (8, False): TensorProto.UINT8,
}  # fmt: skip
"""(bits of the type, symmetric) -> what codes are stored as."""
FIELDS: Mapping[int, int] = {2: 4, 3: 4, 4: 4, 8: 8}
"""Bits of a code -> of its type. ONNX has 2 bits only since opset 25."""


@dataclass(slots=True)
class Standard:
    """`formats.onnx.dialect.Dialect`. One object draws one graph."""

    opsets: Mapping[str, int] = field(default_factory=lambda: {"": 23})
    ir_version: int = 11
    joins: bool = False
    shares_buffer: bool = False
    _masks: dict[int | None, str] = field(default_factory=dict)  # by window
    _positions: str = ""
    _distance: str = ""  # of a key behind a query, [queries, keys]

    def begin(self, drawing: Drawing, model: Model) -> None:
        root = "/model/positions"
        zero, one, axis = drawing.constant(0), drawing.constant(1), drawing.constant([1])
        count = _length(drawing, "input_ids", f"{root}/sequence")
        total = _length(drawing, "attention_mask", f"{root}/total")
        past = drawing.node("Sub", [total, count], f"{root}/past/Sub")
        keys = drawing.node("Range", [zero, total, one], f"{root}/keys/Range")
        rows = drawing.node("Range", [past, total, one], f"{root}/queries/Range")
        queries = drawing.node("Unsqueeze", [rows, axis], f"{root}/queries/Unsqueeze")
        self._distance = drawing.node("Sub", [queries, keys], f"{root}/distance/Sub")
        for window in sorted({layer.window or 0 for layer in model.layers}):
            self._masks[window or None] = self._mask(drawing, window)
        self._positions = _positions(drawing, past, total, root)

    def _mask(self, drawing: Drawing, window: int) -> str:
        """Which keys each query sees, bool [batch_size, 1, queries, keys]. Each sees its own, also
        where it is padding: a row that saw nothing would be NaN."""
        root = f"/model/mask{f'_{window}' if window else ''}"
        zero = drawing.constant(0)
        seen = drawing.node("GreaterOrEqual", [self._distance, zero], f"{root}/GreaterOrEqual")
        if window:
            near = drawing.node("Less", [self._distance, drawing.constant(window)], f"{root}/Less")
            seen = drawing.node("And", [seen, near], f"{root}/window/And")
        real = drawing.node("Cast", ["attention_mask"], f"{root}/Cast", to=TensorProto.BOOL)
        axes = drawing.constant([1, 2])
        real = drawing.node("Unsqueeze", [real, axes], f"{root}/Unsqueeze")
        own = drawing.node("Equal", [self._distance, zero], f"{root}/Equal")
        seen = drawing.node("And", [seen, real], f"{root}/And")
        return drawing.node("Or", [seen, own], f"{root}/Or")

    def embedding(self, drawing: Drawing, matrix: Matrix) -> str:
        root = f"/{matrix.name}"
        if not matrix.kind.bits:
            table = float_rows(drawing, matrix, "weight")
            return drawing.node("Gather", [table, "input_ids"], f"{root}/Gather")
        return _gathered(drawing, matrix, root)

    def linear(self, drawing: Drawing, x: str, matrix: Matrix, output: str = "") -> str:
        outputs = [output] if output else []
        if matrix.kind.bits:
            weight = _decoded(drawing, matrix)
        else:
            rows = float_rows(drawing, matrix, "MatMul.weight")
            weight = drawing.node("Transpose", [rows], f"/{matrix.name}/Transpose", perm=[1, 0])
        bias = stacked(drawing, matrix, "Add.bias")
        name = f"/{matrix.name}/MatMul"
        made = drawing.node("MatMul", [x, weight], name, outputs=[] if bias else outputs)
        if not bias:
            return made
        return drawing.node("Add", [made, bias], f"/{matrix.name}/Add", outputs=outputs)

    def norm(self, drawing: Drawing, model: Model, x: str, weight: Part, name: str) -> str:
        return drawing.node(
            "RMSNormalization", [x, vector(drawing, weight)], f"{name}/RMSNormalization",
            axis=-1, epsilon=model.eps, stash_type=TensorProto.FLOAT,
        )  # fmt: skip

    def add_norm(
        self, drawing: Drawing, model: Model, residual: str, delta: str, weight: Part, name: str
    ) -> tuple[str, str]:
        total = drawing.node("Add", [residual, delta], f"{name}/Add")
        return self.norm(drawing, model, total, weight, name), total

    def attention(
        self, drawing: Drawing, model: Model, at: int, layer: Layer, qkv: Sequence[str]
    ) -> str:
        root = f"/model/layers.{at}/attn"
        q, k, v = qkv
        if layer.rope is not None:
            q = self._rotated(drawing, model, q, model.heads, layer.rope, f"{root}/q_rotary")
            k = self._rotated(drawing, model, k, model.kv_heads, layer.rope, f"{root}/k_rotary")
        past = [f"past_key_values.{at}.{part}" for part in ("key", "value")]
        present = [f"present.{at}.{part}" for part in ("key", "value")]
        name = f"{root}/Attention"
        return drawing.node(
            "Attention", [q, k, v, self._masks[layer.window], *past], name,
            outputs=[f"{name}/output_0", *present],
            q_num_heads=model.heads, kv_num_heads=model.kv_heads, scale=model.score_scale,
        )  # fmt: skip

    def _rotated(
        self, drawing: Drawing, model: Model, x: str, heads: int, rope: str, root: str
    ) -> str:
        cos, sin = tables(drawing, model, rope)
        turned = 2 * model.ropes[rope].width
        return drawing.node(
            "RotaryEmbedding", [x, cos, sin, self._positions], f"{root}/RotaryEmbedding",
            num_heads=heads, rotary_embedding_dim=turned if turned < model.head_size else 0,
        )  # fmt: skip


def _length(drawing: Drawing, value: str, root: str) -> str:
    """The second dimension of an input, a scalar."""
    shape = drawing.node("Shape", [value], f"{root}/Shape")
    return drawing.node("Gather", [shape, drawing.constant(1)], f"{root}/Gather", axis=0)


def _positions(drawing: Drawing, past: str, total: str, root: str) -> str:
    """Of the tokens at hand, [batch_size, sequence_length]; padding before a text counts not."""
    one, axis = drawing.constant(1), drawing.constant([1])
    counted = drawing.node("CumSum", ["attention_mask", one], f"{root}/CumSum")
    before = drawing.node("Sub", [counted, one], f"{root}/before/Sub")
    least = drawing.node("Max", [before, drawing.constant(0)], f"{root}/Max")
    start = drawing.node("Unsqueeze", [past, drawing.constant([0])], f"{root}/start/Unsqueeze")
    stop = drawing.node("Unsqueeze", [total, drawing.constant([0])], f"{root}/stop/Unsqueeze")
    return drawing.node("Slice", [least, start, stop, axis], f"{root}/Slice")


def _gathered(drawing: Drawing, matrix: Matrix, root: str) -> str:
    """Rows of a quantized table, decoded after they are looked up: no runtime then decodes all of
    it for each token, as ONNX Runtime would a DequantizeLinear before a Gather."""
    kind, groups = matrix.kind, matrix.kind.groups(matrix.cols)
    codes, scales, zeros = code_rows(drawing, matrix, f"{root}/Gather")

    def rows(table: str, ending: str) -> str:
        return drawing.node("Gather", [table, "input_ids"], f"{root}/{ending}")

    blocks = drawing.constant([0, 0, groups, kind.group])
    shown = _opened(drawing, kind, rows(codes, "Gather"), f"{root}/codes")
    values = drawing.node("Reshape", [shown, blocks], f"{root}/codes/Reshape_2")
    last = drawing.constant([-1])
    if zeros:
        found = _opened(drawing, kind, rows(zeros, "zeros/Gather"), f"{root}/zeros")
        ends = [drawing.constant([one]) for one in (0, groups)]
        found = drawing.node("Slice", [found, *ends, last], f"{root}/zeros/Slice")
        zero = drawing.node("Unsqueeze", [found, last], f"{root}/zeros/Unsqueeze_2")
    else:
        zero = drawing.constant(np.array(1 << (kind.field - 1), np.float32))
    centred = drawing.node("Sub", [values, zero], f"{root}/Sub")
    scale = drawing.node(
        "Unsqueeze", [rows(scales, "scales/Gather"), last], f"{root}/scales/Unsqueeze"
    )
    scaled = drawing.node("Mul", [centred, scale], f"{root}/scales/Mul")
    return drawing.node("Reshape", [scaled, drawing.constant([0, 0, -1])], f"{root}/Reshape")


def _opened(drawing: Drawing, kind: Kind, packed: str, root: str) -> str:
    """Bytes -> the values in them as floats, the lowest bits first."""
    if kind.field < 8:
        last = drawing.constant([-1])
        apart = drawing.node("Unsqueeze", [packed, last], f"{root}/Unsqueeze_1")
        shifts = drawing.constant(np.arange(0, 8, kind.field, dtype=np.uint8))
        moved = drawing.node("BitShift", [apart, shifts], f"{root}/BitShift", direction="RIGHT")
        mask = drawing.constant(np.array((1 << kind.field) - 1, np.uint8))
        low = drawing.node("BitwiseAnd", [moved, mask], f"{root}/BitwiseAnd")
        packed = drawing.node("Reshape", [low, drawing.constant([0, 0, -1])], f"{root}/Reshape_1")
    return drawing.node("Cast", [packed], f"{root}/Cast", to=TensorProto.FLOAT)


def _decoded(drawing: Drawing, matrix: Matrix) -> str:
    """The floats of a quantized matrix, [cols, rows]."""
    kind, rows, groups = matrix.kind, matrix.rows, matrix.kind.groups(matrix.cols)
    name = f"/{matrix.name}/DequantizeLinear"
    stem = dotted(name)
    (part,) = matrix.parts
    regions = (f"{stem}.qweight", f"{stem}.scales", "" if kind.symmetric else f"{stem}.qzeros")
    store = CodeColumns(part, matrix.cols, kind, FIELDS[kind.bits], regions)
    drawing.store(part.tensor, store)
    dtype = _TYPES[FIELDS[kind.bits], kind.symmetric]
    shapes = ((matrix.cols, rows), (groups, rows), (groups, rows))
    types = (dtype, TensorProto.FLOAT, dtype)
    inputs = []
    for region, nbytes, one, shape in zip(regions, store.sizes, types, shapes, strict=True):
        if region:
            inputs.append(drawing.view(region, one, shape, drawing.region(region, nbytes)))
    return drawing.node("DequantizeLinear", inputs, name, axis=0, block_size=kind.group)
