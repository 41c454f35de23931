"""Handlers of the worker: one folder, in ONNX Runtime and in onnxruntime-genai.

At a level that is asked for, logits are those of plain ONNX Runtime on the graph with that level in
each MatMulNBits. As the file is, they are those of onnxruntime-genai, which runs the folder with no
further step. Tokens, generation and timing are onnxruntime-genai's in both cases, at the level that
the logits have. Each is loaded by the first call that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.machine import peak_bytes
from qconvert.runtimes.onnxruntime.blocks import with_blocks
from qconvert.runtimes.onnxruntime.genai import Genai
from qconvert.runtimes.onnxruntime.graph import Levels, described, with_level
from qconvert.runtimes.onnxruntime.plain import Plain
from qconvert.runtimes.protocol import Answer, Handler, WorkerError
from qconvert.runtimes.timed import seconds, throughput

QDQ_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""Session option: the level of the MatMulNBits that ONNX Runtime makes of DequantizeLinear and
MatMul. It takes 4 where nothing is said."""
SEQUENCES = 64  # at once, at most


@dataclass(slots=True)
class Engine:
    """Calls start from an empty context."""

    _folder: Path = Path()
    _threads: int = 1
    _context: int = 0
    _level: int | None = None  # of every MatMulNBits; None: as the file says
    _levels: Levels | None = None
    _vocab: int = 0
    _plain: Plain | None = None
    _watched: tuple[Plain, list[str]] | None = None  # with outputs for blocks, and their names
    _genai: Genai | None = None
    handlers: Mapping[str, Handler] = field(init=False)

    def __post_init__(self) -> None:
        self.handlers = {
            "load": self.load,
            "tokenize": self.tokenize,
            "logits": self.logits,
            "blocks": self.blocks,
            "generate": self.generate,
            "throughput": self.throughput,
            "memory": lambda: Answer(peak_bytes()),
        }

    def load(self, path: str, threads: int, context: int, level: int | None) -> Answer:
        """Load a folder, and compute with two tokens: a kernel that crashes does so here."""
        self._folder, self._threads = Path(path), threads
        self._context, self._level = max(context, 2), level
        self._plain = self._genai = self._watched = None
        with _reported("refused"):
            self._levels = with_level(self._path.read_bytes(), level)
            self._vocab = self._logits(np.zeros(2, np.int32)).shape[1]
        note = described(self._levels, level)
        return Answer({"vocab": self._vocab, "context": context, "dtype": "float32",
                       "blocks": True, "notes": [note] if note else []})  # fmt: skip

    def tokenize(self, text: str, special: bool) -> Answer:
        """By onnxruntime-genai, which always reads control tokens as such."""
        if not special:
            _refuse_control_tokens(self._folder, text)
        with _reported("failed"):
            return Answer(arrays=[self._in_genai().tokenize(text)])

    def logits(self, tokens: NDArray[np.int32]) -> Answer:
        with _reported("failed"):
            return Answer(arrays=[self._logits(tokens)])

    def blocks(self, tokens: NDArray[np.int32]) -> Answer:
        """[blocks, len(tokens), hidden], by plain ONNX Runtime at the level of the logits."""
        with _reported("failed"):
            plain, names = self._with_blocks()
            return Answer(arrays=[np.stack(plain.outputs(tokens, names))])

    def generate(self, tokens: NDArray[np.int32], n: int) -> Answer:
        with _reported("failed"):
            return Answer(arrays=[self._in_genai().generate(tokens, n)])

    def throughput(
        self, prompt: int, generate: int, repetitions: int, sequences: int, warm: bool = True
    ) -> Answer:
        """`sequences` prompts at once; then as many generations, each from one token."""
        if sequences > SEQUENCES:
            raise WorkerError("refused", f"at most {SEQUENCES} sequences are measured at once")
        genai = self._in_genai()
        prompts = _prompts(sequences, max(prompt, 1), self._vocab, genai.padding)

        def read() -> float:
            return seconds(lambda: genai.started(prompts, 1, stop=False).generate_next_token())

        def write() -> float:
            generator = genai.started(prompts[:, :1], generate + 1, stop=False)
            generator.generate_next_token()  # of logits that are there already
            return seconds(lambda: [generator.generate_next_token() for _ in range(generate)])

        with _reported("failed"):
            told = throughput(
                read, write, prompt=prompt, generate=generate, repetitions=repetitions, warm=warm,
                sequences=sequences, threads=self._threads, batch=sequences * prompt,
            )  # fmt: skip
        return Answer(told)

    @property
    def _told(self) -> Mapping[str, Any]:
        """What genai_config.json says of the decoder."""
        config = json.loads((self._folder / "genai_config.json").read_text("utf-8"))
        decoder: Mapping[str, Any] = config["model"]["decoder"]
        return decoder

    @property
    def _options(self) -> Mapping[str, str]:
        return {} if self._level is None else {QDQ_LEVEL: str(self._level)}

    def _logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        if self._levels is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        if self._level is None:
            return self._in_genai().logits(tokens)
        if self._plain is None:
            self._plain = self._in_plain(self._levels.changed)
        return self._plain.logits(tokens)

    def _with_blocks(self) -> tuple[Plain, list[str]]:
        if self._levels is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        if self._watched is None:
            whole = self._levels.changed or self._path.read_bytes()
            graph, names = with_blocks(whole, int(self._told["num_hidden_layers"]))
            self._watched = self._in_plain(graph), names
        return self._watched

    def _in_plain(self, graph: bytes | None) -> Plain:
        return Plain(self._path, graph, self._told, self._threads, self._options)

    @property
    def _path(self) -> Path:
        return self._folder / str(self._told["filename"])

    def _in_genai(self) -> Genai:
        if self._levels is None:
            raise WorkerError("failed", "was asked to work before a model was loaded")
        if self._genai is None:
            self._genai = Genai(
                self._folder, self._levels.changed, self._context, self._threads, self._options
            )
        return self._genai


def _refuse_control_tokens(folder: Path, text: str) -> None:
    """onnxruntime-genai has no way to read a control token as plain text."""
    try:
        added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    except (OSError, ValueError, KeyError):
        return
    held = next((one["content"] for one in added if one["special"] and one["content"] in text), "")
    if held:
        raise WorkerError(
            "refused",
            f"onnxruntime-genai reads {held!r} as a control token wherever it stands",
            "ask with special=True",
        )


def _prompts(sequences: int, length: int, vocab: int, padding: int) -> NDArray[np.int32]:
    """[sequences, length]: any tokens but `padding`, which onnxruntime-genai masks in a batch."""
    tokens = np.arange(sequences * length) * 7919 % vocab
    tokens[tokens == padding] = (padding + 1) % vocab
    return tokens.astype(np.int32).reshape(sequences, length)


@contextmanager
def _reported(kind: str) -> Iterator[None]:
    """An exception of a library inside becomes a `WorkerError` of this kind, in one line."""
    try:
        yield
    except WorkerError:
        raise
    except ImportError as error:
        raise WorkerError("missing", f"ONNX Runtime does not load: {error}") from None
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        named = f"ONNX Runtime: {words}" if kind == "refused" else f"says: {words}"
        raise WorkerError(kind, named) from error
