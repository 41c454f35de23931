"""A finished work folder is written to a file with the codes that it holds, and no others."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert import importance, job, pipeline
from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.engine import bundle as bundles
from qconvert.engine.bundle import open_bundle
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.known_grids import grid_named
from qconvert.formats.refusal import Refused
from qconvert.formats.source import SourceTensor
from qconvert.formats.target import target_named

Tiny = Callable[..., Path]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [
        ("llama", "Q4_0", "bfloat16"),
        ("llama", "Q4_K_M", "float32"),
        ("gpt2", "Q4_K_M", "float16"),
        ("gemma3_text", "Q3_K_M", "bfloat16"),
    ],
)
def test_writing_from_a_bundle_is_writing_from_the_model(
    free: Any,
    family: str,
    kind: str,
    dtype: str,
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-2's tied head has its own grid; Gemma's norms are stored plus one, its q and k turned."""
    model = tiny_model(family, dtype=dtype)
    direct = pipeline.convert(
        model, type=kind, out=tmp_path / "direct.gguf", asked=Asked(method="rtn")
    )
    work = free.finished(model, tmp_path / "work", kind)
    monkeypatch.setattr(Checkpoint, "rows", lambda *_: pytest.fail("the model was read"))
    grids = {type(grid) for grid in GRIDS.values()}
    for grid in grids:
        monkeypatch.setattr(grid, "quantize", lambda *_, **__: pytest.fail("quantized again"))
    again = pipeline.convert(work, out=tmp_path / "again.gguf")
    assert sha256(again.files[0]) == sha256(direct.files[0])
    assert again.type == direct.type
    assert again.plan.default_name == direct.plan.default_name


