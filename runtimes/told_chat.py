"""Chat templates of an output beside those of its model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from jinja2 import TemplateError

from qconvert.formats.rendering import Renderer
from qconvert.formats.told import Prompts, Told, Turn
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.told_files import DEFAULT, ModelFiles

CULPRIT = "chat_template"
DATE = "26 Jul 2024"  # of templates that ask for one
TALKS: tuple[tuple[Turn, ...], ...] = (
    (("user", "Where does the river rise?"),),
    (("user", "Name three\nbirds."), ("assistant", "Wren, rook, kite."),
     ("user", "And a \u00fcbergro\u00dfe {one}?")),
)  # fmt: skip
SYSTEM = "Answer in {one} word.\nNo more."
_TRAINING = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def chat_findings(told: Told, held: Mapping[str, str] | None, source: ModelFiles) -> list[Finding]:
    """`held`: the templates in the output's own files, where it has files of the model's; the
    format's own, `told.chat_template` and `told.templates`, otherwise."""
    if told.prompts is not None:
        return [Finding("settings", CULPRIT, one) for one in _prompts(told.prompts, source)]
    if not told.holds_chat_template:
        return []
    if held is None:
        default = {} if told.chat_template is None else {DEFAULT: told.chat_template}
        held = {**told.templates, **default}
    return [Finding("settings", CULPRIT, one) for one in _differences(held, source.templates)]


def _differences(held: Mapping[str, str], due: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*due, *held)):
        what = "the chat template" if name == DEFAULT else f"the chat template {name!r}"
        if name not in held:
            yield f"{what} of the model is not in the file"
        elif name not in due:
            yield f"{what} in the file is none of the model's"
        else:
            one, other = _plain(held[name]), _plain(due[name])
            if one != other:
                pairs = enumerate(zip(one, other, strict=False))
                at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
                found, wanted = one[at : at + 24], other[at : at + 24]
                yield (
                    f"{what} in the file is not the model's: from character {at} on it is"
                    f" {found!r}, and {wanted!r} in the model"
                )


def _plain(template: str) -> str:
    """Without {% generation %} marks, which render as what is in them: other programs do not know
    them, so outputs may have a block that is always taken in their place."""

    def taken(match: re.Match[str]) -> str:
        before, end, after = match.groups()
        return f"{{%{before} {'endif' if end else 'if true'} {after}%}}"

    return _TRAINING.sub(taken, template).replace("\r\n", "\n")


def _prompts(prompts: Prompts, source: ModelFiles) -> Iterator[str]:
    """Where conversations come out otherwise than of the model's template."""
    template = source.templates.get(DEFAULT)
    if template is None:
        return
    due = Template(template, source)
    kinds = [(None, prompts.without_system), (SYSTEM, prompts.with_system)]
    for system in (system for system, can_be_said in kinds if can_be_said):
        for talk in TALKS:
            wanted, found = due.render(talk, system), prompts.render(talk, system)
            if wanted is not None and wanted != found:
                which = "without a system message" if system is None else "with a system message"
                text = "nothing" if found is None else repr(found[:80])
                yield (f"a conversation {which} becomes {text} by the file, and {wanted[:80]!r} by"
                       " the model's chat template")  # fmt: skip
                return


class Template:
    """A chat template in jinja's sandbox and a process of its own, with what transformers gives
    it."""

    def __init__(self, text: str, files: ModelFiles) -> None:
        self._text = text
        self._renderers: dict[str | None, Renderer] = {}
        named = {name: files.text_of(name) for name in _SPECIAL}
        self._special = {name: text for name, text in named.items() if text is not None}

    def render(self, turns: Sequence[Turn], system: str | None) -> str | None:
        """With the beginning of an answer; None where the template raises. `Refused` where it does
        not end."""
        messages = [{"role": role, "content": said} for role, said in turns]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        variables = {"messages": messages, "tools": None, "documents": None,
                     "add_generation_prompt": True, **self._special}  # fmt: skip
        for dates in (None, DATE):
            if dates not in self._renderers:
                self._renderers[dates] = Renderer(_plain(self._text), dates)
            try:
                return self._renderers[dates].render(variables)
            except TemplateError:
                continue
        return None
