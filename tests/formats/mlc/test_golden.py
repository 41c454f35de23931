"""With MLC's own rule, the bytes of its own converter: excerpts of twelve folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.formats.mlc.target import TARGET

from .conftest import Model, array, records, request, source_tensors, write

DATA = Path(__file__).parents[2] / "data" / "mlc"
INDEX = json.loads((DATA / "index.json").read_text())
TAKEN = (0, 1, -1)  # rows of a matrix that the excerpts have


@pytest.fixture(scope="module")
def excerpts() -> Mapping[str, NDArray[Any]]:
    with np.load(DATA / "rows.npz") as found:
        return dict(found)


def model_of(name: str, excerpts: Mapping[str, NDArray[Any]], folder: Path) -> Model:
    """The source of the excerpts: of its own shapes, and zero where no rows are known."""
    config = INDEX["configs"][name]
    tied = bool(config["tie_word_embeddings"])
    tensors = tuple(source_tensors(config, tied))
    values = {}
    for one in tensors:
        whole = np.zeros(one.shape, np.float32)
        known = excerpts.get(f"source/{name}/{one.name}")
        if known is not None:
            whole[list(TAKEN) if whole.ndim > 1 else ...] = known
        values[one.name] = whole
    return Model(folder, config, config["model_type"], tied, tensors, values)


@pytest.mark.parametrize("folder", INDEX["folders"])
def test_bytes_are_those_of_convert_weight(
    folder: str, excerpts: Mapping[str, NDArray[Any]], tmp_path: Path
) -> None:
    name, scheme = folder.split("-")
    source = model_of(name, excerpts, tmp_path)
    plan = TARGET.plan(source, request(type=scheme, compatible=True))
    assert plan.rule
    found = records(write(source, plan, tmp_path / folder))
    wanted = INDEX["folders"][folder]
    told = {key: [one["shape"], one["dtype"], one["nbytes"]] for key, (one, _) in found.items()}
    assert told == wanted["records"]
    index = json.loads((tmp_path / folder / "tensor-cache.json").read_text())
    assert index["metadata"] == wanted["metadata"]
    compared = 0
    places = plan.details["mlc"].places
    for tensor in source.tensors:
        for part in ("q_weight", "q_scale", "weight", "bias"):
            expected = excerpts.get(f"{folder}/{tensor.name}/{part}")
            if expected is None:
                continue
            place = places[tensor.name]
            stored = array(found[place.module if place.layout == "float"
                                 else f"{place.module}.{part}"])  # fmt: skip
            stored = stored.T if place.layout == "KN" else stored
            rows = stored[place.first : place.first + tensor.shape[0]]
            rows = rows[list(TAKEN)] if len(tensor.shape) > 1 else rows
            assert rows.tobytes() == expected.tobytes(), f"{tensor.name} {part}"
            compared += 1
    assert compared >= len([one for one in excerpts if one.startswith(f"{folder}/")])
    assert compared > 15


def test_zero_groups_and_negative_zeros_are_stored_as_mlc_does(
    excerpts: Mapping[str, NDArray[Any]],
) -> None:
    """Gemma's first token: scale +0, codes 0."""
    zero = "gemma-q4f16_1/model.embed_tokens.weight"
    assert not excerpts[f"{zero}/q_weight"][0].any()
    assert not excerpts[f"{zero}/q_scale"][0].any()
