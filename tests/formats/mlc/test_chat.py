"""Chat templates in MLC's form: what comes out equal is called so, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from qconvert.formats.mlc.chat import (
    EMPTY_SYSTEM,
    NO_SYSTEM,
    NOT_SAID,
    SYSTEMS,
    TALKS,
    Chat,
    conversation_of,
)
from qconvert.formats.mlc.template import ChatTemplate
from qconvert.formats.mlc.tokenizer import first_tokens, read_tokenizer
from qconvert.formats.refusal import Refused

from .conftest import Model

IDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 3, "<|im_end|>": 4, "<eot>": 5, "a": 6}


@dataclass(frozen=True)
class Case:
    template: str
    notes: tuple[str, ...] = ()
    prefix: tuple[int, ...] = ()
    stops: tuple[int, ...] = (2,)
    thoughts: bool = False


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_USUAL = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
THINKING = CHATML.replace(
    "m['content']",
    "(m['content'].split('</think>')[-1].lstrip('\n')"
    " if m['role'] == 'assistant' and not loop.last else m['content'])",
)
SYSTEM_BLOCK = (  # as Llama 3.1: a system block that is always there, and a date
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}"
    "{% endif %}[system]\n\nToday: {% if strftime_now is defined %}{{ strftime_now('%d') }}"
    "{% else %}26 Jul 2024{% endif %}\n\n{{ said }}<eot>{% for m in rest %}"
    "{{ '[' + m.role + ']\n\n' + m.content | trim + '<eot>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
IN_THE_QUESTION = (  # as Gemma 3
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n'"
    " %}{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{{ '[' + ('model' if m.role == 'assistant' else m.role) + ']\n'"
    " + (said if loop.first else '') + m.content | trim + '<eot>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[model]\n' }}{% endif %}"
)
INSTRUCT = (  # as Mistral: no system message, and an answer that begins with a space
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content +"
    " ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
SYS = (  # as Llama 2
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = false %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}{% set text = '<<SYS>>\n' + said + '\n<</SYS>>\n\n' + m.content"
    " if said and loop.first else m.content %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + text + ' [/INST]' }}{% else %}{{ ' ' + text + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
CASES = {
    "chatml": Case(CHATML, (EMPTY_SYSTEM,), stops=(2, 4)),
    "with a usual system message": Case(WITH_USUAL, stops=(2, 4)),
    "thinking": Case(THINKING, (EMPTY_SYSTEM,), stops=(2, 4), thoughts=True),
    "system block": Case(SYSTEM_BLOCK, prefix=(1,), stops=(2, 5)),
    "system in the question": Case(IN_THE_QUESTION, (EMPTY_SYSTEM,), (1,), (2, 5)),
    "instruct": Case(INSTRUCT, (NO_SYSTEM,), (1,)),
    "sys": Case(SYS, (EMPTY_SYSTEM,)),
}
BEYOND = {
    "numbered": "{% for m in messages %}{{ loop.index ~ ':' ~ m.content }}\n{% endfor %}",
    "backwards": "{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}",
    "shouting": "{% for m in messages %}{{ m.role + ':' + m.content | upper }}\n{% endfor %}",
    "broken": "{% for m in messages %}{{ m.role.no.such }}{% endfor %}",
    "last question alone": "{{ messages[-1].content }}",
}


@pytest.fixture
def chat(model: Callable[..., Model]) -> Callable[..., tuple[Chat, ChatTemplate]]:
    def build(template: str | None, **settings: Any) -> tuple[Chat, ChatTemplate]:
        source = model(eos_token_id=2)
        added = [{"id": id, "content": text} for text, id in IDS.items() if text != "a"]
        (source.folder / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "BPE", "vocab": {"a": 6}, "merges": []},
                        "added_tokens": added, "decoder": {"type": "ByteLevel"}})
        )  # fmt: skip
        texts = {"bos_token": "<s>", "eos_token": "</s>"}
        given = {} if template is None else {"chat_template": template}
        (source.folder / "tokenizer_config.json").write_text(
            json.dumps({**texts, **given, **settings})
        )
        found = conversation_of(source, read_tokenizer(source))
        return found, ChatTemplate(template or "", texts)

    return build


def prompt(fields: dict[str, Any], talk: Sequence[tuple[str, str]], system: str | None) -> str:
    """MLC's `Conversation.as_prompt`, from the fields of the file alone."""
    seps = fields["seps"] * 2 if len(fields["seps"]) == 1 else fields["seps"]
    message = fields["system_message"] if system is None else system
    parts = [fields["system_template"].replace("{system_message}", message)]
    for index, (role, said) in enumerate(talk):
        begins = fields["roles"][role] + fields["role_content_sep"]
        if not fields["add_role_after_system_message"] and parts[0] and index == 0:
            begins = ""
        if fields["strip_reasoning_in_history"] and role == "assistant":
            said = said.split("</think>")[-1].lstrip("\n")
        text = fields["role_templates"][role].replace(f"{{{role}_message}}", said)
        parts.append(begins + text + seps[role == "assistant"])
    return "".join([*parts, fields["roles"]["assistant"] + fields["role_empty_sep"]])


