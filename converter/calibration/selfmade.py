"""The sampler of today: the whole model in memory, by transformers, with its cache of keys and
values. For `--calib self` alone; nothing else here needs a model in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from qconvert.calibration.sampling import Choose, Tokens
from qconvert.formats.refusal import MissingRuntime, refuse

BATCH = 16  # rows that go together; fixed, as logits may depend on it in their last bits
ROOM = 1.15  # what loading needs besides weights, cache and logits: buffers, one layer's work
INSTALL = "pip install qconvert"
OTHERWISE = "take --calib default, or a text: they need no model in memory"


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A `Sampler` on the model in `folder`, loaded when asked to generate and let go after it.

    One thread computes, so that logits, and with them the text, do not depend on how many there
    are. Weights stay in float32 where the checkpoint says so, else they are bfloat16.
    """

    folder: Path
    config: Mapping[str, Any]

    def generate(self, start: Tokens, length: int, choose: Choose) -> Tokens:
        self.check_memory(len(start), length)
        model = self._load()
        rows = np.empty((len(start), length), np.int32)
        with _one_thread():
            for begin in range(0, len(start), BATCH):
                which = np.arange(begin, min(begin + BATCH, len(start)))
                rows[which] = _generate(model, which, start[which], length, choose)
        return rows

    def needs(self, rows: int, length: int) -> int:
        """Bytes of memory: the checkpoint's, the cache's and the logits', with some room."""
        weights = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        batch = min(BATCH, rows)
        heads = self._size("num_key_value_heads") or self._size("num_attention_heads", "n_head")
        width = self._size("hidden_size", "n_embd")
        head = self._size("head_dim") or width // max(
            self._size("num_attention_heads", "n_head"), 1
        )
        blocks = self._size("num_hidden_layers", "n_layer")
        cache = 2 * batch * length * blocks * heads * head * (4 if self.dtype == "float32" else 2)
        logits = batch * self._size("vocab_size") * (4 + 8 + 8)
        return int(ROOM * (weights + cache) + logits)

    def check_memory(self, rows: int, length: int) -> None:
        """`Refused` when the model does not fit the memory that is available now."""
        need, free = self.needs(rows, length), psutil.virtual_memory().available
        if need > free:
            raise refuse(
                f"--calib self needs the whole model in memory: {need / 1e9:,.1f} GB, and"
                f" {free / 1e9:,.1f} GB are available",
                OTHERWISE,
            )

    @property
    def dtype(self) -> str:
        stored = str(self.config.get("dtype", self.config.get("torch_dtype", "bfloat16")))
        return "float32" if stored.endswith("float32") else "bfloat16"

    def _size(self, *names: str) -> int:
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)

    def _load(self) -> Any:
        try:
            import torch  # noqa: F401
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise MissingRuntime("--calib self", f"no module {error.name}", INSTALL) from None
        auto: Any = AutoModelForCausalLM
        try:
            with _quiet():
                model = auto.from_pretrained(
                    self.folder,
                    dtype=self.dtype,
                    attn_implementation="eager",
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                )
        except (OSError, ValueError) as error:
            raise refuse(f"transformers cannot load {self.folder}: {error}", OTHERWISE) from error
        return model.eval()


def _generate(
    model: Any, which: NDArray[np.int64], start: Tokens, length: int, choose: Choose
) -> Tokens:
    """[n, length] for the rows `which` [n], which begin with `start` [n, k]."""
    import torch

    rows = np.empty((len(which), length), np.int32)
    have = start.shape[1]
    rows[:, :have] = start
    cache, fresh = None, torch.from_numpy(start.astype(np.int64))
    with torch.inference_mode():
        while have < length:
            out = model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            logits: NDArray[np.float32] = out.logits[:, -1].float().numpy()
            rows[:, have] = choose(which, have, logits)
            fresh = torch.from_numpy(rows[:, have : have + 1].astype(np.int64))
            have += 1
    return rows


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers beside ours."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
