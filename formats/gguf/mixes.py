"""File types of llama.cpp ("Q4_K_M") as data: which tensor gets which storage type.

The rules are those of `src/llama-quant.cpp` (llama_tensor_get_type_impl, tensor_type_fallback)
without an importance matrix; `tests/formats/gguf/test_mixes.py` holds every tensor of every mix
against `llama_model_quantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from qconvert.formats.refusal import refuse
from qconvert.formats.target import Request

Category = str  # "value", "attn_o", "ffn_down", "head", "embedding", "other", "float"

CATEGORIES: Mapping[str, Category] = {
    "attn_v": "value",
    "attn_qkv": "value",
    "attn_o": "attn_o",
    "ffn_down": "ffn_down",
    "head": "head",
    "embedding": "embedding",
    "position": "float",
}
"""Role -> what the rules call it; matrices of any other role are "other"."""

FALLBACKS: Mapping[str, str] = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
"""The type of 32 columns that stands in where rows are not whole super-blocks of 256."""

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule may look at: the `index`-th of `count` blocks, heads per value head."""

    index: int
    count: int
    grouped: int


Rule = tuple[Callable[[Place], bool], str]


def _always(_: Place) -> bool:
    return True


def _more_bits(at: Place) -> bool:
    """First and last eighth of the blocks, and every third one between."""
    first = at.count // 8
    return at.index < first or at.index >= 7 * at.count // 8 or (at.index - first) % 3 == 2


def _first(count: int) -> Callable[[Place], bool]:
    return lambda at: at.index < count


def _first_part(parts: int) -> Callable[[Place], bool]:
    return lambda at: at.index < at.count // parts


def _grouped(at: Place) -> bool:
    return at.grouped >= 4


@dataclass(frozen=True, slots=True)
class Mix:
    """A file type: `base` everywhere but where the first rule that holds says otherwise."""

    name: str
    file_type: LlamaFileType
    base: str
    bits: int
    summary: str
    rules: Mapping[Category, tuple[Rule, ...]] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.base not in FLOATS

    def wanted(self, category: Category, at: Place) -> str:
        """The type that the mix asks for, whatever the length of the rows."""
        for holds, kind in self.rules.get(category, ()):
            if holds(at):
                return kind
        return self.base


_F = LlamaFileType
_MORE_Q6 = {"value": ((_more_bits, "Q6_K"),), "ffn_down": ((_more_bits, "Q6_K"),)}
_IQ4 = {"value": ((_grouped, "Q5_K"),), "ffn_down": ((_first_part(8), "Q5_K"),)}

_ALL = (
    Mix("Q4_K_M", _F.MOSTLY_Q4_K_M, "Q4_K", 4, "4 bits, the usual choice", _MORE_Q6),
    Mix("Q8_0", _F.MOSTLY_Q8_0, "Q8_0", 8, "8 bits, nearly lossless"),
    Mix("Q6_K", _F.MOSTLY_Q6_K, "Q6_K", 6, "6 bits, very close to the source"),
    Mix("Q5_K_M", _F.MOSTLY_Q5_K_M, "Q5_K", 5, "5 bits, close to the source", _MORE_Q6),
    Mix("Q5_K_S", _F.MOSTLY_Q5_K_S, "Q5_K", 5, "5 bits, a little smaller"),
    Mix(
        "Q4_K_S", _F.MOSTLY_Q4_K_S, "Q4_K", 4, "4 bits, a little smaller",
        {"value": ((_first(4), "Q5_K"),), "ffn_down": ((_first_part(8), "Q5_K"),)},
    ),
    Mix("IQ4_XS", _F.MOSTLY_IQ4_XS, "IQ4_XS", 4, "4 bits, non-linear, smallest of them", _IQ4),
    Mix("IQ4_NL", _F.MOSTLY_IQ4_NL, "IQ4_NL", 4, "4 bits, non-linear, rows of 32", _IQ4),
    Mix("Q4_0", _F.MOSTLY_Q4_0, "Q4_0", 4, "4 bits, simple and fast"),
    Mix("Q4_1", _F.MOSTLY_Q4_1, "Q4_1", 4, "4 bits with a minimum"),
    Mix("Q5_0", _F.MOSTLY_Q5_0, "Q5_0", 5, "5 bits, simple"),
    Mix("Q5_1", _F.MOSTLY_Q5_1, "Q5_1", 5, "5 bits with a minimum"),
    Mix(
        "Q3_K_M", _F.MOSTLY_Q3_K_M, "Q3_K", 3, "3 bits, visible loss",
        {
            "value": ((_first(2), "Q5_K"), (_always, "Q4_K")),
            "ffn_down": ((_first_part(16), "Q5_K"), (_always, "Q4_K")),
            "attn_o": ((_always, "Q4_K"),),
        },
    ),
    Mix(
        "Q3_K_L", _F.MOSTLY_Q3_K_L, "Q3_K", 3, "3 bits, larger and better",
        {
            "value": ((_always, "Q5_K"),),
            "ffn_down": ((_always, "Q5_K"),),
            "attn_o": ((_always, "Q5_K"),),
        },
    ),
    Mix("Q3_K_S", _F.MOSTLY_Q3_K_S, "Q3_K", 3, "3 bits, small, strong loss"),
    Mix(
        "Q2_K", _F.MOSTLY_Q2_K, "Q2_K", 2, "2 bits and some 3, strong loss",
        {
            "value": ((_grouped, "Q4_K"), (_always, "Q3_K")),
            "ffn_down": ((_always, "Q3_K"),),
            "attn_o": ((_always, "Q3_K"),),
        },
    ),
    Mix(
        "Q2_K_S", _F.MOSTLY_Q2_K_S, "Q2_K", 2, "2 bits, strongest loss",
        {"value": ((_grouped, "Q4_K"),), "ffn_down": ((_first_part(8), "Q4_K"),)},
    ),
    Mix("BF16", _F.MOSTLY_BF16, "BF16", 16, "bfloat16, not quantized"),
    Mix("F16", _F.MOSTLY_F16, "F16", 16, "float16, not quantized"),
    Mix("F32", _F.ALL_F32, "F32", 32, "float32, not quantized"),
)  # fmt: skip

