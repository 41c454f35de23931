"""A model's own chat template, rendered in jinja2's sandbox as transformers renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import TemplateError

from qconvert.formats.gguf.chat import read_chat_templates
from qconvert.formats.gguf.token_table import Findings
from qconvert.formats.mlc.conversation import Turn
from qconvert.formats.mlc.tokenizer import Tokenizer
from qconvert.formats.refusal import raise_if_any
from qconvert.formats.rendering import Renderer

_DATE = "26 Jul 2024"
"""The same on any day: the same input gives the same bytes."""
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """`render` is None-safe: what a template does not take comes out as None."""

    source: str
    special: Mapping[str, str]  # "bos_token" -> its text
    _renderers: dict[str | None, Renderer] = field(default_factory=dict, repr=False, compare=False)

    def render(
        self, turns: Sequence[Turn], system: str | None = None, *, ask: bool = True
    ) -> str | None:
        """The text of a conversation; None where the template raises, whatever it raises. `Refused`
        where it does not end."""
        messages = [{"role": role, "content": said} for role, said in turns]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        variables = {"messages": messages, "tools": None, "documents": None,
                     "add_generation_prompt": ask, **self.special}  # fmt: skip
        for dates in (None, _DATE):  # most have a date of their own where none is
            if dates not in self._renderers:
                self._renderers[dates] = Renderer(self.source, dates)
            try:
                return self._renderers[dates].render(variables)
            except TemplateError:
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
