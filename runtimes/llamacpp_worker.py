"""The worker process of llama.cpp, started by `bootstrap`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.llamacpp_binding import Library, Model
from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.protocol import Answer, Handler, Service, WorkerError


@dataclass(slots=True)
class LlamaCppWorker:
    """Answers of the protocol. The library is loaded on the first call that needs it."""

    model: Model | None = None
    library: Library | None = None
    handlers: Mapping[str, Handler] = field(init=False)

    def __post_init__(self) -> None:
        self.handlers = {
            "version": self.version,
            "load": self.load,
            "tokenize": self.tokenize,
            "logits": self.logits,
            "generate": self.generate,
            "throughput": self.throughput,
            "memory": self.memory,
        }

    def version(self) -> Answer:
        return Answer(self._library().describe())

    def load(self, path: str, threads: int, context: int, repack: bool) -> Answer:
        """Load, and decode two tokens: a kernel that crashes does so here and not in mid-work."""
        self.model = Model(
            self._library(), path, threads=threads, context=max(context, 2), repack=repack
        )
        self.model.logits(np.zeros(2, np.int32))
        return Answer({"vocab": self.model.vocab, "context": self.model.capacity})

    def tokenize(self, text: str, special: bool) -> Answer:
        return Answer(arrays=[self._model().tokenize(text, special)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        return Answer(arrays=[self._model().logits(tokens)])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        return Answer(arrays=[self._model().generate(tokens, n)])

    def memory(self) -> Answer:
        return Answer(peak_bytes())

    def throughput(self, prompt: int, generate: int, repetitions: int, sequences: int) -> Answer:
        """As `llama-bench`: prompt and generation apart, each from an empty context."""
        if sequences != 1:
            raise WorkerError("refused", "llama.cpp is measured with one sequence", "--batch 1")
        model = self._model()
        tokens = (np.arange(max(prompt, generate)) * 7919 % model.vocab).astype(np.int32)

        def read() -> None:
            model.prefill(tokens[:prompt])

        def write() -> None:
            for position in range(generate):
                model.advance(int(tokens[position]), position)

        wall, cpu = time.perf_counter(), time.process_time()
        prompts = _rates(model, read, prompt, repetitions)
        generates = _rates(model, write, generate, repetitions)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        told: dict[str, Any] = {
            "prompt_tokens_per_s": median(prompts),
            "generate_tokens_per_s": median(generates),
            "prompt_tokens": prompt,
            "generate_tokens": generate,
            "threads": model.threads,
            "batch": model.ubatch,
            "repetitions": repetitions,
            "prompt_spread": (min(prompts), max(prompts)),
            "generate_spread": (min(generates), max(generates)),
            "cpu_share": cpu / (wall * model.threads),
        }
        return Answer(told)

    def _library(self) -> Library:
        if self.library is None:
            self.library = Library()
        return self.library

    def _model(self) -> Model:
        if self.model is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        return self.model


def _rates(model: Model, work: Callable[[], None], tokens: int, repetitions: int) -> list[float]:
    """Tokens per second of each repetition, after one that warms up and does not count."""
    rates = []
    for _ in range(repetitions + 1):
        model.reset()
        start = time.perf_counter()
        work()
        rates.append(tokens / (time.perf_counter() - start))
    return rates[1:]


if __name__ == "__main__":
    Service(LlamaCppWorker().handlers).run()
