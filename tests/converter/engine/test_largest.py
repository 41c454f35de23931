"""The largest magnitudes that a work folder keeps are those of the model that it holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.engine.block import READS
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.record import BlockRecord
from qconvert.engine.skeleton import block_paths
from qconvert.engine.store import record_from
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Statistic
from qconvert.models import FAMILIES
from qconvert.pipeline import convert
from qconvert.runtimes import reference

Tiny = Callable[..., Path]
CLOSE = 1e-4  # relative; the yardstick computes attention by another formula
OPTIONS = {"gemma3_text": {"sliding_window": 64}}  # a shorter one drops keys from the cache
CASES = [
    *((family, "gptq") for family in
      ("llama", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2")),
    *(("llama", method) for method in
      ("quarot+nearest", "quarot+gptq", "smoothquant", "awq", "osplus", "quarot+smoothquant+best")),
    ("phi3", "smoothquant+gptq"), ("gpt2", "osplus"), ("gpt_neox", "awq+gptq"),
]  # fmt: skip


def calibrated(model: Path, folder: Path, method: str) -> Bundle:
    asked = Asked(
        method=method,
        calib_rows=9,
        calib_length=40,
        compute="float32",
        keep_work=True,
        work=folder / "work",
    )
    convert(model, type="Q4_0", out=folder / "x.gguf", threads=1, asked=asked)
    return open_bundle(folder / "work")


def written(bundle: Bundle) -> dict[str, np.ndarray]:
    """The values of the work folder, as the class of the model stores them; of the embedding what
    its codes stand for."""
    found = {}
    for one in bundle.tensors:
        rows = bundle.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
        found[one.name] = np.ascontiguousarray(rows.T) if one.transposed else rows
    return found


@contextmanager
def reading(model: Any, bundle: Bundle, seen: dict[str, float]) -> Iterator[None]:
    """Within: the largest input of every linear of the blocks is told, by its tensor's name."""
    family, hooks = FAMILIES[bundle.model_type], []
    for one in bundle.tensors:
        if one.block is None or one.role not in READS or one.part != "weight":
            continue
        path, _ = block_paths(bundle, one.block)[one.role, "weight"]
        path = f"{family.prefix}{family.block_path.format(one.block)}{path}".rpartition(".")[0]

        def hook(_: Any, args: Any, name: str = one.name) -> None:
            seen[name] = max(seen.get(name, 0.0), float(args[0].abs().max()))

        hooks.append(model.get_submodule(path).register_forward_pre_hook(hook))
    yield
    for one in hooks:
        one.remove()


@pytest.mark.parametrize(("family", "method"), CASES)
def test_they_are_those_of_the_stored_model(
    tiny_model: Tiny, tmp_path: Path, family: str, method: str
) -> None:
    folder = tiny_model(family, **OPTIONS.get(family, {}))
    bundle = calibrated(folder, tmp_path, method)
    weights = written(bundle)
    model = reference.from_weights(bundle, weights, threads=1).model
    seen: dict[str, float] = {}
    cached: dict[tuple[str, int], float] = {}
    with torch.inference_mode(), reading(model, bundle, seen):
        for row in np.load(bundle.store.folder / "tokens.npy"):
            kept = model(torch.from_numpy(row.astype(np.int64))[None], use_cache=True)
            for index, layer in enumerate(kept.past_key_values.layers):
                for kind, values in (("key", layer.keys), ("value", layer.values)):
                    most = float(values.abs().max())
                    cached[kind, index] = max(cached.get((kind, index), 0.0), most)
    assert len(seen) == sum(one.role in READS and one.part == "weight" for one in bundle.tensors)
    for name, value in seen.items():
        assert bundle.largest(Statistic("input", name, 1.0)) == pytest.approx(value, rel=CLOSE)
    norms = {one.block: one.name for one in bundle.tensors if one.role == "attn_norm"}
    for (kind, index), value in cached.items():
        statistic = Statistic(kind, norms[index], 1.0)  # type: ignore[arg-type]
        assert bundle.largest(statistic) == pytest.approx(value, rel=CLOSE)


def test_held_rows_count_as_well(tiny_model: Tiny, tmp_path: Path) -> None:
    """A magnitude that only a held row shows is one that a runtime will meet."""
    bundle = calibrated(tiny_model("llama"), tmp_path, "gptq")
    record = bundle.store.record(0)
    rows = np.load(bundle.store.folder / "tokens.npy")
    assert len(rows) == 9
    assert set(record.largest) == {"attn_in", "attn_mid", "ffn_in", "ffn_mid", "key", "value"}
    seen = {one.name: max(one.largest) for one in record.inputs}  # of the rows to fit to
    assert record.largest["attn_in"] >= seen["attn_in"]


def test_they_pass_through_json_unchanged(tiny_model: Tiny, tmp_path: Path) -> None:
    bundle = calibrated(tiny_model("llama"), tmp_path, "gptq")
    told = bundle.store.read(0).told["record"]
    again = record_from(json.loads(json.dumps(told)))
    assert dict(again.largest) == dict(bundle.store.record(0).largest)
    for value in again.largest.values():
        assert float(np.float32(value)) == value


def test_an_older_record_has_none() -> None:
    told = {"index": 0, "linears": [], "inputs": [], "seconds": 1.0, "peak_bytes": 1}
    assert record_from(told) == BlockRecord(0, (), (), 1.0, 1)
    assert record_from(told).largest == {}


def test_a_folder_without_them_is_refused(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    bundle = open_bundle(free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0"))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(Refused, match="without the largest magnitudes") as caught:
        bundle.largest(Statistic("input", name, 127.0))
    assert "calibrate the model again" in str(caught.value)
    for other in ("lm_head.weight", "model.layers.0.input_layernorm.weight", "nothing"):
        with pytest.raises(Refused, match="leave that tensor in float"):
            bundle.largest(Statistic("input", other, 127.0))
