"""What a folder for ONNX Runtime says of its model beside the weights, by whomever it was written.

Read from genai_config.json and from the graph: attributes of its attention and norms, and tables of
cosines and sines, which say by how much a position turns each pair of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from qconvert.formats.onnx.reader_graph import Graph
from qconvert.formats.onnx.reader_matrices import attributes
from qconvert.formats.serving.model_files import COPIED
from qconvert.formats.told import Angles, Difference, Told

GQA = "GroupQueryAttention"
ROTARY = "RotaryEmbedding"
THETA = "rope_theta"
SIZES: Mapping[str, str] = {
    "hidden_size": "hidden_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_size",
}  # fmt: skip
"""Name in config.json -> key of `model.decoder` in genai_config.json."""
LONGEST = 131_072
"""Positions of the longest tables: folders for more hold no more (`formats.onnx.model`)."""
ROWS = 8  # of a table, that are looked at
OFF = 0.02
"""Of a cosine far out: positions times frequencies are rounded to float32 before."""


def told_of(config: Mapping[str, Any], graph: Graph, folder: Path) -> Told:
    """`config`: genai_config.json."""
    model, search = _object(config, "model"), _object(config, "search")
    decoder = _object(model, "decoder")
    heads = [node for node in graph.nodes if node.op_type == GQA]
    facts = {name: decoder.get(key) for name, key in SIZES.items()}
    facts |= {"vocab_size": model.get("vocab_size"),
              "max_position_embeddings": model.get("context_length")}  # fmt: skip
    for name, values in _of_graph(graph, heads).items():
        facts[name] = _one(values, facts.get(name))
    angles, differs = _angles(graph, facts)
    if any(attributes(node).get("rotary_interleaved") for node in heads):
        differs.append(
            Difference("rope_parameters", "neighbours are rotated, not halves of a head")
        )
    ends = model.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return Told(
        model=facts,
        tokens={
            "bos_token_id": model.get("bos_token_id"), "pad_token_id": model.get("pad_token_id"),
            "eos_token_id": tuple(sorted(one for one in ends if isinstance(one, int))),
        },
        generation={key: value for key, value in search.items() if key in GENERATED},
        angles=angles,
        most={"max_position_embeddings": LONGEST},
        folder=folder,
        copies=COPIED,
        differs=tuple(differs),
    )  # fmt: skip


GENERATED = frozenset({
    "do_sample", "num_beams", "temperature", "top_k", "top_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size",
})  # fmt: skip


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, Mapping) else {}


def _of_graph(graph: Graph, heads: Sequence[NodeProto]) -> dict[str, list[Any]]:
    """What nodes say, each value that occurs."""
    told = [attributes(node) for node in heads]
    found: dict[str, list[Any]] = {}
    if heads:
        found["num_attention_heads"] = [one.get("num_heads") for one in told]
        found["num_key_value_heads"] = [one.get("kv_num_heads") for one in told]
        slides = [int(one.get("local_window_size", -1)) for one in told]
        kinds = tuple("full_attention" if one < 1 else "sliding_attention" for one in slides)
        windows = [one for one in slides if one > 0]
        found["sliding_window"] = windows or [None]
        found["attn_logit_softcapping"] = [one.get("softcap") or None for one in told]
        found["layer_types"] = [kinds if windows else None]
    eps = [attributes(node)["epsilon"] for node in graph.nodes if "epsilon" in attributes(node)]
    if eps:
        found["rms_norm_eps"] = [float(np.float32(one)) for one in eps]
    return found


def _one(values: list[Any], beside: Any) -> Any:
    """One value, or all that there are where nodes, and the configuration, do not agree."""
    beside = beside if isinstance(beside, int | float | str) else None
    each = list(dict.fromkeys([*values, *([] if beside is None else [beside])]))
    return each[0] if len(each) == 1 else tuple(each)


def _angles(graph: Graph, facts: Mapping[str, Any]) -> tuple[dict[str, Angles], list[Difference]]:
    """By kind of layer: "full" and "sliding"; "" where nothing says which."""
    kinds, held = facts.get("layer_types"), list(_tables(graph))
    known = kinds is not None and len(kinds) == len(held)
    found: dict[str, list[Angles]] = {}
    differs: list[Difference] = []
    for at, (cosines, sines) in enumerate(held):
        angles = _turning(cosines, sines)
        if angles is None:
            differs.append(Difference(THETA, f"the cosines and sines of table {at} are none"))
            continue
        each = found.setdefault(kinds[at].partition("_")[0] if known and kinds else "", [])
        if not any(_same(angles, one) for one in each):
            each.append(angles)
            differs += _off(cosines, sines, angles, at, facts["max_position_embeddings"])
    if any(len(each) > (1 if name else 2) for name, each in found.items()):
        differs.append(Difference(THETA, "layers of one kind have different cosines and sines"))
    return _by_kind(found), differs


def _by_kind(found: Mapping[str, list[Angles]]) -> dict[str, Angles]:
    """Where nothing names kinds and there are two, the longer waves are those of full attention."""
    unnamed = sorted(found.get("", ()), key=lambda one: float(one.frequencies[-1]))
    if len(unnamed) > 1:
        return {"full": unnamed[0], "sliding": unnamed[-1]}
    return {name: listed[0] for name, listed in found.items()}


def _same(one: Angles, other: Angles) -> bool:
    return one.scale == other.scale and np.array_equal(one.frequencies, other.frequencies)


def _tables(graph: Graph) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Cosines and sines of each layer, in the order of the graph."""
    for node in graph.nodes:
        if node.op_type == GQA:
            places = (7, 8)
        elif node.op_type == ROTARY:
            places = (2, 3) if node.domain else (1, 2)
        else:
            continue
        held = [graph.initializer(node.input[at]) for at in places if at < len(node.input)
                and node.input[at]]  # fmt: skip
        arrays = [one.array for one in held if one is not None and len(one.shape) == 2]
        shapes = {array.shape for array in arrays}
        floats = all(array.dtype.kind == "f" for array in arrays)
        if len(arrays) == 2 and len(shapes) == 1 and floats and len(arrays[0]) > 1:
            yield arrays[0], arrays[1]


def _turning(cosines: NDArray[Any], sines: NDArray[Any]) -> Angles | None:
    """By the second row: the angles of position 1. None where that says nothing."""
    cos, sin = cosines[1].astype(np.float64), sines[1].astype(np.float64)
    scale = float(np.hypot(cos, sin).mean())
    if not np.isfinite(scale) or scale <= 0:
        return None
    return Angles(np.arctan2(sin, cos), round(scale, 6))


def _off(
    cosines: NDArray[Any], sines: NDArray[Any], angles: Angles, at: int, context: Any
) -> Iterator[Difference]:
    """Rows of a table that do not go on as the first ones do, or are too few."""
    if isinstance(context, int) and context > len(cosines):
        yield Difference(
            "max_position_embeddings",
            f"context_length is {context}, and table {at} has {len(cosines)} positions",
        )
    for row in np.unique(np.geomspace(1, len(cosines) - 1, ROWS).astype(int)).tolist():
        turned = row * angles.frequencies
        for table, function in ((cosines, np.cos), (sines, np.sin)):
            wrong = np.abs(table[row] - angles.scale * function(turned)).max()
            if not wrong <= OFF * angles.scale:
                yield Difference(THETA, f"position {row} is not turned as the first ones are")
                return
