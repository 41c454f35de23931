"""What the decoder blocks of a torch model give to each other, seen by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hidden = NDArray[np.float32]


def block_list(model: Any, count: int) -> Sequence[Any]:
    """The modules of `model`'s `count` blocks, in order: its outermost list of so many. Empty where
    it has none."""
    for module in model.modules():  # a list before what is inside its members
        if type(module).__name__ == "ModuleList" and len(module) == count:
            found: Sequence[Any] = list(module)
            return found
    return []


@contextmanager
def watched(blocks: Sequence[Any], stream: Callable[[Any], Any]) -> Iterator[list[Hidden]]:
    """Within: each call of a block adds [tokens, hidden], a copy, to the list. `stream` makes the
    tensor that is meant of what a block gives."""
    found: list[Hidden] = []

    def after(module: Any, inputs: Any, output: Any) -> None:
        given = stream(output).detach()
        found.append(given.reshape(-1, given.shape[-1]).float().cpu().numpy().copy())

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(after).remove)
        yield found


def first(output: Any) -> Any:
    """Of a block in transformers: what it gives, or the first of it."""
    return output[0] if isinstance(output, tuple) else output


def summed(output: Any) -> Any:
    """Of a block in vLLM: (what it adds, the stream up to it), or the sum of both."""
    if not isinstance(output, tuple):
        return output
    added, before = output[0], output[1] if len(output) > 1 else None
    return added if before is None else added.float() + before.float()
