"""What mlc-chat-config.json says of a tokenizer, read from the files of a checkpoint.

Source: mlc-ai/mlc-llm 79d603f, `cpp/tokenizers/tokenizers.cc` (`DetectTokenizerInfo`) and
`python/mlc_llm/interface/gen_config.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.gguf.tokenizer_files import TokenizerFiles, read_tokenizer_files
from qconvert.formats.refusal import Reason, raise_if_any
from qconvert.formats.source import Source

COPIED = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "tokenizer_config.json",
)  # fmt: skip
"""What MLC's own converter copies, in its order."""
SAVE = (
    "save it with transformers: "
    "AutoTokenizer.from_pretrained(MODEL).backend_tokenizer.save('MODEL/tokenizer.json')"
)
SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    files: TokenizerFiles
    copies: Mapping[str, Path]
    info: Mapping[str, Any]  # `tokenizer_info`
    size: int  # of the active vocabulary
    ids: Mapping[str, int]  # of all tokens, by text
    notes: tuple[str, ...]


def read_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a checkpoint; `Refused` when MLC would fail on it."""
    folder = source.folder
    copies = {name: folder / name for name in COPIED if (folder / name).is_file()}
    files = read_tokenizer_files(folder)
    rows = int(source.config["vocab_size"])
    if files.definition is None:
        note = f"the model has no tokenizer.json, which MLC's programs read: {SAVE}"
        return Tokenizer(files, copies, _info({}), rows, {}, (note,))
    ids = _ids(files.definition)
    size = max(ids.values(), default=-1) + 1
    raise_if_any(list(_problems(files.definition, size, rows)))
    return Tokenizer(files, copies, _info(files.definition), size, ids, ())


def first_tokens(definition: Mapping[str, Any]) -> Iterator[int]:
    """Tokens that the post-processor of tokenizer.json puts before a text."""
    for one in _parts(definition.get("post_processor"), "processors"):
        pieces = one.get("single") if one.get("type") == "TemplateProcessing" else None
        if pieces and "SpecialToken" in pieces[0]:
            yield from one["special_tokens"][pieces[0]["SpecialToken"]["id"]]["ids"]


def _ids(definition: Mapping[str, Any]) -> dict[str, int]:
    vocab = definition["model"].get("vocab")
    if isinstance(vocab, Mapping):
        found = {str(text): int(id) for text, id in vocab.items()}
    else:  # of a Unigram model: pairs of text and score
        found = {str(pair[0]): id for id, pair in enumerate(vocab or ())}
    added = definition.get("added_tokens") or ()
    return {**found, **{str(one["content"]): int(one["id"]) for one in added}}


def _problems(definition: Mapping[str, Any], size: int, rows: int) -> Iterator[Reason]:
    texts = Counter(str(one["content"]) for one in definition.get("added_tokens") or ())
    twice = sorted(text for text, count in texts.items() if count > 1)
    if twice:
        yield Reason(
            f"tokenizer.json: added_tokens has {', '.join(twice[:5])} more than once, "
            "and MLC refuses such a file",
            "remove the repeated entries",
        )
    if size > rows:
        yield Reason(
            f"the tokenizer has {size} tokens, the embedding {rows} rows",
            "the tokenizer belongs to another model, or the embedding was not resized",
        )


def _info(definition: Mapping[str, Any]) -> dict[str, Any]:
    """`tokenizer_info`; without a definition MLC's defaults."""
    decoders = list(_parts(definition.get("decoder"), "decoders"))
    normalizers = list(_parts(definition.get("normalizer"), "normalizers"))
    kinds = [one.get("type") for one in decoders]
    known = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}
    return {
        "token_postproc_method": next(
            (known[str(kind)] for kind in kinds if kind in known), "byte_fallback"
        ),
        "prepend_space_in_encode": any(
            one.get("type") == "Prepend" and one.get("prepend") == SPACE for one in normalizers
        ),
        "strip_space_in_decode": any(
            one.get("type") == "Strip" and one.get("content") == " "
            and one.get("start") == 1 and one.get("stop") == 0
            for one in decoders
        ),
    }  # fmt: skip


def _parts(definition: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """A decoder or normalizer, or the members of a sequence of them."""
    if isinstance(definition, Mapping):
        if definition.get("type") == "Sequence":
            yield from definition.get(name) or ()
        else:
            yield definition
