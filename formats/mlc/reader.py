"""Opens an MLC folder with care, decodes its tensors, and gives a checkpoint's weights back.

Written from the format alone, it reads what MLC's own converter has written as well. Of the writing
side it knows only the facts: what each scheme is, and which linears are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.mlc.architectures import ARCHITECTURES, NORMS, Architecture
from qconvert.formats.mlc.index import Found, read_index
from qconvert.formats.mlc.schemes import SCHEMES, Scheme
from qconvert.formats.mlc.told import told_of
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.shapes import TEXT, TEXTS, WHOLE, Each, Keys, check, maybe
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import StoredTensor
from qconvert.formats.told import Told

CONFIG = "mlc-chat-config.json"
HEAD = "lm_head.weight"
"""A head that the model ties to its embedding, where the folder has one of its own."""
Floats = NDArray[np.float32]
_TURNS = Keys({"stop_token_ids": Each(WHOLE), "stop_str": TEXTS})
TOLD = Keys({"conv_template": maybe(TEXT, _TURNS)})
"""What of `CONFIG` must be of its kind, beside the sizes that are asked for where they are used."""
Part = tuple[str, int, int]  # a stored tensor, and the rows of it that are a checkpoint's tensor


@dataclass(frozen=True, slots=True)
class FolderReader:
    """`formats.target.Reader` of a folder. Quantized linears go by the name of a weight, with words
    and scales as one, joined as they are stored."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]  # mlc-chat-config.json
    tensors: Mapping[str, StoredTensor]
    scheme: Scheme
    arch: Architecture
    _found: Mapping[str, Found] = field(repr=False)
    _maps: Mapping[Path, NDArray[np.uint8]] = field(repr=False)

    def array(self, name: str) -> NDArray[Any]:
        """A stored tensor as it is, by the name of its record; bfloat16 as uint16."""
        found = self._found[name]
        return found.array(self._maps[found.shard])

    def decode(self, name: str) -> Floats:
        """The float32 values of a tensor, [out, in]."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows [start, stop) of `decode`."""
        module = name.removesuffix(".weight")
        if f"{module}.q_weight" not in self._found:
            return _floats(self.array(name)[start:stop], self._found[name].kind)
        turned = _is_turned(module, self.scheme, self.arch)
        words, scales = self.array(f"{module}.q_weight"), self.array(f"{module}.q_scale")
        if turned:
            words, scales = words[:, start:stop].T, scales[:, start:stop].T
        else:
            words, scales = words[start:stop], scales[start:stop]
        scale = _floats(scales, self._found[f"{module}.q_scale"].kind)
        return decoded(words, scale, self.scheme, self.tensors[name].shape[1])

    def weights(self, source: Source) -> Mapping[str, Floats]:
        """Checkpoint name -> values, decoded one at a time: joined rows apart, norms as the
        checkpoint has them. `Refused` where the folder is of another model."""
        parts, reasons = _parts(source, self.arch, self.tensors)
        raise_if_any(reasons)
        return _Weights(self, {one.name: one for one in source.tensors}, parts)

    def told(self, source: Source) -> Told:
        """What mlc-chat-config.json and the files beside it say of the model."""
        return told_of(self.metadata, self.files[-1].parent, source)


class _Weights(Mapping[str, Floats]):
    def __init__(
        self, reader: FolderReader, tensors: Mapping[str, SourceTensor], parts: Mapping[str, Part]
    ) -> None:
        self._reader, self._tensors, self._parts = reader, tensors, parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Floats:
        values = self._reader.rows(*self._parts[name])
        tensor = self._tensors.get(name)
        if tensor is not None and tensor.role in NORMS and tensor.part == "weight":
            values = values - np.float32(self._reader.arch.norm_add)
        return values


