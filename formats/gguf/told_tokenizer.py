"""The tokenizer in a GGUF file beside the tokenizer.json that it stands for.

The rules are those of tokenizer.json (huggingface/tokenizers) and of llama.cpp's token types
(`include/llama.h`, `llama_token_type`); nothing is taken from the writing side but the table of
pre-tokenizers, where a name stands for expressions that are compiled into llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from qconvert.formats.gguf.pretokenizers import PRE_TOKENIZERS, UnknownStep, canonical_steps
from qconvert.formats.told import Difference

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type
KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user defined", 5: "unused", 6: "byte"}
CULPRIT = "tokenizer"
PREFIX = "tokenizer.ggml."


def tokenizer_differences(keys: Mapping[str, Any], folder: Path) -> Iterator[Difference]:
    """What the keys of a file say otherwise than tokenizer.json in `folder`; nothing where there is
    none, or it is no BPE model."""
    definition = _read(folder / "tokenizer.json")
    model = definition.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping):
        return
    texts = keys.get(f"{PREFIX}tokens")
    if not isinstance(texts, Sequence):
        yield _wrong("the file has no tokens")
        return
    added = [one for one in definition.get("added_tokens") or () if isinstance(one, Mapping)]
    yield from _texts(texts, model, added)
    yield from _kinds(keys.get(f"{PREFIX}token_type"), texts, model, added)
    byte_level = '"ByteLevel"' in json.dumps(definition.get("pre_tokenizer"))
    wanted = "gpt2" if byte_level else "llama"
    if keys.get(f"{PREFIX}model") != wanted:
        found = keys.get(f"{PREFIX}model")
        yield _wrong(f"tokenizer.ggml.model is {found!r}, and the model's tokenizer is {wanted!r}")
    elif byte_level:
        yield from _merges(keys.get(f"{PREFIX}merges"), model)
        yield from _pre_tokenizer(keys.get(f"{PREFIX}pre"), definition)
    else:
        apart = {str(one["content"]) for one in added}
        yield from _scores(keys.get(f"{PREFIX}scores"), texts, model, apart)
        yield from _space(keys.get(f"{PREFIX}add_space_prefix"), definition)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _wrong(problem: str) -> Difference:
    return Difference(CULPRIT, problem, "tokens")


def _texts(
    texts: Sequence[str], model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]
) -> Iterator[Difference]:
    """Tokens that another id has, or none."""
    wanted = {int(id): text for text, id in model["vocab"].items()}
    wanted |= {int(one["id"]): str(one["content"]) for one in added}
    wrong = [id for id, text in wanted.items() if not 0 <= id < len(texts) or texts[id] != text]
    if wrong:
        first = min(wrong)
        held = repr(texts[first]) if 0 <= first < len(texts) else "missing"
        yield _wrong(
            f"{len(wrong)} of {len(wanted)} tokens are not those of the model: {first} is {held},"
            f" and {wanted[first]!r} in the model"
        )


def _kinds(
    kinds: Any, texts: Sequence[str], model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]
) -> Iterator[Difference]:
    """Special tokens that are none in the file, and the other way round."""
    if kinds is None or len(kinds) != len(texts):
        yield _wrong("the file has no type for every token")
        return
    special = {int(one["id"]): bool(one.get("special")) for one in added}
    unknown = model.get("unk_token")
    for id, is_special in special.items():
        if not 0 <= id < len(texts):
            continue
        kind = int(kinds[id])
        shaped = texts[id].startswith(("<|", "<\uff5c")) and texts[id].endswith(("|>", "\uff5c>"))
        right = {CONTROL, UNKNOWN, BYTE} if is_special else {USER_DEFINED, UNKNOWN, BYTE, NORMAL}
        if shaped:
            right = right | {CONTROL}
        if kind not in right:
            said = "special" if is_special else "not special"
            yield _wrong(f"the token {texts[id]!r} is {said} in the model, and"
                         f" {KINDS.get(kind, str(kind))} in the file")  # fmt: skip
    plain = [int(id) for text, id in model["vocab"].items() if text != unknown]
    wrong = [id for id in plain if id < len(texts) and id not in special
             and int(kinds[id]) in (CONTROL, USER_DEFINED, UNUSED, UNKNOWN)]  # fmt: skip
    if wrong:
        said = KINDS[int(kinds[wrong[0]])]
        yield _wrong(f"{len(wrong)} plain tokens are not so in the file: {texts[wrong[0]]!r} is"
                     f" {said}")  # fmt: skip


def _merges(found: Any, model: Mapping[str, Any]) -> Iterator[Difference]:
    wanted: dict[str, None] = {}
    for merge in model.get("merges") or ():
        text = merge if isinstance(merge, str) else " ".join(merge)
        wanted.pop(text, None)  # of two equal ones the later counts
        wanted[text] = None
    held, due = list(found or ()), list(wanted)
    if held == due:
        return
    first = next((i for i, (a, b) in enumerate(zip(held, due, strict=False)) if a != b),
                 min(len(held), len(due)))  # fmt: skip
    shown = [repr(one[first]) if first < len(one) else "missing" for one in (held, due)]
    yield _wrong(f"the file has {len(held)} merges and the model {len(due)}: number {first} is"
                 f" {shown[0]}, and {shown[1]} in the model")  # fmt: skip


def _pre_tokenizer(name: Any, definition: Mapping[str, Any]) -> Iterator[Difference]:
    try:
        steps = canonical_steps(definition.get("pre_tokenizer"))
    except UnknownStep:
        return  # what it does is seen in the runtime only
    right = [row.name for row in PRE_TOKENIZERS if row.steps == steps]
    known = {row.name for row in PRE_TOKENIZERS}
    if not right or name in right:
        return
    if name in known or name in (None, "", "default"):
        yield Difference(
            "pre_tokenizer",
            f"tokenizer.ggml.pre is {name!r}, and the model's pre-tokenizer is {right[0]!r}",
            "tokens",
        )


def _scores(
    scores: Any, texts: Sequence[str], model: Mapping[str, Any], apart: Collection[str]
) -> Iterator[Difference]:
    """Scores must fall as the ranks of merges rise: by them llama.cpp joins. `apart`: tokens that
    are cut out of a text before."""
    if scores is None or len(scores) != len(texts):
        yield _wrong("the file has no score for every token")
        return
    ids = {text: id for id, text in enumerate(texts)}
    first: dict[str, None] = {}
    for merge in model.get("merges") or ():
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if left + right not in apart:
            first.setdefault(left + right)
    ranked = [(text, float(scores[ids[text]])) for text in first if text in ids]
    wrong = [b for (_, a), (b, score) in pairwise(ranked) if score > a]
    if wrong:
        yield _wrong(f"{len(wrong)} tokens have a better score than those that are joined before"
                     f" them, as {wrong[0]!r}")  # fmt: skip


def _space(flag: Any, definition: Mapping[str, Any]) -> Iterator[Difference]:
    """Whether a space is put before a text; llama.cpp does, where nothing is said."""
    text = json.dumps([definition.get("normalizer"), definition.get("pre_tokenizer")])
    pre = definition.get("pre_tokenizer") or {}
    if pre.get("type") == "Metaspace":
        scheme = pre.get("prepend_scheme")
        wanted = scheme != "never" if scheme else bool(pre.get("add_prefix_space", True))
    else:
        wanted = '"Prepend"' in text
    if (flag is None or bool(flag)) != wanted:
        puts = "puts" if wanted else "puts no"
        yield _wrong(f"the model's tokenizer {puts} space before a text, and the file says"
                     " otherwise")  # fmt: skip
