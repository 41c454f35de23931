"""config.json of a checkpoint: found, lifted out of a wrapper, completed, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.model_shapes import CONFIG, MOST_TOKENS, WHOLE_CONFIG
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.shapes import MOST, check
from qconvert.models import FAMILIES, WRAPPERS, Family, config_problems

_OUTER_WINS = (
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The configuration of the text model, and the facts that belong to it."""

    model_type: str
    family: Family
    fields: Mapping[str, Any]  # complete: usual names and defaults are filled in
    dropped: tuple[str, ...]  # patterns of tensors that belong to other parts of the model


def read_config(folder: Path) -> TextConfig:
    """Parse `folder`/config.json; `Refused` with every reason when it cannot be served."""
    path = folder / "config.json"
    raw = read_json_object(path, "a model folder holds config.json, *.safetensors and a tokenizer")
    check(raw, WHOLE_CONFIG, "config.json", "the file is damaged: download or copy it again")
    model_type, fields, dropped = _lift(raw)
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted({*FAMILIES, *WRAPPERS}))
        what = f"unknown architecture: model_type {model_type!r}"
        raise refuse(
            what if model_type else "config.json names no model_type", f"known model types: {known}"
        )
    fields = {"model_type": model_type, **_completed(family, fields)}
    reasons = [Reason(f"config.json: {problem}") for problem in config_problems(fields)]
    reasons += [
        Reason(f"config.json: {one.problem}") for one in islice(CONFIG.misfits(fields, ""), MOST)
    ]
    vocab = fields.get("vocab_size")
    if isinstance(vocab, int) and vocab > MOST_TOKENS:
        reasons.append(Reason(f"config.json: vocab_size is {vocab}: more than {MOST_TOKENS}"))
    raise_if_any([*_quantized(fields), *reasons])
    return TextConfig(model_type, family, fields, dropped)


def _lift(raw: dict[str, Any]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """(model_type, fields, dropped patterns) of the text model inside a wrapper, or of itself."""
    outer = str(raw.get("model_type") or "")
    wrapper = WRAPPERS.get(outer)
    if wrapper is None:
        return outer, raw, ()
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        raise refuse(f"config.json: a {outer} model without a text_config")
    kept = {name: raw[name] for name in _OUTER_WINS if raw.get(name) is not None}
    return str(inner.get("model_type") or wrapper.text_type), {**inner, **kept}, wrapper.dropped


def _completed(family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with the family's defaults, and with the usual names where it has its own."""
    usual = {name: fields[own] for name, own in family.aliases.items() if own in fields}
    return {**family.defaults, **fields, **usual}


def _quantized(fields: Mapping[str, Any]) -> list[Reason]:
    found = fields.get("quantization_config")
    if not found:
        return []
    method = found.get("quant_method") if isinstance(found, dict) else None
    return [
        Reason(
            f"the checkpoint is already quantized ({method or 'quantization_config is set'})",
            "start from the float model that it was made of",
        )
    ]
