"""Faults of weights: the wrong one in a place, in the wrong order, of the wrong size, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planting.codes import MIDDLES, once
from planting.fault import EMBEDDING, FINAL, HEAD, block_tensors, here, named, there
from planting.files import Inapplicable
from planting.output import Culprits, Fields, Output

Rows = NDArray[np.intp]


def _same(first: Fields, second: Fields) -> None:
    shapes = [{key: (one.shape, one.dtype) for key, one in own.items()} for own in (first, second)]
    if shapes[0] != shapes[1]:
        raise Inapplicable("their shapes or types differ")


def exchange(*pairs: tuple[str, str]) -> Callable[[Output], Culprits]:
    """Two weights of one block, each in the place of the other."""

    def plant(out: Output) -> Culprits:
        touched = []
        for first, second in pairs:
            one, two = (named(here(out.facts), part) for part in (first, second))
            _exchange(out, one, two)
            touched += [one, two]
        return touched

    return plant


def _exchange(out: Output, one: str, two: str) -> None:
    first, second = out.get(one), out.get(two)
    _same(first, second)
    if all(np.array_equal(first[key], second[key]) for key in first):
        raise Inapplicable("they are the same")
    out.put(one, second)
    out.put(two, first)


def from_another(part: str) -> Callable[[Output], Culprits]:
    """A weight of another block in this one's place."""

    def plant(out: Output) -> Culprits:
        name, other = (named(block, part) for block in (here(out.facts), there(out.facts)))
        _same(out.get(name), out.get(other))
        out.put(name, out.get(other))
        return (name, f"block {here(out.facts)}")

    return plant


def blocks_exchanged(out: Output) -> Culprits:
    mine, other = here(out.facts), there(out.facts)
    for one, two in zip(block_tensors(mine), block_tensors(other), strict=True):
        _same(out.get(one), out.get(two))
    for one, two in zip(block_tensors(mine), block_tensors(other), strict=True):
        _exchange(out, one, two)
    blocks = (f"block {mine}", f"block {other}")
    return (*block_tensors(mine), *block_tensors(other), *blocks)


def block_repeated(out: Output) -> Culprits:
    """A block's weights once more in the next block's place."""
    mine = here(out.facts)
    for one, two in zip(block_tensors(mine), block_tensors(mine + 1), strict=True):
        _same(out.get(one), out.get(two))
    for one, two in zip(block_tensors(mine), block_tensors(mine + 1), strict=True):
        out.put(two, out.get(one))
    return (*block_tensors(mine + 1), f"block {mine + 1}", f"block {mine}")


def reordered(fields: Fields, order: Rows) -> Fields:
    return {key: array[order] for key, array in fields.items()}


