"""Faults of text: right numbers for the wrong tokens, or for a conversation told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planting.files import Inapplicable
from planting.output import CUT_OTHERWISE, Culprits, Output, Vocabulary

OTHER_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer(change: Callable[[Vocabulary], None]) -> Callable[[Output], Culprits]:
    return lambda out: out.tokenizer(change)


def cut_otherwise(seen: Vocabulary) -> None:
    seen.cut = CUT_OTHERWISE


def merges_reordered(seen: Vocabulary) -> None:
    """The first merges in reverse."""
    count = min(200, len(seen.merges))
    seen.merges[:count] = seen.merges[:count][::-1]


def merges_cut(seen: Vocabulary) -> None:
    """The last twentieth of the merges is missing."""
    del seen.merges[-max(len(seen.merges) // 20, 1) :]


def one_entry_swapped(seen: Vocabulary) -> None:
    """Two tokens have each other's number."""
    plain = [at for at in range(len(seen.tokens)) if at not in seen.special]
    one, two = plain[len(plain) // 3], plain[len(plain) // 2]
    seen.tokens[one], seen.tokens[two] = seen.tokens[two], seen.tokens[one]


def not_special(seen: Vocabulary) -> None:
    """Special tokens are ordinary text."""
    if not any(seen.special.values()):
        raise Inapplicable("there are no special tokens")
    for at in seen.special:
        seen.special[at] = False


def token(key: str, value: Callable[[Any], Any]) -> Callable[[Output], Culprits]:
    """A special token by another id: `value` is given the model's configuration."""
    return lambda out: out.token(key, value(out.facts.config))


def another(key: str) -> Callable[[Any], Any]:
    """An id that is not the model's."""

    def value(config: Any) -> int:
        taken = config.get(key)
        taken = taken if isinstance(taken, list) else [taken]
        return next(at for at in (0, 3, 4, 5, 6, 7) if at not in taken)

    return value


def opposite(out: Output) -> Culprits:
    """A BOS in front of every text, or none, against the model's own way."""
    return out.token("add_bos_token", True)


def template_lost(out: Output) -> Culprits:
    return out.template(None)


def template_of_another(out: Output) -> Culprits:
    return out.template(OTHER_TEMPLATE)


def generation(key: str, value: Any) -> Callable[[Output], Culprits]:
    return lambda out: out.generation(key, value)


def file_lost(name: str, *culprits: str) -> Callable[[Output], Culprits]:
    def plant(out: Output) -> Culprits:
        if not out.files.has(name):
            raise Inapplicable(f"there is no {name}")
        out.files.remove(name)
        return (name, *culprits)

    return plant
