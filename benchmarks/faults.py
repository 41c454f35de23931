"""Plants faults into good outputs, and counts those that `qconvert check` finds and names.

    python benchmarks/faults.py MODEL [--quick] [--runtime] [--resume FILE] [--table FILE]

Each fault damages a copy of a good output the way a real tool did, with tools of its own and none
of qconvert's writers (`benchmarks/planting`). Each copy is checked against the source alone,
against the manifest of the good file and, with `--work`, against the work folder that was kept.
Good conversions of many kinds are checked as well: what is found there is a false alarm. Prints
one JSON line for each, and the sums last. Exits with 1 when a fault was planted that changed no
byte, or no number where it must.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from planting import goods, table
from planting.alarms import Conversion, conversions, convert_good
from planting.checking import Asking, Checked, Checker, against_manifest, manifest_of
from planting.fault import Fault
from planting.files import Files, Inapplicable
from planting.scoring import right, summary
from planting.scoring import table as markdown
from planting.table_weights import WEIGHTS

Line = dict[str, Any]
TINY = Path(__file__).resolve().parent.parent / "tests" / "tiny.py"
SHOWN = 4  # culprits and reasons of a case that are printed


@dataclass(frozen=True)
class Options:
    """What a worker needs to know; can be sent to another process."""

    model: Path
    folder: Path  # good outputs and copies
    asking: Asking
    method: str
    rows: int
    work: bool
    keep: bool


class Bench:
    """Builds good outputs, plants, checks. Models are measured once and stay open."""

    def __init__(self, options: Options, stack: ExitStack) -> None:
        self.options, self._stack = options, stack
        self._checkers: dict[Path, Checker] = {}
        self._good: dict[str, Checked] = {}

    def model(self, name: str) -> Path:
        """The folder of the main model, or of a tiny one."""
        if name == goods.MAIN:
            return goods.main_model(self.options.model, self.options.folder / "model")
        family, settings = goods.TINY[name]
        return tiny_model(self.options.folder / f"tiny-{name}", family, settings)

    def checker(self, model: Path) -> Checker:
        if model not in self._checkers:
            made = Checker.of(model, self.options.asking)
            self._checkers[model] = self._stack.enter_context(made)
        return self._checkers[model]

    def good(self, name: str) -> tuple[Path, Path]:
        """The good output called `name`, and its model."""
        model = self.model(goods.split_name(name)[1])
        place = self.options.folder / "good" / name.replace("/", "-")
        asked: dict[str, Any] = {"method": self.options.method, "calib_rows": self.options.rows}
        if self.options.work:
            asked |= {"work": place.with_name(place.name + ".work"), "keep_work": True}
        return goods.build(name, model, place, **asked), model

    def case(self, fault: Fault, name: str) -> Line | None:
        """One fault in one output; None where it has no room for it."""
        good, model = self.good(name)
        place = Path(tempfile.mkdtemp(dir=self.options.folder, prefix="copy-")) / "x"
        try:
            files = goods.copied(good, place)
            output = goods.opened(name, files, model)
            try:
                expected = sorted(set(fault.plant(output)))
            except Inapplicable:
                return None
            if not fault.storage:
                output.finish()
            return self._line(fault, name, good, files, expected)
        finally:
            if not self.options.keep:
                shutil.rmtree(place.parent)

    def _line(
        self, fault: Fault, name: str, good: Path, files: Files, expected: Sequence[str]
    ) -> Line:
        kind, model = goods.split_name(name)
        target = goods.GOODS[kind].to
        checker = self.checker(self.model(model))
        if name not in self._good:
            self._good[name] = checker(good, target)
        whole, found = self._good[name], checker(files.path, target)
        arms = {
            "source": found,
            "manifest": against_manifest(manifest_of(good, self.model(model)), files.path),
        }
        work = self.options.folder / "good" / (name.replace("/", "-") + ".work")
        if work.exists():
            arms["work"] = checker.against_work(files.path, target, work).joined(found)
        return {
            "kind": "fault", "fault": fault.name, "about": fault.about, "source": fault.source,
            "good": name, "format": target, "model": model, "method": self.options.method,
            "expected": list(expected[:12]), "unchanged": unchanged(good, files),
            "arms": {arm: _arm(one, expected) for arm, one in arms.items()},
            "good_kl": whole.kl, "good_ratio": whole.ratio, "good_verdict": whole.verdict,
            "still": _moves(fault, self.options) and found.kl is not None and found.kl == whole.kl,
        }  # fmt: skip

    def alarm(self, wanted: Conversion) -> Line | None:
        """One good conversion; None where the target does not hold the model or the type."""
        model = self.model(wanted.model)
        out = convert_good(wanted, model, self.options.folder / "alarms")
        if out is None:
            return None
        found = self.checker(model)(out, wanted.to)
        return {"kind": "good", "good": wanted.name, "format": wanted.to, "model": wanted.model,
                "arms": {"source": _arm(found, ())}}  # fmt: skip


def _moves(fault: Fault, options: Options) -> bool:
    """Whether the numbers that were measured must differ from the good file's: settings reach them
    in a runtime alone."""
    return fault.numbers and (options.asking.runtime or fault in WEIGHTS)


def _arm(found: Checked, expected: Sequence[str]) -> Line:
    told = asdict(found)
    line: Line = {
        **told, "detected": found.detected,
        "culprits": list(found.culprits[:SHOWN]), "reasons": list(found.reasons[:SHOWN]),
    }  # fmt: skip
    every = {"culprits": found.culprits, "reasons": found.reasons}
    line["right_first"] = found.detected and right(every, expected, first=True)
    line["right_any"] = found.detected and right(every, expected, first=False)
    return line


def unchanged(good: Path, files: Files) -> bool:
    """Whether the copy has the files of the good output, byte for byte."""
    folder = good.parent if good.is_file() else good
    names = sorted(one.name for one in folder.iterdir() if one.is_file() and one.name != ".path")
    return names == files.names() and all(
        (folder / name).read_bytes() == (files.folder / name).read_bytes() for name in names
    )


def tiny_model(folder: Path, family: str, settings: dict[str, Any]) -> Path:
    """One of the tests' random models."""
    if not (folder / "tokenizer_config.json").exists():
        spec = importlib.util.spec_from_file_location("tiny", TINY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.tiny_model(folder, family, dtype="bfloat16", **settings)
    return folder


Task = tuple[str, str]
"""(fault, good output), or ("", a good conversion's name)."""


def tasks(options: argparse.Namespace) -> list[Task]:
    """What is asked for, all of a model together."""
    only = [word.lower() for word in options.only]
    cases = [
        (fault.name, good)
        for fault in table.FAULTS
        for good in (fault.on[:1] if options.quick else fault.on)
        if not only or any(word in fault.name.lower() for word in only)
        if not options.formats or good.split("/")[0] in options.formats
        if not options.goods or goods.split_name(good)[0] in options.goods
    ]
    alarms = [] if options.no_alarms or only else [("", one.name) for one in conversions()]
    if options.formats:
        alarms = [one for one in alarms if one[1].split("/")[0] in options.formats]
    cases.sort(key=lambda task: (goods.split_name(task[1])[1], task[1]))
    return cases + alarms


def perform(bench: Bench, task: Task) -> Line | None:
    """One task; a failure of the benchmark itself is told in a line of its own."""
    fault, name = task
    began = time.perf_counter()
    try:
        if fault:
            line = bench.case(next(one for one in table.FAULTS if one.name == fault), name)
        else:
            line = bench.alarm(next(one for one in conversions() if one.name == name))
    except Exception as error:
        line = {"kind": "broken", "fault": fault, "good": name,
                "error": f"{type(error).__name__}: {error}"}  # fmt: skip
    if line is None:
        line = {"kind": "left out", "fault": fault, "good": name}
    line["task"] = list(task)
    line["seconds"] = round(time.perf_counter() - began, 2)
    return line


def _part(options: Options, mine: Sequence[Task]) -> list[Line | None]:
    """In a process of its own: tasks that share a model."""
    with ExitStack() as stack:
        bench = Bench(options, stack)
        return [perform(bench, task) for task in mine]


def lines(options: Options, todo: Sequence[Task], jobs: int) -> Iterator[Line]:
    if jobs == 1:
        with ExitStack() as stack:
            bench = Bench(options, stack)
            yield from (line for task in todo if (line := perform(bench, task)))
        return
    with ExitStack() as stack:  # made once, before processes share them
        bench = Bench(options, stack)
        for name in dict.fromkeys(name for fault, name in todo if fault):
            bench.good(name)
        for model in dict.fromkeys(name.partition("@")[2] for fault, name in todo if not fault):
            bench.model(model)
    parts = [todo[at : at + 8] for at in range(0, len(todo), 8)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(partial(_part, options), parts):
            yield from (line for line in found if line)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("model", type=Path)
    made.add_argument("--only", nargs="*", default=[], help="words of the names of faults")
    made.add_argument("--formats", nargs="*", default=[], help="gguf, vllm, onnx, mlc")
    made.add_argument("--goods", nargs="*", default=[], help="good outputs: gguf/Q4_0 ...")
    made.add_argument("--quick", action="store_true", help="each fault in one output")
    made.add_argument("--no-alarms", action="store_true", help="no good conversions")
    made.add_argument("--runtime", action="store_true", help="run the runtimes, too")
    made.add_argument("--method", default="rtn", help="of the main model's good outputs")
    made.add_argument("--calib-rows", type=int, default=4)
    made.add_argument("--work", action="store_true", help="keep work folders to compare with")
    made.add_argument("--windows", type=int, default=1)
    made.add_argument("--length", type=int, default=128)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--jobs", type=int, default=1, help="processes")
    made.add_argument("--folder", type=Path, help="for good outputs: what is there is used again")
    made.add_argument("--keep", action="store_true", help="leave the damaged copies")
    made.add_argument("--resume", type=Path, help="JSON lines: what is there is skipped")
    made.add_argument("--table", type=Path, help="a Markdown table by fault")
    return made


def main() -> int:
    options = parser().parse_args()
    done: list[Line] = []
    if options.resume and options.resume.exists():
        done = [json.loads(one) for one in options.resume.read_text("utf-8").splitlines() if one]
        done = [one for one in done if one["kind"] != "broken"]
    had = {tuple(one["task"]) for one in done}
    todo = [task for task in tasks(options) if task not in had]
    with ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qconvert-")))
        folder.mkdir(parents=True, exist_ok=True)
        asking = Asking(options.windows, options.length, options.threads, options.runtime)
        told = Options(options.model.resolve(), folder.resolve(), asking, options.method,
                       options.calib_rows, options.work, options.keep)  # fmt: skip
        record: Callable[[Line], None] = _recorder(options.resume, done)
        for line in lines(told, todo, options.jobs):
            record(line)
            done.append(line)
    found = summary(done)
    print(json.dumps({"summary": found}), flush=True)
    if options.table:
        options.table.write_text(markdown(done), "utf-8")
    return 1 if found["unchanged"] or found["still"] else 0


def _recorder(path: Path | None, had: Sequence[Line]) -> Callable[[Line], None]:
    """Prints a line, and appends it to `path`."""
    if path is not None:
        path.write_text("".join(json.dumps(one) + "\n" for one in had), "utf-8")

    def record(line: Line) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if path is not None:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        arm = line.get("arms", {}).get("source", {})
        told = f"{line['kind']:8} {line.get('fault') or '-'} in {line['good']}:"
        other = "" if line["kind"] == "good" or arm.get("right_first", True) else "(not expected)"
        culprit = ", ".join(arm.get("culprits", [])[:2]) or "; ".join(arm.get("reasons", [])[:1])
        verdict = arm.get("verdict", line.get("error", ""))
        print(told, verdict, culprit[:100], other, file=sys.stderr)

    return record


if __name__ == "__main__":
    raise SystemExit(main())
