"""Templates that are programs: what they may do, and that the program goes on."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError

from qconvert.formats import rendering
from qconvert.formats.refusal import Refused
from qconvert.formats.rendering import Renderer


def test_renders_what_transformers_does() -> None:
    renderer = Renderer(
        "{% for m in messages %}\n{% generation %}{{ m.content | tojson }}{% endgeneration %}\n"
        "{% endfor %}{{ strftime_now('%Y') }}",
        {"%Y": "2025"},
    )
    assert renderer.render({"messages": [{"content": "\u00e9"}]}) == '"\u00e9"2025'
    assert renderer.render({"messages": []}) == "2025"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ strftime_now('%Y') }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x' * 10 ** 11 }}", "memory"),
        ("{{ '{:99999999999}'.format(1) }}", "memory|digits|width"),
        ("{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
         "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        ("{{ " + "(" * 100_000, "recursion"),
        ("{% for", "expected"),
    ],
)  # fmt: skip
def test_what_a_template_raises(template: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        Renderer(template).render({})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
    ],
)
def test_a_template_that_does_not_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "PATIENCE", 1.5)
    with pytest.raises(Refused, match="is not done"):
        Renderer(template).render({})


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "LONGEST", 1 << 16)
    with pytest.raises(Refused, match="crashes"):
        Renderer("{{ 'x' * 1000000 }}").render({})
