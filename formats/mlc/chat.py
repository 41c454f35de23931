"""A model's chat template in MLC's form, where that can say it."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.formats.mlc.conversation import Conversation
from qconvert.formats.mlc.tokenizer import Tokenizer
from qconvert.formats.source import Source


@dataclass(frozen=True, slots=True)
class Chat:
    conversation: Conversation
    notes: tuple[str, ...] = ()


def conversation_of(source: Source, tokenizer: Tokenizer) -> Chat:
    return Chat(Conversation())
