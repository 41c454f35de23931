"""ServingTarget: a program that serves folders, as data, and what it plans for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.serving.asking import (
    cache_problems,
    kept_float,
    pairs_of,
    placing_notes,
    value_problems,
)
from qconvert.formats.serving.choice import Choice, choose, split_type
from qconvert.formats.serving.container import Linear
from qconvert.formats.serving.fused import Fusing, Shard, linears_of, module_of
from qconvert.formats.serving.kernel import Kernel, Setting
from qconvert.formats.serving.listing import listed
from qconvert.formats.serving.mark import container_of, mark_of
from qconvert.formats.serving.model_files import (
    ARCHITECTURES,
    copied_files,
    file_notes,
    half_type,
    model_problems,
)
from qconvert.formats.serving.own_rule import OwnRule
from qconvert.formats.serving.placing import Field, Place, known_containers, name_problems, place
from qconvert.formats.serving.planning import IN_CONTAINER, CacheRule, Drawn, Extras, plan_folder
from qconvert.formats.serving.refining import asked
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.serving.verdict import Verdict, judge, where_it_runs
from qconvert.formats.serving.wanted import KEPT, Names, Wanted
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
    float_caches: tuple[str, ...] | None = None  # beside attention that stays float; None: all
    cache: CacheRule = IN_CONTAINER
    rule: OwnRule | None = None  # another program's rounding, where it can be asked for
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Canonical name of a scheme that it does not run -> options by which another program does."""
    ending: str = ""  # of an output's default name, where it is not the folder that vLLM reads
    foreign: tuple[str, ...] = ()  # containers: folders in them that others wrote count as its own
    also: tuple[str, ...] = ()  # targets whose runtimes read its folders, too
    also_schemes: frozenset[str] | None = None  # in which they do; None: in all
    folder: bool = True
    takes: frozenset[str] = frozenset(
        {"bits", "type", "split_bytes", "scheme", "group", "symmetric", "static", "container",
         "kv", "layers", "hardware", "tp"}
    )  # fmt: skip

    @property
    def types(self) -> Sequence[tuple[str, str]]:
        """Its own names, schemes that it can hold and run somewhere, then float types."""
        return listed([one for one in schemes().values() if self.runs(one)], self.names)

    def runs(self, scheme: Scheme, cut: Sequence[Shard] = ()) -> bool:
        """Whether kernels take linears of `scheme`, of the shapes of `cut`, in a container that it
        reads."""
        return any(
            kernel.suits(scheme, one.name)
            and (not cut or judge(self.kernels, one.name, ((scheme, s) for s in cut)).where)
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
        reasons += value_problems(request, self.caches)
        wanted, layers = Wanted(), request.layers
        half = half_type(source)
        with collecting(reasons):
            main, exceptions = split_type(request.type)
            layers = (*layers, *exceptions)
            wanted = asked(replace(request, type=main), self.by_bits, half, self.names)
        raise_if_any(reasons)
        linears = linears_of(source)
        choice = choose(
            source, linears, wanted, layers,
            fusing=self.fusing, tp=request.tp or 1, defaults=self.by_bits.values(), runs=self.runs,
            names=self.names,
        )  # fmt: skip
        setting = Setting(wanted.floats or half, request.kv)
        reasons += cache_problems(self.name, self.float_caches, linears, choice, request.kv)
        placed = None
        with collecting(reasons):
            placed = self._placed(source, linears, choice, request, setting)
        with collecting(reasons):
            drawn = self._drawn(source, linears, choice, placed, request, setting)
        raise_if_any(reasons)
        return self._plan(drawn, request)

    def _drawn(
        self, source: Source, linears: Sequence[SourceTensor], choice: Choice,
        placed: Place | None, request: Request, setting: Setting,
    ) -> Drawn:  # fmt: skip
        """With the schemes of the rule that was asked for."""
        found = {one.name: scheme for one in linears if (scheme := choice.schemes[one.name])}
        rule = self.rule_of(request)
        if rule is not None:
            quantized = [one for one in linears if one.name in found]
            rule.check(found.values(), quantized, setting.floats)
            found = {name: rule.scheme(one, setting.floats) for name, one in found.items()}
        return Drawn(
            self.name, source, choice, placed,
            {one.name: Linear(module_of(one), (one.shape[0], one.shape[1]), found[one.name])
             for one in linears if one.name in found},
            tuple(kept_float(source, linears, choice)),
            setting.floats, request.kv, self.architectures[source.model_type],
        )  # fmt: skip

    def rule_of(self, request: Request) -> OwnRule | None:
        """`rule`, where the request asks for it."""
        asked_for = self.rule is not None and request.option(self.rule.option) is not None
        return self.rule if asked_for else None

    def _placed(
        self, source: Source, linears: Sequence[SourceTensor], choice: Choice, request: Request,
        setting: Setting,
    ) -> Place | None:  # fmt: skip
        """The container of all that is quantized, and where it runs."""
        quantized = [one for one in linears if choice.schemes[one.name] is not None]
        pairs = list(pairs_of(source, quantized, choice, self.fusing, request.tp or 1))
        known = known_containers(self.containers)
        if pairs:
            return place(Field(
                self.name, self.kernels, known, pairs, request.container, request.hardware,
                setting, self.names, self.elsewhere,
            ))  # fmt: skip
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
            *drawn.choice.notes, *placing_notes(drawn.place, request), *extras.notes,
            *self.notes, *([model] if model else ()), *file_notes(copied_files(drawn.source)),
        )  # fmt: skip
        plan = Plan(
            target=self.name,
            type=drawn.choice.type,
            tensors=tensors,
            default_name=self._default_name(drawn, request),
            notes=notes,
            details={"folder": folder, "about": self._about(drawn, extras), "gathers": True},
            rule=rule.why if (rule := self.rule_of(request)) is not None else "",
        )
        return replace(plan, overhead_bytes=overhead(plan))

    def _default_name(self, drawn: Drawn, request: Request) -> str:
        """Of the model, the type, and what else was asked for."""
        main, *exceptions = drawn.choice.type.split(",")
        parts = [drawn.source.folder.resolve().name, main, *(["mixed"] if exceptions else [])]
        if request.container not in (None, self.containers[0]):
            parts.append(str(request.container))
        parts += [f"kv-{drawn.kv}"] if drawn.kv else []
        rule = self.rule_of(request)
        parts += [self.ending] if self.ending else []
        parts += [rule.option.rpartition("-")[2]] if rule is not None else []
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
        container = container_of(path) if self.foreign else None
        return container is not None and container.name in self.foreign

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
