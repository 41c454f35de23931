"""A model's own chat template, rendered in jinja2's sandbox as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qconvert.formats.gguf.chat import read_chat_templates
from qconvert.formats.gguf.token_table import Findings
from qconvert.formats.mlc.conversation import Turn
from qconvert.formats.mlc.tokenizer import Tokenizer
from qconvert.formats.refusal import raise_if_any

_DATE = "26 Jul 2024"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`render` is None-safe: what a template does not take comes out as None."""

    source: str
    special: Mapping[str, str]  # "bos_token" -> its text

    def render(
        self, turns: Sequence[Turn], system: str | None = None, *, ask: bool = True
    ) -> str | None:
        """The text of a conversation; None where the template raises, whatever it raises."""
        messages = [{"role": role, "content": said} for role, said in turns]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        for names in ({}, {"strftime_now": _date}):  # most have a date of their own where none is
            try:
                return str(
                    _environment(names).from_string(self.source).render(
                        messages=messages, tools=None, documents=None,
                        add_generation_prompt=ask, **self.special,
                    )
                )  # fmt: skip
            except Exception:
                continue
        return None


def read_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template named "default"; `Refused` when one is there and does not parse."""
    findings = Findings()
    found = read_chat_templates(tokenizer.files.folder, tokenizer.files.settings, findings)
    raise_if_any(findings.reasons)
    if "default" not in found:
        return None
    texts = {name: tokenizer.files.text_of(name) for name in _SPECIAL}
    return ChatTemplate(found["default"], {name: text for name, text in texts.items() if text})


def _environment(names: Mapping[str, Any]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _fail, **names}
    return environment


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _fail(message: str) -> NoReturn:
    raise TemplateError(message)


def _date(_: str) -> str:
    """The same on any day: the same input gives the same bytes."""
    return _DATE
