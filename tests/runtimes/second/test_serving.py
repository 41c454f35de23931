"""Served folders: every scheme in every container, as our reader reads it, and bytes by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import containers
from qconvert.formats.serving.folder.reader import open_reader
from qconvert.formats.serving.schemes import schemes
from qconvert.runtimes.second.reading import second_weights
from qconvert.runtimes.second.stored import E2M1, E4M3

CASES = [
    (container.name, scheme.name)
    for container in containers().values()
    for scheme in schemes().values()
    if not container.problems(scheme)
]
Served = Callable[..., Any]
NAME = "m.weight"


@pytest.mark.parametrize(("container", "scheme"), CASES)
def test_every_scheme_is_read_as_we_read_it(
    container: str, scheme: str, folders: Any, tmp_path: Path
) -> None:
    """Random codes from the lowest to the highest, scales of both signs, in every container."""
    from types import SimpleNamespace

    module, samples = folders
    plan = module.plan_of(container, scheme)
    path = module.write(plan, tmp_path / "out", samples.sample)
    names = [one.name for one in plan.tensors if len(one.shape) == 2]
    source: Any = SimpleNamespace(tied=False, tensors=[SimpleNamespace(name=n) for n in names])
    ours, second = open_reader(path), second_weights("vllm", path, source)
    assert second is not None
    assert list(second) == names
    for name in names:
        kept = ours.decode(name)
        assert kept.any()
        if scheme.startswith("nvfp4"):  # 2688 / amax, rounded, is what is stored
            np.testing.assert_array_max_ulp(second[name], kept, 4)
        else:
            np.testing.assert_array_equal(second[name], kept, err_msg=name, strict=True)


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "smollm3")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_we_read_it(family: str, output: Callable[..., Any]) -> None:
    output("vllm", "w4a16-g64-asym", family).check()


@pytest.mark.parametrize("target", ["vllm", "sglang", "lightllm", "trtllm", "edge-llm"])
def test_every_target_has_a_second_reader(target: str, output: Callable[..., Any]) -> None:
    output(target, None, dtype="bfloat16").check()


def test_a_folder_in_several_files(output: Callable[..., Any]) -> None:
    made = output("vllm", "w4a16-g64", container="gptq", split=400_000)
    assert len(list(made.path.glob("*.safetensors"))) > 2
    made.check()


def words(*values: int) -> torch.Tensor:
    return torch.tensor(np.array(values, np.uint32).view(np.int32))


def args(**weights: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": {"num_bits": 4, **weights}}


def tensors(**parts: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"m.{part}": tensor for part, tensor in parts.items()}


PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def test_pack_quantized(served: Served) -> None:
    """The lowest nibble is the first input; 8 stands for 0."""
    stored = tensors(weight_packed=words(0xFEDCBA98, 0x76543210)[None],
                     weight_scale=torch.tensor([[0.5, -1.0]]),
                     weight_shape=torch.tensor([1, 16]))  # fmt: skip
    found = served({**PACKED, "config_groups": {"group_0": args()}}, stored, NAME)[NAME]
    first, second = [0.5 * code for code in range(8)], [8.0 - code for code in range(8)]
    assert found.tolist() == [first + second]


def test_pack_quantized_with_zero_points(served: Served) -> None:
    """Those of eight rows share a word, the first in its lowest nibble."""
    stored = tensors(weight_packed=words(*[0x11111111] * 3)[:, None],
                     weight_scale=torch.ones(3, 1), weight_zero_point=words(0x00000F10)[None],
                     weight_shape=torch.tensor([3, 8]))  # fmt: skip
    found = served({**PACKED, "config_groups": {"group_0": args()}}, stored, NAME)[NAME]
    assert found[:, 0].tolist() == [1.0, 0.0, -14.0]


def test_the_first_group_that_names_a_linear_is_its_own(served: Served) -> None:
    groups = {"group_0": args(num_bits=8), "group_1": {**args(), "targets": ["re:m$"]}}
    stored = tensors(weight_packed=words(0x99999999)[None], weight_scale=torch.ones(1, 1),
                     weight_shape=torch.tensor([1, 8]))  # fmt: skip
    assert served({**PACKED, "config_groups": groups}, stored, NAME)[NAME].tolist() == [[1.0] * 8]


@pytest.mark.parametrize(("form", "one"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(served: Served, form: str, one: int) -> None:
    """A word holds eight inputs; the zero point is stored less one in the first form; g_idx says
    to which group a column belongs, in whatever order."""
    told = {"quant_method": "gptq", "bits": 4, "group_size": 4, "checkpoint_format": form}
    stored = tensors(qweight=words(0x76543210)[None].repeat(1, 8),
                     qzeros=words(0x00000002, 0x00000003)[:, None],
                     scales=torch.tensor([[1.0] * 8, [10.0] * 8], dtype=torch.float16),
                     g_idx=torch.tensor([1, 0, 0, 0, 1, 1, 0, 1], dtype=torch.int32))  # fmt: skip
    found = served(told, stored, NAME)[NAME]
    zero = {0: 2 + one, 1: 3 + one}
    groups = [1, 0, 0, 0, 1, 1, 0, 1]
    assert found[0].tolist() == [(k - zero[g]) * 10.0**g for k, g in enumerate(groups)]
    assert found[1].tolist() == [(k - one) * 10.0**g for k, g in enumerate(groups)]


def test_awq(served: Served) -> None:
    """Nibbles of a word, low first, are outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    told = {"quant_method": "awq", "bits": 4, "group_size": 1, "version": "gemm"}
    stored = tensors(qweight=words(0x76543210)[:, None], qzeros=words(0x00000001)[:, None],
                     scales=torch.full((1, 8), 2.0, dtype=torch.float16))  # fmt: skip
    found = served(told, stored, NAME)[NAME]
    assert found[:, 0].tolist() == [-2.0, 8.0, 2.0, 10.0, 4.0, 12.0, 6.0, 14.0]


