"""Which tokens begin, end and pad a text, and where generation stops.

The rules are those of transformers (tokenization_utils_tokenizers.py) for what is added to a text,
and of llama.cpp (src/llama-vocab.cpp) for what stops it: llama.cpp stops at the tokens with an id
in the file and at a fixed list of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qconvert.formats.gguf.token_table import Findings
from qconvert.formats.gguf.tokenizer_files import TokenizerFiles

STOPS_BY_TEXT = (
    "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>", "<eos>", "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|return|>", "<|call|>", "<turn|>",
)  # fmt: skip
"""Texts at which llama.cpp stops by itself, the usual ends of a turn first."""

_TURN_ENDS = STOPS_BY_TEXT[:4]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the named tokens ("bos", "eos", "eot", ...) and what is added to every text."""

    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that has a say in the special tokens."""

    files: TokenizerFiles
    config: Mapping[str, Any]
    texts: Sequence[str]  # id -> text
    own: Mapping[str, int]  # what a tokenizer.model says of itself
    templates: Mapping[str, str]


def special_tokens(sources: Sources, findings: Findings) -> SpecialTokens:
    """Decide all ids and both flags; every contradiction is a reason to refuse."""
    ids = {text: id for id, text in enumerate(sources.texts)}
    named = {
        name: id
        for name in ("bos", "eos", "unk", "pad")
        if (id := _named(sources, name, ids, findings)) is not None
    }
    before, after, explicit = _added_around(sources.files, findings)
    add_bos, add_eos = before is not None, after is not None
    if explicit is not None:
        add_bos, add_eos = explicit
    else:
        _agree(named, "bos", before, "before", findings)
        _agree(named, "eos", after, "after", findings)
    if "eos" not in named:
        findings.refuse(
            "no end token: neither tokenizer_config.json nor generation_config.json nor "
            "config.json names one, and llama.cpp would take the token with id 11",
            "set eos_token_id in generation_config.json",
        )
    named |= _stops(sources, named, findings)
    if "bos" not in named and "eos" in named:
        # Without one llama.cpp assumes id 11; it is never added, as add_bos is false.
        named["bos"] = named["eos"]
        add_bos = False
    return SpecialTokens(named, add_bos, add_eos and "eos" in named)


def _named(sources: Sources, name: str, ids: Mapping[str, int], findings: Findings) -> int | None:
    """The id of "bos", "eos", "unk" or "pad": the tokenizer's own word first, then the models'."""
    text = sources.files.text_of(f"{name}_token")
    if text is not None:
        if text not in ids:
            findings.refuse(f"{name}_token {text!r} is not in the vocabulary")
        return ids.get(text)
    if name in sources.own:
        return sources.own[name]
    if name == "unk":
        unknown = ((sources.files.definition or {}).get("model") or {}).get("unk_token")
        return ids.get(unknown) if unknown else None
    for settings in (sources.files.generation, sources.config):
        for id in _id_list(settings.get(f"{name}_token_id")):
            if 0 <= id < len(sources.texts):
                return id
            if name != "pad":
                findings.refuse(
                    f"{name}_token_id {id} is outside the vocabulary of {len(sources.texts)}",
                    "correct it in config.json and generation_config.json",
                )
            break
    return None


def _id_list(value: Any) -> list[int]:
    if value is None or isinstance(value, bool):
        return []
    return [int(value)] if isinstance(value, int | float) else [int(id) for id in value]


def _stops(sources: Sources, named: Mapping[str, int], findings: Findings) -> dict[str, int]:
    """Places ("eot", "eom") for the stop tokens that llama.cpp would not know, or by the turn."""
    key = "eos_token_id"
    listed = _id_list(sources.files.generation.get(key)) or _id_list(sources.config.get(key))
    for id in listed:
        if not 0 <= id < len(sources.texts):
            findings.refuse(
                f"eos_token_id {id} is outside the vocabulary of {len(sources.texts)}",
                "correct it in config.json and generation_config.json",
            )
            return {}
    texts = {id: sources.texts[id] for id in dict.fromkeys(listed) if id != named.get("eos")}
    unnamed = [id for id, text in texts.items() if text not in STOPS_BY_TEXT]
    if len(unnamed) > 2:
        findings.notes.append(
            "llama.cpp can be told of two more stop tokens only; it will not stop at "
            + ", ".join(repr(texts[id]) for id in unnamed[2:])
        )
    places = dict(zip(("eot", "eom"), unnamed, strict=False))
    turn = _turn_end(sources, [*listed, *([named["eos"]] if "eos" in named else [])])
    if turn is not None:
        places.setdefault("eot", turn)
    if "<|eom_id|>" in sources.texts:
        places.setdefault("eom", sources.texts.index("<|eom_id|>"))
    return places


def _turn_end(sources: Sources, stops: Sequence[int]) -> int | None:
    """The token that ends a turn: a stop token of that name, or one that the template writes."""
    template = sources.templates.get("default", "")
    for text in _TURN_ENDS:
        if text in sources.texts:
            id = sources.texts.index(text)
            if id in stops or text in template:
                return id
    return None


def _agree(
    named: dict[str, int], name: str, found: int | None, side: str, findings: Findings
) -> None:
    if found is not None and named.setdefault(name, found) != found:
        findings.refuse(
            f"the post_processor of tokenizer.json puts token {found} {side} the text, "
            f"the {name} token is {named[name]}",
            f"make {name}_token in tokenizer_config.json the token that is put there",
        )


def _added_around(
    files: TokenizerFiles, findings: Findings
) -> tuple[int | None, int | None, tuple[bool, bool] | None]:
    """(id before, id after, both flags where the settings say them outright)."""
    flags = [files.settings.get(f"add_{name}_token") for name in ("bos", "eos")]
    if any(flag is not None for flag in flags):
        return None, None, (bool(flags[0]), bool(flags[1]))
    if files.definition is None:
        return None, None, (True, False)  # a SentencePiece model: Llama's rule
    before: list[int] = []
    after: list[int] = []
    for processor in _processors(files.definition.get("post_processor")):
        pair = _template_ids(processor)
        before, after = pair[0] + before, after + pair[1]
    if len(before) > 1 or len(after) > 1:
        findings.refuse(
            f"the post_processor of tokenizer.json puts {len(before)} tokens before the text and "
            f"{len(after)} after it; llama.cpp can put one",
            "a post_processor with one token before and one after at most",
        )
    return next(iter(before), None), next(iter(after), None), None


def _processors(definition: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if definition and definition.get("type") == "Sequence":
        for part in definition.get("processors", ()):
            yield from _processors(part)
    elif definition:
        yield definition


def _template_ids(processor: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids put before and after a single text."""
    if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        return [int(processor["cls"][1])], [int(processor["sep"][1])]
    before: list[int] = []
    after: list[int] = []
    if processor.get("type") == "TemplateProcessing":
        side = before
        for piece in processor["single"]:
            if "Sequence" in piece:
                side = after
            else:
                token = processor["special_tokens"][piece["SpecialToken"]["id"]]
                side += [int(id) for id in token["ids"]]
    return before, after
