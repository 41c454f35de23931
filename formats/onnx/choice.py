"""The kind of every matrix: the one asked for, exceptions by name, the group that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert.formats.onnx.kinds import (
    FIELDS,
    FLOATS,
    GROUPS,
    USUAL_GROUP,
    Kind,
    Wish,
    group_problem,
    nearest_group,
    wish_named,
)
from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.serving.choice import matches, split_type
from qconvert.formats.serving.fused import linears_of, module_of
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Request

FLOAT_BITS = 32
OTHER_BITS = "ONNX Runtime's CPU kernel has none for this width"


@dataclass(frozen=True, slots=True)
class Choice:
    """`kinds`: by module: of the linears, the embedding and the head. Of a tied model, `head` and
    the embedding are one tensor unless `apart`."""

    kinds: Mapping[str, Kind]
    embedding: str  # module
    head: str
    type: str  # as `--type` takes it: "int4-g64,lm_head=int8"
    apart: bool
    notes: tuple[str, ...] = ()


def asked(request: Request) -> tuple[Wish, tuple[tuple[str, Wish], ...]]:
    """(the wish for all, wishes by pattern); `Refused` with all that contradicts itself."""
    reasons: list[Reason] = []
    wish, layers, main = Wish(4), list(request.layers), request.type
    with collecting(reasons):
        main, exceptions = split_type(request.type)
        layers += exceptions
        wish = _main(main, request.bits)
    with collecting(reasons):  # also of a width that there is not
        wish = _refined(wish, main, request)
    found = []
    for pattern, text in layers:
        with collecting(reasons):
            found.append((pattern, wish_named(text)))
    raise_if_any(reasons)
    return wish, tuple(found)


def _main(type: str | None, bits: int | None) -> Wish:
    if bits is not None and bits not in FIELDS and bits != FLOAT_BITS:
        near = ", ".join(f"--bits {one}" for one in sorted(FIELDS, reverse=True))
        why = "no type here holds 16-bit floats" if bits == 16 else OTHER_BITS
        raise refuse(f"--bits {bits}: {why}", f"{near}; --type float32 quantizes nothing")
    wanted = 0 if bits == FLOAT_BITS else bits
    if type is None:
        return Wish(4 if wanted is None else wanted)
    found = wish_named(type)
    if wanted is not None and found.bits != wanted:
        raise refuse(f"--type {type} and --bits {bits} contradict each other", "leave one out")
    return found


def _refined(wish: Wish, type: str | None, request: Request) -> Wish:
    """With `--group` and `--symmetric`; `Refused` where the type said otherwise."""
    reasons = []
    words = {"group": f"--group {request.group}",
             "symmetric": "--symmetric" if request.symmetric else "--asymmetric"}  # fmt: skip
    for field, option in words.items():
        want, have = getattr(request, field), getattr(wish, field)
        if want is None:
            continue
        if not wish.bits:
            reasons.append(Reason(f"{option}: nothing is quantized", f"leave out {option}"))
        elif have is not None and have != want:
            reasons.append(Reason(f"--type {type} and {option} contradict each other",
                                  "leave one of them out"))  # fmt: skip
        elif field == "group" and want not in GROUPS:
            reasons.append(Reason(f"{option}: {group_problem(want)}",
                                  f"--group {nearest_group(want)}"))  # fmt: skip
        else:
            wish = replace(wish, **{field: want})
    raise_if_any(reasons)
    return wish


def choose(source: Source, wish: Wish, layers: Sequence[tuple[str, Wish]]) -> Choice:
    """Decide for every matrix; `Refused` with all patterns that fit nothing, and all groups that
    do not divide a row."""
    matrices = _matrices(source)
    embedding, head = matrices[0], matrices[-1]
    which = {name: _rule(name, layers) for name, _ in matrices}
    reasons = list(_unmatched(layers, which))
    notes: list[str] = []
    if source.tied:
        notes += _tie(which, embedding[0], head[0], layers)
    rules = [wish, *(one for _, one in layers)]
    kinds: dict[str, Kind] = {}
    smaller = Counter[int]()
    undivided: dict[tuple[Wish, int, str], list[str]] = {}
    for name, tensor in matrices:
        rule, cols = rules[which[name]], tensor.shape[1]
        found = _completed(rule, cols)
        if isinstance(found, str):
            undivided.setdefault((rule, cols, found), []).append(name)
            continue
        kinds[name] = found
        if rule.group is None and found.group not in (0, USUAL_GROUP):
            smaller[found.group] += 1
    reasons += [
        _undivided(rule, cols, names, near) for (rule, cols, near), names in undivided.items()
    ]
    raise_if_any(reasons)
    notes += [f"{count} matrices in groups of {group}: {USUAL_GROUP} do not divide their inputs"
              for group, count in smaller.items()]  # fmt: skip
    apart = not source.tied or kinds[embedding[0]] != kinds[head[0]]
    if source.tied and apart:
        notes.append(
            f"embedding and head are tied, but stored twice: {kinds[embedding[0]].name} and"
            f" {kinds[head[0]].name}"
        )
    parts = [wish.name if wish.bits else "float32", *(f"{p}={one.name}" for p, one in layers)]
    return Choice(kinds, embedding[0], head[0], ",".join(parts), apart, tuple(notes))


def _matrices(source: Source) -> list[tuple[str, SourceTensor]]:
    """(module, tensor): embedding, linears, head; a tied head is the embedding's tensor."""
    embedding = next(one for one in source.tensors if one.role == "embedding")
    head = next((one for one in source.tensors if one.role == "head"), embedding)
    head_name = "lm_head" if head is embedding else module_of(head)
    inner = [(module_of(one), one) for one in linears_of(source)]
    return [(module_of(embedding), embedding), *inner, (head_name, head)]


