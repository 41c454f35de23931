"""Blocks as the checkpoint has them, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from qconvert.engine.block import Block, Key
from qconvert.formats.source import Source, SourceTensor

CPU = torch.device("cpu")


def read_tensor(source: Source, tensor: SourceTensor) -> torch.Tensor:
    """All of it, float32, on the processor."""
    stop = 1 if len(tensor.shape) == 1 else tensor.shape[0]
    return torch.from_numpy(np.ascontiguousarray(source.rows(tensor, 0, stop)))


def read_block(source: Source, index: int, device: torch.device) -> Block:
    """The float32 tensors of block `index`."""
    tensors: dict[Key, torch.Tensor] = {
        (tensor.role, tensor.part): read_tensor(source, tensor).to(device)
        for tensor in source.tensors
        if tensor.block == index
    }
    return Block(index, tensors)


def read_blocks(source: Source, indices: range, device: torch.device) -> Iterator[Block]:
    """`read_block` of each, in order. For a device the next one is read while the caller works on
    the one before it: reading and widening take the processor about as long as a GPU takes for all
    else. No block is held here once it was given out."""
    if device.type == "cpu":
        yield from (read_block(source, index, device) for index in indices)
        return
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(read_block, source, index, CPU) for index in indices[:1]]
        for index in indices:
            ready = [_on(coming.pop().result(), device)]
            if index + 1 in indices:
                coming.append(pool.submit(read_block, source, index + 1, CPU))
            yield ready.pop()


def _on(block: Block, device: torch.device) -> Block:
    return Block(block.index, {key: value.to(device) for key, value in block.tensors.items()})
