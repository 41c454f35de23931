"""What `qconvert MODEL` takes. `options.GROUPS` has the sections of the help text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from qconvert.asked import Asked
from qconvert.formats.option import target_options
from qconvert.methods import NAMED
from qconvert.options import (
    Command,
    folder_or_file,
    json_option,
    own_parameter,
    read_group,
    read_layers,
    read_size,
    threads_option,
)

Decorators = Sequence[Command]
DEFAULT = Asked()
AT_LEAST_TWO = click.IntRange(min=2)  # rows: one to fit to, one to judge by


def convert_options(command: Command) -> Command:
    """All options of a conversion, and its argument. Names are those of the fields of `Asked`,
    and of `Request` in `serving_options`."""
    options = (
        folder_or_file("model"), *output_options(), *serving_options(), *own_options(),
        *method_options(),
        *calibration_options(), *work_options(), *report_options(),
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
                     " expect (for gguf, 4 means Q4_K_M; for vllm, w4a16)."),
        click.option("--type", "type_", metavar="TYPE",
                     help="A type of the target by name, instead of --bits: Q4_K_M, Q8_0, BF16;"
                     " w4a16-g64, fp8. `qconvert targets` lists them."),
        click.option("--out", type=click.Path(path_type=Path), metavar="PATH",
                     help="Where to write: a file, or the folder itself for targets that write one."
                     " Default: a name made of model and type, here."),
        click.option("--split-size", callback=read_size, metavar="SIZE",
                     help="Write several files of at most SIZE: 2GB, 500MB, 1.5GiB."),
        click.option("--plan", "plan_only", is_flag=True,
                     help="Print what would be written, and what it costs; read no weight."),
        click.option("--force", is_flag=True, help="Replace an output that exists."),
    )  # fmt: skip


def serving_options() -> Decorators:
    """For targets that write folders; `pipeline` refuses those that a target does not take."""
    return (
        click.option("--scheme", metavar="NAME",
                     help="How linears are stored and computed: w4a16 (4-bit weights), w8a16, w8a8"
                     " (INT8 weights and activations), fp8, fp8-block, nvfp4, nvfp4a16, mxfp4."
                     " W4A16 is the smallest that runs everywhere; w8a8 and fp8 are faster for"
                     " many requests at once. trtllm has NVIDIA's names besides: w4a16-awq,"
                     " w4a8-awq, fp8 (one scale for a tensor), fp8-channel."),
        click.option("--group", callback=read_group, metavar="N|channel",
                     help="Columns that share a scale, for w4a16 and w8a16: 32, 64, 128, or a whole"
                     " row. Smaller is a little larger and more accurate. Default: the largest that"
                     " divides the inputs of every linear."),
        click.option("--symmetric/--asymmetric", default=None,
                     help="Without or with zero points, for w4a16 and w8a16. Default: as most"
                     " kernels of the target take it."),
        click.option("--static", is_flag=True, default=None,
                     help="One scale for the activations of a linear, fixed by calibration, for"
                     " w8a8 and fp8. Default: one for each token, made as it is served: more"
                     " accurate."),
        click.option("--container", metavar="NAME",
                     help="The layout of the files: compressed-tensors, gptq, awq, fp8, modelopt."
                     " Default: the first in which the target runs the scheme."),
        click.option("--kv", metavar="TYPE",
                     help="Also calibrate and store scales for a KV cache of this type: fp8; for"
                     " trtllm also nvfp4."),
        click.option("--layer", "layers", multiple=True, callback=read_layers,
                     metavar="PATTERN=SCHEME",
                     help="Another scheme, or float, for the linears whose name matches:"
                     " '*.down_proj=w8a16', 'layers.0.*=float'. May be given several times; the"
                     " first that matches wins."),
        click.option("--hardware", metavar="NAME",
                     help="Refuse what does not run there: cpu, turing, ampere, ada, hopper,"
                     " blackwell. Default: take what runs somewhere, and say where."),
        click.option("--tp", type=click.IntRange(min=1), metavar="N",
                     help="Ranks of tensor parallelism: refuse what their shards cannot take."),
    )  # fmt: skip


def own_options() -> Decorators:
    """Those that belong to one target alone; see `qconvert.formats.option`."""
    return [
        click.option(
            f"--{one.name}",
            own_parameter(one.name),
            help=one.help,
            **(
                {"type": click.Choice(one.choices)}
                if one.choices
                else {"is_flag": True, "flag_value": "yes", "default": None}
            ),
        )
        for one in target_options()
    ]


def method_options() -> Decorators:
    names = ", ".join(one.name for one in NAMED)
    return (
        click.option("--method", metavar="NAME[+NAME...]",
                     help=f"How weights are chosen: {names}, or several joined by +. Default: best"
                     " for 8 bits or less, unless the model is huge (smoothquant+best where"
                     " activations become INT8); else rtn."),
        click.option("--effort", type=click.IntRange(min=0), default=DEFAULT.effort, metavar="N",
                     show_default=True,
                     help="0 is quick; 2 and more take longer for less error, where a method can"
                     " make use of it."),
        click.option("--activation-scales", type=click.Choice(["max", "percentile", "mse"]),
                     help="How fixed scales of activations are chosen, for --static, nvfp4 and"
                     " w4a8: to cover the largest value seen, all but the largest few, or for the"
                     " least squared error. Default: mse for INT8, max for FP8 and FP4."),
        click.option("--seed", type=click.IntRange(min=0), default=DEFAULT.seed, metavar="N",
                     show_default=True,
                     help="For all that is drawn by chance. The same seed gives the same bytes."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default=DEFAULT.device,
                     show_default=True,
                     help="Where the model's blocks run and their weights are chosen."),
        click.option("--compute", type=click.Choice(["auto", "float32", "bfloat16"]),
                     default=DEFAULT.compute, show_default=True,
                     help="Type of the products inside a block while calibrating. auto: bfloat16"
                     " where the device has it."),
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
        click.option("--manifest", metavar="FILE", type=click.Path(path_type=Path),
                     help="Also write the sums of all files of MODEL and the output, and what it"
                     " was made with: `qconvert check --manifest` compares them."),
        json_option,
    )  # fmt: skip
