"""What mlc-chat-config.json says of its model, and how MLC makes a text of a conversation by it.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/model/*/*_model.py` (what holds where a key is
absent), `python/mlc_llm/protocol/conversation_protocol.py` (how a prompt is joined).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.mlc.architectures import ARCHITECTURES, Architecture
from qconvert.formats.mlc.chat import _bos, derive, verify
from qconvert.formats.mlc.template import read_template
from qconvert.formats.mlc.tokenizer import COPIED, read_tokenizer
from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source
from qconvert.formats.told import Prompts, Told, Turn

BASE = 10000
SAME = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size", "tie_word_embeddings",
    "hidden_act", "hidden_activation", "attention_bias", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "sliding_window",
)  # fmt: skip
"""Keys of `model_config` that are called as in config.json."""
SCALED = ("rope_type", "factor", "low_freq_factor", "high_freq_factor",
          "original_max_position_embeddings")  # fmt: skip
GENERATED = ("temperature", "top_p", "repetition_penalty", "presence_penalty",
             "frequency_penalty", "eos_token_id", "bos_token_id", "pad_token_id")  # fmt: skip
ROLES = {"user": "{user_message}", "assistant": "{assistant_message}"}


def told_of(config: Mapping[str, Any], folder: Path, source: Source) -> Told:
    """`config`: mlc-chat-config.json."""
    arch = ARCHITECTURES[str(config["model_type"])]
    outer = _object(config, "model_config")
    inner = _object(outer, "text_config") if arch.inner else outer
    layers = (config, outer, inner)
    model = {name: _said(name, layers) for name in SAME if _held(name, arch)}
    model |= _positions(config, layers, arch)
    model["model_type"] = config.get("model_type")
    template = _object(config, "conv_template")
    stops = template.get("stop_token_ids")
    tokens: dict[str, Any] = {"eos_token_id": tuple(sorted(_ids(stops)))}
    prompts = _prompts(template, folder, source)
    if prompts is None or not (prompts.without_system or prompts.with_system):
        tokens["add_bos_token"] = bool(template.get("system_prefix_token_ids"))
    reach = model.get("sliding_window")
    reach = reach if isinstance(reach, int) else 0
    return Told(
        model=model,
        tokens=tokens,
        holds_chat_template=False,
        generation={name: config[name] for name in GENERATED if name in config},
        prompts=prompts,
        most={"max_position_embeddings": max(reach, 8192)} if arch.window == "pattern" else {},
        folder=folder,
        copies=COPIED,
    )


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, Mapping) else {}


def _ids(value: Any) -> list[int]:
    listed = value if isinstance(value, list) else []
    return [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]


def _held(name: str, arch: Architecture) -> bool:
    return name in arch.fields or name in arch.inner


def _said(name: str, layers: Sequence[Mapping[str, Any]]) -> Any:
    """A value; all of them where the file says several."""
    each = list(dict.fromkeys(one[name] for one in layers if _plain(one.get(name))))
    return each[0] if len(each) == 1 else tuple(each) or None


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _positions(
    config: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], arch: Architecture
) -> dict[str, Any]:
    """Base, scaling, context and window. -1: there is none."""
    found: dict[str, Any] = {}
    bases = [_said(name, layers) for name in ("position_embedding_base", "rope_theta")]
    said = list(dict.fromkeys(one for one in bases if one))
    found["rope_theta"] = said[0] if len(said) == 1 else tuple(said) or BASE
    if "rope_scaling" in arch.fields:
        scaling = _object(layers[1], "rope_scaling")
        found["rope_scaling"] = {key: scaling.get(key) for key in SCALED} if scaling else None
    context = _said("context_window_size", layers)
    if context != -1:
        found["max_position_embeddings"] = context
    window = _said("sliding_window_size", layers)
    if arch.window == "rolling":
        found["sliding_window"] = None if window == -1 else window
    elif arch.window == "pattern" and window != context:
        found["sliding_window"] = window
    return found


def _prompts(template: Mapping[str, Any], folder: Path, source: Source) -> Prompts | None:
    """None where the model has no chat template; what MLC's form can say of it is found as by the
    writer, what the file does say is not."""
    try:
        tokenizer = read_tokenizer(source)
        own = read_template(tokenizer)
    except Refused:
        return None
    if own is None:
        return None
    begin = _bos(own, tokenizer)
    derived = derive(own, begin)
    equal = (False, False) if derived is None else verify(own, derived, begin)[1]
    texts = _texts(template.get("system_prefix_token_ids"), folder)

    def render(turns: Sequence[Turn], system: str | None) -> str | None:
        try:
            return texts + joined(template, turns, system)
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError):
            return None

    return Prompts(render, *equal)


def _texts(ids: Any, folder: Path) -> str:
    """Of the tokens that a prompt begins with."""
    if not _ids(ids):
        return ""
    try:
        told = read_json_object(folder / "tokenizer.json", "")
        texts = {id: str(text) for text, id in told["model"]["vocab"].items()}
        texts |= {one["id"]: str(one["content"]) for one in told["added_tokens"]}
        return "".join(texts.get(one, "") for one in _ids(ids))
    except (Refused, KeyError, TypeError, AttributeError):
        return ""


def joined(template: Mapping[str, Any], turns: Sequence[Turn], system: str | None) -> str:
    """The prompt of a conversation, with the beginning of an answer. `KeyError` and the like where
    the template is not whole."""
    message = template["system_message"] if system is None else system
    head = template["system_template"].replace("{system_message}", message)
    seps = template["seps"]
    users = [at for at, (role, _) in enumerate(turns) if role == "user"]
    parts = [head]
    for at, (role, said) in enumerate(turns):
        if template.get("strip_reasoning_in_history") and role == "assistant" and at < users[-1]:
            said = said.split("</think>")[-1].lstrip("\n") if "</think>" in said else said
        if at or not head or template.get("add_role_after_system_message", True):
            parts.append(template["roles"][role] + template["role_content_sep"])
        parts.append(template["role_templates"][role].replace(ROLES[role], said))
        parts.append(seps[(role == "assistant") % len(seps)])
    parts.append(template["roles"]["assistant"] + template["role_empty_sep"])
    return "".join(parts).replace("{function_string}", "")
