"""The text that ships: what it must be, whatever is added to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qconvert.calibration import mix
from qconvert.calibration.mix import default_mix

DATA = Path(mix.__file__).parent / "data"


def test_all_kinds_have_enough() -> None:
    characters: Counter[str] = Counter()
    for document in default_mix():
        characters[document.kind] += document.characters
    assert set(characters) == {"chat", "code", "knowledge", "languages", "prose", "technical"}
    assert min(characters.values()) > 20_000
    assert sum(path.stat().st_size for path in DATA.glob("*.jsonl")) < 600_000


def test_it_is_clean() -> None:
    texts = [one.text or "\n".join(turn.content for turn in one.turns) for one in default_mix()]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == text.strip("\n").rstrip()
        assert 80 < len(text) < 4000
        assert "\ufffd" not in text
        assert "\r" not in text
        assert "utenberg" not in text
        assert "All rights reserved" not in text


def test_no_line_is_boilerplate() -> None:
    """Lines of some length that come back in one piece after another would be learned by heart."""
    seen: Counter[str] = Counter()
    for document in default_mix():
        seen.update({line.strip() for line in document.text.splitlines() if len(line.strip()) > 60})
    assert max(seen.values()) <= 4, seen.most_common(5)


def test_chats_alternate() -> None:
    chats = [one for one in default_mix() if one.turns]
    assert len(chats) >= 40
    for chat in chats:
        roles = [turn.role for turn in chat.turns]
        roles = roles[1:] if roles[0] == "system" else roles
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_every_file_has_its_licence() -> None:
    told = (DATA / "LICENSE.md").read_text("utf-8")
    assert [path.name for path in DATA.glob("*.jsonl") if f"`{path.name}`" not in told] == []
