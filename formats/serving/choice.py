"""The scheme of every linear: the one asked for, exceptions by name, the default group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse
from qconvert.formats.serving.fused import Fusing, Joined, Shard, Uneven, joined, module_of, shards
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import FAMILIES, group_name, scheme_of, schemes
from qconvert.formats.serving.verdict import nearness
from qconvert.formats.serving.wanted import KEPT, Names, Wanted, choices, named, options_of
from qconvert.formats.source import Source, SourceTensor

Layers = tuple[tuple[str, str], ...]
Runs = Callable[[Scheme, Sequence[Shard]], bool]
"""Whether a target runs linears of a scheme, of these shapes, anywhere."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of each linear."""

    schemes: Mapping[str, Scheme | None]  # by the weight's name; None: stays float
    main: Scheme | None  # of all that no exception names; None: nothing is quantized
    type: str  # as `--type` takes it: "w4a16-g64", "w4a16-g64,*.down_proj=w8a16-g64"
    notes: tuple[str, ...] = ()


def split_type(text: str | None) -> tuple[str | None, Layers]:
    """A type as a work folder remembers it: its main part, and the exceptions after commas."""
    if text is None:
        return None, ()
    main, *rest = text.split(",")
    layers = [tuple(one.partition("=")[::2]) for one in rest]
    if any(not pattern or not scheme for pattern, scheme in layers):
        raise refuse(
            f"--type {text}: not a type, or one followed by ,PATTERN=SCHEME",
            "for example --type w4a16-g128,*.down_proj=w8a16-g128",
        )
    return main, tuple((pattern, scheme) for pattern, scheme in layers)


def choose(
    source: Source,
    linears: Sequence[SourceTensor],
    wanted: Wanted,
    layers: Layers,
    *,
    fusing: Fusing,
    tp: int,
    defaults: Iterable[Wanted],
    runs: Runs,
    names: Names = MappingProxyType({}),
) -> Choice:
    """Decide for all `linears`; `Refused` with all that is wrong with exceptions and groups.

    `defaults`: what the target prefers where a family leaves zero points open. `names`: its own
    names of schemes.
    """
    reasons: list[Reason] = []
    rules = [("", wanted)]
    for pattern, text in layers:
        with collecting(reasons):
            rules.append((pattern, Wanted() if text.lower() == KEPT else _exception(text, names)))
    raise_if_any(reasons)
    which, unused = _matched(linears, rules[1:])
    reasons += [_unmatched(source, linears, pattern) for pattern in unused]
    notes, found = [], []
    prefer = list(defaults)
    for place, (pattern, one) in enumerate(rules):
        members = [linear for linear in linears if which[linear.name] == place]
        with collecting(reasons):
            found_shards = list(shards(source, joined(source, members, fusing), tp))
            raise_if_any(list(_uneven(found_shards, tp)))
            cut = [shard for shard in found_shards if isinstance(shard, Shard)]
            scheme, note = _completed(cut, one, prefer, runs, names)
            found.append((pattern, scheme))
            notes += [note] if note else []
    raise_if_any(reasons)
    schemes = {linear.name: found[which[linear.name]][1] for linear in linears}
    raise_if_any(list(_torn(joined(source, linears, fusing), schemes)))
    main = found[0][1]
    base = main.name if main else (wanted.floats or KEPT).lower()
    parts = [base, *(f"{p}={s.name if s else KEPT}" for p, s in found[1:])]
    return Choice(schemes, main, ",".join(parts), tuple(dict.fromkeys(notes)))


def _exception(text: str, names: Names) -> Wanted:
    found = named(text, names)
    if not found.quantizes:
        raise refuse(f"--layer ...={text}: one float type serves the whole output", f"={KEPT}")
    return found


def matches(pattern: str, module: str) -> bool:
    """Whether `pattern` is the module's name, or the end of it after a dot, or fits one of them."""
    parts = module.split(".")
    return any(fnmatchcase(".".join(parts[at:]), pattern) for at in range(len(parts)))


def _matched(
    linears: Sequence[SourceTensor], rules: Sequence[tuple[str, Wanted]]
) -> tuple[dict[str, int], list[str]]:
    """Linear -> its rule, counted from 1, 0 for none; and the patterns that nothing fits."""
    which = {
        linear.name: next(
            (at for at, (pattern, _) in enumerate(rules, 1) if matches(pattern, module_of(linear))),
            0,
        )
        for linear in linears
    }
    unused = [pattern for at, (pattern, _) in enumerate(rules, 1) if at not in which.values()]
    return which, unused


