"""One model in TensorRT-LLM, in the process that computes with it: the handlers of its worker.

Never run; read in NVIDIA/TensorRT-LLM, `llmapi/llm.py`, `sampling_params.py`, `executor/result.py`
and `_torch/pyexecutor/{py_executor,llm_request,handle_logits}.py`, of mid-2025 to mid-2026:

- `SamplingParams(return_context_logits=True)` gives `RequestOutput.context_logits`, float32
  [len(prompt), vocab]: the executor then computes logits at every position of the prompt. Nothing
  is to be said to `LLM` for that (`gather_context_logits` is of the engine backend, which is gone).
- Tokens whose keys and values are reused from a prompt before have no logits, so that reuse of
  blocks is off; then equal prompts also give equal logits (issue 15503 there). A prompt is read in
  one piece: no chunked prefill, and `max_num_tokens` holds a whole window.
- `top_k=1` is greedy in every version. `end_id` is given, because without a tokenizer it is asked
  for; what stops a generation by `stop_token_ids` is cut off unless it is to be included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.protocol import Answer, Handler, WorkerError
from qconvert.runtimes.timed import seconds, throughput

SEQUENCES = 128  # at once, at most
STEP_TOKENS = 2048  # of one step, at least; a prompt is never cut
CACHE_SHARE = 0.5  # of the GPU's free memory
NO_END = -1  # no token is this one


class Engine:
    """Calls start from an empty context: blocks of the cache are not reused."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._threads = 1
        self._steps = STEP_TOKENS
        self._vocab = 0
        self._ends: tuple[int, ...] = ()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {
            "load": self.load,
            "tokenize": self.tokenize,
            "logits": self.logits,
            "generate": self.generate,
            "throughput": self.throughput,
            "memory": lambda: Answer(peak_bytes() + _device_bytes()),
        }

    def load(self, path: str, threads: int, context: int, eager: bool) -> Answer:
        """Load a folder in its own float type, on one GPU."""
        try:
            from tensorrt_llm import LLM  # type: ignore[import-not-found,unused-ignore]
            from tensorrt_llm.llmapi import (  # type: ignore[import-not-found,unused-ignore]
                KvCacheConfig,
            )
        except ImportError as error:
            raise WorkerError("missing", f"TensorRT-LLM does not load: {error}") from None
        folder = Path(path)
        config = _config(folder)
        self._threads, self._ends = threads, end_tokens(folder)
        self._vocab = int(config["vocab_size"])
        self._steps = max(STEP_TOKENS, context + 1)
        options: dict[str, Any] = {
            "max_batch_size": SEQUENCES,
            "max_num_tokens": self._steps,
            "max_seq_len": context + 1,  # room for the token that is sampled
            "enable_chunked_prefill": False,
            "skip_tokenizer_init": not _has_tokenizer(folder),
            "trust_remote_code": False,
        }
        if eager:
            options["cuda_graph_config"] = None
        with _reported("refused"):
            cache = KvCacheConfig(enable_block_reuse=False, free_gpu_memory_fraction=CACHE_SHARE)
            self._llm = LLM(model=path, kv_cache_config=cache, **options)
            self._run([np.zeros(2, np.int32)], 1)  # a kernel that is missing shows here
        dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return Answer({"vocab": self._vocab, "context": context, "dtype": dtype, "notes": []})

    def tokenize(self, text: str, special: bool) -> Answer:
        """By the tokenizer that TensorRT-LLM made of the folder; nothing is added."""
        tokenizer = None if self._llm is None else self._llm.tokenizer
        if tokenizer is None:
            raise WorkerError("failed", "has no tokenizer: the folder holds none")
        found = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return Answer(arrays=[np.array(found, np.int32)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        """[n, vocab] of one prompt."""
        (done,) = self._run([tokens], 1, return_context_logits=True)
        if done.context_logits is None:
            raise WorkerError("failed", "gave no logits of the prompt")
        found = done.context_logits.float().cpu().numpy()
        if found.ndim != 2 or len(found) != len(tokens):
            raise WorkerError(
                "failed", f"gave logits of the shape {found.shape} for {len(tokens)} tokens"
            )
        return Answer(arrays=[np.ascontiguousarray(found)])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        """Up to `n` greedy tokens; an end token is the last, whether or not it was given back."""
        (done,) = self._run([tokens], n)
        output = done.outputs[0]
        made = [int(token) for token in output.token_ids]
        if output.finish_reason == "stop" and (not made or made[-1] not in self._ends):
            stopped = output.stop_reason
            made.append(stopped if isinstance(stopped, int) else self._ends[0])
        return Answer(arrays=[np.array(made, np.int32)])

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """`sequences` prompts at once; then as many generations, each from one token."""
        if sequences > SEQUENCES:
            raise WorkerError("refused", f"at most {SEQUENCES} sequences are measured at once")
        tokens = np.arange(sequences * max(prompt, 1)) * 7919 % max(self._vocab, 1)
        prompts = tokens.astype(np.int32).reshape(sequences, -1)
        first = prompts[:, :1]
        return Answer(
            throughput(
                lambda: self._spent(prompts, 1), lambda: self._spent(first, generate),
                prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                sequences=sequences,
                threads=self._threads, batch=self._steps, on_cpu=False,
            )
        )  # fmt: skip

    def _spent(self, prompts: NDArray[np.int32], n: int) -> float:
        """Seconds for `n` tokens behind each prompt."""
        return seconds(lambda: self._run(list(prompts), n, ends=False))

    def _run(
        self, prompts: Sequence[NDArray[np.int32]], n: int, *, ends: bool = True, **options: Any
    ) -> Sequence[Any]:
        if self._llm is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        from tensorrt_llm import SamplingParams

        first, *others = self._ends if ends and self._ends else (NO_END,)
        sampling = SamplingParams(
            top_k=1,
            max_tokens=n,
            end_id=first,
            pad_id=max(first, 0),
            stop_token_ids=others or None,
            include_stop_str_in_output=True,
            ignore_eos=not ends,
            detokenize=False,
            **options,
        )
        asked = [{"prompt_token_ids": tokens.tolist()} for tokens in prompts]
        with _reported("failed"):
            done: Sequence[Any] = self._llm.generate(asked, sampling, use_tqdm=False)
        return done


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Those of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if found is not None:
                return tuple(found) if isinstance(found, list) else (int(found),)
    return ()


def _config(folder: Path) -> Mapping[str, Any]:
    """config.json, of the text model."""
    found: Mapping[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    nested: Mapping[str, Any] = {**found, **found.get("text_config", {})}
    return nested


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _device_bytes() -> int:
    """Of the GPU's memory, all that is taken, by whomever: the cache is not torch's own."""
    import torch

    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


@contextmanager
def _reported(kind: str) -> Iterator[None]:
    """An exception inside becomes a `WorkerError` of this kind, in one line."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise WorkerError(kind, said) from error