def test_fp8_in_blocks_that_do_not_fill(served: Served) -> None:
    told = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    stored = tensors(weight=torch.ones(129, 130).to(torch.float8_e4m3fn),
                     weight_scale_inv=torch.tensor([[2.0, 3.0], [5.0, 7.0]]))  # fmt: skip
    found = served(told, stored, NAME)[NAME]
    corners = found[[0, 127, 128, 128], [127, 128, 0, 129]]
    assert corners.tolist() == [2.0, 3.0, 5.0, 7.0]


def test_fp4_with_a_divisor_and_with_a_multiplier(served: Served) -> None:
    """Bytes hold the even input low; 0x38 is 1 in e4m3, 0x40 is 2."""
    codes = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], dtype=torch.uint8)
    scale = torch.tensor([[0x38, 0x40]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    row = [*values, *(-v for v in values)]
    wanted = [[4 * v for v in row] + [8 * v for v in row]]
    told = {"quant_method": "compressed-tensors",
            "config_groups": {"group_0": {**args(), "format": "nvfp4-pack-quantized"}}}  # fmt: skip
    divided = tensors(weight_packed=codes, weight_scale=scale,
                      weight_global_scale=torch.tensor([0.25]))  # fmt: skip
    assert served(told, divided, NAME)[NAME].tolist() == wanted
    multiplied = tensors(weight=codes, weight_scale=scale, weight_scale_2=torch.tensor(4.0))
    assert served({"quant_method": "modelopt"}, multiplied, NAME)[NAME].tolist() == wanted


def test_exponents_of_mxfp4(served: Served) -> None:
    told = {"quant_method": "compressed-tensors",
            "config_groups": {"group_0": {**args(), "format": "mxfp4-pack-quantized"}}}  # fmt: skip
    scale = torch.tensor([[127], [0], [254], [255]], dtype=torch.uint8)
    codes = torch.full((4, 16), 0x22, dtype=torch.uint8)
    stored = tensors(weight_packed=codes, weight_scale=scale)
    found = served(told, stored, NAME)[NAME][:, 0]
    assert found[:3].tolist() == [1.0, 2.0**-127, 2.0**127]
    assert np.isnan(found[3])


def test_rows_of_int4_share_a_byte(served: Served) -> None:
    """Two's complement, the even row low; a pre_quant_scale is taken in."""
    stored = tensors(weight=torch.tensor([[0x8F, 0x70]], dtype=torch.uint8),
                     weight_scale=torch.tensor([[1.0], [0.5]]),
                     pre_quant_scale=torch.tensor([1.0, 2.0], dtype=torch.bfloat16))  # fmt: skip
    found = served({"quant_method": "modelopt"}, stored, NAME)[NAME]
    assert found.tolist() == [[-1.0, 0.0], [-4.0, 7.0]]


def test_small_floats_are_those_of_torch() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(E4M3, bytes_.view(torch.float8_e4m3fn).float().numpy())
    assert E2M1.tolist()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_floats_are_exact(served: Served) -> None:
    values = torch.tensor([1e-40, -0.0, 3.25, 1e38])
    stored = {f"{kind}.weight": values.to(getattr(torch, kind)) for kind in ("float32", "bfloat16")}
    found = served({}, stored, *stored)
    for name, tensor in stored.items():
        assert torch.equal(torch.from_numpy(found[name].copy()), tensor.float())


def test_what_does_not_fit_together_is_refused(served: Served) -> None:
    stored = tensors(weight_packed=words(0x99999999)[None], weight_shape=torch.tensor([1, 8]))
    found = served({**PACKED, "config_groups": {"group_0": args()}}, stored, NAME)
    with pytest.raises(Refused, match="weight_scale"):
        found[NAME]
    with pytest.raises(Refused, match="tells of no quantization"):
        served({}, stored, NAME)[NAME]
