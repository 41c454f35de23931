"""From what the user names (`--calib`) to the rows of tokens that a model is calibrated on.

One text is cut into consecutive rows, as `check` cuts the text that it measures on: without a
tokenizer that adds BOS, the rows are exactly the first rows x length tokens of the file. Several
documents are put into an order that depends on the seed alone, and joined; a row may span some of
them. What the tokenizer puts in front of a text (BOS) stands in front of every row, but for chats,
where the template writes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from qconvert.calibration.chat import Render, chat_template, rendered
from qconvert.calibration.documents import Document, Documents, read_documents
from qconvert.calibration.mix import default_mix
from qconvert.calibration.sampling import Sampler, sample_rows
from qconvert.calibration.vocabulary import Vocabulary, read_vocabulary
from qconvert.formats.refusal import Reason, raise_if_any, refuse

SELF, DEFAULT = "self", "default"
BETWEEN = "\n\n"  # documents; also what is said in a chat, where no template is asked for
READ = 1 << 24  # characters that are read at least, so that a shuffle has a choice
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows of tokens, and where they are from."""

    tokens: NDArray[np.int32]  # [rows, length]
    origin: str  # "default", "self", or the name of a file or folder
    digest: str  # sha256 of the tokens and their shape
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for."""

    source: str = DEFAULT  # a path, "self" or "default"
    rows: int = 64
    length: int = 512
    chat: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Joined:
    tokens: NDArray[np.int32]  # [any]
    kinds: Mapping[str, int]  # tokens taken of each
    notes: tuple[str, ...]


def calibration(
    folder: Path, config: Mapping[str, Any], wanted: Wanted, sample: Sampler | None = None
) -> Calibration:
    """The rows for the model in `folder` with `config`; the same for the same input and seed.

    Fewer rows than wanted are told in the notes. `Refused` says what is wrong with the request, the
    files or their text. `sample` is needed where the source is "self".
    """
    raise_if_any(_problems(config, wanted))
    vocabulary = read_vocabulary(folder)
    if wanted.source == SELF:
        tokens, notes = _from_the_model(vocabulary, config, wanted, sample)
    else:
        tokens, notes = _from_text(folder, vocabulary, wanted)
    _check_range(tokens, vocabulary, config)
    origin = (
        wanted.source if wanted.source in (SELF, DEFAULT) else Path(wanted.source).absolute().name
    )
    return Calibration(tokens, origin, digest(tokens), notes)


def digest(tokens: NDArray[np.int32]) -> str:
    """sha256 of the tokens and their shape, the same on every machine."""
    shape = "x".join(map(str, tokens.shape))
    return hashlib.sha256(shape.encode() + b"\n" + tokens.astype("<i4").tobytes()).hexdigest()


def _problems(config: Mapping[str, Any], wanted: Wanted) -> list[Reason]:
    found = []
    if wanted.rows < 1:
        found.append(Reason(f"--calib-rows {wanted.rows} is no row at all", "--calib-rows 64"))
    if wanted.length < 8:
        found.append(
            Reason(f"rows of {wanted.length} tokens have no context", "--calib-length 512")
        )
    limit = next((config[name] for name in LIMITS if isinstance(config.get(name), int)), None)
    if limit is not None and wanted.length > limit:
        found.append(
            Reason(
                f"--calib-length {wanted.length} is beyond the model's {limit} positions",
                f"--calib-length {limit}",
            )
        )
    if wanted.chat and wanted.source == SELF:
        found.append(
            Reason(
                "--calib-chat has nothing to do with text that the model makes itself",
                "leave one of them out",
            )
        )
    return found


def _from_the_model(
    vocabulary: Vocabulary, config: Mapping[str, Any], wanted: Wanted, sampler: Sampler | None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    if sampler is None:
        raise refuse("this model cannot be sampled from here", "take --calib default, or a text")
    return sample_rows(sampler, vocabulary, config, wanted.rows, wanted.length, wanted.seed), ()


def _from_text(
    folder: Path, vocabulary: Vocabulary, wanted: Wanted
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    render = chat_template(folder, vocabulary) if wanted.chat else None
    front = () if wanted.chat else vocabulary.prefix
    own = wanted.length - len(front)
    joined = _read_and_join(wanted, wanted.rows * own, vocabulary, render)
    rows = min(wanted.rows, len(joined.tokens) // own)
    if rows == 0:
        least = len(joined.tokens) + len(front)
        shorter = f", or --calib-length {least}" if least >= 8 else ""
        raise refuse(
            f"{wanted.source} is too short: it has {len(joined.tokens):,} tokens, and one row of"
            f" {wanted.length:,} needs {own:,}",
            f"name a longer text, or --calib default{shorter}",
        )
    notes = list(joined.notes)
    if rows < wanted.rows:
        notes.append(
            f"{rows:,} rows of {wanted.length:,} instead of {wanted.rows:,}: {wanted.source} has"
            f" {len(joined.tokens):,} tokens"
        )
    if len(joined.kinds) > 1:
        shares = (f"{kind} {count:,}" for kind, count in joined.kinds.items())
        notes.append(f"tokens of each kind: {', '.join(shares)}")
    cut = joined.tokens[: rows * own].reshape(rows, own)
    begin = np.tile(np.array(front, np.int32), (rows, 1))
    return np.ascontiguousarray(np.hstack([begin, cut])), tuple(notes)


def _read_and_join(
    wanted: Wanted, tokens: int, vocabulary: Vocabulary, render: Render | None
) -> _Joined:
    """At least `tokens` tokens, or all that there are; reads on while there is more."""
    if wanted.source == DEFAULT:
        return _join(Documents(default_mix()), tokens, vocabulary, render, wanted.seed)
    characters = max(16 * tokens, READ)
    while True:
        documents = read_documents(Path(wanted.source), characters)
        joined = _join(documents, tokens, vocabulary, render, wanted.seed)
        if documents.complete or len(joined.tokens) >= tokens:
            return joined
        characters *= 4


def _join(
    documents: Documents, tokens: int, vocabulary: Vocabulary, render: Render | None, seed: int
) -> _Joined:
    """Documents in the order of the seed, always one of the kind that there is least of so far."""
    alone = len(documents.all) == 1
    waiting: dict[str, list[Document]] = {
        kind: [] for kind in sorted({d.kind for d in documents.all})
    }
    for index in sorted(
        range(len(documents.all)), key=lambda index: _draw(seed, index), reverse=True
    ):
        waiting[documents.all[index].kind].append(documents.all[index])
    counts = dict.fromkeys(waiting, 0)
    parts: list[NDArray[np.int32]] = []
    have, refused, why = 0, 0, ""
    while have < tokens and waiting:
        kind = min(waiting, key=counts.__getitem__)
        document = waiting[kind].pop()
        if not waiting[kind]:
            del waiting[kind]
        try:
            found = _encoded(document, tokens - have, vocabulary, render, "" if alone else BETWEEN)
        except TemplateError as error:
            refused, why = refused + 1, str(error)
            continue
        parts.append(found)
        counts[kind] += len(found)
        have += len(found)
    notes = list(documents.notes)
    if refused and not parts:
        raise refuse(
            f"the model's chat template takes none of the documents: {why}",
            "leave --calib-chat out, or name chats of another form",
        )
    if refused:
        notes.append(f"{refused:,} chats were left out: the model's template does not take them")
    return _Joined(np.concatenate(parts), counts, tuple(notes))


def _draw(seed: int, index: int) -> bytes:
    """Orders documents: no library's generator, so that no version of one changes the rows."""
    return hashlib.sha256(f"{seed}:{index}".encode()).digest()


def _encoded(
    document: Document, tokens: int, vocabulary: Vocabulary, render: Render | None, end: str
) -> NDArray[np.int32]:
    """At most `tokens` tokens of a document."""
    if render is None:
        text = document.text or BETWEEN.join(turn.content for turn in document.turns)
        return vocabulary.begin(text.strip() + end if end else text, tokens)
    parts: list[NDArray[np.int32]] = []
    have = 0
    for chat in rendered(document, render):
        parts.append(vocabulary.encode(chat))
        have += len(parts[-1])
        if have >= tokens:
            break
    return np.concatenate(parts)[:tokens]


def _check_range(
    tokens: NDArray[np.int32], vocabulary: Vocabulary, config: Mapping[str, Any]
) -> None:
    size = config.get("vocab_size")
    top = int(tokens.max())
    if isinstance(size, int) and top >= size:
        name = vocabulary.tokenizer.id_to_token(top)
        raise refuse(
            f"the tokenizer gives token {top} ({name!r}), and the model has {size} of them",
            "take the tokenizer.json that belongs to the model",
        )
