"""Which safetensors files make up a checkpoint, and what they hold together."""

from __future__ import annotations

from pathlib import Path

from qconvert.formats.careful import read_json_object
from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse
from qconvert.formats.safetensors_header import Entry, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
__all__ = ["INDEX", "PICKLES", "SINGLE", "read_json_object", "stored_tensors"]


def stored_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor stored in `folder` by name; `Refused` with every fault of every file."""
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    raise _no_weights(folder)


def _sharded(folder: Path) -> dict[str, Entry]:
    index = read_json_object(folder / INDEX, "download or copy it again")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refuse(f"{INDEX} has no weight_map", "download or copy it again")
    others = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    reasons = [Reason(f"{INDEX}: the place of {name} is not the name of a file") for name in others]
    raise_if_any(reasons)
    stored: dict[str, Entry] = {}
    read: set[str] = set()
    for shard in sorted(set(weight_map.values())):
        with collecting(reasons):
            entries = _shard(folder, shard)
            twice = sorted(entries.keys() & stored.keys())
            reasons += [Reason(f"{shard}: {name} is stored in another shard too") for name in twice]
            stored |= entries
            read.add(shard)
    reasons += [
        Reason(f"{shard}: {name} is missing, though {INDEX} places it there")
        for name, shard in sorted(weight_map.items())
        if shard in read and (name not in stored or stored[name].path.name != shard)
    ]
    raise_if_any(reasons)
    return stored


def _shard(folder: Path, shard: str) -> dict[str, Entry]:
    if shard != Path(shard).name or "\\" in shard:
        raise refuse(f"{INDEX} names a file outside the folder: {shard}")
    if not (folder / shard).is_file():
        raise refuse(f"{shard} is missing, though {INDEX} lists it", f"download {shard}")
    return read_header(folder / shard)


def _no_weights(folder: Path) -> Refused:
    """Why there is nothing to read, as near to the cause as can be seen."""
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if pickles and not others:
        return refuse(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is loaded",
            "if you trust it, make safetensors of it: python -c 'from transformers import "
            f'AutoModelForCausalLM as M; M.from_pretrained("{folder}", dtype="auto")'
            f'.save_pretrained("{folder}-safetensors")\' and copy the tokenizer files beside it',
        )
    beside = f"; found only {', '.join(others[:5])}" if others else ""
    return refuse(
        f"no weights in {folder}: neither {SINGLE} nor {INDEX}{beside}",
        "give the folder that transformers' save_pretrained writes",
    )
