"""One model in TVM, in the process that computes with it: the handlers of TVM's worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.protocol import Answer, Handler, WorkerError
from qconvert.runtimes.timed import throughput
from qconvert.runtimes.tvm.folder import Facts, Unfit, read_facts

CHUNK = 256  # tokens of a step, at most: activations stay within a cache


def handlers() -> Mapping[str, Handler]:
    """Of a process that holds one model at a time."""
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
    """Calls start from an empty context."""

    def __init__(self) -> None:
        self._model: Any = None
        self._facts: Facts | None = None
        self._tokenizer: Any = None
        self._threads = 1

    def load(self, path: str, threads: int, context: int) -> Answer:
        """Read and compile a folder, and compute with it once."""
        folder = Path(path)
        facts = _facts(folder)
        if context > facts.reach:
            told = f"{context} tokens do not fit the {facts.reach} positions of {path}"
            raise WorkerError("refused", told, f"at most {facts.reach}")
        from qconvert.runtimes.tvm.model import Model

        self._model = None  # the one before
        self._facts, self._threads = facts, threads
        with _reported():
            self._model = Model(folder, facts, threads=threads, context=context)
            self._tokenizer = _tokenizer(folder)
            self._model.step(np.zeros(2, np.int32))
        known = {"vocab": facts.vocab, "context": context, "dtype": "float32", "blocks": True}
        return Answer({**known, "notes": self._model.notes})

    def tokenize(self, text: str, special: bool) -> Answer:
        """By Hugging Face's tokenizers; nothing is added."""
        if self._tokenizer is None:
            raise WorkerError("failed", "the folder has no tokenizer.json to make tokens by")
        self._tokenizer.encode_special_tokens = not special
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        return Answer(arrays=[np.array(found, np.int32)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        model = self._ready(len(tokens))
        model.reset()
        found = [model.head(model.step(one)) for one in _pieces(tokens)]
        return Answer(arrays=[np.concatenate(found)])

    def blocks(self, tokens: NDArray[np.int32]) -> Answer:
        model = self._ready(len(tokens))
        model.reset()
        with _reported():
            found = [model.blocks(one) for one in _pieces(tokens)]
        return Answer(arrays=[np.concatenate(found, axis=1)])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        """Up to `n` greedy tokens; an end token is the last."""
        model = self._ready(len(tokens) + max(n - 1, 0))
        ends = self._facts.ends if self._facts else ()
        made: list[int] = []
        logits = self._prefilled(tokens)
        while len(made) < n:
            made.append(int(logits.argmax()))
            if made[-1] in ends or len(made) == n:
                break
            logits = model.advance(made[-1])
        return Answer(arrays=[np.array(made, np.int32)])

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """Prompt and generation apart, each from an empty context."""
        if sequences != 1:
            raise WorkerError("refused", "our TVM graph computes one sequence", "--batch 1")
        model = self._ready(max(prompt, generate))
        vocab = self._facts.vocab if self._facts else 1
        tokens = (np.arange(max(prompt, generate)) * 7919 % vocab).astype(np.int32)

        def read() -> None:
            self._prefilled(tokens[:prompt]).argmax()

        def write() -> None:
            model.reset()
            for token in tokens[:generate]:
                model.advance(int(token))

        return Answer(
            throughput(
                read, write, prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                threads=self._threads, batch=CHUNK,
            )
        )  # fmt: skip

    def _prefilled(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """[1, vocab]: logits after all of `tokens`, from an empty context."""
        model = self._ready()
        model.reset()
        for piece in _pieces(tokens):
            hidden = model.step(piece)
        found: NDArray[np.float32] = model.head(hidden, last=True)
        return found

    def _ready(self, tokens: int = 0) -> Any:
        """The model, with room for so many tokens."""
        if self._model is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        if tokens > self._model.room:
            raise WorkerError("failed", f"{tokens} tokens do not fit {self._model.room} positions")
        return self._model


def _pieces(tokens: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return [tokens[at : at + CHUNK] for at in range(0, len(tokens), CHUNK)]


def _facts(folder: Path) -> Facts:
    try:
        return read_facts(folder)
    except Unfit as unfit:
        raise WorkerError("refused", str(unfit)) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkerError("refused", f"{folder} is no whole MLC folder: {error!r}") from None


@contextmanager
def _reported() -> Iterator[None]:
    """An exception of TVM inside becomes a `WorkerError`, in one line."""
    try:
        yield
    except Unfit as unfit:
        raise WorkerError("refused", str(unfit)) from unfit
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WorkerError("failed", lines[0] if lines else type(error).__name__) from error


def _tokenizer(folder: Path) -> Any:
    """None where there is no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))
