"""MLC's form of a chat template, and its rule of assembling a prompt.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/protocol/conversation_protocol.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SYSTEM, USER, ASSISTANT = "{system_message}", "{user_message}", "{assistant_message}"
THOUGHT = "</think>"
FUNCTION = "{function_string}"
HOLDERS = {"user": USER, "assistant": ASSISTANT}
Turn = tuple[str, str]  # role "user" or "assistant", and what is said


@dataclass(frozen=True, slots=True)
class Conversation:
    """One template. A prompt begins with the tokens `prefix`; the rest is text."""

    name: str = "LM"
    system_template: str = SYSTEM
    system_message: str = ""
    prefix: tuple[int, ...] = ()
    role_after_system: bool = True  # False: the first question follows the system text directly
    roles: tuple[str, str] = ("", "")  # before what the user says, before what the assistant says
    templates: tuple[str, str] = (USER, ASSISTANT)
    seps: tuple[str, ...] = ("",)  # after every turn; or after the user's, after the assistant's
    content_sep: str = ""  # after the role
    empty_sep: str = ""  # after the role of the answer to come
    stop_texts: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    forgets_thoughts: bool = False  # what was said before "</think>" is left out of former answers

    def prompt(self, turns: Sequence[Turn], system: str | None = None, *, ask: bool = True) -> str:
        """The text that MLC makes of `turns`; `ask`: with the beginning of an answer."""
        message = self.system_message if system is None else system
        text = head = self.system_template.replace(SYSTEM, message)
        last = max((index for index, turn in enumerate(turns) if turn[0] == "user"), default=-1)
        for index, (role, said) in enumerate(turns):
            which = int(role == "assistant")
            if self.forgets_thoughts and which and index < last:
                said = said.split(THOUGHT)[-1].lstrip("\n") if THOUGHT in said else said
            if index or not head or self.role_after_system:
                text += self.roles[which] + self.content_sep
            text += self.templates[which].replace(HOLDERS[role], said)
            text += self.seps[min(which, len(self.seps) - 1)]
        if ask:
            text += self.roles[1] + self.empty_sep
        return text.replace(FUNCTION, "")

    def fields(self) -> dict[str, Any]:
        """As in mlc-chat-config.json."""
        return {
            "name": self.name,
            "system_template": self.system_template,
            "system_message": self.system_message,
            **({"system_prefix_token_ids": list(self.prefix)} if self.prefix else {}),
            "add_role_after_system_message": self.role_after_system,
            "roles": dict(zip(HOLDERS, self.roles, strict=True)),
            "role_templates": {
                **dict(zip(HOLDERS, self.templates, strict=True)), "tool": "{tool_message}",
            },
            "messages": [],
            "seps": list(self.seps),
            "role_content_sep": self.content_sep,
            "role_empty_sep": self.empty_sep,
            "stop_str": list(self.stop_texts),
            "stop_token_ids": list(self.stop_ids),
            "strip_reasoning_in_history": self.forgets_thoughts,
            "function_string": "",
            "use_function_calling": False,
        }  # fmt: skip
