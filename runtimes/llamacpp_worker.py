"""The worker process of llama.cpp, started by `bootstrap`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.llamacpp_binding import Library, Model
from qconvert.runtimes.llamacpp_blocks import blocks
from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.protocol import Answer, Handler, Service, WorkerError
from qconvert.runtimes.timed import seconds, throughput


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
            "blocks": self.blocks,
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
        return Answer({"vocab": self.model.vocab, "context": self.model.capacity, "blocks": True})

    def tokenize(self, text: str, special: bool) -> Answer:
        return Answer(arrays=[self._model().tokenize(text, special)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        return Answer(arrays=[self._model().logits(tokens)])

    def blocks(self, tokens: NDArray[np.int32]) -> Answer:
        return Answer(arrays=[blocks(self._library(), self._model(), tokens)])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        return Answer(arrays=[self._model().generate(tokens, n)])

    def memory(self) -> Answer:
        return Answer(peak_bytes())

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """As `llama-bench`: prompt and generation apart, each from an empty context."""
        if sequences != 1:
            raise WorkerError("refused", "llama.cpp is measured with one sequence", "--batch 1")
        model = self._model()
        tokens = (np.arange(max(prompt, generate)) * 7919 % model.vocab).astype(np.int32)

        def read() -> float:
            model.reset()
            return seconds(lambda: model.prefill(tokens[:prompt]).argmax())

        def written() -> None:
            for position in range(generate):
                model.advance(int(tokens[position]), position)

        def write() -> float:
            model.reset()
            return seconds(written)

        return Answer(
            throughput(
                read, write, prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                threads=model.threads, batch=model.ubatch,
            )
        )  # fmt: skip

    def _library(self) -> Library:
        if self.library is None:
            self.library = Library()
        return self.library

    def _model(self) -> Model:
        if self.model is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        return self.model


if __name__ == "__main__":
    Service(LlamaCppWorker().handlers).run()
