"""The yardstick: a model's logits in transformers, from its source or from a decoded file.

Arithmetic is float32 on the CPU, and attention is the `eager` implementation: the formula as the
model's authors wrote it, with soft caps, sinks and sliding windows where a model has them, some of
which fused kernels leave out. Both sides of a comparison then differ in their weights alone, and no
rounding to 16 bits hides a small difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.model_library import made_of
from qconvert.formats.refusal import MissingRuntime, Reason, Refused
from qconvert.formats.source import Source
from qconvert.runtimes.blocks import block_list, first, watched

ATTENTION = "eager"
INSTALL = "pip install qconvert"
TIED_HEAD = "lm_head.weight"
"""The head of a model that ties it to its embedding, where an output holds another one."""

Seen = Callable[[str, NDArray[np.float32]], None]
"""Called with each decoded tensor, by its name in the checkpoint, before it is placed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A transformers model in float32. `logits` may be called any number of times."""

    model: Any  # transformers.PreTrainedModel
    threads: int
    names: Mapping[str, str] = field(default_factory=dict)  # checkpoint name -> parameter name

    @property
    def vocab(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[len(tokens), vocab] at every position, nothing added in front."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                found = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        finally:
            torch.set_num_threads(before)
        array: NDArray[np.float32] = found.float().numpy()
        return array

    def blocks(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[blocks, len(tokens), hidden]: what each block gives to the next."""
        return self.logits_and_blocks(tokens)[1]

    def logits_and_blocks(
        self, tokens: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`logits` and `blocks`, of one pass."""
        count = self.model.config.get_text_config().num_hidden_layers
        with watched(block_list(self.model, count), first) as seen:
            logits = self.logits(tokens)
        if len(seen) != count:
            raise ValueError(
                f"{type(self.model).__name__}: {len(seen)} of {count} blocks were seen"
            )
        return logits, np.stack(seen)


def from_folder(folder: Path, *, threads: int) -> Reference:
    """The source model as transformers itself loads it: nothing of ours reads its weights."""
    auto = _transformers().AutoModelForCausalLM
    with _quiet(), made_of(folder):
        model, told = auto.from_pretrained(
            folder,
            dtype="float32",
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = set(told["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", {}) or {})
    _refuse_if(
        [f"{folder} lacks the tensor {name}" for name in sorted(missing)]
        + [f"{folder}: the tensor {name[0]} has another shape" for name in told["mismatched_keys"]],
        "take the model folder from which the output was made",
    )
    return Reference(model.eval(), threads)


def from_weights(
    source: Source,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    threads: int,
    seen: Seen | None = None,
) -> Reference:
    """The same class with `weights` (by checkpoint name, stored orientation) in place of its own.

    Strict: a parameter that `weights` lacks, or a name or shape that the class does not know, is
    `Refused`, all of them at once. Tied parameters follow the one that is stored; a tied head that
    `weights` has nonetheless, as `TIED_HEAD`, gets values of its own.
    """
    model = _empty(source, untied=source.tied and TIED_HEAD in weights)
    parameters = dict(model.named_parameters())
    names = _matched(source, weights, model)
    missing = sorted(set(parameters) - set(names.values()))
    unknown = sorted(set(weights) - set(names))
    _refuse_if(
        [f"the output lacks {name}" for name in missing]
        + [f"the output has {name}, unknown to the model" for name in unknown],
        "the output does not belong to this model, or is incomplete",
    )
    for stored, name in names.items():
        value = weights[stored]
        if seen is not None:
            seen(stored, value)
        _place(model, name, parameters[name], value)
    model.tie_weights()
    return Reference(model.eval(), threads, names)


def _empty(source: Source, *, untied: bool = False) -> Any:
    """The model with real buffers; its parameters are allocated but no page of them is touched."""
    transformers = _transformers()
    import torch
    from transformers.initialization import no_init_weights

    settings = {
        key: value
        for key, value in source.config.items()
        if key not in ("model_type", "dtype", "torch_dtype", "quantization_config", "auto_map")
    }
    if untied:
        settings["tie_word_embeddings"] = False
    with _quiet(), made_of(source.folder), no_init_weights():
        config = transformers.AutoConfig.for_model(source.model_type, **settings)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=ATTENTION
        )
    model.tie_weights()  # part of the initialisation that was left out
    return model


def _matched(source: Source, weights: Iterable[str], model: Any) -> dict[str, str]:
    """Checkpoint name -> parameter name. The same, but for a prefix that one of them lacks, and for
    the head of families whose class has renamed it (GPT-NeoX's `embed_out`)."""
    parameters = dict(model.named_parameters())  # a tied parameter appears once
    heads = {tensor.name: tensor.part for tensor in source.tensors if tensor.role == "head"}
    outputs = model.get_output_embeddings()
    head = next(name for name, module in model.named_modules() if module is outputs)
    found = {}
    for stored in weights:
        parts = stored.split(".")
        names = [".".join(parts[cut:]) for cut in range(len(parts) - 1)]
        names.append(f"{model.base_model_prefix}.{stored}")
        names += [f"{head}.{heads[stored]}"] if stored in heads else []
        known = next((name for name in names if name in parameters), None)
        if known is not None:
            found[stored] = known
    return found


def _place(model: Any, name: str, old: Any, value: NDArray[np.float32]) -> None:
    import torch

    if tuple(old.shape) != value.shape:
        _refuse_if(
            [f"{name} has the shape {list(value.shape)}, and the model wants {list(old.shape)}"],
            "the output does not belong to this model",
        )
    owner = model.get_submodule(name.rpartition(".")[0])
    tensor = torch.from_numpy(np.require(value, np.float32, ["C", "W"]))
    setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(tensor, requires_grad=False))


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingRuntime("the reference", f"no module {error.name}", INSTALL) from None
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no advice from transformers while a model is made."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_if(problems: Sequence[str], remedy: str) -> None:
    if problems:
        shown = list(problems[:8])
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more like these")
        reasons = [Reason(problem) for problem in shown]
        raise Refused(*reasons[:-1], Reason(shown[-1], remedy))
