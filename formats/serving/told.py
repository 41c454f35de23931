"""What a served folder says of its model beside the weights: its small files.

The list of what stays float is read by the container (`containers/claims.py`); here it is told
where that and the tensors contradict each other, and where two files say one thing differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.refusal import Reason, Refused
from qconvert.formats.serving.containers.claims import quantization_of
from qconvert.formats.serving.model_files import COPIED
from qconvert.formats.told import Difference, Told

LISTS = ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules", "dynamic")
"""Keys of `quantization_config` under which the modules stand that stay float."""
MODELOPT = "hf_quant_config.json"
TWICE: Mapping[str, str] = {
    "exclude_modules": "ignore", "quant_algo": "quant_algo", "group_size": "group_size",
    "has_zero_point": "has_zero_point", "pre_quant_scale": "pre_quant_scale",
}  # fmt: skip
"""Keys of hf_quant_config.json -> of `quantization_config`, which must say the same."""
SHOWN = 3


class Folder(Protocol):
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def contradictions(self) -> Sequence[Reason]: ...


def told_of(folder: Folder) -> Told:
    """config.json whole, and the copies beside it."""
    path = folder.files[-1].parent
    return Told(
        config=folder.metadata,
        folder=path,
        copies=COPIED,
        differs=tuple([*_float_list(folder), *_twice(folder.metadata, path)]),
    )


def _float_list(folder: Folder) -> Iterator[Difference]:
    if not folder.contradictions:
        return
    told = quantization_of(folder.metadata)
    key = next((one for one in LISTS if one in told), LISTS[0])
    problems = [one.problem for one in folder.contradictions]
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    yield Difference(key, f"{key}: {'; '.join(problems[:SHOWN])}{more}")


def _twice(config: Mapping[str, Any], folder: Path) -> Iterator[Difference]:
    """ModelOpt's two files: TensorRT-LLM reads the one, vLLM the other."""
    try:
        nested = read_json_object(folder / MODELOPT, "").get("quantization")
    except Refused:
        return  # absent, or told of where the folder is opened
    flat = quantization_of(config)
    if not isinstance(nested, Mapping) or not flat:
        return
    for key, other in TWICE.items():
        one, two = nested.get(key), flat.get(other)
        if isinstance(one, list) and isinstance(two, list):
            one, two = sorted(map(str, one)), sorted(map(str, two))
        if key in nested and other in flat and one != two:
            yield Difference(
                key, f"{key} is {one!r} in {MODELOPT}, and {other} is {two!r} in config.json"
            )
