"""One model on packed weights, in the process that computes with it: the handlers of its worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.kernels.bodies import Body, body_for
from qconvert.runtimes.blocks import block_list, first, watched
from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.packed.model import load
from qconvert.runtimes.protocol import Answer, Handler, WorkerError
from qconvert.runtimes.tensorrt_llm_engine import end_tokens
from qconvert.runtimes.timed import seconds, throughput

SEQUENCES = 64  # at once, at most


@dataclass(slots=True)
class Engine:
    """Calls start from an empty context."""

    _model: Any = None
    _tokenizer: Any = None
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _threads: int = 1
    _ends: tuple[int, ...] = ()
    handlers: Mapping[str, Handler] = field(init=False)

    def __post_init__(self) -> None:
        self.handlers = {
            "load": self.load,
            "tokenize": self.tokenize,
            "logits": self.logits,
            "blocks": self.blocks,
            "generate": self.generate,
            "throughput": self.throughput,
            "memory": lambda: Answer(peak_bytes() + _device_bytes(self._device)),
        }

    def load(
        self, path: str, threads: int, context: int, device: str, dtypes: Sequence[str],
        body: Body | None,
    ) -> Answer:  # fmt: skip
        """Load a folder in the first of `dtypes` in which its activations stay finite."""
        self._device, self._threads = torch.device(device), threads
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise WorkerError("missing", "torch finds no CUDA device")
        torch.set_num_threads(threads)
        self._ends = end_tokens(Path(path))
        with _reported("refused"):
            dtype = self._load(Path(path), dtypes, body)
            self._tokenizer = _tokenizer(path)
        kind = body_for(self._device, body)
        notes = [f"products on packed weights: {kind} on {_name(self._device)}"]
        if dtype != dtypes[0]:
            notes.append(f"activations overflow {dtypes[0]}: computed in {dtype}")
        return Answer({"vocab": self._vocab, "context": context, "dtype": dtype, "blocks": True,
                       "notes": notes})  # fmt: skip

    def _load(self, path: Path, dtypes: Sequence[str], body: Body | None) -> str:
        for dtype in dtypes:
            self._model = None  # before the next takes as much
            self._model = load(path, device=self._device, dtype=getattr(torch, dtype), body=body)
            found = self._run(torch.arange(min(8, self._vocab))[None]).logits
            if bool(torch.isfinite(found).all()):
                return dtype
        raise WorkerError("refused", f"logits are NaN or infinite in {' and '.join(dtypes)}")

    def tokenize(self, text: str, special: bool) -> Answer:
        """By the tokenizer that transformers makes of the folder; nothing is added."""
        if self._tokenizer is None:
            raise WorkerError("failed", "has no tokenizer: the folder holds none")
        found = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special
        )
        return Answer(arrays=[np.array(found, np.int32)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        """[n, vocab] of one prompt."""
        with _reported("failed"):
            found = self._run(_row(tokens)).logits[0]
            return Answer(arrays=[found.float().cpu().numpy()])

    def blocks(self, tokens: NDArray[np.int32]) -> Answer:
        """[blocks, n, hidden], by hooks of this one call."""
        with _reported("failed"):
            count = self._loaded.config.get_text_config().num_hidden_layers
            with watched(block_list(self._model, count), first) as seen:
                self._run(_row(tokens), logits_to_keep=1)
        if len(seen) != count:
            raise WorkerError("failed", f"shows {len(seen)} of its {count} blocks")
        return Answer(arrays=[np.stack(seen)])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        """Up to `n` greedy tokens; an end token is the last."""
        with _reported("failed"):
            made = self._generated(_row(tokens), n, self._ends)
            return Answer(arrays=[made[0].numpy().astype(np.int32)])

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """`sequences` prompts at once; then as many generations, each from one token."""
        if sequences > SEQUENCES:
            raise WorkerError("refused", f"at most {SEQUENCES} sequences are measured at once")
        tokens = torch.arange(sequences * max(prompt, 1)) * 7919 % self._vocab
        prompts = tokens.view(sequences, -1)
        with _reported("failed"):
            told = throughput(
                lambda: seconds(lambda: self._generated(prompts, 1)),
                lambda: seconds(lambda: self._generated(prompts[:, :1], generate)),
                prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                sequences=sequences, threads=self._threads, batch=sequences * prompt,
                on_cpu=self._device.type == "cpu",
            )  # fmt: skip
        return Answer(told)

    def _generated(self, prompts: torch.Tensor, n: int, ends: Sequence[int] = ()) -> torch.Tensor:
        """[sequences, at most n]: the most probable tokens behind each prompt, until the first
        sequence ends. Each is fetched before the next is computed, so that times are whole."""
        made: list[torch.Tensor] = []
        given, cache = prompts, None
        while len(made) < n:
            out = self._run(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            given, cache = out.logits[:, -1].argmax(-1, keepdim=True).cpu(), out.past_key_values
            made.append(given)
            if int(given[0]) in ends:
                break
        return torch.cat(made, 1)

    def _run(self, tokens: torch.Tensor, **options: Any) -> Any:
        with torch.inference_mode():
            return self._loaded(tokens.to(self._device), **{"use_cache": False, **options})

    @property
    def _loaded(self) -> Any:
        if self._model is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        return self._model

    @property
    def _vocab(self) -> int:
        return int(self._loaded.config.get_text_config().vocab_size)


def _row(tokens: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))[None]


def _tokenizer(path: str) -> Any:
    """None where the folder holds none."""
    from transformers import AutoTokenizer

    if not any(Path(path, name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _device_bytes(device: torch.device) -> int:
    """The most of the GPU's memory that torch held."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


@contextmanager
def _reported(kind: str) -> Iterator[None]:
    """An exception inside becomes a `WorkerError` of this kind, in one line."""
    try:
        yield
    except WorkerError:
        raise
    except Refused as refused:
        told = [reason.problem for reason in refused.reasons]
        raise WorkerError("refused", "; ".join(told), refused.reasons[0].remedy) from None
    except MissingRuntime as missing:
        raise WorkerError("missing", missing.reason) from None
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WorkerError(kind, lines[0] if lines else type(error).__name__) from error
