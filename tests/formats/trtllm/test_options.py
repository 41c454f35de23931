"""--trtllm-compatible: ModelOpt's own rule in a plan, and what cannot be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from qconvert.checkpoint import open_checkpoint
from qconvert.cli import run
from qconvert.formats.known_grids import grid_named
from qconvert.formats.option import target_options
from qconvert.formats.refusal import Refused
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.source import Source
from qconvert.formats.target import Plan, Request, target_named
from qconvert.formats.trtllm.options import COMPATIBLE
from qconvert.formats.trtllm.target import RULE

Headers = Callable[..., Source]


def plan(source: Source, **asked: Any) -> Plan:
    return target_named("trtllm").plan(source, Request(own=((COMPATIBLE, "yes"),), **asked))


def test_the_option_is_found() -> None:
    assert COMPATIBLE in {one.name for one in target_options() if one.target == "trtllm"}


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("name", list(RULE.grids))
def test_schemes_have_modelopts_grids(headers: Headers, name: str, dtype: str) -> None:
    if (name, dtype) == ("fp8-block", "F16"):
        return  # computed in bfloat16 alone
    plain = target_named("trtllm").plan(headers(dtype=dtype), Request(type=name))
    made = plan(headers(dtype=dtype), type=name)
    assert made.rule
    assert not plain.rule
    assert made.type == plain.type == name
    assert made.default_name == f"{plain.default_name}-compatible"
    for one, other in zip(made.tensors, plain.tensors, strict=True):
        assert (one.name, one.dtype, one.nbytes) == (other.name, other.dtype, other.nbytes)
        assert (one.grid is None) == (other.grid is None)
        if one.grid is not None:
            assert one.grid.name == RULE.grids[name].format(dtype=dtype.lower())
            assert grid_named(one.grid.name) is one.grid


def test_a_scale_of_a_tensor_is_its_own_in_fp8_and_shared_in_fp4(headers: Headers) -> None:
    def shares(name: str) -> dict[str, int]:
        found = plan(headers(), type=name).tensors
        return {one.name.split(".")[-2]: len(one.shares) for one in found if one.grid is not None}

    assert shares("fp8-tensor")["q_proj"] == 1
    assert shares("nvfp4")["q_proj"] == 3
    assert shares("nvfp4")["up_proj"] == 2


@pytest.mark.parametrize(
    ("asked", "model", "why"),
    [
        ({"scheme": "w4a8-awq"}, {}, "searches for AWQ scales"),
        ({"scheme": "w4a16"}, {}, "writes nothing of this kind"),
        ({"type": "bf16"}, {}, "nothing is quantized"),
        ({"scheme": "fp8"}, {"dtype": "F32"}, "is F32, and ModelOpt would round"),
        ({"scheme": "fp8", "layers": (("down_proj", "w4a8-awq"),)}, {}, "w4a8-fp8-g128"),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    headers: Headers, asked: dict[str, Any], model: dict[str, Any], why: str
) -> None:
    with pytest.raises(Refused) as caught:
        plan(headers(**model), **asked)
    reason = next(one for one in caught.value.reasons if why in one.problem)
    assert f"leave out --{COMPATIBLE}" in reason.remedy
    target_named("trtllm").plan(headers(**model), Request(**asked))


def test_every_scheme_that_it_names_is_one() -> None:
    assert {*RULE.grids, *RULE.others, *RULE.alone} <= schemes().keys()


def test_a_folder_holds_the_largest_magnitudes(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Written and read back by the files alone: scales are amax / 127, codes the rounded
    quotients."""
    model, out = tiny_model("llama", dtype="bfloat16"), tmp_path / "out"
    arguments = [str(model), "--to", "trtllm", "--scheme", "w8a16", f"--{COMPATIBLE}",
                 "--out", str(out), "--threads", "1"]  # fmt: skip
    assert run(arguments) == 0
    stored = load_file(out / "model.safetensors")
    source = open_checkpoint(model)
    name = "model.layers.0.mlp.down_proj"
    tensor = next(one for one in source.tensors if one.name == f"{name}.weight")
    w = source.rows(tensor, 0, tensor.shape[0])
    scale = np.abs(w).max(1) / np.float32(127)
    assert stored[f"{name}.weight_scale"].numpy().tobytes() == scale.tobytes()
    assert np.array_equal(
        stored[f"{name}.weight"].numpy(), np.rint(w / scale[:, None]).astype(np.int8)
    )