def _unmatched(source: Source, linears: Sequence[SourceTensor], pattern: str) -> Reason:
    """Why a pattern finds nothing to decide on."""
    others = [
        one for one in source.tensors
        if one.part == "weight" and one not in linears and matches(pattern, module_of(one))
    ]  # fmt: skip
    if others:
        kinds = " and ".join(sorted({one.role.replace("_", " ") for one in others}))
        return Reason(
            f"--layer {pattern} names {module_of(others[0])}: the {kinds} stays float always",
            "name linears of the blocks, as *.down_proj",
        )
    if any(matches(pattern, module_of(linear)) for linear in linears):
        return Reason(f"--layer {pattern} comes after others that match all it names",
                      "the first that matches wins: put it before them")  # fmt: skip
    ends = list(dict.fromkeys(module_of(one).rpartition(".")[2] for one in linears))
    return Reason(f"--layer {pattern} matches no linear", f"their names end in {', '.join(ends)}")


def _completed(
    cut: Sequence[Shard], wanted: Wanted, defaults: Sequence[Wanted], runs: Runs, names: Names
) -> tuple[Scheme | None, str]:
    """The scheme that `wanted` becomes for these shards, and what to tell of it: with the group
    asked for, or the largest that fits; `Refused` where there is none."""
    if wanted.family is None:
        return None, ""
    family = FAMILIES[wanted.family]
    for one in defaults:
        if one.family == wanted.family and wanted.symmetric is None:
            wanted = replace(wanted, symmetric=one.symmetric)

    def scheme(group: int) -> Scheme:
        return scheme_of(
            family, group, symmetric=wanted.symmetric is not False, static=bool(wanted.static)
        )

    groups = choices(wanted)
    fitting = [one for one in groups if all(_divides(one, shard) for shard in cut)]
    if wanted.group is not None:
        if wanted.group in fitting:
            return scheme(wanted.group), ""
        raise _undivided(wanted.group, scheme(wanted.group), cut, fitting, runs, names)
    usual = groups[0]
    best = next((one for one in fitting if one), None)
    if best is None and not any(groups):
        return scheme(usual), ""
    if best is None:
        least = min(one for one in groups if one)
        raise _undivided(least, scheme(least), cut, fitting, runs, names)
    if best == usual:
        return scheme(best), ""
    bad = next(shard for shard in cut if not _divides(usual, shard))
    return scheme(best), f"groups of {best}: {usual} do not divide {_columns(bad)}"


def _undivided(
    group: int,
    scheme: Scheme,
    cut: Sequence[Shard],
    fitting: Sequence[int],
    runs: Runs,
    names: Names,
) -> Refused:
    """No group of the family, or not the one asked for, divides all inputs."""
    bad = next(shard for shard in cut if not _divides(group, shard))
    near = [
        f"--group {one or group_name(one)}"
        for one in sorted(fitting, key=lambda one: (not one, abs(one - group)))
        if runs(replace(scheme, group=one), cut)
    ]
    if not near:
        others = sorted(schemes().values(), key=lambda one: nearness(scheme, one))
        near = [
            options_of(one, names)
            for one in others
            if all(_divides(one.group, shard) for shard in cut) and runs(one, cut)
        ][:1]
    return refuse(
        f"groups of {group} do not divide {_columns(bad)}",
        " or ".join(near) or f"leave it in float: --layer PATTERN={KEPT}",
    )


def _divides(group: int, shard: Shard) -> bool:
    return not group or shard.cols % group == 0


def _columns(shard: Shard) -> str:
    of = f" of each of its shards (K = {shard.of.members[0].shape[1]})"
    return f"the {shard.cols} inputs of {shard.of.name}{of if shard.cut == 'columns' else ''}"


def _uneven(found: Iterable[Shard | Uneven], tp: int) -> Iterator[Reason]:
    """One reason for like linears of all blocks."""
    told = set()
    for one in found:
        if isinstance(one, Uneven) and one.what not in told:
            told.add(one.what)
            yield Reason(
                f"--tp {tp} does not divide the {one.what} of {one.of.name}",
                "give the number of ranks that will serve it, or leave --tp out",
            )


def _torn(sets: Iterable[Joined], schemes: Mapping[str, Scheme | None]) -> Iterator[Reason]:
    """Linears that a program joins, and that would have different schemes."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in sets:
        have = [schemes[member.name] for member in one.members]
        if len(set(have)) > 1:
            ends = tuple(
                (module_of(member).rpartition(".")[2], scheme.name if scheme else KEPT)
                for member, scheme in zip(one.members, have, strict=True)
            )
            found.setdefault(ends, []).append(one.name)
    for ends, names in found.items():
        listed = ", ".join(f"{end}: {scheme}" for end, scheme in ends)
        more = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
        words = " ".join(f"--layer {end}={ends[0][1]}" for end, _ in ends)
        yield Reason(
            f"{names[0]}{more} would differ ({listed}), but are one linear in memory",
            f"give all of them one scheme, as {words}",
        )
