"""`qconvert check` and `qconvert bench`.

Part of the command line, which alone sees all rooms; everything heavy is imported by the command
that needs it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.check_options import (
    CHECK,
    LENGTH,
    QUICK_LENGTH,
    QUICK_WINDOWS,
    WINDOWS,
    Sectioned,
    bench_options,
    check_options,
)
from qconvert.deliver import deliver, write_text
from qconvert.errors import FAILED, INCONCLUSIVE, OK
from qconvert.formats.refusal import refuse
from qconvert.progress import bar
from qconvert.proof import Proof, prove, reverify
from qconvert.running import chosen_runtime, float_output, runtime_faults, target_of
from qconvert.runtimes.gate.gates import Gates, read_gates

if TYPE_CHECKING:
    from qconvert.runtimes.findings import CheckReport

CODES = {"PASS": OK, "FAIL": FAILED, "INCONCLUSIVE": INCONCLUSIVE}
WORST_LAST = ("PASS", "INCONCLUSIVE", "FAIL")


@click.command(
    "check", cls=Sectioned, sections=CHECK,
    short_help="Is an output the model it was made from, in its runtime? PASS or FAIL.",
)  # fmt: skip
@check_options
def check_command(
    outs: tuple[Path, ...],
    model: Path | None,
    manifest: Path | None,
    gate_file: Path | None,
    quick: bool,
    windows: int | None,
    length: int | None,
    no_floor: bool,
    time_it: bool,
    html: str | None,
    junit: str | None,
    report: str | None,
    **others: Any,
) -> int:
    """Load each OUT in its runtime, compare it with MODEL, the folder that it was made from, and
    say PASS, FAIL or INCONCLUSIVE.

    \b
      qconvert check small.gguf --against models/smollm2-135m
      qconvert check small.gguf --against models/smollm2-135m --quick
      qconvert check small.gguf --against M --max-kl 0.05 --min-top1 0.9 --max-size 100MB
      qconvert check small.gguf --against M --gate gates.toml --junit check.xml --html check.html
      qconvert check a.gguf b.gguf folder --against M --html trade-off.html
      qconvert check small.gguf --manifest small.json
      qconvert check for-tensorrt-llm --against M --no-runtime

    Looked at: settings, tokens and tensors of the file, decoded by two readers; what the runtime
    computes, beside the file as decoded (what the runtime adds) and beside MODEL (what the type
    costs). Anything that is not as it must be fails the check, whatever the gates.

    Exit 0 PASS, 1 FAIL, 4 INCONCLUSIVE: an interval of 95 % straddles a gate. With several OUTs,
    the worst of them.
    """
    limits = Gates(**{key: others.pop(key) for key in Gates.__dataclass_fields__})
    gates = limits if gate_file is None else limits.over(read_gates(gate_file))
    if model is None:
        if manifest is None:
            raise refuse(
                "the model is missing that OUT was made from",
                "add --against MODEL; or --manifest FILE, to see whether files have changed",
            )
        return _reverified(outs, manifest, report)
    asked = Proof(
        model,
        windows or (QUICK_WINDOWS if quick else WINDOWS),
        length or (QUICK_LENGTH if quick else LENGTH),
        gates=gates,
        timed=time_it,
        floor=not (no_floor or quick),
        manifest=manifest,
        **others,
    )
    with bar("windows") as progress:
        found = prove(outs, asked, progress)
    _deliver(found, html, junit, report)
    return CODES[max((one.verdict for one in found), key=WORST_LAST.index)]


def _deliver(
    found: list[CheckReport], html: str | None, junit: str | None, report: str | None
) -> None:
    """The verdict wherever it was asked for, and on the terminal."""
    from qconvert.runtimes.gate.junit import junit as as_junit
    from qconvert.runtimes.page.page import page
    from qconvert.runtimes.report import check_view, checks_view

    if html is not None:
        write_text(page(found), html)
    if junit is not None:
        write_text(as_junit(found), junit)
    view = check_view(found[0]) if len(found) == 1 else checks_view(found)
    deliver(found[0] if len(found) == 1 else {"outputs": found}, report, view)


def _reverified(outs: tuple[Path, ...], manifest: Path, report: str | None) -> int:
    from qconvert.runtimes.report import verified_view

    if len(outs) > 1:
        raise refuse("a manifest is of one output", "check each by itself")
    found = reverify(outs[0], manifest)
    deliver(found, report, verified_view(found))
    return CODES[found.verdict]


@click.command("bench", short_help="Tokens per second and peak memory of an output.")
@bench_options
def bench_command(
    out: Path,
    model: Path | None,
    prompts: tuple[int, ...],
    generate: int,
    repetitions: int,
    batches: tuple[int, ...],
    runtime_name: str | None,
    runtime_path: Path | None,
    threads: int | None,
    report: str | None,
) -> None:
    """Time OUT in its runtime: reading a prompt and generating, apart.

    \b
      qconvert bench small.gguf --threads 2
      qconvert bench small.gguf --against models/smollm2-135m --prompt 128,512
      qconvert bench small.gguf --runtime-path ~/llama.cpp/build/bin --json speed.json

    With --against, its source is written unquantized and timed in turn with it, in one run: how
    many times as fast. Intervals are of 95 %.
    """
    from qconvert.checkpoint import open_checkpoint
    from qconvert.runtimes.bench import bench
    from qconvert.runtimes.report import bench_view

    target = target_of(out)
    runtime = chosen_runtime(target, out, runtime_name, runtime_path)
    with runtime_faults(runtime), ExitStack() as stack:
        beside = None
        if model is not None:
            beside = stack.enter_context(float_output(open_checkpoint(model), target, out))
        found = bench(
            out, reader=target.reader(out), runtime=runtime, prompts=prompts, generate=generate,
            repetitions=repetitions, threads=threads, batches=batches, beside=beside,
        )  # fmt: skip
    deliver(found, report, bench_view(found))
