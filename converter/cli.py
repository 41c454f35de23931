"""The command line: `qconvert MODEL --to TARGET --bits N`, and inspect, check, bench,
targets, methods, runtimes.

Only this module, `running` and `runtime_commands` see all four rooms. Everything heavy is imported
by the command that needs it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import click

from qconvert import __version__
from qconvert.asked import Asked
from qconvert.convert_options import convert_options
from qconvert.deliver import can_report, deliver, write_report_folder
from qconvert.errors import FAILED, OK, REFUSED, explain, terminate
from qconvert.formats.refusal import refuse
from qconvert.manual import CONVERT, HELP
from qconvert.options import (
    GROUPS,
    ByDefault,
    Grouped,
    bench_options,
    check_options,
    folder_or_file,
    json_option,
    own_parameter,
)
from qconvert.progress import bar, bars
from qconvert.running import (
    NO_RUNTIME,
    chosen_runtime,
    float_output,
    recognised,
    runtime_faults,
    target_of,
)
from qconvert.runtime_commands import runtimes_group


@click.group(
    cls=ByDefault,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="qconvert")
@click.option("--debug", is_flag=True, help="Before a command: show where an error was raised.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    context.ensure_object(dict)["debug"] = debug


@cli.command("convert", cls=Grouped, short_help="Write MODEL in another format.", help=CONVERT)
@convert_options
def convert_command(
    model: Path,
    target: str | None,
    bits: int | None,
    type_: str | None,
    out: Path | None,
    split_size: int | None,
    plan_only: bool,
    force: bool,
    threads: int,
    report_folder: Path | None,
    report: str | None,
    **others: Any,
) -> int:
    from qconvert import facts, pipeline, render, render_layers
    from qconvert.formats.option import target_options
    from qconvert.formats.target import Request, targets
    from qconvert.job import obstacles, shortages

    if target is None:
        known = ", ".join(sorted(targets()))
        raise refuse("the format to write is missing", f"add --to TARGET, one of: {known}")
    serving = {name: others.pop(name) for name in GROUPS["Serving"]}
    own = {one.name: others.pop(own_parameter(one.name)) for one in target_options()}
    set_own = tuple((name, value) for name, value in own.items() if value is not None)
    request = Request(bits, type_, split_size, **serving, own=set_own)
    asked = Asked(**others)
    wanted: Any = {"request": request, "out": out, "threads": threads, "asked": asked}
    if plan_only:
        if report_folder is not None:
            raise refuse("--plan has nothing to report", "leave out --plan or --report")
        job, cost = pipeline.plan(model, target, **wanted)
        lacking = shortages(job, asked, threads)
        result = facts.of_plan(job, cost, [*obstacles(job, force=force), *lacking])
        deliver(result, report, *render.plan_tables(result))
        return REFUSED if lacking else OK
    can_report(report_folder, force=force)
    with bars() as (progress, blocks):
        done = pipeline.convert(
            model, target, force=force, progress=progress, blocks=blocks, **wanted
        )
    result = facts.of_conversion(done, threads)
    write_report_folder(report_folder, result, done)
    tables = *render.conversion_tables(result), *render_layers.layer_tables(result)
    deliver(result, report, *tables)
    return OK


@cli.command("inspect", short_help="What a file, a model folder or a work folder holds.")
@folder_or_file("path")
@click.option("--tensors", "all_tensors", is_flag=True, help="List every tensor by itself.")
@json_option
def inspect_command(path: Path, all_tensors: bool, report: str | None) -> None:
    """Show the files, metadata, tensors and bits per weight of an output, of a model folder, or of
    a work folder that --keep-work has kept.

    \b
      qconvert inspect smollm2-135m-Q4_K_M.gguf
      qconvert inspect models/smollm2-135m --json -
    """
    from qconvert import facts, render

    if path.is_dir() and recognised(path) is None:
        from qconvert.checkpoint import open_checkpoint
        from qconvert.engine.bundle import open_bundle, recognises

        if recognises(path):
            result = facts.of_bundle(open_bundle(path), each=all_tensors)
        else:
            result = facts.of_model(open_checkpoint(path), each=all_tensors)
    else:
        result = facts.of_output(path, target_of(path), each=all_tensors)
    deliver(result, report, *render.inspect_tables(result))


@cli.command("check", short_help="How far an output is from its source, in its runtime.")
@check_options
def check_command(
    out: Path,
    model: Path,
    text: Path | None,
    windows: int,
    length: int,
    max_kl: float | None,
    no_floor: bool,
    no_runtime: bool,
    runtime_name: str | None,
    runtime_path: Path | None,
    threads: int | None,
    report: str | None,
) -> int:
    """Load OUT in its runtime and compare it with MODEL, the folder that it was made from.

    \b
      qconvert check small.gguf --against models/smollm2-135m
      qconvert check small.gguf --against models/smollm2-135m --text mine.txt --max-kl 0.1
      qconvert check for-tensorrt-llm --against models/smollm2-135m --no-runtime

    Two distances are told apart: from the source to the file as decoded (what the type costs), and
    from there to the runtime (what the runtime adds). Exit 1 when the check fails.
    """
    from qconvert.checkpoint import open_checkpoint
    from qconvert.runtimes.check import check
    from qconvert.runtimes.loader import loaders_of
    from qconvert.runtimes.report import check_view

    target = target_of(out)
    source = open_checkpoint(model)
    runtime = None
    if not no_runtime:
        runtime = chosen_runtime(target, out, runtime_name, runtime_path, or_none=NO_RUNTIME)
    elif runtime_name is not None or runtime_path is not None:
        raise refuse("--no-runtime and a runtime contradict each other", "leave one of them out")
    with runtime_faults(runtime), bar("windows") as progress, ExitStack() as stack:
        floor = None
        if runtime is not None and not no_floor:
            floor = stack.enter_context(float_output(source, target, out))
        found = check(
            out, source, reader=target.reader(out), runtime=runtime,
            loaders=loaders_of(target.name), text_file=text,
            windows=windows, length=length, threads=threads, floor=floor, max_kl=max_kl,
            progress=progress,
        )  # fmt: skip
    deliver(found, report, check_view(found))
    return OK if found.passed else FAILED


@cli.command("bench", short_help="Tokens per second and peak memory of an output.")
@bench_options
def bench_command(
    out: Path,
    prompt: int,
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
      qconvert bench small.gguf --runtime-path ~/llama.cpp/build/bin --json speed.json
    """
    from qconvert.runtimes.bench import bench
    from qconvert.runtimes.report import bench_view

    target = target_of(out)
    runtime = chosen_runtime(target, out, runtime_name, runtime_path)
    with runtime_faults(runtime):
        found = bench(
            out, reader=target.reader(out), runtime=runtime, prompt=prompt, generate=generate,
            repetitions=repetitions, threads=threads, batches=batches,
        )  # fmt: skip
    deliver(found, report, bench_view(found))


