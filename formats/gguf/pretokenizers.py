"""Which pre-tokenizer of llama.cpp a definition in tokenizer.json stands for: data, no guesses.

A definition is brought to a canonical tuple of steps and looked up. llama.cpp knows each
pre-tokenizer by a name (`tokenizer.ggml.pre`) that stands for regular expressions compiled into
it (llama.cpp, src/llama-vocab.cpp); each row here is proved by encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_DEEPSEEK_MARKS = r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)


def _any(*alternatives: str) -> str:
    return "split " + "|".join(alternatives)


_GPT4O = (
    _any(
        *(word + _CONTRACTIONS + "?" for word in _CASED),
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _SPACES,
    ),
    "bytes",
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A name of llama.cpp, the definitions it stands for, and where it still differs."""

    name: str  # tokenizer.ggml.pre
    steps: tuple[str, ...]  # canonical, as `canonical_steps` gives them
    ignore_merges: bool = False  # llama.cpp takes a whole word from the vocabulary under this name
    apart: Literal["", "two digits", "digit and other"] = ""  # what no merge may join
    note: str = ""  # a difference that is known and small


_TEKKEN_NOTE = (
    "llama.cpp's version of this pre-tokenizer leaves combining marks out of words and knows upper "
    "and lower case of a-z alone: text in scripts with combining marks (Hindi, Thai, separate "
    "accents) is cut elsewhere"
)
_CASE_NOTE = (
    "llama.cpp's version of this pre-tokenizer knows upper and lower case of a-z alone: words with "
    "other capitals in them may be cut elsewhere"
)
_SPACE_NOTE = (
    "llama.cpp's version of this pre-tokenizer takes white space beyond ASCII for plain spaces: "
    "text with such spaces may be cut elsewhere"
)

PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", ("gpt2",)),
    PreTokenizer("smollm", ("digits one by one", "gpt2")),
    PreTokenizer(
        "llama-bpe",
        (_any(_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES), "bytes"),
        ignore_merges=True,
    ),
    PreTokenizer(
        "smaug-bpe", (_any(_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES), "bytes")
    ),
    PreTokenizer("qwen2", (_any(_CONTRACTIONS, _WORD, r"\p{N}", _SYMBOLS, _SPACES), "bytes")),
    PreTokenizer(
        "qwen35",
        (
            _any(
                _CONTRACTIONS,
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                _SPACES,
            ),
            "bytes",
        ),
    ),
    PreTokenizer(
        "seed-coder",
        (_any(_CONTRACTIONS, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES), "bytes"),
    ),
    PreTokenizer(
        "tekken",
        (_any(*_CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES), "bytes"),
        ignore_merges=True,
        note=_TEKKEN_NOTE,
    ),
    # The name "gpt-4o" itself leaves combining marks out of words; this one does not.
    PreTokenizer("granite-embed-multi-97m", _GPT4O, ignore_merges=True, note=_CASE_NOTE),
    PreTokenizer("gpt-4o", _GPT4O, note=_TEKKEN_NOTE),
    PreTokenizer(
        "deepseek-llm",
        (
            r"split [\r\n]",
            "split " + _DEEPSEEK_LETTERS,
            "split " + _DEEPSEEK_MARKS,
            r"split \s+$",
            "split " + _CJK,
            "digits one by one",
            "bytes",
        ),
        apart="two digits",  # llama.cpp cuts at runs of digits only
        note=_SPACE_NOTE,
    ),
    PreTokenizer(
        "deepseek-coder",
        (
            r"split [\r\n]",
            r"split \s?\p{L}+",
            r"split \s?\p{P}+",
            "split " + _CJK,
            "digits one by one",
            "bytes",
        ),
        note=_SPACE_NOTE,
    ),
    PreTokenizer(
        "deepseek-v3",
        (
            r"split \p{N}{1,3}",
            "split [\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            "split "
            + r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
            + _SPACES,
            "bytes",
        ),
    ),
    PreTokenizer(
        "falcon",
        ("punctuation runs", "gpt2", "digit runs", "split [0-9][0-9][0-9]"),
        apart="digit and other",  # `tokenizers` cuts there too, in the alphabet of bytes
    ),
)
"""Every known definition; the first of two with equal steps is taken when both serve."""


class UnknownStep(Exception):
    """A step of a pre-tokenizer that has no canonical form here; says which."""


def canonical_steps(definition: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The steps of a `pre_tokenizer` definition in one notation; `UnknownStep` for others."""
    steps = tuple(_steps(definition)) if definition else ()
    # The last byte step says nothing new after another that already turned text into bytes.
    return tuple(step for at, step in enumerate(steps) if step != "bytes" or "gpt2" not in steps)


def matching(steps: tuple[str, ...]) -> tuple[PreTokenizer, ...]:
    """The rows of the table with these steps; empty when llama.cpp has no such pre-tokenizer."""
    return tuple(row for row in PRE_TOKENIZERS if row.steps == steps)


def _steps(definition: Mapping[str, Any]) -> Iterator[str]:
    kind = definition.get("type")
    if kind == "Sequence":
        for part in definition.get("pretokenizers", ()):
            yield from _steps(part)
    elif kind == "ByteLevel":
        if definition.get("add_prefix_space", True):
            raise UnknownStep("ByteLevel with add_prefix_space: true")
        yield "gpt2" if definition.get("use_regex", True) else "bytes"
    elif kind == "Digits":
        yield "digits one by one" if definition.get("individual_digits") else "digit runs"
    elif kind == "Punctuation" and definition.get("behavior") == "Contiguous":
        yield "punctuation runs"
    elif kind == "Split":
        yield _split(definition)
    else:
        raise UnknownStep(f"{kind} {dict(definition)}")


def _split(definition: Mapping[str, Any]) -> str:
    pattern = definition.get("pattern") or {}
    regex = pattern.get("Regex") or re.escape(pattern.get("String", ""))
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")  # written either way in the wild
    how = (definition.get("behavior"), bool(definition.get("invert")))
    # Removing what does not match keeps the matches: the same where every character matches,
    # which the last alternatives of a pattern show.
    total = regex.endswith(r"\s+(?!\S)|\s+") and r"[^\s\p{L}" in regex
    if how == ("Isolated", False) or (how == ("Removed", True) and total):
        return f"split {regex}"
    raise UnknownStep(f"Split with behavior {how[0]}, invert {how[1]}, pattern {regex}")