def test_the_chunk_does_not_matter(
    free: Any, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qconvert import estimate

    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_K_M")
    whole = pipeline.convert(work, out=tmp_path / "whole.gguf")
    monkeypatch.setattr(estimate, "CHUNK", 256 * 37)
    pieces = pipeline.convert(work, out=tmp_path / "pieces.gguf")
    assert sha256(pieces.files[0]) == sha256(whole.files[0])


def test_it_is_a_source(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    source = open_checkpoint(model)
    bundle = open_bundle(free.finished(model, tmp_path / "work", "Q4_0"))
    assert bundle.tensors == source.tensors
    assert (bundle.model_type, bundle.tied) == (source.model_type, source.tied)
    assert bundle.config == source.config
    assert (bundle.target, bundle.type) == ("gguf", "Q4_0")
    for tensor in source.tensors:
        stop = tensor.shape[0] if len(tensor.shape) == 2 else 1
        found, want = bundle.rows(tensor, 0, stop), source.rows(tensor, 0, stop)
        assert found.shape == want.shape
        kind = bundle.grid_of(tensor.name)
        if kind is None:
            np.testing.assert_array_equal(found, want)
            assert bundle.quantized(tensor.name, 0, 1) is None
            continue
        fitted = GRIDS[kind].quantize(want, importance.importance(source, tensor))
        np.testing.assert_array_equal(found, GRIDS[kind].decode(fitted))
        some = bundle.quantized(tensor.name, 5, 9)
        assert some is not None
        np.testing.assert_array_equal(some.codes, fitted.codes[5:9])
        assert bundle.quantized(tensor.name, 0, 1, grid="no such grid") is None
    assert {bundle.grid_of(t.name) for t in source.tensors} == {None, "Q4_0", "Q6_K"}


def test_other_grids_are_refused_all_at_once(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    with pytest.raises(Refused) as caught:
        pipeline.convert(work, type="Q5_K_M", out=tmp_path / "x.gguf")
    text = str(caught.value)
    problem = (
        "model.layers.*.self_attn.q_proj.weight (2 tensors) is wanted on Q5_K, "
        "but the work folder has it on Q4_0"
    )
    assert problem in text
    assert "model.embed_tokens.weight is wanted on Q5_K" in text
    assert "lm_head" not in text  # on Q6_K in both
    assert text.count("--to gguf --type Q4_0") == 1
    assert "--to gguf --type Q5_K_M" in text
    assert len(caught.value.reasons) >= 7
    assert not (tmp_path / "x.gguf").exists()


def test_codes_can_be_written_as_the_values_they_stand_for(
    free: Any, tiny_model: Tiny, tmp_path: Path
) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    done = pipeline.convert(work, type="F32", out=tmp_path / "x.gguf")
    assert "16 tensors: the values of the codes, written as floats" in done.plan.notes
    small = pipeline.convert(work, out=tmp_path / "y.gguf")
    target = target_named("gguf")
    wide, codes = target.reader(done.files[0]), target.reader(small.files[0])
    for name in codes.tensors:
        np.testing.assert_array_equal(wide.decode(name), codes.decode(name))


def test_what_was_kept_float_outside_the_blocks_may_be_fitted(
    free: Any, tiny_model: Tiny, tmp_path: Path
) -> None:
    """A float bundle has no codes: embedding and head may be fitted now, a linear may not."""
    work = free.finished(tiny_model("llama"), tmp_path / "work", "F32")
    with pytest.raises(Refused) as caught:
        pipeline.convert(work, type="Q4_0", out=tmp_path / "x.gguf")
    assert "but the work folder has it in float" in str(caught.value)
    assert "embed_tokens" not in str(caught.value)
    assert "lm_head" not in str(caught.value)


def test_an_unfinished_folder_is_refused(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    (work / "blocks" / "00001.safetensors").unlink()
    assert bundles.recognises(work)
    with pytest.raises(Refused) as caught:
        pipeline.convert(work, out=tmp_path / "x.gguf")
    assert "1 of 4 parts are missing, the first is blocks/00001.safetensors" in str(caught.value)
    assert f"--work {work}" in str(caught.value)


def test_a_model_folder_is_no_bundle(tiny_model: Tiny, tmp_path: Path) -> None:
    assert not bundles.recognises(tiny_model("llama"))
    with pytest.raises(Refused, match="is not a work folder"):
        open_bundle(tmp_path)


def test_a_changed_tokenizer_is_noticed(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    copy = open_bundle(work).folder / "tokenizer.json"
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(Refused, match=r"tokenizer\.json is missing or was changed"):
        open_bundle(work)


def test_a_damaged_part_stops_the_output(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    part = work / "outer" / "after.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    with pytest.raises(Refused, match=r"after\.safetensors is damaged"):
        pipeline.convert(work, out=tmp_path / "x.gguf")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["work"]


def test_a_bundle_moves_with_its_folder(free: Any, tiny_model: Tiny, tmp_path: Path) -> None:
    work = free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0")
    before = pipeline.convert(work, out=tmp_path / "before.gguf")
    moved = Path(shutil.move(work, tmp_path / "elsewhere"))
    after = pipeline.convert(moved, out=tmp_path / "after.gguf")
    assert sha256(after.files[0]) == sha256(before.files[0])


@dataclass(frozen=True)
class Untied:
    """A tied model whose head became a tensor of its own, as a rotation leaves it."""

    inner: Checkpoint
    tied: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def config(self) -> dict[str, Any]:
        return {**self.inner.config, "tie_word_embeddings": False}

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        embedding = self.inner.tensors[0]
        head = replace(embedding, name="lm_head.weight", role="head", dtype="F32")
        return (*self.inner.tensors, head)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        if tensor.role == "head":
            return self.inner.rows(self.inner.tensors[0], start, stop) * np.float32(0.7)
        return self.inner.rows(tensor, start, stop)


def test_the_facts_are_those_of_the_model_as_it_was_quantized(
    free: Any, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", dtype="bfloat16", tie_word_embeddings=True)
    monkeypatch.setattr(job, "open_checkpoint", lambda path: Untied(open_checkpoint(path)))
    direct = pipeline.convert(
        model, type="Q8_0", out=tmp_path / "direct.gguf", asked=Asked(method="rtn")
    )
    bundle = open_bundle(free.finished(model, tmp_path / "work", "Q8_0"))
    assert not bundle.tied
    assert bundle.config["tie_word_embeddings"] is False
    assert bundle.tensors[-1].name == "lm_head.weight"
    again = pipeline.convert(tmp_path / "work", out=tmp_path / "again.gguf")
    assert "output.weight" in {tensor.name for tensor in again.plan.tensors}
    assert sha256(again.files[0]) == sha256(direct.files[0])


def test_a_grid_by_its_name() -> None:
    for name, grid in GRIDS.items():
        assert grid_named(name) is grid
    with pytest.raises(Refused, match="unknown grid 'Q9_Z'") as caught:
        grid_named("Q9_Z")
    assert "Q4_K" in str(caught.value)
