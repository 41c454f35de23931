"""What is asked for, held against what a program takes, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qconvert.formats.refusal import Reason
from qconvert.formats.serving.choice import Choice
from qconvert.formats.serving.fused import (
    KEYS_AND_VALUES,
    Fusing,
    Shard,
    joined,
    module_of,
    shards,
)
from qconvert.formats.serving.placing import Place
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.verdict import told
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Request


def value_problems(request: Request, caches: Sequence[str]) -> Iterator[Reason]:
    """Values that no program has; `caches`: types of KV caches that this one has."""
    if request.tp is not None and request.tp < 1:
        yield Reason(f"--tp {request.tp} is not a number of ranks", "--tp 1")
    if request.kv is not None and request.kv not in caches:
        known = " or ".join(f"--kv {name}" for name in caches)
        yield Reason(f"--kv {request.kv}: no scales are stored for a KV cache of this type", known)


def cache_problems(
    program: str,
    float_caches: Sequence[str] | None,
    linears: Sequence[SourceTensor],
    choice: Choice,
    kv: str | None,
) -> Iterator[Reason]:
    """A KV cache whose scales nothing would read, because attention stays float. `float_caches`:
    those whose scales are read there, if another linear is quantized; None: all, always."""
    if kv is None or float_caches is None:
        return
    kept = [
        one for one in linears if one.role in KEYS_AND_VALUES and choice.schemes[one.name] is None
    ]
    if kept and (kv not in float_caches or not any(choice.schemes.values())):
        yield Reason(
            f"--kv {kv}: {program} reads no scales of it beside {module_of(kept[0])} in float",
            "leave out --kv, or quantize q, k and v in a scheme beside which it does",
        )


def pairs_of(
    source: Source, linears: Sequence[SourceTensor], choice: Choice, fusing: Fusing, tp: int
) -> Iterator[tuple[Scheme, Shard]]:
    """What each rank holds of the quantized `linears`, with the scheme."""
    for shard in shards(source, joined(source, linears, fusing), tp):
        assert isinstance(shard, Shard)  # uneven ones are refused before
        scheme = choice.schemes[shard.of.members[0].name]
        assert scheme is not None
        yield scheme, shard


def kept_float(source: Source, linears: Sequence[SourceTensor], choice: Choice) -> Iterator[str]:
    """Modules of linears that stay float; a tied head is one, though it is stored nowhere."""
    yield from (module_of(one) for one in linears if choice.schemes[one.name] is None)
    yield next((module_of(one) for one in source.tensors if one.role == "head"), "lm_head")


def placing_notes(placed: Place | None, request: Request) -> Iterator[str]:
    """Of where it runs, for one who named that hardware, or none."""
    if placed is None or not placed.verdict.where:
        return
    if request.hardware is None:
        yield from told(placed.verdict)
    else:
        yield from placed.verdict.notes
