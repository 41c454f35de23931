"""tensor-cache.json: which tensor lies where in which shard.

Source: apache/tvm, `tvm/contrib/tvmjs.py` of the apache-tvm 0.26 and 0.27 wheels, and its loader,
`src/runtime/vm/tensor_cache_support.cc`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INDEX = "tensor-cache.json"
OLDER_INDEX = "ndarray-cache.json"
"""The same under the name that releases before the renaming look for."""
WEB_INDEX = "tensor-cache-b16.json"
"""For WebLLM: float32 that is stored as bfloat16 is told to be that."""
NARROW = "f32-to-bf16"
"""Format of a record whose float32 values are stored as bfloat16, and widened by the loader."""
CAP = 32 << 20
SIZES: Mapping[str, int] = {"uint32": 4, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Record:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as the loader hands it on
    format: str = "raw"

    @property
    def narrow(self) -> bool:
        return self.format == NARROW and self.dtype == "float32"

    @property
    def decoded_nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """In the shard."""
        return self.decoded_nbytes // 2 if self.narrow else self.decoded_nbytes


@dataclass(frozen=True, slots=True)
class Shard:
    name: str
    records: tuple[tuple[Record, int], ...]  # with the offset of each

    @property
    def nbytes(self) -> int:
        return sum(record.nbytes for record, _ in self.records)


def plan_shards(records: Iterable[Record]) -> tuple[Shard, ...]:
    """`records` cut as tvmjs cuts them: files of less than 32 MiB, tensors of half of that and more
    in a file of their own while the open one stays open."""
    done: list[list[Record]] = []
    pending: list[Record] = []
    size = 0
    for record in records:
        if size + record.nbytes < CAP:
            pending.append(record)
            size += record.nbytes
        elif 2 * record.nbytes >= CAP:
            done.append([record])
        else:
            done.append(pending)
            pending, size = [record], record.nbytes
    done += [pending] if pending else []
    return tuple(Shard(shard_name(number), _placed(one)) for number, one in enumerate(done))


def shard_name(number: int) -> str:
    return f"params_shard_{number}.bin"


def _placed(records: Sequence[Record]) -> tuple[tuple[Record, int], ...]:
    placed, at = [], 0
    for record in records:
        placed.append((record, at))
        at += record.nbytes
    return tuple(placed)


def index_json(
    shards: Sequence[Shard], sums: Sequence[str], weights: int, *, web: bool = False
) -> bytes:
    """The index; `sums`: md5 of each shard, `weights`: elements of the checkpoint's tensors."""
    records = [record for shard in shards for record, _ in shard.records]
    total = float(sum(record.decoded_nbytes for record in records))
    fields = {
        "metadata": {
            "ParamSize": len(records),
            "ParamBytes": total,
            "BitsPerParam": total * 8.0 / weights,
        },
        "records": [
            {
                "dataPath": shard.name,
                "format": "raw-shard",
                "nbytes": shard.nbytes,
                "records": [_entry(record, offset, web) for record, offset in shard.records],
                "md5sum": md5,
            }
            for shard, md5 in zip(shards, sums, strict=True)
        ],
    }
    return json.dumps(fields, indent=4).encode()


def _entry(record: Record, offset: int, web: bool) -> dict[str, Any]:
    as_stored = web and record.narrow
    return {
        "name": record.name,
        "shape": list(record.shape),
        "dtype": "bfloat16" if as_stored else record.dtype,
        "format": "raw" if as_stored else record.format,
        "nbytes": record.nbytes,
        "byteOffset": offset,
    }
