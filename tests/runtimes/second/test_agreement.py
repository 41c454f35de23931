"""What two readings, and a file and its work folder, differ in: told once, with figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors import safe_open

from qconvert.engine.bundle import open_bundle
from qconvert.formats.gguf.grids import GGUFGrid
from qconvert.formats.refusal import refuse
from qconvert.formats.serving.layouts import pack_quantized
from qconvert.formats.target import target_named
from qconvert.runtimes.second.agreement import differences, disagreements
from qconvert.runtimes.second.reading import second_weights

Output = Callable[..., Any]
NAME = "model.layers.1.mlp.down_proj.weight"
STORED = "blk.1.ffn_down.weight"


class Failing(Mapping[str, Any]):
    """A mapping whose one tensor cannot be decoded."""

    def __iter__(self) -> Any:
        return iter(["a"])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Any:
        raise refuse("a holds NaN")


def test_where_and_how_many_is_told() -> None:
    ours, second = np.zeros((6, 4), np.float32), np.zeros((6, 4), np.float32)
    second[2, 3] = second[2, 1] = second[4, 0] = 1
    (found,) = disagreements({"a": ours}, {"a": second})
    assert (found.stage, found.culprit) == ("bytes", "a")
    assert found.problem == (
        "a: 3 of 24 values differ from what a second reader decodes, first at row 2, column 1;"
        " rows 2 to 4"
    )


@pytest.mark.parametrize("pair", [(0.0, -0.0), (np.nan, np.nan), (np.inf, np.inf)])
def test_the_same_value_is_no_difference(pair: tuple[float, float]) -> None:
    left, right = (np.full(3, one, np.float32) for one in pair)
    assert disagreements({"a": left}, {"a": right}) == []


@pytest.mark.parametrize("pair", [(1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf), (0.0, 1e-40)])
def test_values_that_are_no_rounding_apart_differ(pair: tuple[float, float]) -> None:
    left, right = (np.full(3, one, np.float32) for one in pair)
    assert len(disagreements({"a": left}, {"a": right})) == 1
    assert len(disagreements({"a": right}, {"a": left})) == 1


def test_the_last_bits_of_a_product_do_not_count_and_more_do() -> None:
    one = np.ones((2, 2), np.float32)
    few, many = one + np.float32(2**-21), one + np.float32(2**-20)
    assert disagreements({"a": one}, {"a": few}) == []
    assert len(disagreements({"a": one}, {"a": many})) == 1


def test_what_only_one_of_them_has_or_can_read_is_told() -> None:
    values = np.zeros((2, 2), np.float32)
    told = [
        disagreements({"a": values}, {})[0].problem,
        disagreements({}, {"a": values})[0].problem,
        disagreements({"a": values}, {"a": values[:1]})[0].problem,
        disagreements(Failing(), {"a": values})[0].problem,
        disagreements({"a": values}, Failing())[0].problem,
        disagreements(Failing(), Failing())[0].problem,
    ]
    assert told == [
        "a: a second reader does not find it in the file",
        "a: only a second reader finds it in the file",
        "a is [2, 2], and [1, 2] to a second reader",
        "a: qconvert's reader cannot decode it: a holds NaN",
        "a: a second reader cannot decode it: a holds NaN",
        "a cannot be decoded: a holds NaN",
    ]


def test_a_bug_in_our_decoder_is_found(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    made = output("gguf", "Q4_0")
    right = GGUFGrid.decode

    def wrong(grid: GGUFGrid, tensor: Any) -> Any:
        """The classic: a code too high by one in every second column."""
        codes = tensor.codes.copy()
        codes[:, 1::2] ^= 1
        return right(grid, type(tensor)(tensor.grid, codes, tensor.params))

    assert disagreements(made.ours(), made.second()) == []
    monkeypatch.setattr(GGUFGrid, "decode", wrong)
    found = disagreements(made.ours(), made.second())
    matrices = {one.name for one in made.source.tensors if len(one.shape) == 2}
    assert {one.culprit for one in found} == matrices
    assert "65536 of 131072 values differ" in {one.culprit: one.problem for one in found}[NAME]


def test_a_bug_in_our_layout_is_found(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nibbles read high first by writer and reader alike would be the same mistake twice."""
    made = output("vllm", "w4a16-g64", container="compressed-tensors")
    right = pack_quantized.words.unpack

    def wrong(words: Any, bits: int, count: int) -> Any:
        return right(words, bits, count).reshape(-1, count // 2, 2)[..., ::-1].reshape(-1, count)

    monkeypatch.setattr(pack_quantized.words, "unpack", wrong)
    found = disagreements(made.ours(), made.second())
    assert NAME in {one.culprit for one in found}
    assert all("proj" in one.culprit for one in found)


def flipped(made: Any, at: int, path: Path, folder: Path) -> Any:
    """The output, copied, with one byte of a file changed."""
    copy = folder / made.path.name
    if made.path.is_dir():
        shutil.copytree(made.path, copy)
    else:
        shutil.copy(made.path, copy)
    file = copy if path == made.path else copy / path.name
    data = bytearray(file.read_bytes())
    data[at] ^= 0x31
    file.write_bytes(data)
    return type(made)(made.target, copy, made.source, made.work)


def place(made: Any) -> tuple[Path, int]:
    """A file of the output, and where in it there are codes of `NAME`."""
    if made.path.is_file():
        tensor = next(one for one in GGUFReader(made.path).tensors if one.name == STORED)
        return made.path, int(tensor.data_offset) + 5
    path = made.path / "model.safetensors"
    with safe_open(path, "pt") as file:
        module = NAME.removesuffix(".weight")
        part = next(one for one in file.keys() if one in (f"{module}.qweight", f"{module}.weight",
                                                          f"{module}.weight_packed"))  # fmt: skip
    import json

    head = path.read_bytes()
    size = int.from_bytes(head[:8], "little")
    begin = json.loads(head[8 : 8 + size])[part]["data_offsets"][0]
    return path, 8 + size + begin + 5


OUTPUTS = [
    ("gguf", "Q4_0", None), ("gguf", "Q4_K_M", None), ("gguf", "Q8_0", None),
    ("vllm", "w4a16-g64", "compressed-tensors"), ("vllm", "w4a16-g64", "gptq"),
    ("vllm", "w4a16-g64", "awq"), ("vllm", "fp8-block", "fp8"), ("trtllm", "w4a16-g64", None),
]  # fmt: skip


@pytest.mark.parametrize(("to", "type", "container"), OUTPUTS)
def test_a_changed_byte_is_the_same_fault_to_both(
    to: str, type: str, container: str | None, output: Output, tmp_path: Path
) -> None:
    made = output(to, type, container=container, dtype="bfloat16")
    path, at = place(made)
    damaged = flipped(made, at, path, tmp_path)
    good, ours, second = made.ours()[NAME], damaged.ours()[NAME], damaged.second()[NAME]
    assert not np.array_equal(good, ours)
    np.testing.assert_array_equal(ours, second, strict=True)
    assert disagreements(damaged.ours(), damaged.second()) == []


KEPT: list[tuple[Any, ...]] = [
    ("gguf", "Q4_K_M", None, "llama", "gptq", {}),
    ("gguf", "Q4_0", None, "llama", "quarot+gptq", {"tie_word_embeddings": True}),
    ("gguf", "Q4_0", None, "gemma3_text", "awq+gptq", {}),
    ("gguf", "Q4_0", None, "gpt2", "gptq", {}),
    ("vllm", "w4a16-g64", "compressed-tensors", "llama", "gptq", {}),
    ("vllm", "w4a16-g64", "gptq", "llama", "gptq", {}),
    ("vllm", "w4a16-g64", "awq", "llama", "awq+gptq", {}),
    ("vllm", "w8a8", None, "llama", "smoothquant+gptq", {}),
    ("vllm", "nvfp4", "compressed-tensors", "llama", "gptq", {"seed": 2}),
    ("trtllm", "w4a16-g64", None, "llama", "awq+gptq", {"dtype": "bfloat16"}),
    ("onnx", None, None, "gemma3_text", "gptq", {}),
    ("mlc", None, None, "gemma3_text", "gptq", {}),
    ("mlc", "q4bf16_1", None, "llama", "gptq", {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize(
    ("to", "type", "container", "family", "method", "model"), KEPT, ids=[repr(k[:5]) for k in KEPT]
)
def test_a_file_is_what_its_work_folder_holds(
    to: str, type: Any, container: Any, family: str, method: str, model: Any, output: Output
) -> None:
    """For all that a source names, and for all that the work folder does."""
    made = output(to, type, family, container=container, method=method, **model)
    kept = open_bundle(made.work)
    assert differences(made.ours(kept), kept) == []
    assert differences(made.ours(), kept) == []
    second = second_weights(to, made.path, kept)
    if second is not None:
        assert set(second) == set(made.ours(kept))
        assert differences(second, kept) == []


@pytest.fixture
def gguf(output: Output) -> Any:
    return output("gguf", "Q4_K_M", method="gptq")


def test_one_value_that_is_not_in_the_work_folder_is_told(gguf: Any) -> None:
    kept = open_bundle(gguf.work)
    ours = {name: np.array(values) for name, values in gguf.ours().items()}
    ours[NAME][3, 17] *= 1.5
    norm = "model.layers.0.input_layernorm.weight"
    ours[norm][5] *= np.float32(1 + 2**-20)
    found = {one.culprit: one.problem for one in differences(ours, kept)}
    assert found.keys() == {NAME, norm}
    assert found[NAME] == (
        f"{NAME}: 1 of 131072 values differs from the work folder, first at row 3, column 17;"
        " rows 3 to 3"
    )
    assert "first at row 0, column 5" in found[norm]


def test_a_tensor_in_place_of_another_is_told(gguf: Any) -> None:
    ours = dict(gguf.ours())
    gate, up = (f"model.layers.0.mlp.{which}_proj.weight" for which in ("gate", "up"))
    ours[gate], ours[up] = ours[up], ours[gate]
    missing = "model.norm.weight"
    del ours[missing]
    found = differences(ours, open_bundle(gguf.work))
    assert {one.culprit for one in found} == {gate, up, missing}
    assert f"{missing} is in the work folder, and not in the file" in {o.problem for o in found}


def test_floats_are_rounded_as_one_tensor_or_not_at_all(gguf: Any) -> None:
    kept = open_bundle(gguf.work)
    ours = dict(gguf.ours())
    norm = "model.norm.weight"
    ours[norm] = ours[norm].astype(np.float16).astype(np.float32)
    assert differences(ours, kept) == []
    ours[norm][:3] = gguf.ours()[norm][:3]  # the rest is still rounded
    assert [one.culprit for one in differences(ours, kept)] == [norm]


def test_an_embedding_that_a_target_quantized_by_itself_is_no_fault(
    output: Output, tmp_path: Path
) -> None:
    """The work folder of a served model keeps it in float; a part that is damaged is told."""
    made = output("vllm", "w4a16-g64", container="gptq", method="gptq")
    kept = open_bundle(made.work)
    ours = dict(made.ours())
    name = "model.embed_tokens.weight"
    ours[name] = np.round(ours[name] * 100) / 100
    assert differences(ours, kept) == []
    ours[name] = np.array(made.ours()[name])
    ours[name][7] = 0
    assert [one.culprit for one in differences(ours, kept)] == [name]


def test_a_target_without_a_second_reader_has_none(output: Output) -> None:
    made = output("onnx", None)
    assert second_weights("onnx", made.path, made.source) is None
    assert target_named("onnx").reader(made.path)


@pytest.mark.parametrize(("to", "type"), [("gguf", "Q4_0"), ("vllm", "w4a16-g32"), ("mlc", None)])
def test_a_head_that_a_rotation_has_untied_is_read(to: str, type: Any, output: Output) -> None:
    """By its own name, also for the source that ties it: the reference computes with it."""
    made = output(to, type, method="quarot+gptq", tie_word_embeddings=True)
    ours, second = made.ours(), made.second()
    assert "lm_head.weight" in set(ours)
    assert not np.array_equal(ours["lm_head.weight"], ours["model.embed_tokens.weight"])
    assert set(ours) == set(second)
    assert disagreements(ours, second) == []
