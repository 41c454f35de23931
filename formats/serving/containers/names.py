"""Names of modules in configurations: patterns for many of them, and which stand for floats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Last part of the name that programs give a joined linear -> those of its parts. Rules are held
against the joined name."""

JOINED = frozenset(FUSED) | {part for parts in FUSED.values() for part in parts}
"""Last part of the names of linears that programs join, and of the joined ones."""

EMBEDDINGS = frozenset(
    {"embed_tokens", "embed_in", "embed_positions", "wte", "wpe", "word_embeddings"}
)
"""Last part of the names of matrices that are looked up in, not multiplied with."""

_LAYER = re.compile(r"^(?P<head>.*?\.)(?P<layer>\d+)(?P<tail>\..+)$")


def patterns(modules: Iterable[str]) -> tuple[str, ...]:
    """Regular expressions, from the start to the end of a name, that fit just `modules`, and the
    joined linears whose parts are all among them. Alike layers share one."""
    layers: dict[tuple[str, str], list[str]] = {}
    for module in with_fused(modules):
        found = _LAYER.match(module)
        key = (found["head"], found["tail"]) if found else (module, "")
        layers.setdefault(key, []).extend([found["layer"]] if found else [])
    tails: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (head, tail), numbers in layers.items():
        tails.setdefault((head, tuple(numbers)), []).append(tail)
    return tuple(
        re.escape(head) + _any(numbers) + _any(re.escape(tail) for tail in found) + "$"
        for (head, numbers), found in tails.items()
    )


def with_fused(modules: Iterable[str]) -> Iterator[str]:
    """`modules`, each joined linear after the last of its parts."""
    seen: set[str] = set()
    for module in modules:
        yield module
        seen.add(module)
        parent, dot, last = module.rpartition(".")
        for fused, parts in FUSED.items():
            if last in parts and all(f"{parent}{dot}{part}" in seen for part in parts):
                yield f"{parent}{dot}{fused}"


def _any(parts: Iterable[str]) -> str:
    found = list(parts)
    return "".join(found) if len(found) < 2 else f"(?:{'|'.join(found)})"


def mistaken(floats: Iterable[str], quantized: Iterable[str]) -> list[tuple[str, str]]:
    """(float, quantized) where the one's name is part of the other's: loaders that look for parts
    of names would leave both in float."""
    known = list(quantized)
    return [(one, other) for one in floats for other in known if one in other]
