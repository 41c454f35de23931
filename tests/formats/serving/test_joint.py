"""A number that linears held as one have in common: made of all of them, beside the last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from qconvert.formats.serving.container import FolderPlan, Linear, containers
from qconvert.formats.serving.folder.writer import open_folder
from qconvert.formats.serving.schemes import scheme_named
from qconvert.formats.source import Source
from qconvert.formats.target import OutputTensor, Plan, Request, target_named

SHAPE = (24, 256)
Make = Callable[..., Any]


QKV = tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv")


def fused_plan(split_bytes: int) -> tuple[Plan, Linear]:
    """q, k and v of W4A8, whose shared scale lies beside v; then another linear alone."""
    held, kind = containers()["modelopt"], scheme_named("w4a8-fp8-g128")
    names = [f"{one}.weight" for one in QKV]
    linears = {name: Linear(one, SHAPE, kind) for one, name in zip(QKV, names, strict=True)}
    entries = {name: held.entries(one, "BF16") for name, one in linears.items()}
    joints = [held.joint(one) for one in linears.values()]
    entries[names[-1]] += tuple(one.entry for one in joints if one is not None)
    tensors = [OutputTensor(name, SHAPE, kind.grid, kind.name, 0, None) for name in names]
    folder = FolderPlan(entries, linears, held, "BF16", {}, {}, {names[-1]: tuple(names)},
                        split_bytes=split_bytes)  # fmt: skip
    plan = Plan("trtllm", kind.name, tuple(tensors), "out", details={"folder": folder})
    return plan, linears[names[0]]


@pytest.mark.parametrize("split_bytes", [10**9, 6000])
@pytest.mark.parametrize("largest", [0, 1, 2])
def test_a_scale_is_made_of_all_that_share_it(
    largest: int, split_bytes: int, tmp_path: Path, make: Make
) -> None:
    """Whichever of them has the largest scale, and in whatever files they are."""
    plan, linear = fused_plan(split_bytes)
    made = [make(linear.scheme, SHAPE, seed) for seed in range(3)]
    made[largest].params["d"][3, 1] = -12  # 8 * 12 = 384 * 2^-2, and the others are at most 2
    with open_folder(plan, tmp_path / "out") as sink:
        for tensor, codes in zip(plan.tensors, made, strict=True):
            sink.write(tensor, codes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == (1 if split_bytes == 10**9 else 3)
    found = {}
    for one in files:
        with safe_open(one, "np") as file:
            names = [name for name in file.keys() if name.endswith("_scale_2")]
            found |= {name: file.get_tensor(name) for name in names}
    assert {name: float(one) for name, one in found.items()} == {
        f"{one}.weight_scale_2": 2.0**-2 for one in QKV
    }


def planned(source: Source, **asked: Any) -> tuple[Plan, FolderPlan]:
    made = target_named("trtllm").plan(source, Request(**asked))
    folder = made.details["folder"]
    assert isinstance(folder, FolderPlan)
    return made, folder


def parts(names: tuple[str, ...]) -> list[str]:
    return [name.removesuffix(".weight").rpartition(".")[2] for name in names]


def test_it_lies_beside_the_last_in_the_plan(headers: Callable[..., Source]) -> None:
    """Once for each linear, in the entries of the last of those that are joined."""
    made, folder = planned(headers(), type="w4a8-fp8-g128")
    joined = [parts(names) for names in folder.joint.values()]
    assert joined == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"],
                      ["down_proj"]] * 2  # fmt: skip
    assert all(names[-1] == last for last, names in folder.joint.items())
    found: dict[str, str] = {}
    for name, entries in folder.entries.items():
        found |= {one.name: name for one in entries if one.name.endswith("_scale_2")}
    assert len(found) == 14
    for last, names in folder.joint.items():
        assert {f"{name.removesuffix('weight')}weight_scale_2" for name in names} == {
            number for number, beside in found.items() if beside == last
        }
    sizes = {one.name: one.nbytes for one in made.tensors}
    assert all(sizes[name] == sum(one.nbytes for one in entries)
               for name, entries in folder.entries.items())  # fmt: skip


def test_only_such_schemes_have_one(headers: Callable[..., Source]) -> None:
    assert planned(headers(), type="w4a16-g128")[1].joint == {}
    mixed = planned(headers(), type="w4a16-g128", layers=(("*.mlp.*", "w4a8-fp8-g128"),))[1]
    assert [parts(names) for names in mixed.joint.values()] == [
        ["gate_proj", "up_proj"], ["down_proj"],
    ] * 2  # fmt: skip


def test_column_scales_in_the_plan(headers: Callable[..., Source]) -> None:
    """Of o_proj and down_proj, in the type of the model, after what they belong to."""
    made, folder = planned(headers(), type="w4a16-g128")
    columns = [one for one in made.tensors if one.column_scale]
    assert parts(tuple(one.column_scale for one in columns)) == ["o_proj", "down_proj"] * 2
    names = [one.name for one in made.tensors]
    for one in columns:
        assert names.index(one.name) == names.index(one.column_scale) + 1
        assert folder.entries[one.name][0].dtype == one.dtype == "BF16"
        assert one.shape == (folder.linears[one.column_scale].shape[1],)
