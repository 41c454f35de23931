"""Opens a folder for ONNX Runtime, decodes what its graph multiplies by, and gives a checkpoint's
weights back. Shares nothing with the writer: it walks the graph, by whomever that was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.onnx.reader_files import Opened, open_graph
from qconvert.formats.onnx.reader_graph import Graph, dotted
from qconvert.formats.onnx.reader_matrices import Floats, Matrix
from qconvert.formats.onnx.reader_roles import Key, Roles, Rows, find_roles
from qconvert.formats.onnx.told import told_of
from qconvert.formats.refusal import Reason, Refused, raise_if_any, refuse
from qconvert.formats.shapes import COUNT, TEXT, Keys, check
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import InputRounding, StoredTensor
from qconvert.formats.told import Told

CONFIG = "genai_config.json"
HEAD = "lm_head.weight"
"""A head that the model ties to its embedding, where the folder has one of its own."""
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
)
_DECODER = Keys({"filename": TEXT, **dict.fromkeys(_SIZES, COUNT)}, ("filename", _SIZES[0]))
_MODEL = Keys({"vocab_size": COUNT, "decoder": _DECODER}, ("vocab_size", "decoder"))
TOLD = Keys({"model": _MODEL}, ("model",))
"""What of `CONFIG` is read here."""
OTHERS = frozenset({"onnxruntime-genai"})
"""Producers that quantize by themselves, in nodes whose names end in `QUANTIZED_LATER`."""
QUANTIZED_LATER = "_Q4"
NORM_OFFSETS: Mapping[str, float] = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), 1.0)
"""Model types whose norms multiply by their weight plus this; a graph holds the sum."""
JOINED: Mapping[str, tuple[str, ...]] = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_gate_up": ("ffn_gate", "ffn_up"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnnxReader:
    """`formats.target.Reader` of a folder. Tensors go by the names of nodes and initializers; a
    matrix that embedding and head share is one."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]  # genai_config.json
    tensors: Mapping[str, StoredTensor]
    producer: str  # of the graph
    _roles: Roles = field(repr=False)
    _decode: Mapping[str, Callable[[], Floats]] = field(repr=False)

    def decode(self, name: str) -> Floats:
        """The float32 values of a tensor, matrices as [out, in]."""
        return self._decode[name]()

    def weights(self, source: Source) -> Mapping[str, Floats]:
        """Checkpoint name -> values, decoded one at a time; `Refused` where the folder is of
        another model. A tied model whose head is not stored with its embedding has both."""
        placed: dict[str, Callable[[], Floats]] = {}
        reasons: list[Reason] = []
        for tensor in source.tensors:
            try:
                placed[tensor.name] = self._placed(tensor, source)
            except Refused as refused:
                reasons += refused.reasons
        reasons += self._unknown_biases(source)
        if source.tied and self._apart:
            placed[HEAD] = self._roles.head.weight
        raise_if_any(reasons[:8])
        return _Weights(placed)

    def told(self, source: Source) -> Told:
        """What genai_config.json, the graph and the small files say of the model."""
        return told_of(self.metadata, self._roles.graph, self.files[-1].parent)

    def input_rounding_of(self, source: Source) -> Mapping[str, InputRounding]:
        """Checkpoint name of a weight -> how ONNX Runtime rounds what it is multiplied with, at the
        accuracy level of the file; of a tied head too, as `HEAD`."""
        found = {}
        for tensor in source.tensors:
            if tensor.part == "weight":
                pieces = self._pieces(tensor)
                if pieces and pieces[0].of.matrix.rounding is not None:
                    found[tensor.name] = pieces[0].of.matrix.rounding
        head = self._roles.head.of.matrix.rounding
        if source.tied and head is not None:
            found[HEAD] = head
        return found

    @property
    def _apart(self) -> bool:
        """Whether the head is stored apart from the embedding."""
        return self._roles.head.of.matrix.place != self._table.place

    @property
    def _table(self) -> Matrix:
        assert self._roles.embedding is not None
        return self._roles.embedding[1]

    def _pieces(self, tensor: SourceTensor) -> list[Rows]:
        """The matrices, or parts of them, that a tensor of the model is stored in."""
        roles = JOINED.get(tensor.role, (tensor.role,))
        held = [self._roles.linears.get((tensor.block, role)) for role in roles]
        return [one for one in held if one is not None] if all(held) else []

    def _placed(self, tensor: SourceTensor, source: Source) -> Callable[[], Floats]:
        """What gives the values of one tensor of the model; `Refused` where there are none."""
        key: Key = (tensor.block, tensor.role)
        if tensor.role == "embedding":
            return _as_stored(tensor, self._table.shape,
                              lambda: self._table.rows(0, self._table.shape[0]))  # fmt: skip
        if tensor.part == "weight" and key in self._roles.vectors:
            _, values = self._roles.vectors[key]
            offset = np.float32(NORM_OFFSETS.get(source.model_type, 0.0))
            return _as_stored(tensor, values.shape, lambda: values - offset)
        pieces = self._pieces(tensor)
        if not pieces:
            raise refuse(f"the folder has no {tensor.name}", "was it made of another model?")
        if tensor.part == "weight":
            rows = sum(one.shape[0] for one in pieces)
            shape = (rows, pieces[0].shape[1])
            return _as_stored(tensor, shape, lambda: _stacked([one.weight() for one in pieces]))
        biases = [one.bias() for one in pieces]
        if any(one is None for one in biases):
            raise refuse(f"the folder has no {tensor.name}", "was it made of another model?")
        known = [one for one in biases if one is not None]
        count = sum(len(one) for one in known)
        return _as_stored(tensor, (count,), lambda: np.concatenate(known))

    def _unknown_biases(self, source: Source) -> Iterator[Reason]:
        """A bias that the graph adds and the model does not have."""
        biased = {(one.block, role) for one in source.tensors if one.part == "bias"
                  for role in JOINED.get(one.role, (one.role,))}  # fmt: skip
        for key, rows in self._roles.linears.items():
            bias = rows.bias()
            if bias is not None and key not in biased and bias.any():
                yield Reason(f"the folder adds a bias to {rows.of.name}, and the model has none",
                             "was it made of another model?")  # fmt: skip


