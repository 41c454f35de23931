"""What is written lies where MLC's loader looks, and means what was fitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.formats.mlc.cache import CAP, Record, plan_shards
from qconvert.formats.mlc.schemes import SCHEMES
from qconvert.formats.mlc.target import TARGET
from qconvert.formats.refusal import Refused

from .conftest import Model, array, records, request, write

JOINED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
          "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}  # fmt: skip


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def literally(
    found: dict[str, Any], module: str, scheme: str, cols: int, embedding: bool
) -> np.ndarray:
    """MLC's decoder: (code - M) * scale in the model dtype, one weight at a time."""
    one = SCHEMES[scheme]
    words, scales = array(found[f"{module}.q_weight"]), array(found[f"{module}.q_scale"])
    scales = widened(scales, found[f"{module}.q_scale"][0]["dtype"])
    if scheme.endswith("_0") and not embedding:
        words, scales = words.T, scales.T
    values = np.zeros((words.shape[0], cols), np.float32)
    for row in range(words.shape[0]):
        for k in range(cols):
            word = int(words[row, k // (32 // one.bits)])
            code = word >> (k % (32 // one.bits)) * one.bits & (2**one.bits - 1)
            value = np.float32(code - (2 ** (one.bits - 1) - 1)) * scales[row, k // one.group]
            assert one.dtype != "float16" or np.float16(value) == value  # portable: exact
            bits = np.array([value], np.float32).view(np.uint32)[0]
            assert one.dtype != "bfloat16" or not bits & 0xFFFF
            values[row, k] = value
    return values


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoded_as_mlc_does_it_is_what_was_fitted(
    scheme: str, model: Callable[..., Model], tmp_path: Path
) -> None:
    source = model(num_hidden_layers=1)
    plan = TARGET.plan(source, request(type=scheme))
    found = records(write(source, plan, tmp_path / "out"))
    at: dict[str, int] = {}
    for tensor in plan.tensors:
        above, _, last = tensor.name.removesuffix(".weight").rpartition(".")
        module = f"{above}.{JOINED.get(last, last)}".removeprefix(".")
        rows = tensor.source.shape[0]
        first = at.get(module, 0)
        at[module] = first + rows
        w = source.values[tensor.source.name]
        if tensor.grid is None:
            record, _ = found[f"{module}.weight"]
            stored = widened(array(found[f"{module}.weight"]), record["dtype"])
            limit = 2.0**-8 if record["dtype"] == "bfloat16" else 0
            assert np.abs(stored[first : first + rows] - w).max() <= limit * np.abs(w).max()
            continue
        values = literally(found, module, scheme, w.shape[1], last == "embed_tokens")
        wanted = tensor.grid.decode(tensor.grid.quantize(w))
        np.testing.assert_array_equal(values[first : first + rows], wanted)
    quantized = [t for t in plan.tensors if t.grid is not None]
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert bool(quantized) == (scheme != "q0f16")
    assert bool(ends & {t.name for t in quantized}) == (scheme not in ("q0f16", "q4f16_2"))


def test_index_says_what_is_there(model: Callable[..., Model], tmp_path: Path) -> None:
    source = model("qwen2")
    plan = TARGET.plan(source, request())
    folder = write(source, plan, tmp_path / "out")
    text = (folder / "tensor-cache.json").read_bytes()
    assert (folder / "ndarray-cache.json").read_bytes() == text
    assert not (folder / "tensor-cache-b16.json").exists()
    index = json.loads(text)
    assert text == json.dumps(index, indent=4).encode()
    for shard in index["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        assert shard["md5sum"] == hashlib.md5(data).hexdigest()
        assert shard["nbytes"] == len(data) == sum(one["nbytes"] for one in shard["records"])
        assert {one["format"] for one in shard["records"]} == {"raw"}
    assert {file.name for file in TARGET.outputs(plan, folder)} == {
        file.name for file in folder.iterdir()
    }
    assert sum(file.stat().st_size for file in folder.iterdir()) == plan.nbytes
    assert "model.layers.1.self_attn.c_attn.bias" in records(folder)


def test_float32_is_narrow_only_where_mlc_is_to_be_met(
    model: Callable[..., Model], tmp_path: Path
) -> None:
    source = model()
    for compatible in (False, True):
        plan = TARGET.plan(source, request(type="q4f32_1", compatible=compatible))
        folder = write(source, plan, tmp_path / f"out-{compatible}")
        found = records(folder)
        scale, _ = found["lm_head.q_scale"]
        assert scale["dtype"] == "float32"
        assert scale["format"] == ("f32-to-bf16" if compatible else "raw")
        assert (folder / "tensor-cache-b16.json").exists() == compatible
        assert sum(file.stat().st_size for file in folder.iterdir()) == plan.nbytes
    web = json.loads((folder / "tensor-cache-b16.json").read_text())
    kinds = {(one["dtype"], one["format"]) for one in web["records"][0]["records"]}
    assert kinds == {("uint32", "f32-to-bf16"), ("bfloat16", "raw")}


@pytest.mark.parametrize("scheme", ["q4f16_1", "q3f16_0"])
def test_bytes_do_not_depend_on_the_pieces(
    scheme: str, model: Callable[..., Model], tmp_path: Path
) -> None:
    source = model()
    plan = TARGET.plan(source, request(type=scheme))
    one = write(source, plan, tmp_path / "one", step=1)
    all_at_once = write(source, plan, tmp_path / "all", step=1000)
    for file in one.iterdir():
        assert file.read_bytes() == (all_at_once / file.name).read_bytes(), file.name


def test_gemma_norms_are_stored_plus_one_and_nothing_else_is(
    model: Callable[..., Model], tmp_path: Path
) -> None:
    for kind, prefix in (("gemma2", ""), ("gemma3_text", "language_model.")):
        source = model(kind)
        folder = write(source, TARGET.plan(source, request(type="q0f16")), tmp_path / kind)
        found = records(folder)
        assert not any("lm_head" in name for name in found)
        for tensor in source.tensors:
            if len(tensor.shape) == 1:
                wanted = (source.values[tensor.name] + np.float32(1)).astype(np.float16)
                np.testing.assert_array_equal(array(found[prefix + tensor.name]), wanted)
        assert f"{prefix}model.embed_tokens.weight" in found
        q = f"{prefix}model.layers.0.self_attn.q_proj.weight"
        assert (q in found) == (kind == "gemma3_text")


def test_mistral_has_a_head_also_where_it_is_tied(
    model: Callable[..., Model], tmp_path: Path
) -> None:
    source = model("mistral", tie_word_embeddings=True)
    plan = TARGET.plan(source, request(type="q4f16_0"))
    found = records(write(source, plan, tmp_path / "out"))
    head, embedding = (array(found[f"{name}.q_weight"])
                       for name in ("lm_head", "model.embed_tokens"))  # fmt: skip
    np.testing.assert_array_equal(head.T, embedding)
    weights = TARGET.reader(tmp_path / "out").weights(source)
    assert set(weights) == {"lm_head.weight", *(one.name for one in source.tensors)}
    np.testing.assert_array_equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_shards_are_cut_as_tvm_cuts_them() -> None:
    def one(name: str, size: int) -> Record:
        return Record(name, (size // 4,), "uint32")

    half = CAP // 2
    shards = plan_shards(
        [one("a", 40), one("large", half), one("b", half - 44), one("c", 400), one("huge", 3 * CAP)]
    )
    told = [[(record.name, at) for record, at in shard.records] for shard in shards]
    assert told == [[("a", 0), ("large", 40), ("b", 40 + half)], [("huge", 0)], [("c", 0)]]
    exact = plan_shards([one("a", half), one("b", half), one("c", half - 4), one("d", 4)])
    told = [[record.name for record, _ in shard.records] for shard in exact]
    assert told == [["b"], ["a", "c"], ["d"]]
    assert [shard.name for shard in exact] == [f"params_shard_{n}.bin" for n in range(3)]


def test_nothing_is_left_of_a_failure(model: Callable[..., Model], tmp_path: Path) -> None:
    source = model()
    plan = TARGET.plan(source, request())

    def stop_early() -> None:
        with TARGET.writer(plan, tmp_path / "out") as sink:
            for tensor in plan.tensors[:-1]:
                rows = source.rows(tensor.source, 0, tensor.shape[0])
                sink.write(tensor, rows if tensor.grid is None else tensor.grid.quantize(rows))

    with pytest.raises(ValueError, match="1 tensors were not written"):
        stop_early()
    assert [one.name for one in tmp_path.iterdir()] == [source.folder.name]


def test_what_float16_cannot_hold_is_refused_by_name(
    model: Callable[..., Model], tmp_path: Path
) -> None:
    source = model()
    source.values["model.norm.weight"][3] = 70000
    plan = TARGET.plan(source, request(type="q0f16"))
    with pytest.raises(Refused, match=r"model.norm.weight: 70000 is too large for float16"):
        write(source, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_are_not_replaced(model: Callable[..., Model], tmp_path: Path) -> None:
    source = model()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(Refused, match="other things than a model"):
        write(source, TARGET.plan(source, request()), tmp_path / "out")
