"""The process in which chat templates are rendered: it may be ended, the program goes on.

    python -P -m qconvert.formats.rendering_worker

One line of JSON each way. First {"template", "dates"}, answered by {"ready": true} or {"error"};
then the variables of one rendering, answered by {"text"} or {"error"}: what the template raised.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 1 << 30  # of memory, imports and all


class Generation(Extension):
    """transformers' {% generation %}: marks what the assistant said, and renders what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment(dates: Mapping[str, str] | str | None) -> ImmutableSandboxedEnvironment:
    """As transformers renders. `dates`: what strftime codes stand for, or any form of a date;
    None: there is no such function, and most templates have a date of their own then."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _fail
    if dates is not None:
        found.globals["strftime_now"] = lambda form: _date(form, dates)
    return found


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _fail(message: str) -> NoReturn:
    raise TemplateError(message)


def _date(form: str, dates: Mapping[str, str] | str) -> str:
    if isinstance(dates, str):
        return dates
    for code, value in dates.items():
        form = form.replace(code, value)
    return form


def serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    template: Template | None = None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            if template is None:
                template = environment(asked["dates"]).from_string(asked["template"])
                reply: dict[str, Any] = {"ready": True}
            else:
                reply = {"text": template.render(**asked)}
        except MemoryError:
            reply = {"error": "it takes more memory than there is for it"}
        except Exception as error:  # whatever a template's own expressions raise
            own = isinstance(error, TemplateError)
            reply = {"error": str(error) if own else f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
