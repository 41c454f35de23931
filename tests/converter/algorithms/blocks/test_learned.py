"""Learned rounding against a literal transcription, on every grid, and on a block of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms.blocks.learned import Learned, _Moving
from qconvert.algorithms.registry import block_rounds, fits
from qconvert.algorithms.rounds.gptq import ROUND as GPTQ
from qconvert.algorithms.slots import BlockTask, Setting, Task
from qconvert.checkpoint import open_checkpoint
from qconvert.engine.block_error import block_error
from qconvert.engine.reading import read_block
from qconvert.engine.skeleton import skeleton
from qconvert.engine.stream import Stream, workers
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.tensor import QuantizedTensor
from qconvert.recipe import parse

Tasks = Callable[..., Task]
TINY = Callable[..., Path]
FIT = fits()["weighted"]
CPU = torch.device("cpu")


class Quadratic:
    """The error of a block that is one linear: as `BlockError`, with the rows for samples."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def mean(self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]) -> float:
        off = weights["only"] - self.task.w
        return float(((off @ self._moments(rows)) * off).double().sum())

    def slopes(
        self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> Mapping[str, torch.Tensor]:
        return {"only": 2 * (weights["only"] - self.task.w) @ self._moments(rows)}

    def _moments(self, rows: Sequence[int]) -> torch.Tensor:
        return self.task.held if 7 in rows else self.task.second


def only(task: Task, effort: int = 1) -> BlockTask:
    """`task` as a block, of which row 7 is held out."""
    setting = Setting(effort=effort)
    return BlockTask(
        "block 0", {"only": task.w}, {"only": task.grid}, Quadratic(task), range(7), [7], setting
    )


def test_it_starts_from_the_codes_given(correlated: Tasks, grid: Any) -> None:
    """Whatever they are: the values are those of the decoder, to the bit."""
    task = correlated(grid, rows=5, cols=256)
    start = FIT(grid, task.w.numpy(), None, 1)
    codes = np.random.default_rng(0).integers(0, len(grid.levels), start.codes.shape)
    for one in (start, QuantizedTensor(start.grid, codes.astype(np.uint8), start.params)):
        moving = _Moving.of(one, task.w, grid, 0.49)
        assert np.array_equal(moving.codes(), one.codes)
        assert np.array_equal(moving.values().numpy(), grid.decode(one))


def test_it_is_better_than_nearest(correlated: Tasks, grid: Any) -> None:
    """By 1.05 on rows that were held out, from the nearest codes (1.04 where the scale of a whole
    tensor leaves the levels far finer than the weights need); a code moves by one at most."""
    task = correlated(grid, rows=8, cols=256)
    start = FIT(grid, task.w.numpy(), None, 1)
    found = block_rounds()["learned"](only(task, effort=2), {"only": start})["only"]
    seen = Quadratic(task)
    before, after = (
        seen.mean({"only": torch.from_numpy(grid.decode(one))}, [7]) for one in (start, found)
    )
    assert after * (1.04 if grid.name == "fp8_tensor" else 1.05) < before
    assert np.abs(found.codes.astype(int) - start.codes).max() == 1
    assert all(np.array_equal(found.params[key], start.params[key]) for key in start.params)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: torch.Tensor) -> torch.Tensor:
        return v.round()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return slope


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q2_K"])
def test_codes_are_those_of_the_paper(correlated: Tasks, name: str) -> None:
    """From nearest codes, with a step of 2 / iterations * reach: W~ = s clip(round(W / s + V)) + b,
    V changed by SignSGD through a straight-through estimator."""
    grid, count = GRIDS[name], 20
    task = correlated(grid, rows=8, cols=256)
    start = FIT(grid, task.w.numpy(), None, 1)
    nearest = grid.place(task.w.numpy(), grid.lines(start))  # its own codes, of any parameters
    lines = grid.lines(nearest)
    group = np.arange(256) // (256 // lines.scale.shape[1])
    s = torch.from_numpy(lines.scale[:, group])
    b = 0 * s if lines.offset is None else torch.from_numpy(lines.offset[:, group])
    low, high = float(grid.levels[0]), float(grid.levels[-1])
    v = torch.zeros_like(task.w, requires_grad=True)

    def quantized() -> torch.Tensor:
        inside = ((task.w - b) / s).clamp(low - 0.49, high + 0.49)
        return s * _Round.apply(inside + v).clamp(low, high) + b  # type: ignore[no-untyped-call]

    best, least = quantized().detach(), float("inf")
    for step in range(count + 1):
        values = quantized()
        off = values - task.w
        held = float(((off @ task.held) * off).sum().detach())
        if held < least:
            best, least = values.detach().clone(), held
        if step == count:
            break
        error = ((off @ task.second) * off).sum()
        (slope,) = torch.autograd.grad(error, v)
        with torch.no_grad():
            v -= 2 * 0.5 / count * (1 - step / count) * slope.sign()
    algorithm = Learned(iterations=count, margin=0.4999, every=1, retreat=1, advance=1)
    found = algorithm(only(task), {"only": nearest})["only"]
    same = torch.isclose(torch.from_numpy(grid.decode(found)), best, atol=1e-7)
    assert same.float().mean() >= 0.98


