"""Tokens and settings of generation that an output names, beside those of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qconvert.formats.told import Told
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.told_files import ModelFiles
from qconvert.runtimes.told_model import alike, shown

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
OF_MODEL = ("bos_token_id", "pad_token_id")
FLAGS = ("add_bos_token", "add_eos_token")
STOPS = "eos_token_id"
UNSAID: Mapping[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0,
    "num_beams": 1, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""What generation is like where generation_config.json does not say (transformers, vLLM, MLC)."""


def token_findings(told: Told, source: ModelFiles) -> Iterator[Finding]:
    """Of `Told.tokens`; what the source does not say is not compared."""
    for name in NAMED:
        if name in told.tokens:
            yield from _named(name, told.tokens[name], source)
    for name in OF_MODEL:
        due = source.ids_of_model(name)
        if name in told.tokens and due and told.tokens[name] != due[0]:
            yield _otherwise(name, told.tokens[name], due[0])
    if STOPS in told.tokens:
        yield from _stops(tuple(told.tokens[STOPS] or ()), told, source)
    due_flags = _flags(source)
    for name in FLAGS:
        if name in told.tokens and due_flags.get(name) is not None:
            held = bool(told.tokens[name])
            if held != due_flags[name]:
                yield _otherwise(name, held, due_flags[name])


def generation_findings(told: Told, source: ModelFiles) -> Iterator[Finding]:
    """Of `Told.generation`, beside generation_config.json and what holds where it is silent."""
    for name, held in told.generation.items():
        said = source.generation.get(name)
        others = () if said is not None else (source.config.get(name), UNSAID.get(name))
        known = [one for one in (said, *others) if one is not None]
        if not known or any(alike(held, one) for one in known):
            continue
        due = known[0]
        if name.endswith("_token_id"):
            yield _otherwise(name, held, due)
        else:
            problem = f"{name} is {shown(held)} in the file and {shown(due)} in the model"
            yield Finding("settings", name, f"generation: {problem}")


def _otherwise(name: str, held: Any, due: Any) -> Finding:
    said = "not in the file" if held is None else f"{shown(held)} in the file"
    return Finding("settings", name, f"{name} is {said} and {shown(due)} in the model")


def _named(name: str, held: Any, source: ModelFiles) -> Iterator[Finding]:
    """The tokenizer's own word comes first, then the model's."""
    own, key = source.id_of(name), f"{name}_id"
    due = (own,) if own is not None else source.ids_of_model(key)
    if own is None and source.text_of(name) is not None:
        return  # the tokenizer does not know the token that it names
    if due and held not in due:
        yield _otherwise(key, held, due[0])


def _stops(held: tuple[int, ...], told: Told, source: ModelFiles) -> Iterator[Finding]:
    due = source.stops
    missing = [one for one in due if one not in held]
    if missing and (STOPS not in told.full or len(missing) == len(due)):
        yield _otherwise(STOPS, held or None, due)
    elif due:
        extra = [one for one in held if one not in due and not _is_marker(one, source)]
        if extra:
            yield _otherwise(STOPS, held, due)


def _is_marker(token: int, source: ModelFiles) -> bool:
    """Whether a token is no plain text, so that formats may stop there, too: ends of turns."""
    if source.tokenizer is None or source.id_of("eos_token") == token:
        return True
    if not 0 <= token < 1 << 32:
        return False
    text = source.tokenizer.id_to_token(token)
    special = source.tokenizer.get_added_tokens_decoder()
    return token in special or (text is not None and text.endswith((">", "]")))


def _flags(source: ModelFiles) -> dict[str, bool | None]:
    """What is put around a text: the settings where they say so outright, else what the tokenizer
    does. Where only one of the two is set, transformers' versions differ about the other."""
    said = {name: source.settings.get(name) for name in FLAGS}
    if any(one is not None for one in said.values()):
        known = {name: source.id_of(name.removeprefix("add_")) is not None for name in FLAGS}
        return {name: None if one is None or (one and not known[name]) else bool(one)
                for name, one in said.items()}  # fmt: skip
    around = source.added_around()
    if around is None:
        return {}
    return dict(zip(FLAGS, around, strict=True))
