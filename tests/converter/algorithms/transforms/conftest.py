"""A tiny model whose blocks can be looked at, changed and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import Setting
from qconvert.checkpoint import open_checkpoint
from qconvert.engine.block import READS, Block
from qconvert.engine.moments import Moments, Observed
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.source import Source, SourceTensor
from qconvert.runtimes.reference import Reference, from_weights

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """`formats.source.Source` in memory: the facts of `original`, other weights."""

    original: Source
    arrays: Mapping[str, Floats]  # canonical orientation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> Floats:
        values = self.arrays[tensor.name]
        return values if values.ndim == 1 else values[start:stop]


def arrays(source: Source) -> dict[str, Floats]:
    """All tensors of a source, canonical."""
    return {
        t.name: source.rows(t, 0, t.shape[0] if len(t.shape) > 1 else 1) for t in source.tensors
    }


def reference(source: Source) -> Reference:
    """The model in transformers, strictly from what the source gives."""
    values = arrays(source)
    stored = {t.name: values[t.name].T if t.transposed else values[t.name] for t in source.tensors}
    copies = {name: np.array(value, np.float32, order="C") for name, value in stored.items()}
    return from_weights(source, copies, threads=1)


def blocks(source: Source) -> list[Block]:
    found: dict[int, dict[tuple[str, str], torch.Tensor]] = {}
    values = arrays(source)
    for t in source.tensors:
        if t.block is not None:
            part = torch.from_numpy(values[t.name].copy())
            found.setdefault(t.block, {})[t.role, t.part] = part
    return [Block(index, tensors) for index, tensors in sorted(found.items())]


def with_blocks(source: Source, changed: Sequence[Block]) -> Held:
    values = arrays(source)
    for t in source.tensors:
        if t.block is not None:
            values[t.name] = changed[t.block].tensors[t.role, t.part].numpy()
    return Held(source, values)


def edited(source: Source, role: str, change: Callable[[Floats], Floats], part: str) -> Held:
    """The model with `change` made to one kind of tensor."""
    values = arrays(source)
    for t in source.tensors:
        if (t.role, t.part) == (role, part):
            values[t.name] = change(values[t.name].copy())
    return Held(source, values)


def seen(source: Source, rows: Sequence[Sequence[int]]) -> list[dict[str, torch.Tensor]]:
    """Of each block, what reaches each input: [tokens, cols], tokens of all `rows`."""
    model, caught = reference(source), {}

    def hook(key: tuple[int, str]) -> Callable[[Any, Any], None]:
        return lambda module, inputs: caught.setdefault(key, []).append(inputs[0].flatten(0, -2))

    for t in source.tensors:
        if t.block is not None and t.part == "weight" and t.role in READS:
            key = (t.block, READS[t.role])
            if not any(key == other for other, _ in caught.items()):
                caught[key] = []
                module = model.model.get_submodule(t.name.removesuffix(".weight"))
                module.register_forward_pre_hook(hook(key))
    for row in rows:
        model.logits(row)
    found: list[dict[str, torch.Tensor]] = [{} for _ in blocks(source)]
    for (block, name), parts in caught.items():
        found[block][name] = torch.cat(parts)
    return found


def moments(x: torch.Tensor) -> Moments:
    wide = x.double()
    return Moments(
        len(x),
        (wide.T @ wide / len(x)).float(),
        wide.mean(0).float(),
        wide.abs().mean(0).float(),
        (wide**4).mean(0).float(),
        x.amin(0),
        x.amax(0),
    )


def observed(x: torch.Tensor, held: int = 4) -> Observed:
    """Every `held`-th token is held out."""
    out = torch.arange(len(x)) % held == 0
    return Observed(moments(x[~out]), moments(x[out]))


def tokens(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 512, (count, length)).tolist()


def grids_of(block: Block, name: str = "Q4_0") -> dict[str, Any]:
    return dict.fromkeys(block.linears, GRIDS[name])


def transformed(
    transform: Any, source: Source, grid: str = "Q4_0", rows: Sequence[Sequence[int]] = ()
) -> tuple[Source, list[Mapping[str, Any]]]:
    """The float model after `transform`, and its changes block by block."""
    setting = Setting(seed=3)
    source = transform.source(source, setting)
    done, changes = [], []
    inputs = seen(source, rows or tokens(4, 64))
    for block, found in zip(blocks(source), inputs, strict=True):
        given = {name: observed(x) for name, x in found.items()}
        block, change = transform.block(source, block, given, grids_of(block, grid), setting)
        done.append(block)
        changes.append(change)
    return with_blocks(source, done), changes


def outlier(index: Sequence[int], factor: float) -> Callable[[Floats], Floats]:
    def change(values: Floats) -> Floats:
        values[list(index)] *= factor
        return values

    return change


@pytest.fixture(scope="session")
def lab(tiny_model: Callable[..., Path]) -> SimpleNamespace:
    """The functions above, for tests, which cannot import a conftest; `open` opens a tiny model."""
    torch.set_num_threads(1)

    def opened(family: str = "llama", **options: Any) -> Source:
        return open_checkpoint(tiny_model(family, **options))

    return SimpleNamespace(
        open=opened, arrays=arrays, blocks=blocks, edited=edited, grids_of=grids_of,
        moments=moments, observed=observed, outlier=outlier, reference=reference, seen=seen,
        tokens=tokens, transformed=transformed, with_blocks=with_blocks,
    )  # fmt: skip