def learned_block(folder: Path, threads: int, rounds: Any = None) -> Any:
    """(error of the held rows before, after, tensors) of block 0 of a tiny model on Q3_K."""
    source, grid = open_checkpoint(folder), GRIDS["Q3_K"]
    tokens = np.random.default_rng(0).integers(5, 500, (10, 24)).astype(np.int32)
    bones, block = skeleton(source, CPU), read_block(source, 0, CPU)
    start = {
        role: grid.quantize(block.weight(role).numpy())
        for role in block.linears
        if block.weight(role).shape[1] % 256 == 0
    }
    with workers(threads, CPU) as pool:
        hidden, calls = bones.embed(tokens)
        stream, wanted = Stream(bones, calls, pool), torch.empty(hidden.shape)
        with block_error(stream, block, list(start), hidden, wanted) as error:
            task = BlockTask(
                "block 0",
                {role: block.weight(role) for role in start},
                dict.fromkeys(start, grid),
                error,
                range(8),
                [8, 9],
                Setting(threads=threads),
            )
            found = Learned(iterations=40)(task, start)
            means = [
                error.mean({r: torch.from_numpy(grid.decode(one[r])) for r in one}, [8, 9])
                for one in (start, found)
            ]
    return *means, found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_block_gets_better_with_the_same_bits_for_any_threads(
    tiny_model: TINY, family: str
) -> None:
    """By 1.03 on rows that were held out, from the nearest codes."""
    folder = tiny_model(family)
    before, after, one = learned_block(folder, 1)
    assert after * 1.03 < before
    other = learned_block(folder, 3)[2]
    assert all(np.array_equal(one[role].codes, other[role].codes) for role in one)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_slopes_are_those_of_the_error(tiny_model: TINY, family: str) -> None:
    """Against differences of the error along a direction, for each linear; transposed ones too."""
    source = open_checkpoint(tiny_model(family))
    tokens = np.random.default_rng(1).integers(5, 500, (3, 24)).astype(np.int32)
    bones, block = skeleton(source, CPU), read_block(source, 0, CPU)
    random = torch.Generator().manual_seed(0)
    weights = {
        role: block.weight(role)
        * (1 + 0.1 * torch.randn(block.weight(role).shape, generator=random))
        for role in block.linears
    }
    with workers(2, CPU) as pool:
        hidden, calls = bones.embed(tokens)
        stream, wanted = Stream(bones, calls, pool), torch.empty(hidden.shape)
        with block_error(stream, block, block.linears, hidden, wanted) as error:
            exact = {role: block.weight(role) for role in block.linears}
            assert error.mean(exact, [0, 1, 2]) < 1e-8
            slopes = error.slopes(weights, [0, 2])
            for role, slope in slopes.items():
                way = slope / slope.norm() * weights[role].norm() * 0.001
                up, down = (
                    error.mean({**weights, role: weights[role] + sign * way}, [0, 2])
                    for sign in (1, -1)
                )
                assert (up - down) / 2 == pytest.approx(float((slope * way).sum()), rel=0.03)
    assert all(p.is_meta for p in bones.base.parameters())


def test_gptq_then_learned_is_never_worse(correlated: Tasks) -> None:
    task = correlated(GRIDS["Q4_0"], rows=16, cols=256)
    start = GPTQ(task, FIT, None)
    found = Learned()(only(task), {"only": start})["only"]
    seen = Quadratic(task)
    before, after = (
        seen.mean({"only": torch.from_numpy(task.grid.decode(one))}, [7]) for one in (start, found)
    )
    assert after <= before


def test_the_recipe_names_it() -> None:
    """It has its own place behind the rounds of single linears; `best` has it where effort pays."""
    named = parse("best+learned")
    assert (named.rounds, named.block_rounds) == (("gptq", "descent"), ("learned",))
    assert named.at(0).steps[-1] == "learned"
    assert parse("learned").calibrated
    assert parse("gptq+learned").steps == ("weighted", "gptq", "learned")
    assert parse("best").at(1).block_rounds == ()
    assert parse("best").at(2).block_rounds == ("learned",)
