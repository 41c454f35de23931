"""The source model, measured once: what every output made from it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source
from qconvert.runtimes import machine, reference
from qconvert.runtimes.guarded import Guarded
from qconvert.runtimes.layers import Blocks
from qconvert.runtimes.measure import Rows, compare
from qconvert.runtimes.runtime import Runtime
from qconvert.runtimes.spool import Spool
from qconvert.runtimes.text import (
    Encode,
    Text,
    Windows,
    cut,
    encoder,
    prefix,
    read_text,
    read_tokenizer,
)

Progress = Callable[[str, int, int], None]

SEEN = 128  # tokens whose hidden states are kept of every block: the first of the first window


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The source's logits over the windows of a text. They lie on disk: one model is in memory at a
    time."""

    source: Source
    tokenizer: Tokenizer | None
    pieces: Windows
    spool: Spool
    blocks: Blocks  # [blocks, at most SEEN, hidden]: what each gives to the next
    threads: int
    _floors: dict[tuple[str, Path], Floor] = field(default_factory=dict)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; their numbers, where there is no tokenizer.json."""
        if self.tokenizer is None:
            return " ".join(map(str, tokens))
        found: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return found

    def floor(self, runtime: Runtime, unquantized: Path) -> Floor:
        """`runtime`'s own noise: source -> runtime on an unquantized output, measured once."""
        key = (runtime.name, unquantized)
        if key not in self._floors:
            self._floors[key] = _floor(self, runtime, unquantized)
        return self._floors[key]


@dataclass(frozen=True, slots=True)
class Floor:
    """Positions by window; none, and why, where the runtime failed."""

    rows: tuple[Rows, ...]
    failure: str = ""


@contextmanager
def yardstick(
    source: Source,
    *,
    text_file: Path | None = None,
    windows: int = 8,
    length: int = 512,
    threads: int | None = None,
    encode: Callable[[], Encode] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Yardstick]:
    """Measure `source` on the first `windows` of `length` tokens of a text, by default the excerpt
    of wikitext-2 test that ships with us.

    `encode` gives the tokens of a text where the model has no tokenizer.json. `Refused` when the
    windows do not fit the model, or the text is too short. `progress` counts windows.
    """
    _refuse_long_windows(source, length)
    content, tokenizer = read_text(text_file), read_tokenizer(source.folder)
    pieces = _cut(content, source.folder, tokenizer, encode, windows, length)
    cores = threads or machine.physical_cores()
    model = reference.from_folder(source.folder, threads=cores)
    count = len(pieces.tokens)
    with Spool(count, pieces.length, model.vocab) as spool:
        for number, tokens in enumerate(pieces.tokens):
            progress("source model", number, count)
            spool.put(number, model.logits(tokens))
        progress("source model", count, count)
        blocks = model.blocks(pieces.tokens[0][:SEEN])
        del model
        yield Yardstick(source, tokenizer, pieces, spool, blocks, cores)


def _refuse_long_windows(source: Source, length: int) -> None:
    most = source.config.get("max_position_embeddings") or source.config.get("n_positions")
    if most and length > most:
        raise refuse(
            f"windows of {length} tokens do not fit the model's {most} positions",
            f"--length {most}",
        )


def _cut(
    content: Text,
    folder: Path,
    tokenizer: Tokenizer | None,
    encode: Callable[[], Encode] | None,
    count: int,
    length: int,
) -> Windows:
    if tokenizer is not None:
        front = prefix(folder, tokenizer)
        return cut(content, encoder(tokenizer), count=count, length=length, prefix=front)
    if encode is None:
        raise refuse(f"{folder} has no tokenizer.json, and no runtime is there to cut the text")
    return cut(content, encode(), count=count, length=length)


def _floor(ruler: Yardstick, runtime: Runtime, unquantized: Path) -> Floor:
    found = []
    pieces = ruler.pieces
    opened = Guarded.open(runtime, unquantized, threads=ruler.threads, context=pieces.length)
    with opened as session:
        for number, tokens in enumerate(pieces.tokens):
            original = ruler.spool.get(number)
            there = session.logits(tokens, original.shape[1])
            if there is not None:
                found.append(compare(original, there, tokens))
    return Floor((), session.failure) if session.failure else Floor(tuple(found))
