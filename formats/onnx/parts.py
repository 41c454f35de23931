"""What both dialects store alike: rows of codes and floats, vectors, cosines and sines."""

from __future__ import annotations

from onnx import TensorProto

from qconvert.formats.onnx.drawing import Drawing
from qconvert.formats.onnx.matrices import Matrix
from qconvert.formats.onnx.model import Model
from qconvert.formats.onnx.stores import CodeRows, FloatRows, Part


def dotted(name: str) -> str:
    """As initializers are named: "model.layers.0.attn.o_proj"."""
    return name.removeprefix("/").replace("/", ".")


def float_rows(drawing: Drawing, matrix: Matrix, ending: str) -> str:
    """A float matrix [rows, cols]. Matrices of the same rows are views of the same bytes."""
    name = f"{dotted(matrix.name)}.{ending}"
    if matrix.parts not in drawing.kept:
        drawing.kept[matrix.parts] = (_stored(drawing, matrix.parts, matrix.cols, name), "", "")
    region = drawing.kept[matrix.parts][0]
    return drawing.view(name, TensorProto.FLOAT, (matrix.rows, matrix.cols), region)


def code_rows(
    drawing: Drawing, matrix: Matrix, node: str, *, flat: bool = False
) -> tuple[str, str, str]:
    """Codes, scales and zero points ("" for none) as inputs of `node`. `flat`: codes in two
    dimensions, not cut in groups. Matrices of the same rows are views of the same bytes."""
    kind, rows, groups = matrix.kind, matrix.rows, matrix.kind.groups(matrix.cols)
    stem = dotted(node)
    if matrix.parts not in drawing.kept:
        drawing.kept[matrix.parts] = _regions(drawing, matrix, stem)
    codes, scales, zeros = drawing.kept[matrix.parts]
    blob = kind.group * kind.field // 8
    shape = (rows, groups * blob) if flat else (rows, groups, blob)
    drawing.view(f"{stem}.qweight", TensorProto.UINT8, shape, codes)
    drawing.view(f"{stem}.scales", TensorProto.FLOAT, (rows, groups), scales)
    if zeros:
        width = kind.zero_bytes(matrix.cols)
        drawing.view(f"{stem}.qzeros", TensorProto.UINT8, (rows, width), zeros)
    return f"{stem}.qweight", f"{stem}.scales", f"{stem}.qzeros" if zeros else ""


def _regions(drawing: Drawing, matrix: Matrix, stem: str) -> tuple[str, str, str]:
    """Plan where the matrix is stored."""
    zeros = "" if matrix.kind.symmetric else f"{stem}.qzeros"
    regions = (f"{stem}.qweight", f"{stem}.scales", zeros)
    row = 0
    for part in matrix.parts:
        store = CodeRows(part, row, matrix.cols, matrix.kind, regions)
        drawing.store(part.tensor, store)
        row += part.count
    for name, width in zip(regions, store.widths, strict=True):
        if name:
            drawing.region(name, width * matrix.rows)
    return regions


def stacked(drawing: Drawing, matrix: Matrix, ending: str) -> str:
    """The bias of a matrix, [rows]; "" where it has none."""
    if not matrix.bias:
        return ""
    name = f"{dotted(matrix.name)}.{ending}"
    region = _stored(drawing, matrix.bias, 1, name)
    return drawing.view(name, TensorProto.FLOAT, (matrix.rows,), region)


def vector(drawing: Drawing, part: Part) -> str:
    """A vector, under the name of its tensor."""
    region = _stored(drawing, (part,), 1, part.tensor)
    return drawing.view(part.tensor, TensorProto.FLOAT, (part.count,), region)


def _stored(drawing: Drawing, parts: tuple[Part, ...], cols: int, region: str) -> str:
    """Plan where floats are stored, one part below the other."""
    drawing.region(region, 4 * cols * sum(part.count for part in parts))
    row = 0
    for part in parts:
        drawing.store(part.tensor, FloatRows(part, row, cols, region))
        row += part.count
    return region


def tables(drawing: Drawing, model: Model, name: str) -> list[str]:
    """Cosines and sines of a rope, each [context, pairs], stored once for all layers."""
    ending = f"_{name}" if name else ""
    names = (f"cos_cache{ending}", f"sin_cache{ending}")
    if names not in drawing.tables:
        rope = drawing.tables[names] = model.ropes[name]
        for one in names:
            drawing.region(one, 4 * rope.width * model.context)
            drawing.view(one, TensorProto.FLOAT, (model.context, rope.width), one)
    return list(names)
