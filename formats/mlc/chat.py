"""A model's chat template in MLC's form: derived by probing it, and verified.

MLC joins fixed texts around what is said (`conversation.Conversation.prompt`), where a checkpoint
has a program. Probes with known words show what stands between them; then both are asked for the
same conversations, and only what comes out equal is called so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from qconvert.formats.mlc.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn
from qconvert.formats.mlc.template import ChatTemplate, read_template
from qconvert.formats.mlc.tokenizer import Tokenizer, first_tokens
from qconvert.formats.source import Source

NAME = "custom"
"""MLC looks a name up among its own only where a template is nothing but a name."""

_ONE, _TWO, _ANSWER, _RULE = "zQuestionAz", "zQuestionBz", "zAnswerAz", "zSystemAz"
_PROBE: tuple[Turn, ...] = (("user", _ONE), ("assistant", _ANSWER), ("user", _TWO))

TALKS: tuple[tuple[Turn, ...], ...] = (
    (("user", "Hello"),),
    (("user", "What is 2 + 2?"), ("assistant", "It is 4."), ("user", "And {twice} that, \u00e4h?")),
    (("user", "a\n\nb"), ("assistant", "c\n- d"), ("user", "e"), ("assistant", "'f'"),
     ("user", "<g> & \u4f60\u597d")),
)  # fmt: skip
"""Conversations that must come out equal."""
SYSTEMS = ("Be brief.", "Line one.\nLine {two}.")
THOUGHTS: tuple[Turn, ...] = (
    ("user", "Why?"), ("assistant", "<think>\nwell\n</think>\n\nBecause."), ("user", "Oh."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chat:
    conversation: Conversation
    notes: tuple[str, ...] = ()


def conversation_of(source: Source, tokenizer: Tokenizer) -> Chat:
    """The model's template in MLC's form; MLC's "LM", which adds nothing to what is said, where
    there is none or it cannot be said so."""
    stops = _stops(source.config, tokenizer)
    template = read_template(tokenizer)
    if template is None:
        return Chat(_plain(tokenizer, stops), (NO_TEMPLATE,))
    begin = _bos(template, tokenizer)
    derived = derive(template, begin)
    if derived is None:
        return Chat(_plain(tokenizer, stops), (NOT_SAID,))
    found, equal = verify(template, derived, begin)
    if not any(equal):
        return Chat(_plain(tokenizer, stops), (NOT_SAID,))
    found = replace(found, prefix=_prefix(tokenizer, begin), stop_ids=stops)
    return Chat(_with_turn_end(found, tokenizer), tuple(_notes(found, equal)))


def _plain(tokenizer: Tokenizer, stops: tuple[int, ...]) -> Conversation:
    return Conversation(prefix=_before_text(tokenizer), stop_ids=stops)


NO_TEMPLATE = "the model has no chat template: MLC's LM, plain text, stands for it"
NOT_SAID = (
    "the chat template cannot be said in MLC's form: conv_template is LM, plain text; apply the "
    "template yourself, or give mlc_llm gen_config a --conv-template"
)
NO_SYSTEM = (
    "conv_template is the model's own without a system message; one is put in front as it is, "
    "which the model's template does not do"
)
EMPTY_SYSTEM = (
    "conv_template is the model's own with a system message; without one MLC writes an empty one, "
    "which the model's template leaves out"
)


def _notes(found: Conversation, equal: tuple[bool, bool]) -> Iterator[str]:
    without, with_system = equal
    if not with_system:
        yield NO_SYSTEM
    if not without:
        yield EMPTY_SYSTEM


def derive(template: ChatTemplate, begin: str) -> Conversation | None:
    """What the probes show, without ids; None where they do not show one thing. `begin`: text of
    the first token, which is given as an id."""
    pieces = _around(template.render(_PROBE), begin)
    if pieces is None:
        return None
    head, between, after, tail = pieces
    # What ends a turn is seen where nothing follows it; what is left begins the next.
    user_end = _last(template.render(_PROBE, ask=False), tail)
    answered = template.render(_PROBE[:2], ask=False)
    answer_end = _last(answered, after, _ANSWER)
    if not between.startswith(user_end):
        user_end = _common_start(between, tail)
    ask, reply = tail[len(user_end) :], between[len(user_end) :]
    user = after[len(answer_end) :]
    if not head.endswith(user):
        user = _common_end(head, after)
        answer_end = after[: len(after) - len(user)]
    found = _told(user, reply, ask, (user_end, answer_end))
    return _with_system(found, template, begin, head[: len(head) - len(user)], user)


def _around(text: str | None, begin: str) -> list[str] | None:
    """What stands before, between and after the words of the probe; None unless each is there once,
    in order."""
    if text is None or any(text.count(word) != 1 for word in (_ONE, _ANSWER, _TWO)):
        return None
    pieces = re.split(f"{_ONE}|{_ANSWER}|{_TWO}", text)
    in_order = text.index(_ONE) < text.index(_ANSWER) < text.index(_TWO)
    if not in_order or not pieces[0].startswith(begin):
        return None
    return [pieces[0][len(begin) :], *pieces[1:]]


def _last(text: str | None, longer: str, word: str = _TWO) -> str:
    """What follows `word` in `text`, if `longer` begins so; else nothing."""
    end = (text or "").rpartition(word)[2] if text and word in text else ""
    return end if longer.startswith(end) else ""


def _common_start(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _told(user: str, reply: str, ask: str, ends: tuple[str, str]) -> Conversation:
    """In MLC's parts: `user` and `reply` stand before what is said, `ask` before what is to come.

    Line breaks after a role are told apart, as MLC's own templates have them. What a finished
    answer has in front and an expected one has not goes into the template of answers.
    """
    space = "\n" * min(len(one) - len(one.rstrip("\n")) for one in (user, reply, ask))
    cut = len(space)
    role = _common_start(reply[: len(reply) - cut], ask[: len(ask) - cut])
    extra = reply[len(role) :]
    if extra.startswith(space):
        content, extra = space, extra[cut:]
    else:
        content, cut = "", 0
    return Conversation(
        name=NAME,
        roles=(user[: len(user) - cut], role),
        templates=(USER, extra + ASSISTANT),
        seps=ends[:1] if ends[0] == ends[1] else ends,
        content_sep=content,
        empty_sep=ask[len(role) :],
    )


def _with_system(
    found: Conversation, template: ChatTemplate, begin: str, head: str, user: str
) -> Conversation:
    """With the system text. `head`: what stands before the first question without any."""
    text = template.render(_PROBE, _RULE)
    pieces = None if text is None or text.count(_RULE) != 1 else _around(text, begin)
    if pieces is None or _RULE not in pieces[0]:
        return replace(found, system_template=head + SYSTEM)
    before, _, behind = pieces[0].partition(_RULE)
    apart = behind.endswith(user)
    behind = behind[: len(behind) - len(user)] if apart else behind
    inside = len(before) + len(behind)
    usual = head.startswith(before) and head.endswith(behind) and len(head) >= inside
    return replace(
        found,
        system_template=f"{before}{SYSTEM}{behind}",
        system_message=head[len(before) : len(head) - len(behind)] if usual else "",
        role_after_system=apart,
    )


def verify(
    template: ChatTemplate, found: Conversation, begin: str
) -> tuple[Conversation, tuple[bool, bool]]:
    """`found`, with former thoughts forgotten if the template does that, and whether all
    conversations come out equal: without a system message, and with one."""

    def equal(one: Conversation, talk: Sequence[Turn], system: str | None) -> bool:
        wanted = template.render(talk, system)
        return wanted is not None and begin + one.prompt(talk, system) == wanted

    forgetful = replace(found, forgets_thoughts=True)
    systems = (None, *SYSTEMS)
    if any(equal(forgetful, THOUGHTS, one) and not equal(found, THOUGHTS, one) for one in systems):
        found = forgetful
    talks = (*TALKS, THOUGHTS)
    without = all(equal(found, talk, None) for talk in talks)
    return found, (without, all(equal(found, talk, one) for talk in talks for one in SYSTEMS))


def _bos(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The text of the first token, where the template writes it."""
    text = tokenizer.files.text_of("bos_token") or ""
    known = text in tokenizer.ids and (template.render(_PROBE) or "").startswith(text)
    return text if known and _always(template, text) else ""


