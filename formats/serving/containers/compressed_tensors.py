"""compressed-tensors: every scheme, any mix of them, and scales of the KV cache.

Source of the rules: vLLM 0.32, `compressed_tensors/compressed_tensors.py` and `utils.py`. A name in
`ignore` or `targets` stands for a joined linear when all its parts are named; a pattern is held
against the joined name, too. vLLM asks names and patterns before class names; older readers ask
class names before parts, so that exceptions are written as patterns that fit joined names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvert.formats.patterns import matches
from qconvert.formats.refusal import Reason
from qconvert.formats.serving.container import Config, Told
from qconvert.formats.serving.containers.assembled import Assembled, CacheScales, InputScale
from qconvert.formats.serving.containers.claims import Claims, check_told
from qconvert.formats.serving.containers.ct_args import (
    activation_args,
    kind_of,
    scheme_of_group,
    weights_args,
)
from qconvert.formats.serving.containers.names import patterns
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST, FP4_RANGE, INT8_LARGEST
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.shapes import (
    COUNT,
    FLAG,
    SIZE,
    TEXT,
    TEXTS,
    Each,
    Keys,
    Shape,
    Values,
    maybe,
)

METHOD = "compressed-tensors"
LINEARS = "Linear"  # the class of every linear that no name or pattern fits
PATTERN = "re:"
_ARGUMENTS: Mapping[str, Shape] = {
    "num_bits": COUNT, "type": TEXT, "strategy": maybe(TEXT), "symmetric": maybe(FLAG),
    "group_size": maybe(SIZE), "block_structure": maybe(Each(COUNT, 2)),
    "dynamic": maybe(FLAG, TEXT),
}  # fmt: skip
_GROUP: Mapping[str, Shape] = {
    "targets": maybe(TEXTS), "format": maybe(TEXT), "weights": maybe(Keys(_ARGUMENTS)),
    "input_activations": maybe(Keys(_ARGUMENTS)),
}  # fmt: skip
READ: Mapping[str, Shape] = {
    "format": maybe(TEXT), "ignore": maybe(TEXTS), "config_groups": maybe(Values(Keys(_GROUP))),
}  # fmt: skip
MIXED = "mixed-precision"
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


def _layout(scheme: Scheme) -> Layout | None:
    kind = kind_of(scheme)
    return None if kind is None else kind.layout


def _unheld(scheme: Scheme) -> Reason:
    return Reason(
        f"compressed-tensors holds no {scheme.name}",
        "--scheme w4a16, w8a16, w8a8, fp8, fp8-block, nvfp4, nvfp4a16 or mxfp4",
    )


def _tell(told: Told) -> Config:
    if not told.linears and told.kv is None:
        return Config(None)
    counts = Counter(one.scheme for one in told.linears)
    groups = {}
    for number, (scheme, _) in enumerate(counts.most_common()):
        modules = [one.module for one in told.linears if one.scheme == scheme]
        targets = [f"{PATTERN}{one}" for one in patterns(modules)] if number else [LINEARS]
        groups[f"group_{number}"] = _group(scheme, targets)
    formats = list(dict.fromkeys(group["format"] for group in groups.values()))
    return Config(
        {
            "quant_method": METHOD,
            "format": formats[0] if len(formats) == 1 else MIXED,
            "quantization_status": "compressed",
            "ignore": list(told.floats),
            "kv_cache_scheme": None if told.kv is None else KV,
            "config_groups": groups,
        }
    )


def _group(scheme: Scheme, targets: Sequence[str]) -> dict[str, Any]:
    kind = kind_of(scheme)
    assert kind is not None
    return {
        "targets": list(targets),
        "weights": weights_args(scheme, kind),
        "input_activations": activation_args(scheme),
        "output_activations": None,
        "format": kind.format,
    }


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    told = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(told, Mapping) or told.get("quant_method") != METHOD:
        return None
    check_told(told, READ)
    groups: list[tuple[Sequence[str], Scheme]] = [
        (group.get("targets") or (), scheme_of_group(group, told.get("format")))
        for group in (told.get("config_groups") or {}).values()
    ]
    ignore = told.get("ignore") or ()

    def scheme(module: str) -> Scheme | None:
        named = (found for targets, found in groups if _fits(module, targets))
        classed = (found for targets, found in groups if LINEARS in targets)
        return next(named, None) or next(classed, None)

    cache = told.get("kv_cache_scheme")
    return Claims(
        scheme,
        lambda module: _fits(module, ignore),
        [one for one in ignore if not one.startswith(PATTERN)],
        kv="fp8" if cache else None,
    )


def _fits(module: str, names: Iterable[str]) -> bool:
    return any(
        matches(name.removeprefix(PATTERN), module) if name.startswith(PATTERN) else name == module
        for name in names
    )


def _beside(part: str) -> Any:
    """From the module of k or v to a name in the module that holds it."""
    return lambda module: f"{module.rpartition('.')[0]}.{part}"


CONTAINER = Assembled(
    name=METHOD,
    summary="every scheme, and scales of the KV cache; vLLM, SGLang, transformers",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
    input_scales={
        ("int8", True): InputScale("input_scale", (1,), INT8_LARGEST),
        ("fp8", True): InputScale("input_scale", (1,), E4M3_LARGEST),
        ("fp4", False): InputScale("input_global_scale", (1,), FP4_RANGE, inverse=True),
    },
    cache_scales=CacheScales(_beside("k_scale"), _beside("v_scale"), (1,)),
)
