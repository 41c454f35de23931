"""The chat templates of a checkpoint, as llama.cpp can render them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qconvert.formats.careful import read_json_object, read_text
from qconvert.formats.gguf.token_table import Findings
from qconvert.formats.model_shapes import SETTINGS
from qconvert.formats.rendering import LONGEST_TEMPLATE
from qconvert.formats.shapes import check

AGAIN = "correct it, or remove it"
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


def read_chat_templates(
    folder: Path, settings: Mapping[str, Any], findings: Findings
) -> dict[str, str]:
    """name -> Jinja source, "default" among them if there is any; files win over the settings."""
    found = _from_settings(settings.get("chat_template"))
    found |= _from_json(folder / "chat_template.json")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = read_text(path, LONGEST_TEMPLATE)
    single = folder / "chat_template.jinja"
    if single.is_file():
        found["default"] = read_text(single, LONGEST_TEMPLATE)
    templates = {name: without_generation(text) for name, text in sorted(found.items())}
    for name, text in templates.items():
        _check(name, text, findings)
    return templates


def without_generation(template: str) -> str:
    """The same text without transformers' own {% generation %} blocks.

    They mark what an assistant said, for training, and render as what is in them; a block that is
    always taken keeps the white space control of the tags.
    """

    def plain(match: re.Match[str]) -> str:
        before, end, after = match.groups()
        return f"{{%{before} {'endif' if end else 'if true'} {after}%}}"

    return _GENERATION.sub(plain, template)


def _from_settings(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping):
        return {str(name): str(text) for name, text in value.items()}
    return {str(entry["name"]): str(entry["template"]) for entry in value or ()}


def _from_json(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    settings = read_json_object(path, AGAIN)
    check(settings, SETTINGS, str(path), AGAIN)
    return _from_settings(settings.get("chat_template"))


def _check(name: str, template: str, findings: Findings) -> None:
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        if len(template) > LONGEST_TEMPLATE:
            raise TemplateError(f"it has {len(template):,} characters")
        environment.parse(template)
    except Exception as error:  # a parser of others: RecursionError, ValueError of long numbers
        findings.refuse(
            f"the chat template {name!r} does not parse: {error}",
            "correct it, or remove it: the file then has no chat template",
        )
