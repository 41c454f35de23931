"""What a user asked of the optimisation, and what came of it: passed between the command line, the
pipeline and the reports. Light to import: no torch, no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qconvert.engine.record import BlockRecord, LinearRecord

ROWS = 64
LENGTH = 512


@dataclass(frozen=True, slots=True)
class Asked:
    """How the weights are to be optimised. The defaults are those of the command line."""

    method: str | None = None
    """Named methods or algorithms joined by "+": "best", "awq+gptq". None: `best` when the type has
    8 bits or less and the model is not huge (`smoothquant+best` where activations are rounded to
    INT8), else `rtn`."""

    calib: str = "default"
    """"default": the mix of text that ships with the package; "self": text that the model itself
    writes; anything else: a file (.txt, .jsonl, .parquet), or a folder of such files."""

    calib_rows: int = ROWS
    """Rows of tokens; some of them are held out to judge by."""

    calib_length: int = LENGTH
    """Tokens in each row."""

    calib_chat: bool = False
    """Pass each document through the chat template of the tokenizer first."""

    seed: int = 0
    """For all that is drawn by chance: rows, sampled text, rotations. Same seed, same bytes."""

    activation_scales: str | None = None
    """How fixed scales of activations are chosen: "max", to cover the largest value that was seen;
    "percentile", all but the largest few; "mse", for the least squared error of the rounding.
    None: "mse" for INT8, "max" for floats."""

    effort: int = 1
    """0: quick; 1: the usual; 2 and more: slower and better, where an algorithm can use it."""

    device: str = "cpu"
    """Where the blocks run: "cpu" or "cuda"."""

    compute: str = "auto"
    """Type of the matrix products inside a block: "float32", "bfloat16", or "auto": bfloat16 where
    the processor multiplies it in hardware. Sums and hidden states are float32 always."""

    work: Path | None = None
    """The work folder. None: one beside the output, named after it."""

    keep_work: bool = False
    """Leave the work folder when the output is written: `qconvert WORK --to TARGET` reads it."""

    resume: bool | None = None
    """None: go on where a fitting work folder is there, else begin; a folder that does not fit is
    refused. True: go on, and refuse when there is nothing to go on with. False: begin again."""


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """The text that a conversion was calibrated on."""

    origin: str  # "default", "self", or the name of the file or folder
    digest: str  # sha256 of the rows of tokens, in hexadecimal
    rows: int  # that there are: text may have been too short for all that were asked for
    length: int  # tokens in each row
    held_rows: int  # of `rows`: kept apart, to judge by
    chat: bool
    notes: tuple[str, ...] = ()  # one line each, for the user


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the engine did. `Conversion.calibrated` holds it; None where the engine was not used."""

    method: str  # as it was resolved: "best"
    steps: tuple[str, ...]  # the recipe in full, in order: ("weighted", "gptq", "descent")
    calibration: CalibrationFacts | None  # None: no method of the recipe looks at data
    seed: int
    effort: int
    device: str
    blocks: tuple[BlockRecord, ...]
    resumed: int = 0  # how many of `blocks` an earlier run had finished
    work: Path | None = None  # the work folder, where it was kept
    outside: tuple[LinearRecord, ...] = ()  # the embedding and the head, where they were optimised