def _rule(name: str, layers: Sequence[tuple[str, Wish]]) -> int:
    """The first rule that fits, counted from 1; 0 for the one that is for all."""
    return next((at for at, (pattern, _) in enumerate(layers, 1) if matches(pattern, name)), 0)


def _unmatched(layers: Sequence[tuple[str, Wish]], which: Mapping[str, int]) -> Iterator[Reason]:
    for at, (pattern, _) in enumerate(layers, 1):
        if at in which.values():
            continue
        if any(matches(pattern, name) for name in which):
            yield Reason(f"--layer {pattern} comes after others that match all it names",
                         "the first that matches wins: put it before them")  # fmt: skip
        else:
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in which))
            yield Reason(f"--layer {pattern} matches no matrix",
                         f"their names end in {', '.join(ends)}")  # fmt: skip


def _tie(
    which: dict[str, int], embedding: str, head: str, layers: Sequence[tuple[str, Wish]]
) -> Iterator[str]:
    """A rule for one of two tied matrices is for both, unless the other has its own."""
    if which[embedding] == which[head] or (which[embedding] and which[head]):
        return
    rule = which[embedding] or which[head]
    named, other = (embedding, head) if which[embedding] else (head, embedding)
    which[embedding] = which[head] = rule
    yield (
        f"{other} is tied to {named} and stored once: both are {layers[rule - 1][1].name}"
        f" (name both in --layer for two tensors)"
    )


def _completed(wish: Wish, cols: int) -> Kind | str:
    """With the group asked for, or the usual one, or the largest below it that divides a row; what
    works instead where there is none."""
    if not wish.bits:
        return FLOATS
    symmetric = wish.symmetric is not False
    fitting = [one for one in GROUPS if cols % one == 0]
    if wish.group is not None:
        if wish.group in fitting:
            return Kind(wish.bits, wish.group, symmetric)
        return f"--group {fitting[-1]}" if fitting else ""
    usual = [one for one in fitting if one <= USUAL_GROUP]
    return Kind(wish.bits, usual[-1], symmetric) if usual else ""


def _undivided(wish: Wish, cols: int, names: Sequence[str], near: str) -> Reason:
    """One reason for all matrices of rows that the groups do not divide."""
    group = wish.group or f"{GROUPS[0]} or more"
    ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
    more = f" and of {len(names) - 1} other matrices" if len(names) > 1 else ""
    return Reason(
        f"groups of {group} do not divide the {cols} inputs of {names[0]}{more}",
        near or f"leave them in float: {' '.join(f'--layer {one}=float' for one in ends)}",
    )
