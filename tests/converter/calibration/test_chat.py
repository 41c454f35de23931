"""The model's own template, in a sandbox."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jinja2 import TemplateError

from qconvert.calibration.chat import PIECE, chat_template, rendered
from qconvert.calibration.documents import Document, Turn
from qconvert.calibration.vocabulary import Vocabulary
from qconvert.formats.refusal import Refused

TURNS = (Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "So."))


def vocabulary(**settings: Any) -> Vocabulary:
    return Vocabulary(cast(Any, SimpleNamespace()), (), settings)


def render(folder: Path, template: str, turns: tuple[Turn, ...] = TURNS) -> str:
    known = vocabulary(chat_template=template, bos_token="<s>", eos_token={"content": "</s>"})
    return "|".join(rendered(Document("", turns), chat_template(folder, known)))


def test_special_tokens_and_white_space(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if m.role == 'user' %}\n"
        "[{{ m['content'] }}]{{ eos_token }}\n{% endif %}\n{% endfor %}"
    )
    assert render(tmp_path, template) == "<s>\n[Why?]</s>\n"


def test_a_file_wins_over_the_settings(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert render(tmp_path, "settings") == "file"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    assert chat_template(tmp_path, vocabulary(chat_template=named))(TURNS) == "yes"


def test_what_transformers_adds_to_the_language(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y-%m-%d') }}"
    )
    assert render(tmp_path, template) == '"Be brief.""So."2025-01-01'


def test_system_goes_into_the_first_question_where_it_must(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    assert render(tmp_path, template) == "<user>Be brief.\n\nWhy?<assistant>So."


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ 1 + 'a' }}"],
)
def test_what_a_template_must_not_do_fails(tmp_path: Path, template: str) -> None:
    with pytest.raises(TemplateError):
        render(tmp_path, template)


def test_a_broken_template(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not parse"):
        render(tmp_path, "{% for m in messages %}")


def test_pieces_of_a_text_lose_no_word(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(3000)]
    text = " ".join(f"{word}." if n % 9 == 8 else word for n, word in enumerate(words))
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chats = list(
        rendered(Document(text), chat_template(tmp_path, vocabulary(chat_template=template)))
    )
    assert len(chats) > 10
    assert max(map(len, chats)) < PIECE * 3 // 2
    said = " ".join(chats).replace("Continue this text:", "").replace(".", "").split()
    assert said == words


def test_a_text_without_any_place_to_cut(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats = list(
        rendered(Document("水" * 5000), chat_template(tmp_path, vocabulary(chat_template=template)))
    )
    assert sum(chat.count("水") for chat in chats) == 5000