def decoded(words: NDArray[Any], scale: Floats, scheme: Scheme, cols: int) -> Floats:
    """(code - M) * scale, in the arithmetic of the model dtype. `words` uint32 [rows, words],
    `scale` [rows, groups]; what fills up the last group is cut off."""
    shifts = np.arange(scheme.per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    codes = (words[..., None] >> shifts) & np.uint32((1 << scheme.bits) - 1)
    levels: Floats = codes.reshape(words.shape[0], -1)[:, :cols].astype(np.float32)
    levels -= np.float32((1 << (scheme.bits - 1)) - 1)
    # of so few bits, the product is exact in float32: what follows rounds it once
    levels *= np.repeat(scale, scheme.group, axis=1)[:, :cols]
    if scheme.dtype == "float16":
        with np.errstate(over="ignore"):
            levels[...] = levels.astype(np.float16)
    if scheme.dtype == "bfloat16":
        bits = levels.view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        bits &= np.uint32(0xFFFF0000)
    return levels


def _floats(values: NDArray[Any], kind: str) -> Floats:
    if kind == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    found: Floats = values.astype(np.float32)
    return found


def _is_turned(module: str, scheme: Scheme, arch: Architecture) -> bool:
    """Whether words and scales are stored transposed: linears of a KN scheme, not the embedding."""
    return scheme.layout == "KN" and module != f"{arch.prefix}model.embed_tokens"


def open_reader(path: Path) -> FolderReader:
    """Open the folder `path`; `Refused`, naming the file, when one is damaged or they contradict
    each other."""
    if not path.is_dir():
        raise refuse(f"no such folder: {path}")
    config = read_json_object(path / CONFIG, "an MLC folder holds it; mlc_llm gen_config makes one")
    check(config, TOLD, str(path / CONFIG), "make it anew, with mlc_llm gen_config")
    scheme, arch = SCHEMES.get(str(config.get("quantization"))), _architecture(config)
    if scheme is None:
        raise refuse(
            f"{path} is quantized with {config.get('quantization')!r}",
            f"qconvert reads {', '.join(SCHEMES)}",
        )
    found, files = read_index(path)
    tensors, reasons = _tensors(found, scheme, arch, config)
    raise_if_any(reasons)
    maps = {}
    for shard in dict.fromkeys(one.shard for one in found.values()):
        try:
            maps[shard] = np.memmap(shard, dtype=np.uint8, mode="r").view(np.ndarray)
        except OSError as fault:
            raise refuse(f"{shard} cannot be read: {fault.strerror or fault}") from fault
    return FolderReader((*files, path / CONFIG), config, tensors, scheme, arch, found, maps)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    name = str(config.get("model_type"))
    if name not in ARCHITECTURES:
        raise refuse(
            f"{CONFIG}: a model of type {name!r}", f"qconvert reads {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _tensors(
    found: Mapping[str, Found], scheme: Scheme, arch: Architecture, config: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], list[Reason]]:
    """What is stored, each quantized linear as one, and what in it is no tensor of the scheme."""
    tensors: dict[str, StoredTensor] = {}
    reasons: list[Reason] = []
    for name, one in found.items():
        module, _, part = name.rpartition(".")
        if part == "q_scale" and f"{module}.q_weight" in found:
            continue
        if part not in ("q_weight", "q_scale"):
            if one.kind == "uint32":
                reasons.append(Reason(f"{name} is uint32, which no weight is"))
            tensors[name] = StoredTensor(name, one.shape, one.kind, one.nbytes)
            continue
        scale, weight = found.get(f"{module}.q_scale"), f"{module}.weight"
        if part == "q_scale" or scale is None:
            reasons.append(Reason(f"{name} is stored without its other half"))
            continue
        turn = -1 if _is_turned(module, scheme, arch) else 1
        problem, cols = _columns(one, scale, scheme, _inputs(module, config), turn)
        if problem:
            reasons.append(Reason(f"{module}: {problem}", "the folder is not of this scheme"))
            continue
        shape = (one.shape[::turn][0], cols)
        tensors[weight] = StoredTensor(weight, shape, scheme.name, one.nbytes + scale.nbytes)
    return tensors, reasons


def _columns(words: Found, scale: Found, scheme: Scheme, cols: int, turn: int) -> tuple[str, int]:
    """What is wrong with a quantized linear of `cols` inputs, and `cols`."""
    if not scheme.quantizes:
        return f"{scheme.name} quantizes nothing", cols
    if (words.kind, len(words.shape), len(scale.shape)) != ("uint32", 2, 2):
        return f"words are {words.kind} {words.shape}", cols
    if scale.kind not in (scheme.dtype, "bfloat16" if scheme.dtype == "float32" else ""):
        return f"scales are {scale.kind}, {scheme.name} has {scheme.dtype}", cols
    rows, per_row = words.shape[::turn]
    groups = -(-cols // scheme.group)
    wanted = groups * scheme.group // (32 // scheme.bits)
    if (per_row, scale.shape[::turn]) != (wanted, (rows, groups)):
        return f"{words.shape} words and {scale.shape} scales for {cols} inputs", cols
    return "", cols


def _inputs(module: str, config: Mapping[str, Any]) -> int:
    """Inputs of a linear, or columns of the embedding."""
    sizes: Any = config.get("model_config")
    for _ in range(2):  # of Gemma 3, the sizes are one level below
        sizes = sizes if isinstance(sizes, dict) else {}
        sizes = sizes.get("text_config") or sizes
    names = {
        "down_proj": ("intermediate_size",), "o_proj": ("num_attention_heads", "head_dim"),
    }.get(module.rpartition(".")[2], ("hidden_size",))  # fmt: skip
    product = 1
    for name in names:
        value = sizes.get(name) if isinstance(sizes, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise refuse(f"{CONFIG}: model_config has {name} {value!r}", "make it anew")
        product *= value
    return product


def _parts(
    source: Source, arch: Architecture, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, Part], list[Reason]]:
    """Where each tensor of the checkpoint lies, and where the folder is of another model."""
    parts: dict[str, Part] = {}
    rows: dict[str, int] = {}
    cols: dict[str, tuple[int, ...]] = {}
    for one in source.tensors:
        module, _, part = one.name.rpartition(".")
        above, _, last = module.rpartition(".")
        whole = f"{arch.prefix}{above}.{arch.fused.get(one.role, last)}.{part}".replace("..", ".")
        whole = whole if above else f"{arch.prefix}{last}.{part}"
        start = rows.get(whole, 0)
        rows[whole] = start + one.shape[0]
        cols.setdefault(whole, one.shape[1:])
        parts[one.name] = (whole, start, rows[whole])
    head = f"{arch.prefix}{HEAD}"
    if source.tied and (arch.head == "always" or (arch.head == "own" and head in tensors)):
        embedding = next(one for one in source.tensors if one.role == "embedding")
        rows[head], cols[head] = embedding.shape[0], embedding.shape[1:]
        parts[HEAD] = (head, 0, embedding.shape[0])
    reasons = []
    for whole, count in rows.items():
        stored, shape = tensors.get(whole), (count, *cols[whole])
        if stored is None:
            reasons.append(Reason(f"the folder has no {whole}", "was it made of another model?"))
        elif stored.shape != shape:
            reasons.append(Reason(f"{whole} is {stored.shape} in the folder, {shape} in the model"))
    reasons += [
        Reason(f"the folder has {name}, which the model has not", "was it made of another model?")
        for name in tensors
        if name not in rows
    ]
    return parts, reasons
