"""Documents as the model sees them in a chat: through its own template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jinja2 import TemplateError

from qconvert.calibration.documents import Document, Turn
from qconvert.calibration.vocabulary import Vocabulary, read_object
from qconvert.formats.careful import read_text
from qconvert.formats.refusal import refuse
from qconvert.formats.rendering import LONGEST_TEMPLATE, Renderer

Render = Callable[[Sequence[Turn]], str]

PIECE = 1600  # characters of a plain text that become one exchange, about 400 tokens
ASKED = PIECE // 4  # of them, how many the user gives
REQUEST = "Continue this text:\n\n"
TODAY = {"%Y": "2025", "%m": "01", "%d": "01", "%B": "January", "%b": "Jan", "%y": "25",
         "%A": "Wednesday", "%a": "Wed", "%H": "12", "%M": "00", "%S": "00"}  # fmt: skip


def chat_template(folder: Path, vocabulary: Vocabulary) -> Render:
    """From turns to the text of a chat; `Refused` when the model has no template, or a broken one.

    The environment is jinja2's sandbox, in a process of its own. A template that asks for the date
    is given a fixed one: the same input must give the same rows on any day.
    """
    source = _source(folder, vocabulary)
    if source is None:
        raise refuse(
            f"{folder} has no chat template, so --calib-chat cannot be served",
            "leave --calib-chat out, or add the model's chat_template.jinja",
        )
    renderer = Renderer(source, TODAY)
    try:
        renderer.parse()
    except TemplateError as error:
        raise refuse(
            f"the chat template of {folder} does not parse: {error}",
            "correct it, or leave --calib-chat out",
        ) from error
    special = vocabulary.special()

    def render(turns: Sequence[Turn]) -> str:
        return _rendered(renderer, turns, special)

    return render


def rendered(document: Document, render: Render) -> Iterator[str]:
    """The chats of a document: its own turns, or a plain text in exchanges in which the user gives
    the beginning of a piece and the assistant goes on.

    `TemplateError` when the template takes no such chat, also not with what the system says put in
    front of the first question.
    """
    if not document.turns:
        for piece in _pieces(document.text):
            at = _cut(piece, ASKED)
            yield render(
                [Turn("user", REQUEST + piece[:at].strip()), Turn("assistant", piece[at:])]
            )
        return
    try:
        yield render(document.turns)
    except TemplateError:
        yield render(_without_system(document.turns))


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    said = [turn.content for turn in turns if turn.role == "system"]
    kept = [turn for turn in turns if turn.role != "system"]
    if said and kept:
        kept[0] = Turn(kept[0].role, "\n\n".join([*said, kept[0].content]))
    return kept


def _pieces(text: str) -> Iterator[str]:
    text = text.strip()
    while text:
        at = _cut(text, PIECE) if len(text) > PIECE * 5 // 4 else len(text)
        yield text[:at].strip()
        text = text[at:].lstrip()


def _cut(text: str, near: int) -> int:
    """A place to cut at or before `near`: an end of a paragraph, line, sentence or word."""
    for end in ("\n\n", "\n", ". ", " "):
        at = text.rfind(end, near // 2, near)
        if at > 0:
            return at + len(end)
    return min(near, len(text))


def _source(folder: Path, vocabulary: Vocabulary) -> str | None:
    """Jinja source: a file of its own, or the entry of tokenizer_config.json named "default"."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file, LONGEST_TEMPLATE)
    for settings in (vocabulary.settings, read_object(folder / "chat_template.json")):
        found = settings.get("chat_template")
        if isinstance(found, list):
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _rendered(renderer: Renderer, turns: Sequence[Turn], special: dict[str, str]) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return renderer.render({"messages": messages, "tools": None, "documents": None,
                            "add_generation_prompt": False, **special})  # fmt: skip
