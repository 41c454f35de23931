"""Second moments of what each linear of a float model reads: ggml's importance matrix.

The same sums that llama.cpp's `llama-imatrix` gathers: per column, the mean of x^2 over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from weights import block_linears

from qconvert.checkpoint import Checkpoint
from qconvert.runtimes import reference


def second_moments(
    source: Checkpoint, rows: Sequence[Sequence[int]], threads: int
) -> dict[str, NDArray[np.float32]]:
    """Name of each block linear -> [cols], gathered from the float model on `rows`."""
    model = reference.from_folder(source.folder, threads=threads)
    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in _modules(model.model, set(block_linears(source))).items():
        hooks.append(module.register_forward_pre_hook(_adder(sums, name)))
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for tokens in rows:
            model.model.base_model(torch.tensor([list(tokens)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    count = sum(len(tokens) for tokens in rows)
    return {name: (total / count).float().numpy() for name, total in sums.items()}


def _modules(model: Any, wanted: set[str]) -> dict[str, Any]:
    """Tensor name -> the module that owns it; `LookupError` when one has none."""
    found = {f"{name}.weight": module for name, module in model.named_modules()}
    missing = sorted(wanted - set(found))
    if missing:
        raise LookupError(f"the model has no {missing[0]}")
    return {name: found[name] for name in sorted(wanted)}


def _adder(sums: dict[str, torch.Tensor], name: str) -> Callable[[Any, Any], None]:
    def add(_: Any, inputs: Any) -> None:
        x = inputs[0]
        squares = x.reshape(-1, x.shape[-1]).double().square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    return add
