"""A graph that also gives what its blocks give to each other.

By the names of nodes that onnxruntime-genai's builder gives, and ours after it: the residual stream
that block N gives is first whole where the norm of the next block, or the last norm, adds to it."""

from __future__ import annotations

from typing import Any

from qconvert.runtimes.protocol import WorkerError

TOTAL = 3  # output of a Skip*LayerNormalization: the sum that is normed


def with_blocks(graph: bytes, count: int) -> tuple[bytes, list[str]]:
    """`graph`, a model.onnx whose tensors lie in another file, with the outputs of its `count`
    blocks among its outputs, and their names; `WorkerError("failed")` where they are not found."""
    import onnx

    model = onnx.ModelProto.FromString(graph)
    nodes = {node.name: node for node in model.graph.node}
    found = [_stream(nodes, root) for root in _norms(count)]
    named = [one for one in found if one is not None]
    if len(named) != count:
        raise WorkerError(
            "failed", f"shows {len(named)} of its {count} blocks by the names of its nodes"
        )
    known = {one.name for one in model.graph.output}
    for name in named:
        if name not in known:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(value)
    return model.SerializeToString(), named


def _norms(count: int) -> list[str]:
    """Roots of the names of the nodes that come behind each block."""
    inner = [f"/model/layers.{number}/input_layernorm" for number in range(1, count)]
    return [*inner, f"/model/layers.{count}/final_norm_layernorm"]


def _stream(nodes: dict[str, Any], root: str) -> str | None:
    """The value that is the sum of the stream and what the block adds; named if it was not."""
    fused = nodes.get(f"{root}/SkipLayerNorm")
    if fused is not None:
        while len(fused.output) <= TOTAL:
            fused.output.append("")
        fused.output[TOTAL] = fused.output[TOTAL] or f"{root}/SkipLayerNorm/output_{TOTAL}"
        return str(fused.output[TOTAL])
    apart = nodes.get(f"{root}/Add")
    return None if apart is None else str(apart.output[0])