@cli.command("targets", short_help="Formats, their types, and the runtimes usable here.")
@json_option
def targets_command(report: str | None) -> None:
    """List what each target can hold, and which runtimes are usable here (if not, why).

    \b
      qconvert targets
      qconvert targets --json -
    """
    from qconvert import facts, render
    from qconvert.formats.target import targets
    from qconvert.runtimes.runtime import runtimes

    result = facts.of_targets(targets(), runtimes())
    deliver(result, report, *render.target_tables(result))


@cli.command("methods", short_help="The methods, and the algorithms that they are made of.")
@json_option
def methods_command(report: str | None) -> None:
    """List the named methods with what they cost, and the algorithms of each slot of a recipe.

    \b
      qconvert methods
      qconvert MODEL --to gguf --bits 4 --method awq+gptq
    """
    from qconvert import facts, render
    from qconvert.methods import NAMED, algorithms

    result = facts.of_methods(NAMED, algorithms())
    deliver(result, report, *render.method_tables(result))


cli.add_command(runtimes_group)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code. Foreseeable errors become one message on stderr."""
    try:
        code = cli.main(list(arguments) or ["--help"], prog_name="qconvert", standalone_mode=False)
    except Exception as error:
        if "--debug" in arguments[:1]:
            raise
        return explain(error, arguments)
    return code if isinstance(code, int) else OK


def main() -> NoReturn:
    """The command `qconvert`."""
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(sys.argv[1:]))
