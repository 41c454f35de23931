"""Do two tokenizers agree? Strings that tell them apart, and the comparison."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

_WORDS = (
    "the", "The", "THE", "don't", "DON'T", "we'll", "We'LL", "I'm", "they've", "you're", "he'd",
    "'s", "'S", "'tis", "rock'n'roll", "naïve", "Ångström", "straße", "ÉCOLE", "éÉ", "camelCase",
    "HTTPServer", "snake_case", "kebab-case", "x2", "3D", "Привет", "мир", "Ελληνικά", "ǅ", "ﬁn",
    "你好", "世界", "日本語", "カタカナ", "ひらがな", "한국어", "안녕", "مرحبا", "שלום", "नमस्ते",
    "ভাষা", "ภาษาไทย", "ქართული", "ខ្មែរ", "Việt", "İstanbul", "₂", "½", "Ⅷ", "①", "٣٤٥", "१२३",
)  # fmt: skip
_MARKS = (
    ".", ",", "!", "?", ":", ";", "...", "--", "—", "(", ")", "[", "]", "{", "}", "<", ">", "/",
    "\\", "|", "@", "#", "$", "%", "^", "&", "*", "=", "==", "!=", "->", "+", "~", "`", "```", '"',
    "“", "”", "'", "€", "£", "¿", "«", "»", "…", "。", "、", "\uff01", "《", "※", "→", "∑", "™",
)  # fmt: skip
_SPACES = (
    " ", "  ", "   ", "    ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", "\t ", " \t", "\n", "\n\n",
    "\n\n\n", "\r\n", "\r", "\r\n\r\n", " \n", "\n ", "\n    ", " \n \n", "\t\n", "\v", "\f",
    "\u00a0", "\u2003", "\u200b", "\u2028", "\u3000", "\u0085", "\ufeff",
)  # fmt: skip
_EMOJI = (
    "😀", "😀😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇩🇪🇫🇷", "❤️", "1️⃣", "🧑🏿‍🚀", "☺", "🦙", "🫠",
)  # fmt: skip
_ACCENTS = ("e\u0301", "a\u0308\u0323", "\u0301", "n\u0303o", "\u1112\u1161\u11ab", "q\u0307\u0323")
_CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    'int main(void) {\n\tprintf("%d\\n", 0x1F);\n\treturn 0;\n}\n',
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10.50;",
    '{"key": [1, 2.5e-3, null], "nested": {"a": "\\u00e9"}}',
    "<div class='x'>&nbsp;</div><!-- note -->",
    "if (a && b || !c) { x += y[i++]; }",
    "https://example.org/a/b?c=d&e=%20f#g",
    "for i in $(seq 1 10); do echo $i; done",
    "```python\nprint('hi')\n```\n\n- one\n- two\n",
)
_RANGES = (
    (0x20, 0x7F), (0x20, 0x7F), (0xA1, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
    (0xE01, 0xE5B), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2010, 0x205E), (0x2190, 0x23FF),
    (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1F300, 0x1F64F),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A text that the two sides encode differently."""

    text: str
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def position(self) -> int:
        """Index of the first token that differs."""
        pairs = zip(self.a, self.b, strict=False)
        return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(self.a), len(self.b)))


def compare(
    tokenize_a: Callable[[str], Sequence[int]],
    tokenize_b: Callable[[str], Sequence[int]],
    strings: Iterable[str],
) -> list[Mismatch]:
    """Every string that the two encode differently, in order."""
    found = []
    for text in strings:
        a, b = tuple(tokenize_a(text)), tuple(tokenize_b(text))
        if a != b:
            found.append(Mismatch(text, a, b))
    return found


def parity_strings(special_tokens: Sequence[str], seed: int = 0) -> list[str]:
    """Some 4,000 distinct texts: each special token alone and embedded, white space, digits,
    contractions, emoji, many scripts, accents, code, random mixtures. Same seed, same list."""
    rng = random.Random(seed)
    texts = [*_fixed(), *_around(special_tokens), *_mixed(rng, special_tokens, 2200)]
    texts += _random_characters(rng, 700)
    return list(dict.fromkeys(text for text in texts if text))


def _fixed() -> Iterator[str]:
    for group in (_WORDS, _MARKS, _SPACES, _EMOJI, _ACCENTS, _CODE):
        yield from group
    for piece in (*_SPACES, *_MARKS):
        yield from (f"a{piece}b", f"{piece}a", f"a{piece}", f"a {piece}b", f"1{piece}2", piece * 3)
    for length in range(1, 18):
        digits = ("1234567890" * 2)[:length]
        yield from (
            digits,
            f" {digits}",
            f"{digits} {digits}",
            f"a{digits}b",
            f"-{digits}.{digits}",
        )
    for suffix in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'x", "'"):
        for text in (suffix, suffix.upper(), suffix.title()):
            yield from (f"it{text} so", f"IT{text}", f"日{text}", f"3{text}", f" {text} {text}")


def _around(special_tokens: Sequence[str]) -> Iterator[str]:
    for token in special_tokens:
        yield from (
            token, f"a{token}b", f"a {token} b", f"\n{token}\n", f"{token}{token}", f" {token}",
            f"{token} x", token[:-1], token[1:], f"{token}user\nHi.{token}\n",
        )  # fmt: skip


def _mixed(rng: random.Random, special_tokens: Sequence[str], count: int) -> Iterator[str]:
    """Pieces of all kinds in a row, with and without spaces between."""
    kinds: list[Sequence[str]] = [_WORDS, _WORDS, _MARKS, _SPACES, _EMOJI, _ACCENTS, _CODE]
    kinds += [special_tokens] if special_tokens else []
    for _ in range(count):
        joint = rng.choice(("", "", " "))
        pieces = []
        for _ in range(rng.randint(2, 9)):
            if rng.random() < 0.15:
                pieces.append(str(rng.randrange(10 ** rng.randint(1, 12))))
            else:
                pieces.append(rng.choice(rng.choice(kinds)))
        yield joint.join(pieces)


def _random_characters(rng: random.Random, count: int) -> Iterator[str]:
    """Letters of one or several scripts at random: long known, none of them unassigned."""
    for _ in range(count):
        ranges = rng.sample(_RANGES, rng.randint(1, 3))
        size = rng.randint(1, 24)
        drawn = (chr(rng.randrange(*rng.choice(ranges))) for _ in range(size))
        yield "".join(char for char in drawn if char.isprintable())