def _stacked(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_stored(
    tensor: SourceTensor, shape: tuple[int, ...], read: Callable[[], Floats]
) -> Callable[[], Floats]:
    """`read` in the orientation of the checkpoint; `Refused` where the shape is another."""
    if shape != tensor.shape:
        raise refuse(f"{tensor.name} is {shape} in the folder, {tensor.shape} in the model")
    if not tensor.transposed:
        return read
    return lambda: np.ascontiguousarray(read().T)


class _Weights(Mapping[str, Floats]):
    def __init__(self, placed: Mapping[str, Callable[[], Floats]]) -> None:
        self._placed = placed

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __getitem__(self, name: str) -> Floats:
        return self._placed[name]()


def open_reader(path: Path) -> OnnxReader:
    """Open the folder `path`; `Refused`, naming the file, when one is missing or damaged, when they
    contradict each other, or when the graph holds what was not written by whom it says."""
    if not path.is_dir():
        raise refuse(f"no such folder: {path}")
    config = read_json_object(path / CONFIG, "a folder for ONNX Runtime holds it and model.onnx")
    check(config, TOLD, str(path / CONFIG), "write or copy it again")
    told = config["model"]
    name = told["decoder"]["filename"]
    if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
        raise refuse(f"{path / CONFIG} names a file outside of the folder: {name!r}")
    sizes = told["vocab_size"], told["decoder"]["num_hidden_layers"]
    opened = open_graph(path / name)
    raise_if_any(list(_strangers(path / name, opened)))
    try:
        roles = find_roles(Graph(opened))
        tensors, decode = _tensors(roles)
    except Refused as refused:
        raise Refused(*(Reason(f"{path / name}: {one.problem}", one.remedy)
                        for one in refused.reasons)) from None  # fmt: skip
    blocks = {block for block, _ in roles.linears if block is not None}
    found = roles.head.shape[0], len(blocks)
    if found != sizes:
        raise refuse(f"{path / CONFIG} tells of {sizes[0]} tokens and {sizes[1]} blocks, and"
                     f" {name} has {found[0]} and {found[1]}")  # fmt: skip
    files = (*opened.files, path / CONFIG)
    return OnnxReader(files, config, tensors, opened.model.producer_name, roles, decode)


def _strangers(path: Path, opened: Opened) -> Iterator[Reason]:
    """Nodes that were quantized behind the producer's back."""
    if opened.model.producer_name in OTHERS:
        return
    for node in opened.model.graph.node:
        if node.name.endswith(QUANTIZED_LATER):
            yield Reason(f"{path}: {node.name} was quantized by another program, after the graph"
                         " was written", "write it again")  # fmt: skip


def _tensors(roles: Roles) -> tuple[dict[str, StoredTensor], dict[str, Callable[[], Floats]]]:
    """Each matrix, bias and norm once, in the order of the graph."""
    tensors: dict[str, StoredTensor] = {}
    decode: dict[str, Callable[[], Floats]] = {}

    def add(name: str, shape: tuple[int, ...], dtype: str, nbytes: int, read: Any) -> None:
        tensors[name] = StoredTensor(name, shape, dtype, nbytes)
        decode[name] = read

    def whole(matrix: Matrix) -> Callable[[], Floats]:
        return lambda: matrix.rows(0, matrix.shape[0])

    assert roles.embedding is not None
    name, table = roles.embedding
    add(dotted(name), table.shape, table.dtype, table.nbytes, whole(table))
    for one in roles.graph.weighted.values():
        matrix = one.matrix
        if matrix.place != table.place:
            add(one.name, matrix.shape, matrix.dtype, matrix.nbytes, whole(matrix))
        if one.bias is not None:
            bias = one.bias
            add(f"{one.name}.bias", bias.shape, "F32", bias.nbytes, lambda bias=bias: bias)
    for name, values in roles.vectors.values():
        add(name, values.shape, "F32", values.nbytes, lambda values=values: values)
    return tensors, decode
