"""With weights and activations in 8 bits, one scale for a whole tensor: what smoothing is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms import osplus, smoothquant
from qconvert.engine.block import READS
from qconvert.formats.tensor import QuantizedTensor

CALIBRATION, JUDGED = 0, 5  # seeds


class WholeTensor8:
    """As much of `formats.grid.Grid` as transforms use: signed 8 bits, one scale."""

    name, block, group = "i8", 1, 0

    def quantize(self, w: Any, weight: Any = None, *, threads: int = 1) -> QuantizedTensor:
        scale = np.full((len(w), 1), np.abs(w).max() / 127, np.float32)
        codes = (np.rint(w / scale) + 128).astype(np.uint8)
        return QuantizedTensor(self.name, codes, {"d": scale})

    def decode(self, tensor: QuantizedTensor) -> NDArray[np.float32]:
        return (tensor.codes.astype(np.float32) - 128) * tensor.params["d"]


def transform(lab: Any, method: Any, source: Any) -> Any:
    done = []
    inputs = lab.seen(source, lab.tokens(16, 128, CALIBRATION))
    for block, found in zip(lab.blocks(source), inputs, strict=True):
        given = {name: lab.observed(x) for name, x in found.items()}
        grids = dict.fromkeys(block.linears, WholeTensor8())
        done.append(method.block(source, block, given, grids, Setting())[0])
    return lab.with_blocks(source, done)


def in_8_bits(lab: Any, source: Any) -> Any:
    """The model with rounded weights, and with inputs of its linears rounded as it runs."""
    ranges = lab.seen(source, lab.tokens(16, 128, CALIBRATION))
    grid, done = WholeTensor8(), []
    for block in lab.blocks(source):
        weights = {
            (role, "weight"): torch.from_numpy(
                grid.decode(grid.quantize(block.weight(role).numpy()))
            )
            for role in block.linears
        }
        done.append(block.changed(weights))
    model = lab.reference(lab.with_blocks(source, done))
    for t in source.tensors:
        if t.block is not None and t.part == "weight" and t.role in READS:
            x = ranges[t.block][READS[t.role]]
            low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
            module = model.model.get_submodule(t.name.removesuffix(".weight"))
            module.register_forward_pre_hook(rounding(low, (high - low) / 255))
    return model


def rounding(low: float, step: float) -> Any:
    def hook(module: Any, inputs: Any) -> Any:
        zero = round(-low / step)
        codes = (inputs[0] / step).round().add(zero).clamp(0, 255)
        return ((codes - zero) * step,)

    return hook


def divergence(lab: Any, source: Any, model: Any) -> float:
    """Mean KL(source || model) in nats."""
    exact, found = lab.reference(source), []
    for row in lab.tokens(4, 64, JUDGED):
        p, q = (
            torch.from_numpy(one.logits(row)).double().log_softmax(-1) for one in (exact, model)
        )
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return float(np.mean(found))


LOUD = {"weight": 30.0, "bias": 150.0}  # norm gains are near 1, their biases near 0.2


def loud(lab: Any, family: str, part: str) -> Any:
    source = lab.open(family)
    for role in ("attn_norm", "ffn_norm"):
        source = lab.edited(source, role, lab.outlier([3, 77, 130, 201], LOUD[part]), part)
    return source


@pytest.mark.parametrize(
    ("family", "part", "method", "factor"),
    [
        ("llama", "weight", smoothquant.TRANSFORM, 2.0),
        ("llama", "weight", osplus.TRANSFORM, 2.0),
        ("gpt2", "weight", smoothquant.TRANSFORM, 4.0),
        ("gpt2", "weight", osplus.TRANSFORM, 4.0),
        ("gpt2", "bias", osplus.TRANSFORM, 2.5),  # a shift takes the outliers away
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_it_beats_plain_8_bits(
    lab: Any, family: str, part: str, method: Any, factor: float
) -> None:
    """KL of the whole model falls by the stated factor."""
    source = loud(lab, family, part)
    plain = divergence(lab, source, in_8_bits(lab, source))
    found = divergence(lab, source, in_8_bits(lab, transform(lab, method, source)))
    assert found * factor < plain
