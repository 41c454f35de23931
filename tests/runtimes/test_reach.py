"""Fixed input scales beside what linears read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.reach import Fixed, judged, scale_findings

TOKENS = list(np.random.default_rng(0).integers(3, 500, 512))


def by_size(*reaches: float) -> list[str]:
    """Culprits among linears that follow the rule of the largest magnitude, and some more."""
    usual = [Fixed(f"usual {at}", 1.0, reach, 3.0) for at, reach in enumerate((0.9, 1.0, 1.3) * 6)]
    more = [Fixed(f"{reach}", 1.0, reach, 3.0) for reach in reaches]
    return [one.culprit for one in judged([*usual, *more])]


def by_error(*pairs: tuple[float, float]) -> list[str]:
    """The same among linears that follow the rule of the least error: (reach, loss)."""
    usual = [Fixed(f"usual {at}", 1.0, reach, 1.1) for at, reach in enumerate((0.2, 0.4, 0.7) * 6)]
    more = [Fixed(f"{reach}", 1.0, reach, loss) for reach, loss in pairs]
    return [one.culprit for one in judged([*usual, *more])]


def test_one_that_leaves_the_rule_of_the_others_is_named() -> None:
    assert by_size(1.9, 0.3) == []
    assert by_size(2.7) == ["2.7"]
    assert by_error((0.3, 30.0), (1.8, 2.4), (1.7, 9.0)) == []  # short of the text: it may be loud
    assert by_error((1.8, 4.0), (20.0, 400.0)) == ["20.0", "1.8"]  # the furthest first


def test_without_a_rule_only_what_is_absurd_is_named() -> None:
    found = [Fixed(str(at), 1.0, 0.2 * at, 2.0 + at) for at in range(1, 10)]
    assert list(judged(found)) == []
    assert [one.culprit for one in judged([*found, Fixed("x", 1.0, 30.0, 2.0)])] == ["x"]
    assert [one.culprit for one in judged([*found, Fixed("x", 1.0, 0.05, 2.0)])] == ["x"]


def test_little_text_says_little() -> None:
    usual = [Fixed(f"usual {at}", 1.0, 0.8, 1.0) for at in range(9)]
    loud, absurd = Fixed("loud", 1.0, 2.6, 9.0), Fixed("absurd", 1.0, 30.0, 9.0)
    assert [one.culprit for one in judged([*usual, loud, absurd])] == ["absurd", "loud"]
    assert [one.culprit for one in judged([*usual, loud, absurd], by_rule=False)] == ["absurd"]


@pytest.mark.parametrize("rule", ["mse", "max"])
def test_a_scale_of_another_linear(
    rule: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = open_checkpoint(tiny_model("llama")), tmp_path / "out"
    convert(
        source.folder, "vllm", request=Request(scheme="w8a8-static"), out=out, threads=1,
        asked=Asked(method="rtn", activation_scales=rule, calib_rows=4, calib_length=64),
    )  # fmt: skip

    def found() -> list[str]:
        reader = target_named("vllm").reader(out)
        model = reference.from_weights(source, reader.weights(source), threads=1)
        return [one.culprit for one in scale_findings(model, reader, source, TOKENS)]

    assert found() == []
    path = out / "model.safetensors"
    tensors = dict(load_file(path))
    name = "model.layers.1.mlp.down_proj"
    tensors[f"{name}.input_scale"] = tensors[f"{name}.input_scale"] * 3.0
    save_file(tensors, path, metadata={"format": "pt"})
    assert found() == [f"{name}.weight"]
