"""What can be asked of an output before it is released: each gate once, as data.

Options of the command line, keys of a gate file, sentences and the cases of JUnit's XML come from
`GATES`. A gate file is TOML, flat, every key optional:

    max_kl = 0.05             # nats, mean over the tokens of the text
    min_top1 = 0.9            # share of the positions
    max_ppl_ratio = 1.03
    min_speedup = 1.5         # generation, beside the unquantized model
    max_size = "100MB"

The command line imports this module for `--help`: it holds data, and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qconvert.formats.amounts import parse_size, show_size
from qconvert.formats.refusal import Reason, raise_if_any, refuse

LARGEST_FILE = 1 << 20  # bytes of a gate file: they have some hundred
LARGEST = 1e18  # of a limit: floats hold bytes exactly up to 9e15

Basis = Literal["text", "file", "speed", "beside"]
"""What is looked at: the tokens of a text, the files themselves, `bench`, `bench` of the
unquantized model too."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How a limit is written and shown, and which limits make sense."""

    name: str
    metavar: str
    wanted: str  # what is asked for, after "is not"
    sample: str  # as TOML
    lowest: float = 0.0
    highest: float = math.inf
    zero: bool = False  # whether `lowest` itself makes sense
    suffix: str = ""  # behind a figure
    percent: bool = False  # whether a figure is shown as one
    bytes: bool = False  # a whole number, or written with a prefix: "100MB"

    def shown(self, value: float) -> str:
        """A figure as a sentence has it: "0.0439 nats", "143.6 MB", "88.1 %"."""
        return show_size(value) if self.bytes else f"{self.number(value)}{self.suffix}"

    def between(self, low: float, high: float) -> str:
        """An interval: "0.0408 to 0.0486 nats"; one that has no end is "0.0408 nats or more"."""
        if math.isinf(high):
            return f"{self.shown(low)} or more"
        return f"{self.number(low)} to {self.shown(high)}"

    def number(self, value: float) -> str:
        if self.bytes:
            return show_size(value)
        return f"{100 * value:.2f}" if self.percent else f"{value:.4g}"


