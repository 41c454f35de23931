"""One model in vLLM, in the process that computes with it: the handlers of vLLM's worker.

Logits are taken where vLLM itself takes them, from `compute_logits`, the method by which every
vLLM model turns hidden states into logits: raw, in the type of the run, at all positions at once.
(vLLM's `prompt_logprobs` hold the same numbers after a log-softmax, as lists of Python objects: 100
bytes for each logit. A test compares the two.)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.blocks import block_list, summed, watched
from qconvert.runtimes.machine import available_bytes, peak_bytes
from qconvert.runtimes.protocol import Answer, Handler, WorkerError
from qconvert.runtimes.timed import seconds, throughput

SEQUENCES = 128  # at once, at most
STEP_TOKENS = 2048  # of one step, at least; a prompt is never cut
LEAST_CACHE = 128 << 20  # bytes
CACHE_SHARE = 0.25  # of the free memory
SHOWN = re.compile(r"(?:Using|Selected) \S+ for .*|.*\bfall(?:s|ing)? back\b.*", re.IGNORECASE)
"""Lines of vLLM's log that name a kernel, or something else than was asked for."""


def handlers() -> Mapping[str, Handler]:
    """Of a fresh engine; called in the process that is to hold it."""
    engine = Engine()
    return {
        "load": engine.load,
        "tokenize": engine.tokenize,
        "logits": engine.logits,
        "blocks": engine.blocks,
        "generate": engine.generate,
        "throughput": engine.throughput,
        "memory": lambda: Answer(peak_bytes()),
    }


