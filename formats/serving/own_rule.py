"""Rounding as another program does it, to the bit, where an option of the target asks for that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from qconvert.formats.refusal import Reason, raise_if_any
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype, SourceTensor


@dataclass(frozen=True, slots=True)
class OwnRule:
    """Schemes by their canonical names."""

    option: str  # as typed, without dashes; its ending is part of the output's name
    program: str  # whose rule it is
    why: str  # as `Plan.rule`
    grids: Mapping[str, str]  # scheme -> grid; {dtype}: "bf16", the type of the weights
    others: Mapping[str, str]  # scheme -> why the program's bytes cannot be repeated
    alone: frozenset[str]  # schemes whose scale of the tensor is not shared with what is fused

    def scheme(self, scheme: Scheme, floats: Dtype) -> Scheme:
        """`scheme`, rounded by this rule; it must be one of `grids`."""
        grid = self.grids[scheme.name].format(dtype=floats.lower())
        return replace(scheme, grid_name=grid, alone=scheme.name in self.alone)

    def check(self, used: Iterable[Scheme], linears: Iterable[SourceTensor], floats: Dtype) -> None:
        """`Refused` where a scheme or the source is none that can be repeated."""
        raise_if_any(list(self._problems(dict.fromkeys(used), list(linears), floats)))

    def _problems(
        self, used: Iterable[Scheme], linears: list[SourceTensor], floats: Dtype
    ) -> Iterator[Reason]:
        for one in used:
            if one.name not in self.grids:
                why = self.others.get(one.name, f"{self.program} writes nothing of this kind")
                yield Reason(f"--{self.option}: {one.name}: {why}", f"leave out --{self.option}")
        if not linears:
            yield Reason(f"--{self.option}: nothing is quantized", f"leave out --{self.option}")
        odd = next((one for one in linears if one.dtype != floats), None)
        if odd is not None:
            yield Reason(
                f"--{self.option}: {odd.name} is {odd.dtype}, and {self.program} would round what"
                f" it has loaded as {floats}",
                f"give it a model in {floats}, or leave out --{self.option}",
            )
