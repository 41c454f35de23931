"""The command line: `qconvert MODEL --to TARGET --bits N`, and inspect, check, bench,
targets, methods, runtimes.

Only this module, `running` and `runtime_commands` see all four rooms. Everything heavy is imported
by the command that needs it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from qconvert import __version__
from qconvert.asked import Asked
from qconvert.check_commands import bench_command, check_command
from qconvert.convert_options import convert_options
from qconvert.deliver import can_report, deliver, write_report_folder
from qconvert.errors import OK, REFUSED, explain, terminate
from qconvert.formats.refusal import raise_if_any, refuse
from qconvert.manual import CONVERT, HELP
from qconvert.options import (
    GROUPS,
    ByDefault,
    Grouped,
    folder_or_file,
    json_option,
    own_parameter,
)
from qconvert.progress import bars
from qconvert.record import manifest_problems, write_manifest_of
from qconvert.running import recognised, target_of
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
    manifest: Path | None,
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
        if report_folder is not None or manifest is not None:
            raise refuse(
                "--plan has nothing to report", "leave out --plan, or --report and --manifest"
            )
        job, cost = pipeline.plan(model, target, **wanted)
        lacking = shortages(job, asked, threads)
        result = facts.of_plan(job, cost, [*obstacles(job, force=force), *lacking])
        deliver(result, report, *render.plan_tables(result))
        return REFUSED if lacking else OK
    can_report(report_folder, force=force)
    raise_if_any(manifest_problems(manifest, model))
    with bars() as (progress, blocks):
        done = pipeline.convert(
            model, target, force=force, progress=progress, blocks=blocks, **wanted
        )
    result = facts.of_conversion(done, threads)
    write_report_folder(report_folder, result, done)
    if manifest is not None:
        write_manifest_of(done, done.folder or done.files[0], manifest)
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


cli.add_command(check_command)
cli.add_command(bench_command)
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
