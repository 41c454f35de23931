"""What `qconvert MODEL` takes. `options.GROUPS` has the sections of the help text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from qconvert.asked import Asked
from qconvert.methods import NAMED
from qconvert.options import Command, folder_or_file, json_option, read_size, threads_option

Decorators = Sequence[Command]
DEFAULT = Asked()
AT_LEAST_TWO = click.IntRange(min=2)  # rows: one to fit to, one to judge by


def convert_options(command: Command) -> Command:
    """All options of a conversion, and its argument. Names are those of the fields of `Asked`."""
    options = (
        folder_or_file("model"), *output_options(), *method_options(), *calibration_options(),
        *work_options(), *report_options(),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def output_options() -> Decorators:
    return (
        click.option("--to", "target", metavar="TARGET",
                     help="Format to write; `qconvert targets` lists them."),
        click.option("--bits", type=int, metavar="N",
                     help="Bits per weight, roughly: picks the type that users of the target"
                     " expect (for gguf, 4 means Q4_K_M)."),
        click.option("--type", "type_", metavar="TYPE",
                     help="A type of the target by name, instead of --bits: Q4_K_M, Q8_0, BF16."),
        click.option("--out", type=click.Path(path_type=Path), metavar="PATH",
                     help="Where to write. Default: a name made of model and type, here."),
        click.option("--split-size", callback=read_size, metavar="SIZE",
                     help="Write several files of at most SIZE: 2GB, 500MB, 1.5GiB."),
        click.option("--plan", "plan_only", is_flag=True,
                     help="Print what would be written, and what it costs; read no weight."),
        click.option("--force", is_flag=True, help="Replace an output that exists."),
    )  # fmt: skip


def method_options() -> Decorators:
    names = ", ".join(one.name for one in NAMED)
    return (
        click.option("--method", metavar="NAME[+NAME...]",
                     help=f"How weights are chosen: {names}, or several joined by +. Default: best"
                     " for 8 bits or less, unless the model is huge; else rtn."),
        click.option("--effort", type=click.IntRange(min=0), default=DEFAULT.effort, metavar="N",
                     show_default=True,
                     help="0 is quick; 2 and more take longer for less error, where a method can"
                     " make use of it."),
        click.option("--seed", type=click.IntRange(min=0), default=DEFAULT.seed, metavar="N",
                     show_default=True,
                     help="For all that is drawn by chance. The same seed gives the same bytes."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default=DEFAULT.device,
                     show_default=True, help="Where the model's blocks run."),
        click.option("--compute", type=click.Choice(["auto", "float32", "bfloat16"]),
                     default=DEFAULT.compute, show_default=True,
                     help="Type of the products inside a block while calibrating. auto: bfloat16"
                     " where the processor has it."),
        threads_option,
    )  # fmt: skip


def calibration_options() -> Decorators:
    return (
        click.option("--calib", metavar="FILE|FOLDER|self|default", default=DEFAULT.calib,
                     show_default=True,
                     help="Text that shows what the model is used for: plain text, jsonl or"
                     " parquet. default: a small mix that ships with us; self: text that the model"
                     " writes itself. Text like your own gives the best result."),
        click.option("--calib-rows", type=AT_LEAST_TWO, default=DEFAULT.calib_rows, metavar="N",
                     show_default=True,
                     help="Rows of tokens to read from it. Some are held out, to judge by. More"
                     " rows: more time and disk, not more memory."),
        click.option("--calib-length", type=AT_LEAST_TWO, default=DEFAULT.calib_length,
                     metavar="N", show_default=True, help="Tokens in each row."),
        click.option("--calib-chat", is_flag=True,
                     help="Pass each text through the model's chat template: for models that are"
                     " used in conversations."),
    )  # fmt: skip


def work_options() -> Decorators:
    return (
        click.option("--work", type=click.Path(path_type=Path), metavar="DIR",
                     help="Where finished blocks are kept until the output is written. Default: a"
                     " folder beside the output, removed at the end."),
        click.option("--keep-work", is_flag=True,
                     help="Keep that folder: `qconvert DIR --to TARGET` writes another format with"
                     " the same types from it, without calibrating again."),
        click.option("--resume/--no-resume", default=None,
                     help="Go on where a conversion was interrupted, or begin again. Default: go on"
                     " when the work folder is that of the same conversion."),
    )  # fmt: skip


def report_options() -> Decorators:
    return (
        click.option("--report", "report_folder", type=click.Path(path_type=Path), metavar="DIR",
                     help="Also write a report: report.html with tables and pictures of error,"
                     " outliers and kurtosis by layer, the pictures as PNG, and layers.json."),
        json_option,
    )  # fmt: skip
