"""A checkpoint as llama.cpp sees it: architecture, sizes, rope, and the place of every tensor."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.formats.gguf.architecture import Architecture
from qconvert.formats.gguf.architectures import ARCHITECTURES
from qconvert.formats.gguf.hyperparameters import Hyperparameters, read_hyperparameters
from qconvert.formats.gguf.layout import Placed, place
from qconvert.formats.gguf.rope import Rope, read_rope
from qconvert.formats.refusal import raise_if_any, refuse
from qconvert.formats.settings import Settings
from qconvert.formats.source import Source


@dataclass(frozen=True, slots=True)
class Model:
    arch: Architecture
    sizes: Hyperparameters
    rope: Rope | None
    tensors: tuple[Placed, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before trusting the output, a line each."""
        return (*self.sizes.notes, *(self.rope.notes if self.rope is not None else ()))


def read_model(source: Source) -> Model:
    """Everything but types and vocabulary; `Refused` with all that llama.cpp cannot do."""
    arch = ARCHITECTURES.get(source.model_type)
    if arch is None:
        raise refuse(
            f"GGUF has no architecture for {source.model_type!r}",
            f"it has them for {', '.join(sorted(ARCHITECTURES))}",
        )
    settings = Settings(source.config, arch.defaults, arch.keys)
    sizes = read_hyperparameters(settings, arch)
    rope = read_rope(settings, arch, sizes)
    raise_if_any(settings.reasons)
    tensors, reasons = place(source, arch, sizes, rope)
    raise_if_any(reasons)
    return Model(arch, sizes, rope, tensors)
