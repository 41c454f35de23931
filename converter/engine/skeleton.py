"""The source's own transformers class without its weights: modules that one block at a time fills.

Parameters stand on torch's meta device and take no memory; buffers (rotary frequencies and the
like) are real. What the class computes before its blocks - embedding, scaling, positions, masks -
is run as it is, with the blocks replaced by recorders, so nothing about an architecture is
repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.engine import attention
from qconvert.engine.block import Block, Key
from qconvert.engine.reading import read_tensor
from qconvert.formats.model_library import made_of
from qconvert.formats.refusal import MissingRuntime
from qconvert.formats.source import Source, SourceTensor
from qconvert.models import FAMILIES

UNSET = ("model_type", "dtype", "torch_dtype", "quantization_config", "auto_map")
EMBEDDING_ROWS = 8192
"""Rows of an embedding read at once."""

Rows = Callable[[SourceTensor, int, int], NDArray[np.float32]]
"""As `Source.rows`."""


@dataclass(frozen=True, slots=True)
class Call:
    """How the class calls one of its blocks: everything but the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Recorder(torch.nn.Module):
    """Stands in for a block: keeps its arguments and passes the hidden states on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self.call: Call | None = None

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.call = hidden, Call(args, kwargs)
        return hidden


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The class of `source` on `device`, with no block loaded."""

    source: Source
    base: Any  # the transformers model below the head
    blocks: list[torch.nn.Module]
    device: torch.device

    def embed(
        self, tokens: NDArray[np.int32], rows: Rows | None = None
    ) -> tuple[torch.Tensor, list[Call]]:
        """Hidden states [rows, length, hidden] that enter block 0, on the processor, and how each
        block is called for one row. Reads the embedding in chunks and keeps only the rows of
        tokens that occur. `rows` gives the values of what stands before the blocks, if not the
        source."""
        used, compact = np.unique(tokens, return_inverse=True)
        ids = torch.from_numpy(compact.reshape(tokens.shape).astype(np.int64)).to(self.device)
        recorders = [_Recorder() for _ in self.blocks]
        outer = _outer_weights(self.source, used, rows or self.source.rows)
        hidden = []
        with _replaced(self.base, recorders, outer, self.device), torch.inference_mode():
            for row in ids.split(1):
                self.base(input_ids=row, use_cache=False)
                assert recorders[0].hidden is not None
                hidden.append(recorders[0].hidden.cpu())
        calls = [recorder.call for recorder in recorders]
        return torch.cat(hidden), [call for call in calls if call is not None]

    @contextmanager
    def final_norm(self) -> Iterator[torch.nn.Module]:
        """What stands between the last block and the head, with its weights in place."""
        family = FAMILIES[self.source.model_type]
        (last,) = family.after
        paths = []
        for tensor in self.source.tensors:
            if tensor.role == last.role:
                paths.append(f"{last.path}.{tensor.part}")
                _set(self.base, paths[-1], read_tensor(self.source, tensor).to(self.device))
        try:
            yield self.base.get_submodule(last.path)
        finally:
            for path in paths:
                _set(self.base, path, None)

    @contextmanager
    def loaded(
        self, block: Block, compute: torch.dtype = torch.float32
    ) -> Iterator[torch.nn.Module]:
        """The module of `block` with its weights in place; they are dropped afterwards. Matrices
        take the type `compute` at once: autocast would do it again for every row. What reads an
        input of which the block has `columns` multiplies it by them first."""
        module = self.blocks[block.index]
        paths = block_paths(self.source, block.index)
        for key, (path, transposed) in paths.items():
            value = block.tensors[key].to(self.device)
            value = value.to(compute) if value.dim() > 1 else value
            _set(module, path, value.t().contiguous() if transposed else value)
        hooks = [
            module.get_submodule(
                paths[role, "weight"][0].rpartition(".")[0]
            ).register_forward_pre_hook(_times(scale.to(self.device)))
            for name, scale in block.columns.items()
            if bool((scale != 1).any())
            for role in block.readers(name)
        ]
        try:
            yield module
        finally:
            for hook in hooks:
                hook.remove()
            for path, _ in paths.values():
                _set(module, path, None)

    def reader(self, module: torch.nn.Module, block: Block, name: str) -> torch.nn.Module:
        """The first linear of `block` that reads the input `name`."""
        role = block.readers(name)[0]
        path, _ = block_paths(self.source, block.index)[role, "weight"]
        return module.get_submodule(path.rpartition(".")[0])