def _always(template: ChatTemplate, text: str) -> bool:
    """Whether it begins every conversation: ChatML's begins each turn with it, too."""
    return all((template.render(talk) or "").count(text) == 1 for talk in TALKS)


def _prefix(tokenizer: Tokenizer, begin: str) -> tuple[int, ...]:
    return (tokenizer.ids[begin],) if begin else ()


def _before_text(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token that the tokenizer puts before every text."""
    bos = tokenizer.ids.get(tokenizer.files.text_of("bos_token") or "")
    added = tokenizer.files.settings.get("add_bos_token")
    if added is None:
        added = bos in list(first_tokens(tokenizer.files.definition or {}))
    return (bos,) if added and bos is not None else ()


def _stops(config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The end tokens that the model's own files name."""
    for said in (tokenizer.files.generation, config):
        found = said.get("eos_token_id")
        if found is not None:
            return tuple(int(one) for one in (found if isinstance(found, list) else [found]))
    text = tokenizer.files.text_of("eos_token") or ""
    return (tokenizer.ids[text],) if text in tokenizer.ids else ()


def _with_turn_end(found: Conversation, tokenizer: Tokenizer) -> Conversation:
    """With what ends an answer among the stops: as a token, or as text where it is none."""
    end = found.seps[-1]
    if not end.strip():
        return found
    added = {str(one.text): one.id for one in tokenizer.files.added}
    first = max((text for text in added if end.startswith(text)), key=len, default=None)
    if first is None:
        return replace(found, stop_texts=(end.strip(),))
    return replace(found, stop_ids=tuple(dict.fromkeys((*found.stop_ids, added[first]))))
