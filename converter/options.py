"""Options that the commands share, and the group that runs `convert` when no command is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qconvert.formats.amounts import parse_size
from qconvert.formats.option import OWN, target_options
from qconvert.formats.refusal import refuse
from qconvert.resources import usable_cores

Command = Callable[..., Any]


GROUPS = {
    "Output": ("target", "bits", "type_", "out", "split_size", "plan_only", "force"),
    "Serving": (
        "scheme",
        "group",
        "symmetric",
        "static",
        "container",
        "kv",
        "layers",
        "hardware",
        "tp",
    ),
    "Method": ("method", "effort", "seed", "device", "compute", "threads"),
    "Calibration": ("calib", "calib_rows", "calib_length", "calib_chat", "activation_scales"),
    "Work folder": ("work", "keep_work", "resume"),
    "Report": ("report_folder", "manifest", "report"),
}
"""The sections that help texts show the options of a conversion in."""


def all_groups() -> dict[str, tuple[str, ...]]:
    """`GROUPS`, with a section for the options of each target that has some of its own."""
    found: dict[str, tuple[str, ...]] = {}
    for one in target_options():
        title = f"For --to {one.target}"
        found[title] = (*found.get(title, ()), own_parameter(one.name))
    ordered = list(GROUPS)
    after = ordered.index("Serving") + 1
    before, rest = ordered[:after], ordered[after:]
    return {**{one: GROUPS[one] for one in before}, **found, **{one: GROUPS[one] for one in rest}}


def own_parameter(name: str) -> str:
    """The parameter in which the value of a target's own option arrives."""
    return f"{OWN}_{name.replace('-', '_')}"


def write_groups(ctx: click.Context, formatter: click.HelpFormatter, suffix: str = "") -> None:
    """The options of the command of `ctx` by `GROUPS`; those that are in none come last."""
    records = {
        one.name: record
        for one in ctx.command.get_params(ctx)
        if isinstance(one, click.Option) and (record := one.get_help_record(ctx)) is not None
    }
    for title, names in all_groups().items():
        with formatter.section(title + suffix):
            formatter.write_dl([records.pop(name) for name in names])
    if not suffix:
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()))


class Grouped(click.Command):
    """A command whose help shows its options by `GROUPS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_groups(ctx, formatter)


class ByDefault(click.Group):
    """A group whose first word need not be a command: anything else belongs to `convert`."""

    default = "convert"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for param in self.get_params(ctx) for option in param.opts}
        first = next((i for i, word in enumerate(args) if word not in own), len(args))
        if first < len(args) and args[first] not in self.commands:
            args = [*args[:first], self.default, *args[first:]]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        command = self.commands[self.default]
        inner = click.Context(command, info_name=self.default, parent=ctx)
        write_groups(inner, formatter, suffix=" of a conversion")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.commands if name != self.default]


def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def read_group(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Columns that share a scale; 0 for "channel", the whole row."""
    if value is None or value.strip().lower() == "channel":
        return None if value is None else 0
    if not value.isdecimal() or int(value) == 0:
        raise click.BadParameter(
            f"{value!r} is neither a number of columns nor channel", ctx, param
        )
    return int(value)


def read_layers(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """(pattern, scheme) of each PATTERN=SCHEME."""
    found = []
    for text in value:
        pattern, _, scheme = text.rpartition("=")
        if not pattern or not scheme:
            example = "'*.down_proj=w8a16' or 'layers.0.*=float'"
            raise click.BadParameter(f"{text!r} is not PATTERN=SCHEME, as {example}", ctx, param)
        found.append((pattern, scheme))
    return tuple(found)


def report_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that could not be written before the work is done, not after."""
    if value not in (None, "-") and not Path(str(value)).absolute().parent.is_dir():
        raise refuse(
            f"cannot write the report {value}: there is no folder {Path(str(value)).parent}",
            "name a file in a folder that exists, or - for standard output",
        )
    return value


def folder_or_file(name: str) -> Command:
    """A positional path, read as a `Path`; whether it exists is judged with all other reasons."""
    return click.argument(name, metavar=name.upper(), type=click.Path(path_type=Path))


def json_option(command: Command) -> Command:
    return click.option(
        "--json", "report", metavar="FILE", callback=report_file,
        help="Also write the result as JSON. A single - prints it on standard output, alone.",
    )(command)  # fmt: skip


def threads_option(command: Command) -> Command:
    return click.option(
        "--threads", type=click.IntRange(min=1), default=usable_cores, metavar="N",
        show_default="all cores", help="Threads to work with. Results do not depend on it.",
    )(command)  # fmt: skip


def cores_option(command: Command) -> Command:
    return click.option(
        "--threads", type=click.IntRange(min=1), metavar="N",
        help="Threads of the runtime. Default: the physical cores.",
    )(command)  # fmt: skip