NATS = Unit("nats", "NATS", "a divergence in nats", "0.05", zero=True, suffix=" nats")
SHARE = Unit("share", "SHARE", "a share from 0 to 1", "0.9", highest=1.0, suffix=" %", percent=True)
RATIO = Unit("ratio", "RATIO", "a ratio above 0", "1.03")
TIMES = Unit("times", "TIMES", "how many times as fast", "1.5", suffix=" times")
RATE = Unit("tokens/s", "RATE", "a number of tokens per second", "20", suffix=" tokens/s")
SECONDS = Unit("s", "SECONDS", "a number of seconds", "0.5", suffix=" s")
SIZE = Unit("bytes", "SIZE", "a size", '"100MB"', bytes=True)


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that can be asked."""

    name: str  # the option without dashes, "max-kl"; with "_" the key, and the field of `Gates`
    most: bool  # True: the figure may be at most the limit; False: it must be at least that
    basis: Basis
    unit: Unit
    figure: str  # what is limited, in a sentence
    help: str

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


GATES: tuple[Gate, ...] = (
    Gate("max-kl", True, "text", NATS, "the mean KL from the source",
         "Most mean KL divergence from MODEL, in nats."),
    Gate("max-kl-p99", True, "text", NATS, "the 99th percentile of the KL",
         "Most KL at the 99th percentile of the positions."),
    Gate("max-kl-p999", True, "text", NATS, "the 99.9th percentile of the KL",
         "Most KL at the 99.9th percentile of the positions."),
    Gate("min-top1", False, "text", SHARE, "top-1 agreement",
         "Least share of positions at which both put the same token first."),
    Gate("max-ppl-ratio", True, "text", RATIO, "the perplexity ratio",
         "Most perplexity, as a multiple of MODEL's."),
    Gate("max-size", True, "file", SIZE, "the size",
         "Most bytes on disk: 100MB, 2GB, 1.5GiB."),
    Gate("min-speedup", False, "beside", TIMES, "the speed-up of generation",
         "Least speed of generation, as a multiple of the unquantized model's."),
    Gate("min-prompt-speedup", False, "beside", TIMES, "the speed-up of reading a prompt",
         "Least speed of reading a prompt, as a multiple of the unquantized model's."),
    Gate("min-tokens-per-s", False, "speed", RATE, "the rate of generation",
         "Least tokens per second of generation."),
    Gate("min-prompt-tokens-per-s", False, "speed", RATE, "the rate of reading a prompt",
         "Least tokens per second of reading a prompt."),
    Gate("max-first-token-s", True, "speed", SECONDS, "the time to the first token",
         "Most seconds from a prompt to the first token."),
    Gate("max-load-s", True, "speed", SECONDS, "the load time",
         "Most seconds from the start of the runtime to a loaded model."),
    Gate("max-memory", True, "speed", SIZE, "the peak memory",
         "Most memory of the runtime's process: 500MB, 2GB."),
)  # fmt: skip

BY_KEY: Mapping[str, Gate] = {gate.key: gate for gate in GATES}


@dataclass(frozen=True, slots=True)
class Gates:
    """The limits that are set, each a field with the key of its gate; None: nothing is asked."""

    max_kl: float | None = None
    max_kl_p99: float | None = None
    max_kl_p999: float | None = None
    min_top1: float | None = None
    max_ppl_ratio: float | None = None
    max_size: float | None = None  # bytes
    min_speedup: float | None = None
    min_prompt_speedup: float | None = None
    min_tokens_per_s: float | None = None
    min_prompt_tokens_per_s: float | None = None
    max_first_token_s: float | None = None
    max_load_s: float | None = None
    max_memory: float | None = None  # bytes

    def asked(self) -> Iterator[tuple[Gate, float]]:
        """Each gate that is set, with its limit, in the order of `GATES`."""
        for gate in GATES:
            limit = getattr(self, gate.key)
            if limit is not None:
                yield gate, limit

    def need(self, basis: Basis) -> bool:
        """Whether a gate that is set looks at `basis`."""
        return any(gate.basis == basis for gate, _ in self.asked())

    def only(self, basis: Basis) -> Gates:
        """Those that look at `basis`."""
        return Gates(**{gate.key: limit for gate, limit in self.asked() if gate.basis == basis})

    def over(self, other: Gates) -> Gates:
        """These limits, and those of `other` where there is none: flags over a file."""
        mine = {gate.key: limit for gate, limit in self.asked()}
        theirs = {gate.key: limit for gate, limit in other.asked()}
        return Gates(**(theirs | mine))


def limit_of(gate: Gate, text: str) -> float:
    """A limit as it is typed; `ValueError`, in words, where it makes no sense."""
    try:
        value = float(parse_size(text)) if gate.unit.bytes else float(text)
    except ValueError:
        raise ValueError(_not(gate, text)) from None
    return _sensible(gate, value, text)


def read_gates(path: Path) -> Gates:
    """The limits in a gate file; `Refused` with everything that is wrong with it."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise refuse(f"{path} is too large for a file of gates", "name the TOML file of gates")
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise refuse(f"cannot read the gates {path}: {error.strerror}", "name a file") from error
    except (ValueError, RecursionError) as error:
        raise refuse(f"{path} is not TOML: {error}", "write lines such as max_kl = 0.05") from error
    return _gates(table, path.name)


def _gates(table: Mapping[str, Any], where: str) -> Gates:
    reasons: list[Reason] = []
    found: dict[str, float] = {}
    for name, value in table.items():
        gate = BY_KEY.get(name.replace("-", "_"))
        if gate is None:
            reasons.append(_unknown(name, value, where))
        elif gate.key in found:
            reasons.append(Reason(f"{where}: {gate.key} is set twice", "keep one of them"))
        else:
            try:
                found[gate.key] = _limit(gate, value)
            except ValueError as error:
                reasons.append(
                    Reason(f"{where}: {error}", f"such as {gate.key} = {gate.unit.sample}")
                )
    raise_if_any(reasons)
    if not found:
        raise refuse(f"{where} sets no gate", f"one or more of: {', '.join(BY_KEY)}")
    return Gates(**found)


def _unknown(name: str, value: Any, where: str) -> Reason:
    if isinstance(value, dict):
        return Reason(f"{where}: [{name}] is a table", "gates stand in the file itself, flat")
    near = difflib.get_close_matches(name.replace("-", "_"), BY_KEY, n=1, cutoff=0.5)
    known = f"known: {', '.join(BY_KEY)}"
    return Reason(f"{where}: there is no gate {name!r}", f"{near[0]}?" if near else known)


def _limit(gate: Gate, value: Any) -> float:
    """Of a value in TOML: sizes are text, or whole numbers of bytes; all else is a number."""
    if isinstance(value, str) and gate.unit.bytes:
        return limit_of(gate, value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and not gate.unit.bytes):
        return _sensible(gate, value, value)
    raise ValueError(_not(gate, value))


def _sensible(gate: Gate, value: float, given: Any) -> float:
    unit = gate.unit
    inside = unit.lowest < value <= unit.highest and value < LARGEST
    if inside or (unit.zero and value == unit.lowest):
        return float(value)
    raise ValueError(_not(gate, given))


def _not(gate: Gate, value: Any) -> str:
    shown = repr(value)
    short = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return f"{gate.key} is {short}, which is not {gate.unit.wanted}"
