"""Kernel: one way in which a serving program multiplies by quantized weights, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qconvert.formats.refusal import Reason
from qconvert.formats.serving.fused import Shard
from qconvert.formats.serving.scheme import Activations, Form, Scheme
from qconvert.formats.source import Dtype

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
class Setting:
    """What is around a linear: the type of what stays float, and a KV cache with scales."""

    floats: Dtype = "BF16"
    kv: str | None = None


USUAL = Setting()


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
    floats: tuple[Dtype, ...] | None = None  # in which it computes; None: in any
    caches: tuple[str, ...] | None = None  # KV caches whose scales it reads; None: in all
    repeats: bool = True  # whether scales come along where ranks hold the same keys and values
    apart: bool = True  # whether scales come along where what is stored joined is taken apart
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

    def problems(self, shard: Shard, setting: Setting = USUAL) -> Iterator[Reason]:
        """Why it does not take this shape there, with remedies other than another scheme."""
        of = f"{shard.of.name}{' of a rank' if shard.cut else ''}"
        if shard.cols % self.cols:
            yield Reason(
                f"{self.name} wants inputs in multiples of {self.cols}; {of} has {shard.cols}"
            )
        if shard.rows % self.rows:
            yield Reason(
                f"{self.name} wants outputs in multiples of {self.rows}; {of} has {shard.rows}"
            )
        odd = [part for part in self._judged(shard) if part % self.each]
        if odd:
            yield Reason(
                f"{self.name} wants outputs of each linear in multiples of {self.each}; "
                f"{of} has {odd[0]}"
            )
        if shard.of.biased and not self.biases:
            yield Reason(f"{self.name} loses biases, and {shard.of.name} has one")
        if shard.heads and not self.repeats:
            yield Reason(
                f"{shard.of.name}: several ranks hold the same of {shard.heads} heads of keys and "
                f"values, and {self.name} gets no scales for them",
                f"--tp {shard.heads}",
            )
        if self.floats is not None and setting.floats not in self.floats:
            names = " or ".join(self.floats)
            yield Reason(f"{self.name} computes in {names}, and the model's floats are"
                         f" {setting.floats}")  # fmt: skip
        if shard.stored_joined and not self.apart:
            yield Reason(
                f"{shard.of.name} is stored as one, is taken apart when it is loaded, and "
                f"{self.name} then lacks its scales"
            )
        if setting.kv is not None and shard.cached and not self._reads(setting.kv, shard):
            yield Reason(
                f"{self.name} reads no scales of a KV cache in {setting.kv}"
                f"{' of linears that are stored as one' if shard.stored_joined else ''}",
                "leave out --kv",
            )

    def _reads(self, kv: str, shard: Shard) -> bool:
        """Scales of keys and values that belong to one linear are found by none that names its
        caches: they are looked for beside k and v."""
        return self.caches is None or (kv in self.caches and not shard.stored_joined)

    def _judged(self, shard: Shard) -> tuple[int, ...]:
        """The parts of which the rows count."""
        free = self.last_free and shard.cut != "rows" and len(shard.parts) > 1
        alone = self.last_free and not shard.cut and len(shard.parts) == 1
        return () if alone else shard.parts[:-1] if free else shard.parts