MIXES: Mapping[str, Mix] = {mix.name: mix for mix in _ALL}
ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
BY_BITS: Mapping[int, str] = {
    2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0", 16: "BF16", 32: "F32",
}  # fmt: skip
DEFAULT = "Q4_K_M"


def choose_mix(request: Request, half: str = "BF16") -> Mix:
    """The mix that was asked for. `half` is the float type that `bits` 16 means."""
    if request.type is None:
        if request.bits is None:
            return MIXES[DEFAULT]
        return MIXES[half if request.bits == 16 else _by_bits(request.bits)]
    name = request.type.upper().replace("-", "_")
    mix = MIXES.get(ALIASES.get(name, name))
    if mix is None:
        raise refuse(f"unknown type {request.type!r} for gguf", f"known types: {', '.join(MIXES)}")
    if request.bits not in (None, mix.bits):
        raise refuse(
            f"type {mix.name} has {mix.bits} bits, not {request.bits}",
            f"leave out the bits, or take one of {', '.join(_with_bits(request.bits)) or 'none'}",
        )
    return mix


def _with_bits(bits: int | None) -> list[str]:
    return [mix.name for mix in MIXES.values() if mix.bits == bits]


def _by_bits(bits: int) -> str:
    if bits in BY_BITS:
        return BY_BITS[bits]
    below = max((known for known in BY_BITS if known < bits), default=None)
    above = min((known for known in BY_BITS if known > bits), default=None)
    near = [f"{known} ({BY_BITS[known]})" for known in (below, above) if known is not None]
    raise refuse(f"gguf has no type of {bits} bits", f"nearest: {' or '.join(near)}")


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules need to know of the model as a whole."""

    blocks: int
    grouped: int  # query heads per key head
    tied: bool  # the embedding is the head as well
    wide: bool  # llama.cpp's "70B": 80 blocks with few value heads


def choose_type(mix: Mix, model: Model, category: Category, block: int | None,
                shape: Sequence[int]) -> tuple[str, str]:  # fmt: skip
    """(storage type, note) of one tensor. The note says why it is not the type asked for."""
    if category == "float" or len(shape) < 2 or shape[0] == 1:
        return "F32", ""
    if not mix.quantized:
        return mix.base, ""
    cols = shape[-1]
    if category == "head" or (category == "embedding" and model.tied):
        wanted = _head_type(mix, cols)
    else:
        wanted = mix.wanted(category, Place(block or 0, model.blocks, model.grouped))
        if category == "value" and model.wide and wanted in ("Q3_K", "Q4_K"):
            wanted = "Q5_K"
    return _fitting(wanted, cols)


def _head_type(mix: Mix, cols: int) -> str:
    if mix.base == "Q8_0" or cols % block_of(mix.base):
        return "Q8_0"
    return "Q6_K"


def _fitting(wanted: str, cols: int) -> tuple[str, str]:
    block = block_of(wanted)
    if cols % block == 0:
        return wanted, ""
    found = FALLBACKS.get(wanted, wanted)
    if cols % block_of(found):
        found = "F16"
    return found, f"{found} instead of {wanted}: rows of {cols} are not whole blocks of {block}"


def block_of(kind: str) -> int:
    """Columns that share parameters in a storage type."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