def pairs_order(rows: int, heads: int, *, into_pairs: bool) -> Rows:
    """Rows of each head: from halves that are rotated together into neighbours, or back."""
    each = rows // heads
    shape = (heads, 2, each // 2) if into_pairs else (heads, each // 2, 2)
    return np.arange(rows).reshape(shape).swapaxes(1, 2).ravel()


def rope_order(out: Output) -> Culprits:
    """q and k in the row order of the other convention, in every block."""
    touched = []
    for block in range(out.facts.blocks):
        for part, heads in (("q_proj", out.facts.heads), ("k_proj", out.facts.kv_heads)):
            name = named(block, part)
            fields = out.get(name)
            order = pairs_order(_rows(fields), heads, into_pairs=not out.rope_pairs)
            out.put(name, reordered(fields, order))
            touched.append(name)
    return touched


def rope_heads(out: Output) -> Culprits:
    """k put into the row order of as many heads as q has."""
    if out.facts.heads == out.facts.kv_heads:
        raise Inapplicable("k has as many heads as q")
    touched = []
    for block in range(out.facts.blocks):
        name = named(block, "k_proj")
        fields = out.get(name)
        rows, heads = _rows(fields), out.facts.kv_heads
        if rows % (2 * out.facts.heads):
            raise Inapplicable("the rows do not divide")
        back = pairs_order(rows, heads, into_pairs=False)
        wrong = pairs_order(rows, out.facts.heads, into_pairs=True)
        out.put(name, reordered(fields, back[wrong] if out.rope_pairs else wrong))
        touched.append(name)
    return touched


def heads_order(out: Output) -> Culprits:
    """Query heads tiled over the key heads instead of repeated."""
    facts = out.facts
    shared = facts.heads // facts.kv_heads
    if shared == 1 or facts.kv_heads == 1:
        raise Inapplicable("heads are not grouped")
    name = named(here(facts), "q_proj")
    fields = out.get(name)
    rows = np.arange(_rows(fields)).reshape(facts.kv_heads, shared, -1)
    out.put(name, reordered(fields, rows.swapaxes(0, 1).ravel()))
    return (name,)


def _rows(fields: Fields) -> int:
    return len(fields["code"] if "code" in fields else fields["value"])


def rows_shifted(out: Output) -> Culprits:
    """The embedding of each token is that of the one before."""
    fields = out.get(EMBEDDING)
    order = np.roll(np.arange(_rows(fields)), 1)
    out.put(EMBEDDING, reordered(fields, order))
    return (EMBEDDING, HEAD)


def rows_tail(out: Output) -> Culprits:
    """The last rows of the embedding, those of added tokens, are zero."""
    fields = out.get(EMBEDDING)
    count = max(4, _rows(fields) // 1000)
    out.put(EMBEDDING, _zeroed(out, fields, slice(-count, None)))
    return (EMBEDDING, HEAD)


def special_row(out: Output) -> Culprits:
    """The embedding of one special token was never filled."""
    fields = out.get(EMBEDDING)
    token = int(out.facts.config["eos_token_id"])
    out.put(EMBEDDING, _zeroed(out, fields, slice(token, token + 1)))
    return (EMBEDDING, HEAD)


def _zeroed(out: Output, fields: Fields, rows: slice) -> Fields:
    found = {key: array.copy() for key, array in fields.items()}
    for key in ("value", "scale", "min"):
        if key in found:
            found[key][rows] = 0
    return found


def rows_lost(out: Output) -> Culprits:
    """An eighth of a linear's rows were never written."""
    name = named(here(out.facts), "gate_proj")
    fields = out.get(name)
    out.put(name, _zeroed(out, fields, slice(-(_rows(fields) // 8), None)))
    return (name,)


def head_zero(out: Output) -> Culprits:
    _own_head(out)
    out.put(HEAD, _zeroed(out, out.get(HEAD), slice(None)))
    return (HEAD,)


def head_random(out: Output) -> Culprits:
    """A head that was made, and never filled from the checkpoint."""
    _own_head(out)
    fields, random = out.get(HEAD), np.random.default_rng(7)
    key = "value" if "value" in fields else "code"
    out.put(HEAD, {**fields, key: random.permutation(fields[key].ravel()).reshape(
        fields[key].shape)})  # fmt: skip
    return (HEAD,)


def head_lost(out: Output) -> Culprits:
    _own_head(out)
    return (*out.drop(HEAD), "tie_word_embeddings", EMBEDDING)


def head_is_embedding(out: Output) -> Culprits:
    """An untied model written as a tied one: the head is the embedding."""
    _own_head(out)
    fields, table = out.get(HEAD), out.get(EMBEDDING)
    _same(fields, table)
    out.put(HEAD, table)
    return (HEAD, "tie_word_embeddings")


def _own_head(out: Output) -> None:
    if out.facts.tied:
        raise Inapplicable("the head is tied")


def untied(out: Output) -> Culprits:
    """A tied model with a head of its own, which was never filled."""
    if not out.facts.tied:
        raise Inapplicable("the head is not tied")
    shape = (int(out.facts.config["vocab_size"]), int(out.facts.config["hidden_size"]))
    random = np.random.default_rng(3).standard_normal(shape, np.float32)
    return out.add_head(random * np.float32(0.02))


def tie_forgotten(out: Output) -> Culprits:
    """The configuration no longer says that the head is the embedding."""
    if not out.facts.tied:
        raise Inapplicable("the head is not tied")
    return (*out.setting("tie_word_embeddings", False), HEAD)


def vector(
    name: Callable[[Output], str], change: Callable[[NDArray[Any]], NDArray[Any]]
) -> Callable[[Output], Culprits]:
    """Change a norm."""

    def plant(out: Output) -> Culprits:
        tensor = name(out)
        value = out.get(tensor)["value"]
        out.put(tensor, {"value": change(value.astype(np.float32)).astype(value.dtype)})
        return (tensor,)

    return plant


def a_norm(out: Output) -> str:
    return named(here(out.facts), "post_attention_layernorm")


def final_norm(out: Output) -> str:
    return FINAL


def norms_without_one(out: Output) -> Culprits:
    """Gemma's norms multiply by their weight plus one; the file holds the weight."""
    touched = [named(block, "input_layernorm") for block in range(out.facts.blocks)]
    for name in (*touched, FINAL):
        value = out.get(name)["value"]
        shift = -1 if out.format in ("gguf", "mlc") else 1
        out.put(name, {"value": (value.astype(np.float32) + shift).astype(value.dtype)})
    return (*touched, FINAL)


def one_sided(out: Output) -> Culprits:
    """A smoothing scale in the norm; the linears that read it were not divided."""
    name = named(here(out.facts), "input_layernorm")
    value = out.get(name)["value"]
    factor = np.random.default_rng(11).uniform(0.6, 1.6, value.shape).astype(np.float32)
    out.put(name, {"value": (value.astype(np.float32) * factor).astype(value.dtype)})
    readers = [named(here(out.facts), part) for part in ("q_proj", "k_proj", "v_proj")]
    return (name, *readers)


def bias_lost(out: Output) -> Culprits:
    return out.drop(named(here(out.facts), "q_proj", "bias"))


def bias_zero(out: Output) -> Culprits:
    name = named(here(out.facts), "k_proj", "bias")
    out.put(name, {"value": np.zeros_like(out.get(name)["value"])})
    return (name,)


def bias_of_another(out: Output) -> Culprits:
    name = named(here(out.facts), "q_proj", "bias")
    out.put(name, out.get(named(there(out.facts), "q_proj", "bias")))
    return (name,)


def scaled(factor: float, part: str = "up_proj") -> Callable[[Output], Culprits]:
    """Every scale of one linear times a factor."""
    return once(lambda out, fields: _scaled(fields, factor, slice(None)), part)


def scaled_row(factor: float) -> Callable[[Output], Culprits]:
    def change(out: Output, fields: Fields) -> Fields:
        return _scaled(fields, factor, slice(_rows(fields) // 2, _rows(fields) // 2 + 1))

    return once(change, "o_proj")


def scaled_group(factor: float) -> Callable[[Output], Culprits]:
    def change(out: Output, fields: Fields) -> Fields:
        if fields["scale"].ndim < 2 or fields["scale"].shape[1] < 2:
            raise Inapplicable("one scale for each row")
        found = {**fields, "scale": fields["scale"].copy()}
        row = _rows(fields) // 2
        found["scale"][row, 1] = _times(fields["scale"][row, 1], factor)
        return found

    return once(change, "o_proj")


def _scaled(fields: Fields, factor: float, rows: slice) -> Fields:
    if len(fields["scale"]) != _rows(fields):  # one scale for the whole tensor
        if rows != slice(None):
            raise Inapplicable("one scale for the whole tensor")
        return {**fields, "scale": _times(fields["scale"], factor)}
    found = {**fields, "scale": fields["scale"].copy()}
    found["scale"][rows] = _times(fields["scale"][rows], factor)
    if "min" in fields:
        found["min"] = fields["min"].copy()
        found["min"][rows] = _times(fields["min"][rows], factor)
    return found


def _times(array: NDArray[Any], factor: float) -> NDArray[Any]:
    return (np.asarray(array, np.float32) * np.float32(factor)).astype(array.dtype)


def off_by_one(share: float) -> Callable[[Output], Culprits]:
    """Some of one linear's codes are a step too high."""

    def change(out: Output, fields: Fields) -> Fields:
        if fields["code"].dtype.kind != "i":
            raise Inapplicable("codes are floats")
        code = fields["code"].copy()
        top = 127 if code.min() < 0 else (63 if code.max() > 31 else 31 if code.max() > 15 else 15)
        picked = np.random.default_rng(13).random(code.shape) < share
        return {**fields, "code": np.where(picked, np.where(code < top, code + 1, code - 1), code)}

    return once(change, "up_proj")


def clipped(out: Output, fields: Fields) -> Fields:
    """Codes beyond half of the range cut off."""
    code = fields["code"]
    if code.dtype.kind != "i" or "sub" in fields:
        raise Inapplicable("codes are of another kind")
    if code.min() < 0:
        return {**fields, "code": np.clip(code, -64, 63)}
    middle = MIDDLES[out.format] if code.max() < 16 else 16
    reach = 4 if code.max() < 16 else 8
    return {**fields, "code": np.clip(code, middle - reach, middle + reach - 1)}
