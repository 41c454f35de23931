"""A served folder as a model of transformers: its class, the folder's tensors, packed linears.

The codes go to the device as the file holds them. No other library reads the folder, and nothing is
unpacked but inside a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qconvert.formats.model_library import made_of
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.serving.container import Linear
from qconvert.formats.serving.containers.compressed_tensors import METHOD
from qconvert.formats.serving.folder.reader import HEAD, FolderReader, open_reader
from qconvert.kernels.bodies import Body
from qconvert.runtimes.packed.linears import Stored, module_of, problems
from qconvert.runtimes.reference import ATTENTION

UNSET = ("model_type", "dtype", "torch_dtype", "quantization_config", "auto_map")
STORED_AS: Mapping[str, torch.dtype] = {"<u2": torch.bfloat16}
"""numpy's type of an array that holds the bits of a type that numpy does not have."""
ANOTHER = "the folder does not belong to a model of this class, or is incomplete"


def load(folder: Path, *, device: torch.device, dtype: torch.dtype, body: Body | None) -> Any:
    """The model on `device`, floats in `dtype`; `body` of the products, None for the fastest.

    `Refused` with every reason where the folder is no such thing, or is not whole.
    """
    reader = open_reader(folder)
    raise_if_any(_problems(reader))
    model = _empty(reader, folder, dtype)
    names = _Names(model)
    biases = set()
    for linear in reader.linears.values():
        biases.add(bias := f"{linear.module}.bias")
        own = tensor_of(reader, bias).to(device, dtype) if bias in reader.tensors else None
        _replace(model, names.module(linear.module), linear, reader, own, device, body)
    floats = [one for one in reader.tensors if one not in reader.linears and one not in biases]
    _fill(model, reader, {names.parameter(one): one for one in floats}, device, dtype)
    return model.to(device).eval()


def _problems(reader: FolderReader) -> list[Reason]:
    found = problems([one.scheme for one in reader.linears.values()])
    if reader.container is not None and reader.container.name != METHOD:
        found.append(
            Reason(
                f"packed as {reader.container.name} packs: the products read {METHOD}",
                f"--container {METHOD}",
            )
        )
    if reader.kv is not None:
        found.append(
            Reason(
                f"the folder asks for a KV cache in {reader.kv}: here it stays in 16 bits",
                "a folder without --kv",
            )
        )
    return found


def _empty(reader: FolderReader, folder: Path, dtype: torch.dtype) -> Any:
    """The class with its parameters on torch's meta device, where they take no memory; buffers
    (rotary frequencies and the like) are real."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    settings = {key: value for key, value in reader.metadata.items() if key not in UNSET}
    if HEAD in reader.tensors:  # also where the model ties it to its embedding
        settings["tie_word_embeddings"] = False
    with made_of(folder), no_init_weights(), _parameters_on_meta():
        config = AutoConfig.for_model(reader.metadata["model_type"], **settings)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    model.tie_weights()  # part of the initialisation that was left out
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within: each parameter leaves memory as soon as it is registered."""
    module: Any = torch.nn.Module
    register = module.register_parameter

    def registered(self: Any, name: str, value: torch.nn.Parameter | None) -> None:
        if value is not None and not value.is_meta:
            value = torch.nn.Parameter(value.to("meta"), requires_grad=False)
        register(self, name, value)

    module.register_parameter = registered
    try:
        yield
    finally:
        module.register_parameter = register


class _Names:
    """The model's own names by those of a folder: the same, but for a prefix that one of them
    lacks, and for a head that its class has renamed (GPT-NeoX's `embed_out`)."""

    def __init__(self, model: Any) -> None:
        self._modules = {name for name, _ in model.named_modules()}
        self._prefix = model.base_model_prefix
        head = model.get_output_embeddings()
        self._head = next((name for name, one in model.named_modules() if one is head), "")

    def module(self, stored: str) -> str:
        """`stored` itself where the model has nothing like it."""
        parts = stored.split(".")
        tried = [".".join(parts[cut:]) for cut in range(len(parts))]
        tried = [stored, f"{self._prefix}.{stored}", *tried[1:]]
        renamed = self._head if len(parts) == 1 else stored
        return next((name for name in tried if name in self._modules), renamed)

    def parameter(self, stored: str) -> str:
        module, _, part = stored.rpartition(".")
        return f"{self.module(module)}.{part}"


def _replace(
    model: Any, path: str, linear: Linear, reader: FolderReader, bias: torch.Tensor | None,
    device: torch.device, body: Body | None,
) -> None:  # fmt: skip
    """A packed linear in the place of the model's own."""
    make, container = module_of(linear.scheme), reader.container
    assert make is not None  # else `_problems` told of it
    assert container is not None
    try:
        model.get_submodule(path)
    except AttributeError:
        raise refuse(f"the folder has {linear.module}, unknown to the model", ANOTHER) from None
    rounding = container.input_rounding(linear, reader.array)
    stored = Stored(
        linear.shape,
        linear.scheme.symmetric,
        None if rounding is None else rounding.scale,
        lambda part: tensor_of(reader, f"{linear.module}.{part}").to(device),
    )
    model.set_submodule(path, make(stored, bias, body))


def _fill(
    model: Any, reader: FolderReader, stored: Mapping[str, str],
    device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    """`stored`: name of a parameter -> of the tensor. Strict: all of them, and no others."""
    parameters = dict(model.named_parameters())  # a tied parameter appears once
    wrong = [
        Reason(f"the folder has {name}, unknown to the model", ANOTHER)
        for path, name in stored.items()
        if path not in parameters
    ]
    wrong += [
        Reason(f"{name} is {reader.tensors[name].shape}, the model wants {shape}", ANOTHER)
        for path, name in stored.items()
        if path in parameters
        and reader.tensors[name].shape != (shape := tuple(parameters[path].shape))
    ]
    lacking = sorted(set(parameters) - set(stored))
    raise_if_any([*wrong, *(Reason(f"the folder lacks {one}", ANOTHER) for one in lacking)])
    for path, name in stored.items():
        owner, _, part = path.rpartition(".")
        value = tensor_of(reader, name).to(device, dtype)
        setattr(model.get_submodule(owner), part, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()


def tensor_of(reader: FolderReader, name: str) -> torch.Tensor:
    """A stored tensor as it is, in memory of its own."""
    array = np.array(reader.array(name))
    stored = STORED_AS.get(np.dtype(array.dtype).str)
    found = torch.from_numpy(array)
    return found if stored is None else found.view(stored)
