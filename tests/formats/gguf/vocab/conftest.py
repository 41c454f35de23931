"""Small real tokenizers, and llama.cpp's own tokenizer on the file that they become."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from qconvert.formats.gguf.vocab import Vocabulary, read_vocabulary
from qconvert.runtimes.parity import Mismatch, compare, parity_strings

SPACE = "\u2581"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class LlamaVocab:
    """A vocabulary as llama.cpp loads it from a file without tensors."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, "llama.cpp does not load the vocabulary"
        self.vocab: Any = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, special: bool = True, add: bool = False) -> list[int]:
        content = text.encode()
        size = 2 * len(content) + 16
        out = (self.api.llama_token * size)()
        count = self.api.llama_tokenize(self.vocab, content, len(content), out, size, add, special)
        assert count >= 0
        return list(out[:count])

    def stops_at(self, id: int) -> bool:
        return bool(self.api.llama_vocab_is_eog(self.vocab, id))

    def close(self) -> None:
        self.api.llama_model_free(self.model)


@dataclass
class Builder:
    """Writes tokenizer folders, and opens them in llama.cpp."""

    folder: Path
    opened: list[LlamaVocab] = field(default_factory=list)

    def write(
        self,
        definition: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        **files: str | Mapping[str, Any],
    ) -> Path:
        texts = {"tokenizer.json": definition, "tokenizer_config.json": settings or {}}
        texts |= {name.replace("__", "."): content for name, content in files.items()}
        for name, content in texts.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (self.folder / name).write_text(text, encoding="utf-8")
        return self.folder

    def open(self, vocabulary: Vocabulary, name: str = "tiny") -> LlamaVocab:
        path = self.folder / f"{len(self.opened)}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(name)
        for entry in vocabulary.entries:
            if entry.sub_kind is None:
                writer.add_key_value(entry.key, entry.value, entry.kind)
            else:
                writer.add_array(entry.key, entry.value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.opened.append(LlamaVocab(path))
        return self.opened[-1]

    def differences(
        self,
        folder: Path,
        config: Mapping[str, Any],
        strings: Sequence[str] | None = None,
        *,
        add: bool = False,
        name: str = "tiny",
    ) -> tuple[Vocabulary, list[Mismatch], int]:
        """(vocabulary, texts that `tokenizers` and llama.cpp encode differently, how many)."""
        vocabulary = read_vocabulary(folder, config)
        llama = self.open(vocabulary, name)
        ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = [token.content for token in ours.get_added_tokens_decoder().values()]
        texts = parity_strings(special) if strings is None else list(strings)
        found = compare(
            lambda text: ours.encode(text, add_special_tokens=add).ids,
            lambda text: llama.encode(text, add=add),
            texts,
        )
        return vocabulary, found, len(texts)


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    made = Builder(tmp_path)
    yield made
    for llama in made.opened:
        llama.close()


def added(id: int, text: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    entry = {"id": id, "content": text, "special": special}
    return {**entry, **{name: flags.get(name, False) for name in names}}


def pre_tokenizer(steps: Sequence[str]) -> dict[str, Any]:
    """The definition in tokenizer.json of canonical steps."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts: list[dict[str, Any]] = []
    for step in steps:
        if step in ("gpt2", "bytes"):
            parts.append({**byte_level, "use_regex": step == "gpt2"})
        elif step.startswith("digit"):
            parts.append({"type": "Digits", "individual_digits": step == "digits one by one"})
        elif step == "punctuation runs":
            parts.append({"type": "Punctuation", "behavior": "Contiguous"})
        else:
            pattern = {"Regex": step.removeprefix("split ")}
            parts.append(
                {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            )
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def definition(
    model: Mapping[str, Any], pre: Mapping[str, Any] | None, **parts: Any
) -> dict[str, Any]:
    """A whole tokenizer.json with the special tokens after the vocabulary."""
    size = len(model["vocab"])
    absent = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokens = [added(size + at, text) for at, text in enumerate(SPECIAL)]
    whole = {"version": "1.0", **absent, "added_tokens": tokens, "pre_tokenizer": pre}
    return {**whole, "model": dict(model), **parts}


def trained(pre: Mapping[str, Any], size: int = 2500) -> dict[str, Any]:
    """A byte-level BPE model trained with this pre-tokenizer on a mix of scripts and code."""
    empty = definition({"type": "BPE", "vocab": {}, "merges": []}, pre, added_tokens=[])
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=ByteLevel.alphabet(), show_progress=False,
        max_token_length=16,
    )  # fmt: skip
    tokenizer.train_from_iterator(parity_strings([], seed=7), trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def every_pair() -> dict[str, Any]:
    """Merges of every two bytes: any difference in where a text is cut changes the tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [(left, right) for left in alphabet for right in alphabet]
    vocabulary = {text: id for id, text in enumerate([*alphabet, *map("".join, merges)])}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    model: dict[str, Any] = json.loads(built.to_str())["model"]
    return model


def pieces(user_defined: Sequence[str] = (), size: int = 2500) -> dict[str, Any]:
    """A byte-fallback BPE model as SentencePiece makes them: every way to make a token is a merge.

    Vocabulary order: unknown, begin, end, bytes, `user_defined`, then by score.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, max_token_length=12, limit_alphabet=600
    )
    texts = (text.replace(" ", SPACE) for text in parity_strings([], seed=7))
    words = (word for text in texts for word in re.findall(f"{SPACE}*[^{SPACE}]+", text))
    tokenizer.train_from_iterator(words, trainer)
    learnt = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    scores = {text: 0.0 for text in user_defined}
    scores |= {text: -float(id) for text, id in learnt if text not in scores}
    texts_in_order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores]
    vocabulary = {text: id for id, text in enumerate(texts_in_order)}
    splits = [
        (score, at, len(text) - at, text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    splits.sort(key=lambda split: split[:3], reverse=True)
    return {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
        "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary,
        "merges": [[left, right] for *_, left, right in splits],
    }  # fmt: skip


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The functions above: test files cannot import a conftest."""
    return SimpleNamespace(
        added=added, pre_tokenizer=pre_tokenizer, definition=definition,
        trained=functools.cache(lambda *steps: trained(pre_tokenizer(steps))),
        every_pair=functools.cache(every_pair), pieces=functools.cache(pieces),
    )  # fmt: skip