@pytest.mark.parametrize("name", CASES)
def test_conversations_come_out_as_the_models_own(
    name: str, chat: Callable[..., tuple[Chat, ChatTemplate]]
) -> None:
    case = CASES[name]
    found, template = chat(case.template)
    fields = found.conversation.fields()
    assert found.notes == case.notes
    assert tuple(fields.get("system_prefix_token_ids", ())) == case.prefix
    assert tuple(fields["stop_token_ids"]) == case.stops
    assert fields["strip_reasoning_in_history"] == case.thoughts
    begin = "<s>" if case.prefix else ""
    systems: list[str | None] = [None] * (EMPTY_SYSTEM not in case.notes)
    systems += [*SYSTEMS] if NO_SYSTEM not in case.notes else []
    assert systems
    for talk in TALKS:
        for system in systems:
            assert begin + prompt(fields, talk, system) == template.render(talk, system)


@pytest.mark.parametrize("name", BEYOND)
def test_what_mlc_cannot_say_is_plain_text_and_told(
    name: str, chat: Callable[..., tuple[Chat, ChatTemplate]]
) -> None:
    found, _ = chat(BEYOND[name])
    assert found.notes == (NOT_SAID,)
    fields = found.conversation.fields()
    assert fields["name"] == "LM"
    assert prompt(fields, TALKS[0], None) == "Hello"


def test_no_template_is_plain_text(chat: Callable[..., tuple[Chat, ChatTemplate]]) -> None:
    found, _ = chat(None, add_bos_token=True)
    assert "no chat template" in found.notes[0]
    assert found.conversation.fields()["system_prefix_token_ids"] == [1]
    assert "system_prefix_token_ids" not in chat(None)[0].conversation.fields()
    assert list(first_tokens({"post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [1]}}}]}})) == [1]  # fmt: skip


def test_a_template_that_does_not_parse_is_refused(
    chat: Callable[..., tuple[Chat, ChatTemplate]],
) -> None:
    with pytest.raises(Refused, match="does not parse"):
        chat("{% for x in y %}")


def test_templates_cannot_reach_out() -> None:
    reach = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    assert reach.render(TALKS[0]) is None


def test_a_date_is_the_same_on_any_day() -> None:
    asked = ChatTemplate("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}", {})
    assert asked.render(TALKS[0]) == "26 Jul 2024Hello"


def test_an_end_that_is_no_token_is_a_text(
    chat: Callable[..., tuple[Chat, ChatTemplate]],
) -> None:
    found, _ = chat("{% for m in messages %}{{ m.role + ': ' + m.content + ' ###\n' }}{% endfor %}"
                    "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    assert found.conversation.stop_texts == ("###",)
    assert found.conversation.stop_ids == (2,)