class Engine:
    """Calls start from an empty context: prefixes are not cached."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._threads = 1
        self._recorded: list[NDArray[np.float32]] = []
        self._recording = False

    def load(
        self, path: str, threads: int, context: int, dtypes: Sequence[str], plain: bool, eager: bool
    ) -> Answer:
        """Load a folder in the first of `dtypes` that vLLM takes for its architecture.

        `plain`: by kernels that compute what the file says and no less (see `_without_amx`).
        """
        self._threads = threads
        lines = _listen()
        without = plain and _without_amx()
        with _reported("refused"):
            self._llm, dtype = _load(path, context, dtypes, eager)
            self._llm.apply_model(self._record)
            self._run([np.zeros(2, np.int32)], 1)  # a kernel that crashes does so here
        config = self._llm.llm_engine.model_config
        notes = [f"vLLM: {line}" for line in lines]
        if without:
            notes.append("vLLM runs without its AMX kernels, which round more than the file says")
        if dtype != dtypes[0]:
            notes.append(f"vLLM runs this architecture in {dtype}, not in {dtypes[0]}")
        return Answer(
            {
                "vocab": int(config.get_vocab_size()),
                "context": context,
                "dtype": str(config.dtype).removeprefix("torch."),
                "blocks": eager,  # a compiled model runs past the hooks of its modules
                "notes": notes,
            }
        )

    def tokenize(self, text: str, special: bool) -> Answer:
        """By the tokenizer that vLLM made of the folder; nothing is added."""
        tokenizer = self._llm.get_tokenizer()
        found = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return Answer(arrays=[np.array(found, np.int32)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        """[n, vocab] of one prompt.

        vLLM computes the last position's logits first, to sample from, and then those of all the
        others, because their log-probabilities are asked for.
        """
        self._recorded, self._recording = [], True
        try:
            self._run([tokens], 1, prompt_logprobs=0)
        finally:
            self._recording = False
        last, *before = self._recorded
        found = np.concatenate([*before, last[-1:]])
        if len(found) != len(tokens):
            raise WorkerError("failed", f"gave logits at {len(found)} of {len(tokens)} positions")
        return Answer(arrays=[found])

    def blocks(self, tokens: NDArray[np.int32]) -> Answer:
        """[blocks, n, hidden], by hooks of this one call."""
        count = int(self._llm.llm_engine.model_config.hf_text_config.num_hidden_layers)
        (found,) = self._llm.apply_model(lambda model: self._watched(model, count, tokens))
        if len(found) != count or any(len(one) != len(tokens) for one in found):
            told = f"shows {len(found)} of its {count} blocks"
            raise WorkerError("failed", f"{told}, at {[len(one) for one in found[:1]]} positions")
        return Answer(arrays=[np.stack(found)])

    def _watched(
        self, model: Any, count: int, tokens: NDArray[np.int32]
    ) -> list[NDArray[np.float32]]:
        with watched(block_list(model, count), summed) as found:
            self._run([tokens], 1)
        return found

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        """Up to `n` greedy tokens; an end token is the last."""
        (made,) = self._run([tokens], n)
        return Answer(arrays=[np.array(made.outputs[0].token_ids, np.int32)])

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """`sequences` prompts at once; then as many generations, each from one token."""
        if sequences > SEQUENCES:
            raise WorkerError("refused", f"at most {SEQUENCES} sequences are measured at once")
        vocab = int(self._llm.llm_engine.model_config.get_vocab_size())
        tokens = (np.arange(sequences * max(prompt, 1)) * 7919 % vocab).astype(np.int32)
        prompts = tokens.reshape(sequences, -1)
        first = prompts[:, :1]
        return Answer(
            throughput(
                lambda: self._spent(prompts, 1), lambda: self._spent(first, generate),
                prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                sequences=sequences,
                threads=self._threads, on_cpu=not _on_gpu(),
                batch=self._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens,
            )
        )  # fmt: skip

    def _spent(self, prompts: NDArray[np.int32], n: int) -> float:
        """Seconds for `n` tokens behind each prompt."""
        return seconds(lambda: self._run(list(prompts), n, ignore_eos=True))

    def _run(self, prompts: Sequence[NDArray[np.int32]], n: int, **options: Any) -> Sequence[Any]:
        if self._llm is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        from vllm import SamplingParams  # type: ignore[import-not-found,unused-ignore]

        sampling = SamplingParams(temperature=0, max_tokens=n, detokenize=False, **options)
        asked = [{"prompt_token_ids": tokens.tolist()} for tokens in prompts]
        with _reported("failed"):
            done: Sequence[Any] = self._llm.generate(asked, sampling, use_tqdm=False)
        return done

    def _record(self, model: Any) -> None:
        """Have `compute_logits` leave a copy of what it returns."""
        compute = model.compute_logits

        def computed(*arguments: Any, **named: Any) -> Any:
            found = compute(*arguments, **named)
            if self._recording:
                self._recorded.append(found.float().cpu().numpy())
            return found

        model.compute_logits = computed


def _load(path: str, context: int, dtypes: Sequence[str], eager: bool) -> tuple[Any, str]:
    from vllm import LLM

    options: dict[str, Any] = {
        "max_model_len": context + 1,  # room for the token that is sampled and not computed with
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": max(STEP_TOKENS, context + 1),
        "kv_cache_memory_bytes": cache_bytes(path, context + 1),
        "enforce_eager": eager,
        "enable_prefix_caching": False,
        "skip_tokenizer_init": not _has_tokenizer(Path(path)),
        "disable_log_stats": True,
        "seed": 0,
    }
    *before, last = dtypes
    for dtype in before:
        try:
            return LLM(path, dtype=dtype, **options), dtype
        except ValueError as error:
            if f"does not support {dtype}" not in str(error):
                raise
    return LLM(path, dtype=last, **options), last


def cache_bytes(path: str, context: int) -> int:
    """Room for SEQUENCES contexts in 16 bits, within a share of the free memory; never less than
    two contexts in 32 bits. Over, and not under, for models that keep less."""
    config = json.loads(Path(path, "config.json").read_text("utf-8"))
    config = config.get("text_config", config)

    def first(*names: str) -> int:
        return int(next((config[name] for name in names if config.get(name)), 0))

    heads = first("num_attention_heads", "n_head") or 1
    width = first("head_dim") or first("hidden_size", "n_embd") // heads
    kept = 2 * first("num_hidden_layers", "n_layer") * width
    kept *= first("num_key_value_heads") or heads
    pages = -(-context // 128) * 128 + 128
    most = int(CACHE_SHARE * available_bytes())
    return max(LEAST_CACHE, 2 * kept * pages * 4, min(SEQUENCES * kept * pages * 2, most))


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _on_gpu() -> bool:
    from vllm.platforms import current_platform  # type: ignore[import-not-found,unused-ignore]

    return bool(current_platform.is_cuda())


def _listen() -> list[str]:
    """Collects what vLLM's log says about kernels from here on.

    Where records are made: vLLM takes away all handlers when it configures its log.
    """
    lines: list[str] = []
    make = logging.getLogRecordFactory()

    def made(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        text = record.getMessage() if record.name.startswith("vllm") else ""
        if SHOWN.fullmatch(text) and text not in lines:
            lines.append(text)
        return record

    logging.setLogRecordFactory(made)
    return lines


def _without_amx() -> bool:
    """Have vLLM take the kernels of processors that lack AMX; whether that changes anything.

    With AMX, vLLM 0.32 multiplies 4-bit weights with int8 activations, makes the static scales of
    int8 activations anew for each token, and ends in float16 (`scale_C: scalar path not
    implemented`): nothing of which the file asks for. It asks torch whether there is AMX.
    """
    import torch

    has = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if has is None or not has():
        return False
    torch.cpu._is_amx_tile_supported = lambda: False
    return True


@contextmanager
def _reported(kind: str) -> Iterator[None]:
    """An exception of vLLM inside becomes a `WorkerError` of this kind, in one line."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        raise WorkerError(kind, meaning(error)) from error


def meaning(error: BaseException) -> str:
    """The line of an exception that says what was wrong; where it was raised when it says nothing.

    pydantic wraps the reason: "1 validation error for X\\n  Value error, REASON [type=...]".
    """
    text = str(error)
    wrapped = re.search(r"Value error, (.*?)(?: \[type=|$)", text, re.DOTALL)
    lines = [line.strip() for line in (wrapped[1] if wrapped else text).splitlines()]
    said = next((line for line in lines if line), "")
    if said:
        return said
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_qualname} ({Path(code.co_filename).name})"
