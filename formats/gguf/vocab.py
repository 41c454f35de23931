"""Everything that goes under `tokenizer.*` in a GGUF, from a checkpoint's tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from qconvert.formats.gguf.bytelevel import (
    byte_level_vocabulary,
    check_normalizer,
    is_byte_level,
    pre_tokenizer,
    read_merges,
)
from qconvert.formats.gguf.chat import read_chat_templates
from qconvert.formats.gguf.header import Entry
from qconvert.formats.gguf.sentencepiece import (
    SPACE,
    piece_vocabulary,
    scores_of_merges,
    space_prefix,
)
from qconvert.formats.gguf.sentencepiece_model import read_piece_model
from qconvert.formats.gguf.special_tokens import Sources, special_tokens
from qconvert.formats.gguf.token_table import (
    SAVE_AGAIN,
    Findings,
    TokenTable,
    check_added,
    nfc_changes,
    token_table,
)
from qconvert.formats.gguf.tokenizer_files import AddedToken, TokenizerFiles, read_tokenizer_files
from qconvert.formats.refusal import raise_if_any, refuse
from qconvert.formats.tokenizer_library import load_tokenizer

_PHI3_KEEPS_SPACE = {"<unk>", "<s>", "<|endoftext|>"}
_MARK_NOTE = (
    "text in which the character \u2581 itself stands beside a space is cut elsewhere by "
    "llama.cpp, which takes the two for the same"
)
_SAVE_FAST = (
    "make a tokenizer.json: AutoTokenizer.from_pretrained(folder).save_pretrained(folder) with "
    "transformers"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer as a GGUF holds it."""

    entries: tuple[Entry, ...]
    size: int  # tokens, padding included: the rows of the embedding
    notes: tuple[str, ...] = ()  # where llama.cpp is known to encode differently, a line each
    strips_right: bool = False  # tokens take the white space after them, as those of Phi-3

    def __getitem__(self, key: str) -> Any:
        """The value of a key; KeyError when the file will not have it."""
        for entry in self.entries:
            if entry.key == key:
                return entry.value
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class _Encoder:
    """What turns text into tokens, before the special tokens are known."""

    model: str  # tokenizer.ggml.model
    pre: str
    table: TokenTable
    merges: Sequence[tuple[str, str]] = ()
    scores: Sequence[float] = ()
    space_prefix: bool | None = None
    strips_right: bool = False
    own: Mapping[str, int] = field(default_factory=dict)


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The `tokenizer.*` entries for the tokenizer in `folder` and a model of `config`.

    `Refused` with all reasons when files are missing or contradict each other or `config`, or
    when llama.cpp would encode text otherwise than `tokenizers` does.
    """
    files = read_tokenizer_files(folder)
    findings = Findings()
    size = config.get("vocab_size")
    encoder = _encoder(files, int(size) if size is not None else None, findings)
    raise_if_any(findings.reasons)
    templates = read_chat_templates(folder, files.settings, findings)
    special = special_tokens(
        Sources(files, config, encoder.table.texts, encoder.own, templates), findings
    )
    raise_if_any(findings.reasons)
    entries = [*_encoder_entries(encoder)]
    for name, id in sorted(special.ids.items()):
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        entries.append(Entry(f"tokenizer.ggml.{key}_token_id", id, GGUFValueType.UINT32))
    entries.append(_flag("add_bos_token", special.add_bos))
    entries.append(_flag("add_eos_token", special.add_eos))
    entries += _template_entries(templates)
    return Vocabulary(
        tuple(entries), encoder.table.size, tuple(findings.notes), encoder.strips_right
    )


def model_name(name: str, vocabulary: Vocabulary) -> str:
    """`name`, changed only where llama.cpp would read a rule about tokens out of it.

    llama.cpp lets tokens take the white space after them when, and only when, `general.name`
    contains "phi-3" or "phi3" (src/llama-vocab.cpp, per token attributes), and does not load a
    model of that name without "</s>".
    """
    says = any(mark in name.lower() for mark in ("phi-3", "phi3"))
    if vocabulary.strips_right and not says:
        return f"{name} (phi-3)"
    if says and not vocabulary.strips_right:
        return name.replace("-3", " 3").replace("i3", "i 3").replace("I3", "I 3")
    return name


def _encoder(files: TokenizerFiles, size: int | None, findings: Findings) -> _Encoder:
    if files.definition is None:
        if files.model is None:
            raise refuse(
                f"{files.folder} has neither tokenizer.json nor tokenizer.model", _SAVE_FAST
            )
        return _from_model(files.model, files.added, size, findings)
    _check_loads(files, findings)
    kind = files.definition["model"].get("type")
    if kind != "BPE":
        raise refuse(
            f"tokenizer.json holds a {kind} model; only BPE is supported",
            "a model with a BPE tokenizer (byte-level, or SentencePiece with byte fallback)",
        )
    if is_byte_level(files.definition):
        return _byte_level(files.definition, files.added, size, findings)
    if files.definition["model"].get("byte_fallback"):
        return _pieces(files.definition, files.added, size, findings)
    raise refuse(
        f"unknown pre-tokenizer: {files.definition.get('pre_tokenizer')}, without byte fallback",
        "a BPE tokenizer that is byte-level or has byte fallback",
    )


def _check_loads(files: TokenizerFiles, findings: Findings) -> None:
    """The reference must read the same: `tokenizers` numbers added tokens by its own rule."""
    loaded = load_tokenizer(files.folder / "tokenizer.json", SAVE_AGAIN)
    ids = {token.content: id for id, token in loaded.get_added_tokens_decoder().items()}
    for token in files.added:
        if ids.get(token.text, token.id) != token.id:
            findings.refuse(
                f"added token {token.text!r} has the id {token.id} in tokenizer.json, but "
                f"tokenizers gives it {ids[token.text]}: the ids are not consecutive"
            )


def _byte_level(
    definition: Mapping[str, Any],
    added: Sequence[AddedToken],
    size: int | None,
    findings: Findings,
) -> _Encoder:
    model = definition["model"]
    merges = read_merges(model, findings)
    nfc = check_normalizer(definition, findings)
    pre = pre_tokenizer(definition, merges, {token.text for token in added}, findings)
    check_added(added, nfc_changes(added) if nfc else {}, False, findings)
    table = token_table(byte_level_vocabulary(model, findings), added, size, findings)
    return _Encoder("gpt2", pre, table, merges=merges)


def _pieces(
    definition: Mapping[str, Any],
    added: Sequence[AddedToken],
    size: int | None,
    findings: Findings,
) -> _Encoder:
    model = definition["model"]
    prefix = space_prefix(definition, findings)
    strips = _strips_right(added)
    lead = SPACE if any(_prepends(definition)) else ""
    normalized = {
        token.text: lead + token.text.replace(" ", SPACE) for token in added if not token.special
    }
    check_added(added, normalized, strips, findings)
    # ▁ is no text that anyone types: such tokens stand for spaces, which the merges join.
    joined = [token for token in added if not token.special and SPACE in token.text]
    apart = [token for token in added if token not in joined]
    vocabulary = piece_vocabulary(model, findings)
    table = token_table(vocabulary, apart, size, findings)
    merges = read_merges(model, findings)
    scores = scores_of_merges(merges, table.texts, {token.text for token in apart}, findings)
    if joined:
        findings.notes.append(_MARK_NOTE)
    lost = [token.text for token in joined if token.text not in model["vocab"]]
    if lost:
        findings.refuse(f"added tokens with ▁ that no merge makes: {lost[:4]}")
    return _Encoder(
        "llama", "default", table, scores=scores, space_prefix=prefix, strips_right=strips
    )


def _from_model(
    content: bytes, added: Sequence[AddedToken], size: int | None, findings: Findings
) -> _Encoder:
    model = read_piece_model(content, findings)
    raise_if_any(findings.reasons)
    known = {text: id for id, text in enumerate(model.texts)}
    new = [token for token in added if known.get(token.text) != token.id]
    strips = _strips_right(added)
    check_added(added, {}, strips, findings)
    pieces = dict(enumerate(zip(model.texts, model.kinds, strict=True)))
    table = token_table(pieces, new, size, findings)
    last = min(model.scores, default=0.0) - 1
    scores = [*model.scores, *(last for _ in range(table.size - len(model.scores)))]
    return _Encoder(
        "llama", "default", table, scores=scores, space_prefix=model.space_prefix,
        strips_right=strips, own=model.special,
    )  # fmt: skip


def _strips_right(added: Sequence[AddedToken]) -> bool:
    """True for exactly the rule that llama.cpp has for Phi-3."""
    stripping = {token.text for token in added if token.rstrip}
    expected = {token.text for token in added} - _PHI3_KEEPS_SPACE
    return "</s>" in stripping and stripping == expected


def _prepends(definition: Mapping[str, Any]) -> list[bool]:
    normalizer = definition.get("normalizer") or {}
    return [part.get("type") == "Prepend" for part in normalizer.get("normalizers", ())]


def _encoder_entries(encoder: _Encoder) -> list[Entry]:
    array, text = GGUFValueType.ARRAY, GGUFValueType.STRING
    name = "tokenizer.ggml."
    entries = [
        Entry(name + "model", encoder.model, text),
        Entry(name + "pre", encoder.pre, text),
        Entry(name + "tokens", list(encoder.table.texts), array, text),
    ]
    if encoder.scores:
        entries.append(Entry(name + "scores", list(encoder.scores), array, GGUFValueType.FLOAT32))
    kinds = [int(kind) for kind in encoder.table.kinds]
    entries.append(Entry(name + "token_type", kinds, array, GGUFValueType.INT32))
    if encoder.model == "gpt2":
        merges = [f"{left} {right}" for left, right in encoder.merges]
        entries.append(Entry(name + "merges", merges, array, text))
    if encoder.space_prefix is not None:
        entries.append(_flag("add_space_prefix", encoder.space_prefix))
    return entries


def _template_entries(templates: Mapping[str, str]) -> list[Entry]:
    text = GGUFValueType.STRING
    entries = []
    others = [name for name in templates if name != "default"]
    if others:
        entries.append(
            Entry("tokenizer.chat_templates", others, GGUFValueType.ARRAY, GGUFValueType.STRING)
        )
    for name in others:
        entries.append(Entry(f"tokenizer.chat_template.{name}", templates[name], text))
    if "default" in templates:
        entries.append(Entry("tokenizer.chat_template", templates["default"], text))
    return entries


def _flag(name: str, value: bool) -> Entry:
    return Entry(f"tokenizer.ggml.{name}", value, GGUFValueType.BOOL)
