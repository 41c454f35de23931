"""Options of `qconvert check` and `qconvert bench`. Light: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from qconvert.options import Command, cores_option, json_option, report_file
from qconvert.runtimes.gate.gates import GATES, Gate, limit_of

CHECK = {
    "What it is compared with": ("model", "work", "text", "windows", "length", "quick"),
    "Gates": ("gate_file", *(gate.key for gate in GATES)),
    "Runtime": (
        "runtime_name",
        "runtime_path",
        "threads",
        "no_runtime",
        "no_floor",
        "time_it",
    ),
    "Results": ("html", "junit", "report", "manifest"),
}
"""The sections in which `qconvert check --help` shows its options."""

WINDOWS, LENGTH = 8, 512
QUICK_WINDOWS, QUICK_LENGTH = 4, 256


class Sectioned(click.Command):
    """A command whose help shows its options in sections."""

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]], **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            one.name: record
            for one in self.get_params(ctx)
            if isinstance(one, click.Option) and (record := one.get_help_record(ctx)) is not None
        }
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names])
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()))


def runtime_options(command: Command) -> Command:
    """How a runtime is chosen and run, and where the result goes."""
    options = (
        click.option("--runtime", "runtime_name", metavar="NAME",
                     help="Runtime to use; `qconvert targets` lists those of each target."),
        click.option("--runtime-path", "--llama-cpp", "runtime_path", metavar="DIR",
                     type=click.Path(path_type=Path),
                     help="A build of the runtime's own to use instead of the installed package."),
        cores_option,
        json_option,
    )  # fmt: skip
    return _with(options, command)


def gate_option(gate: Gate) -> Any:
    """The flag of one gate."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        try:
            return None if value is None else limit_of(gate, value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return click.option(
        f"--{gate.name}", gate.key, metavar=gate.unit.metavar, callback=read, help=gate.help
    )


def outputs_argument(command: Command) -> Command:
    return click.argument(
        "outs", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path)
    )(command)


def check_options(command: Command) -> Command:
    """What `qconvert check` takes."""
    options = (
        outputs_argument,
        click.option("--against", "model", metavar="MODEL", type=click.Path(path_type=Path),
                     help="Model folder that OUT was made from."),
        click.option("--work", metavar="DIR", type=click.Path(path_type=Path),
                     help="Work folder that --keep-work left: OUT must hold its codes, bit for"
                     " bit."),
        click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
                     help="Text to measure on (UTF-8). Default: a short text that ships with us."),
        click.option("--windows", type=click.IntRange(min=1), metavar="N",
                     help=f"Pieces of the text to measure on.  [default: {WINDOWS}]"),
        click.option("--length", type=click.IntRange(min=2), metavar="N",
                     help=f"Tokens in each piece.  [default: {LENGTH}]"),
        click.option("--quick", is_flag=True,
                     help=f"An answer in under a minute: {QUICK_WINDOWS} pieces of {QUICK_LENGTH}"
                     " tokens, --no-floor."),
        click.option("--gate", "gate_file", metavar="FILE", type=click.Path(path_type=Path),
                     help="Gates in a TOML file: max-kl = 0.05, ... Flags go before it."),
        *(gate_option(gate) for gate in GATES),
        click.option("--bench", "time_it", is_flag=True,
                     help="Time it too, beside the unquantized model. Gates of speed do that"
                     " themselves."),
        click.option("--no-floor", is_flag=True,
                     help="Do not measure the runtime's own noise on an unquantized file."),
        click.option("--no-runtime", is_flag=True,
                     help="Judge the file alone: decoded, beside its source, and read by the"
                     " loaders that are installed. For targets whose runtime does not run here."),
        click.option("--html", metavar="FILE", callback=report_file,
                     help="Also write one page with everything in it, pictures too."),
        click.option("--junit", metavar="FILE", callback=report_file,
                     help="Also write the verdict as JUnit XML, for CI."),
        click.option("--manifest", metavar="FILE", type=click.Path(path_type=Path),
                     help="The sums of all files. Compared where it is there, and the verdict is"
                     " added; without --against that is all, in seconds."),
        runtime_options,
    )  # fmt: skip
    return _with(options, command)


def read_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """1,16,128"""
    words = value.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{value!r} is not a list of numbers; write it as 1,16,128")
    return tuple(int(word) for word in words)


def bench_options(command: Command) -> Command:
    """What `qconvert bench` takes."""
    options = (
        click.argument("out", metavar="OUT", type=click.Path(path_type=Path)),
        click.option("--against", "model", metavar="MODEL", type=click.Path(path_type=Path),
                     help="Also time its source, unquantized, in turn with it: how many times as"
                     " fast."),
        click.option("--prompt", "prompts", default="512", show_default=True, metavar="N,...",
                     callback=read_counts, help="Tokens read in one go; several: in turn."),
        click.option("--generate", type=click.IntRange(min=1), default=64, show_default=True,
                     metavar="N", help="Tokens generated one by one."),
        click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True,
                     metavar="N", help="Timed runs after a warm-up; the median is reported."),
        click.option("--batch", "batches", default="1", show_default=True, metavar="N,...",
                     callback=read_counts, help="Sequences at once; several are timed in turn."),
        runtime_options,
    )  # fmt: skip
    return _with(options, command)


def _with(options: Sequence[Any], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
