"""Tokenizer, tokens, template and generation settings as Hugging Face folders keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planting.files import Files, Inapplicable
from planting.output import CUT_AS_IT_WAS, Culprits, Vocabulary

TOKENIZER, ITS_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
TEXT = ("tokenizer", TOKENIZER)


def edit_tokenizer(files: Files, change: Callable[[Vocabulary], None]) -> Culprits:
    def rewrite(content: Any) -> None:
        model = content["model"]
        ids: dict[str, int] = model["vocab"]
        listed = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
        added = {int(one["id"]): bool(one["special"]) for one in content["added_tokens"]}
        seen = Vocabulary(sorted(ids, key=ids.__getitem__), listed, added, CUT_AS_IT_WAS)
        change(seen)
        if len(seen.tokens) == len(ids):
            model["vocab"] = {token: number for number, token in enumerate(seen.tokens)}
        pairs = bool(model["merges"]) and isinstance(model["merges"][0], list)
        model["merges"] = [m.split(" ") for m in seen.merges] if pairs else seen.merges
        for one in content["added_tokens"]:
            one["special"] = seen.special[int(one["id"])]
        if seen.cut != CUT_AS_IT_WAS:
            content["pre_tokenizer"] = _otherwise()

    files.edit_json(TOKENIZER, rewrite)
    return (*TEXT, "pre_tokenizer", "vocabulary", "merges", "special tokens")


def _otherwise() -> dict[str, Any]:
    """Llama 3's cutting of text, numbers by three, before the bytes."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [split, level]}


def edit_token(files: Files, key: str, value: Any) -> Culprits:
    """In every file that says it: config.json, generation_config.json, tokenizer_config.json."""
    touched = 0
    for name in ("config.json", GENERATION, ITS_CONFIG):
        if files.has(name) and key in files.json(name):
            files.edit_json(name, lambda content: content.update({key: value}))
            touched += 1
    if not touched:
        if not key.startswith("add_"):
            raise Inapplicable(f"no file says {key}")
        files.edit_json(ITS_CONFIG, lambda content: content.update({key: value}))
    return (key, "tokenizer", "config.json", GENERATION, ITS_CONFIG)


def edit_template(files: Files, text: str | None) -> Culprits:
    if files.has(TEMPLATE):
        files.remove(TEMPLATE) if text is None else files.write(TEMPLATE, text.encode())
    else:

        def change(content: Any) -> None:
            if content.pop("chat_template", None) is None:
                raise Inapplicable("there is no chat template")
            content.update({} if text is None else {"chat_template": text})

        files.edit_json(ITS_CONFIG, change)
    return ("chat_template", TEMPLATE, ITS_CONFIG)


def edit_generation(files: Files, key: str, value: Any) -> Culprits:
    def change(content: Any) -> None:
        if key not in content:
            raise Inapplicable(f"{GENERATION} does not say {key}")
        content.update({key: value})
        if value is None:
            del content[key]

    files.edit_json(GENERATION, change)
    return (key, "generation", GENERATION)
