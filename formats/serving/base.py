"""ServingTarget: a program that serves folders, as data, and what it plans for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.serving.capability import Kernel, Verdict, told, where_it_runs
from qconvert.formats.serving.choice import Choice, choose, split_type
from qconvert.formats.serving.container import Linear
from qconvert.formats.serving.fused import Fusing, Shard, joined, linears_of, module_of, shards
from qconvert.formats.serving.mark import container_of, mark_of
from qconvert.formats.serving.model_files import (
    ARCHITECTURES,
    copied_files,
    file_notes,
    half_type,
    model_problems,
)
from qconvert.formats.serving.placing import Place, known_containers, name_problems, place
from qconvert.formats.serving.planning import IN_CONTAINER, CacheRule, Drawn, Extras, plan_folder
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import family_of, schemes
from qconvert.formats.serving.wanted import FLOATS, KEPT, Names, Wanted, asked
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Plan, Reader, Request, Sink

CACHES: Mapping[str, str] = {
    "fp8": "e4m3, one scale each for the keys and values of a block",
    "nvfp4": "e2m1 in groups of 16, one scale each for the keys and values of a block",
}
"""What `--kv` takes, of some program."""


def nothing_more(drawn: Drawn) -> Extras:
    return Extras()


@dataclass(frozen=True, slots=True)
class ServingTarget:
    """`formats.target.Target` of a serving program: what differs between programs is data here."""

    name: str
    summary: str
    containers: tuple[str, ...]  # that it reads, the preferred one first
    by_bits: Mapping[int, Wanted]  # what --bits means; the first where nothing is asked
    kernels: tuple[Kernel, ...]
    fusing: Fusing
    serve: str  # the command that serves {folder}
    architectures: Mapping[str, str] = field(default_factory=lambda: ARCHITECTURES)
    notes: tuple[str, ...] = ()
    model_notes: Mapping[str, str] = field(default_factory=dict)  # by model_type
    extras: Callable[[Drawn], Extras] = nothing_more
    names: Names = field(default_factory=dict)  # its own, of schemes
    caches: tuple[str, ...] = ("fp8",)  # of CACHES, that it computes with
    cache: CacheRule = IN_CONTAINER
    foreign: bool = False  # whether quantized folders that others have written are its own
    also: tuple[str, ...] = ()  # targets whose runtimes read its folders, too
    also_schemes: frozenset[str] | None = None  # in which they do; None: in all
    folder: bool = True
    takes: frozenset[str] = frozenset(
        {"bits", "type", "split_bytes", "scheme", "group", "symmetric", "static", "container",
         "kv", "layers", "hardware", "tp"}
    )  # fmt: skip

    @property
    def types(self) -> Sequence[tuple[str, str]]:
        """Schemes that it can hold and run somewhere, then float types."""
        found = [(name, _summary(one)) for name, one in schemes().items() if self.runs(one)]
        return (*found, *((name, f"not quantized, {dtype}") for name, dtype in FLOATS.items()))

    def runs(self, scheme: Scheme) -> bool:
        """Whether a kernel takes linears of `scheme` in a container that it reads."""
        return any(
            kernel.suits(scheme, one.name)
            for one in known_containers(self.containers).values()
            if not one.problems(scheme)
            for kernel in self.kernels
        )

    def plan(self, source: Source, request: Request) -> Plan:
        """The scheme of every linear, the container, all tensors and files; `Refused` with all
        reasons, from headers alone."""
        reasons: list[Reason] = []
        reasons += model_problems(source, self.architectures, self.name)
        reasons += name_problems(self.name, self.containers, request.container, request.hardware)
        reasons += _value_problems(request, self.caches)
        wanted, layers = Wanted(), request.layers
        half = half_type(source)
        with collecting(reasons):
            main, exceptions = split_type(request.type)
            layers = (*layers, *exceptions)
            wanted = asked(replace(request, type=main), self.by_bits, half, self.names)
        raise_if_any(reasons)
        tp = request.tp or 1
        linears = linears_of(source)
        choice = choose(
            source, linears, wanted, layers,
            fusing=self.fusing, tp=tp, defaults=self.by_bits.values(), runs=self.runs,
            names=self.names,
        )  # fmt: skip
        placed = self._placed(source, linears, choice, request)
        drawn = Drawn(
            self.name, source, choice, placed,
            {one.name: Linear(module_of(one), (one.shape[0], one.shape[1]), scheme)
             for one in linears if (scheme := choice.schemes[one.name]) is not None},
            tuple(_floats(source, linears, choice)),
            wanted.floats or half, request.kv, self.architectures[source.model_type],
        )  # fmt: skip
        return self._plan(drawn, request)

    def _placed(
        self, source: Source, linears: Sequence[SourceTensor], choice: Choice, request: Request
    ) -> Place | None:
        """The container of all that is quantized, and where it runs."""
        quantized = [one for one in linears if choice.schemes[one.name] is not None]
        pairs = list(_pairs(source, quantized, choice, self.fusing, request.tp or 1))
        known = known_containers(self.containers)
        if pairs:
            return place(self.name, self.kernels, known, pairs, request.container, request.hardware)
        if request.kv is not None:
            held = known[request.container or next(iter(known))]
            return Place(held, Verdict(frozenset(), {}, {}))
        if request.container is not None:
            raise refuse(
                f"--container {request.container}: nothing is quantized", "leave out --container"
            )
        return None

    def _plan(self, drawn: Drawn, request: Request) -> Plan:
        from qconvert.formats.serving.folder.writer import overhead

        extras = self.extras(drawn)
        tensors, folder = plan_folder(drawn, self.fusing, self.cache, extras, request.split_bytes)
        model = self.model_notes.get(drawn.source.model_type)
        notes = (
            *drawn.choice.notes, *_placing_notes(drawn.place, request), *extras.notes,
            *self.notes, *([model] if model else ()), *file_notes(copied_files(drawn.source)),
        )  # fmt: skip
        plan = Plan(
            target=self.name,
            type=drawn.choice.type,
            tensors=tensors,
            default_name=self._default_name(drawn, request),
            notes=notes,
            details={"folder": folder, "about": self._about(drawn, extras), "gathers": True},
        )
        return replace(plan, overhead_bytes=overhead(plan))

    def _default_name(self, drawn: Drawn, request: Request) -> str:
        """Of the model, the type, and what else was asked for."""
        main, *exceptions = drawn.choice.type.split(",")
        parts = [drawn.source.folder.resolve().name, main, *(["mixed"] if exceptions else [])]
        if request.container not in (None, self.containers[0]):
            parts.append(str(request.container))
        parts += [f"kv-{drawn.kv}"] if drawn.kv else []
        return "-".join(parts)

    def _about(self, drawn: Drawn, extras: Extras) -> Mapping[str, str]:
        """What the tables say of a folder; {folder} stands for where it lies."""
        lines = {}
        if drawn.container is not None:
            lines["container"] = drawn.container.name
        if drawn.kv is not None:
            lines["KV cache"] = f"{drawn.kv}: {CACHES[drawn.kv]}"
        if drawn.place is not None and drawn.place.verdict.where:
            lines["runs on"] = where_it_runs(drawn.place.verdict.where)
        lines["serve"] = " ".join((self.serve, *extras.flags))
        return lines

    def writer(self, plan: Plan, path: Path) -> AbstractContextManager[Sink]:
        from qconvert.formats.serving.folder.writer import open_folder

        return open_folder(plan, path)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        from qconvert.formats.serving.folder.writer import outputs

        return outputs(plan, path)

    def recognises(self, path: Path) -> bool:
        """By the mark that every output has; folders of others by how they are quantized."""
        mark = mark_of(path)
        if mark:
            return bool(mark["target"] == self.name)
        return self.foreign and container_of(path) is not None

    def about(self, path: Path) -> Mapping[str, str]:
        """What `qconvert inspect` says first of an output."""
        mark, container = mark_of(path), container_of(path)
        lines = {"type": str(mark["type"])} if mark else {}
        if container is not None:
            lines["container"] = f"{container.name}: {container.summary}"
        if mark.get("kv"):
            lines["KV cache"] = str(mark["kv"])
        if mark.get("runs_on"):
            lines["runs on"] = where_it_runs(mark["runs_on"])
        return {**lines, "serve": self.serve.replace("{folder}", str(path))}

    def also_read_by(self, path: Path) -> tuple[str, ...]:
        """`also`, where their runtimes compute with what the folder `path` holds."""
        mark = mark_of(path)
        main, *others = str(mark.get("type", "")).split(",")
        held = {main, *(one.rpartition("=")[2] for one in others)} - {"", KEPT}
        return self.also if self.also_schemes is None or held <= self.also_schemes else ()

    def reader(self, path: Path) -> Reader:
        from qconvert.formats.serving.folder.reader import open_reader

        return open_reader(path)


def _summary(scheme: Scheme) -> str:
    family = family_of(scheme)
    parts = [family.summary]
    if family.named_group:
        parts.append(f"groups of {scheme.group}" if scheme.group else "a scale for each row")
    if scheme.static:
        parts = [f"as {family.name}, but the activations of a linear share one fixed scale"]
    return ", ".join([*parts, *["zero points"] * (not scheme.symmetric)])


def _value_problems(request: Request, caches: Sequence[str]) -> Iterator[Reason]:
    if request.tp is not None and request.tp < 1:
        yield Reason(f"--tp {request.tp} is not a number of ranks", "--tp 1")
    if request.kv is not None and request.kv not in caches:
        known = " or ".join(f"--kv {name}" for name in caches)
        yield Reason(f"--kv {request.kv}: no scales are stored for a KV cache of this type", known)


def _pairs(
    source: Source, linears: Sequence[SourceTensor], choice: Choice, fusing: Fusing, tp: int
) -> Iterator[tuple[Scheme, Shard]]:
    for shard in shards(source, joined(source, linears, fusing), tp):
        assert isinstance(shard, Shard)  # uneven ones are refused before
        scheme = choice.schemes[shard.of.members[0].name]
        assert scheme is not None
        yield scheme, shard


def _floats(source: Source, linears: Sequence[SourceTensor], choice: Choice) -> Iterator[str]:
    """Modules of linears that stay float; a tied head is one, though it is stored nowhere."""
    yield from (module_of(one) for one in linears if choice.schemes[one.name] is None)
    yield next((module_of(one) for one in source.tensors if one.role == "head"), "lm_head")


def _placing_notes(placed: Place | None, request: Request) -> Iterator[str]:
    if placed is None or not placed.verdict.where:
        return
    if request.hardware is None:
        yield from told(placed.verdict)
    else:
        yield from placed.verdict.notes