def _times(scale: torch.Tensor) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    """Before a linear: what it reads, times `scale` [cols]."""
    return lambda _, args: ((args[0] * scale).to(args[0].dtype), *args[1:])


def skeleton(source: Source, device: torch.device) -> Skeleton:
    """Build it from the configuration alone; `MissingRuntime` without transformers."""
    try:
        import transformers
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise MissingRuntime(
            "calibration", f"no module {error.name}", "pip install qconvert"
        ) from (None)
    attention.register()
    settings = {key: value for key, value in source.config.items() if key not in UNSET}
    with made_of(source.folder), no_init_weights(), _parameters_on_meta():
        config = transformers.AutoConfig.for_model(source.model_type, **settings)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention.NAME
        )
    base = model.base_model.eval()
    for owner, name, buffer in _buffers(base):
        owner._buffers[name] = buffer.to(device)
    family = FAMILIES[source.model_type]
    path = family.block_path.partition(".{}")[0]
    return Skeleton(source, base, list(base.get_submodule(path)), device)


def block_paths(source: Source, index: int) -> dict[Key, tuple[str, bool]]:
    """(role, part) -> path of the parameter below the block's module, whether it is transposed."""
    family = FAMILIES[source.model_type]
    roles = {module.role: module for module in family.block}
    return {
        (tensor.role, tensor.part): (
            f"{roles[tensor.role].path}.{tensor.part}",
            tensor.transposed,
        )
        for tensor in source.tensors
        if tensor.block == index
    }


def _outer_weights(
    source: Source, used: NDArray[np.integer[Any]], rows: Rows
) -> dict[str, torch.Tensor]:
    """Weights before the blocks by path: of the embedding only the rows `used`."""
    family = FAMILIES[source.model_type]
    roles = {module.role: module for module in family.before}
    found = {}
    for tensor in source.tensors:
        if tensor.role not in roles:
            continue
        path = f"{roles[tensor.role].path}.{tensor.part}"
        if tensor.role == "embedding":
            found[path] = torch.from_numpy(_picked(rows, tensor, used))
        else:
            found[path] = read_tensor(source, tensor)
    return found


def _picked(
    rows: Rows, tensor: SourceTensor, used: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """Rows `used` (ascending) of a matrix that is never held whole."""
    parts = []
    for start in range(0, tensor.shape[0], EMBEDDING_ROWS):
        stop = min(start + EMBEDDING_ROWS, tensor.shape[0])
        inside = used[(used >= start) & (used < stop)]
        if inside.size:
            parts.append(rows(tensor, start, stop)[inside - start])
    return np.concatenate(parts)


@contextmanager
def _replaced(
    base: Any, recorders: list[_Recorder], outer: dict[str, torch.Tensor], device: torch.device
) -> Iterator[None]:
    """`base` with recorders for blocks, nothing after them, and real weights before them."""
    family = FAMILIES[base.config.model_type]
    layers, last = family.block_path.partition(".{}")[0], family.after[0].path
    kept = {path: base.get_submodule(path) for path in (layers, last)}
    base.set_submodule(layers, torch.nn.ModuleList(recorders))
    base.set_submodule(last, torch.nn.Identity())
    for path, value in outer.items():
        _set(base, path, value.to(device))
    try:
        yield
    finally:
        for path, module in kept.items():
            base.set_submodule(path, module)
        for path in outer:
            _set(base, path, None)


def _set(module: torch.nn.Module, path: str, value: torch.Tensor | None) -> None:
    """Put a parameter in place; None: an empty one on the meta device."""
    owner = module.get_submodule(path.rpartition(".")[0])
    if value is None:
        value = torch.empty_like(owner.get_parameter(path.rpartition(".")[2]), device="meta")
    parameter = torch.nn.Parameter(value, requires_grad=False)
    owner.register_parameter(path.rpartition(".")[2], parameter)


def _buffers(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.Tensor]]:
    return [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While a model is made, every parameter goes to the meta device as it is registered."""
    plain = torch.nn.Module.register_parameter

    def register(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        plain(self, name, param)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = plain  # type: ignore[method-assign]
