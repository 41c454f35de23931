"""Configurations that say too much for transformers: refused by the reference, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.runtimes.reference import from_folder, from_weights


@pytest.mark.parametrize(
    "fields",
    [
        {"pad_token_id": 10**6},
        {"hidden_act": "none that there is"},
        {"rope_parameters": {"rope_type": "none", "rope_theta": 1e4}},
        {"layer_types": ["none"]},
        {"attention_dropout": "x"},
        {"num_labels": 10**9},
    ],
    ids=str,
)
def test_what_transformers_cannot_make_is_refused(
    fields: dict[str, Any], builders: ModuleType, copy: Callable[[str], Path]
) -> None:
    model = copy("model")
    builders.put_in("config.json", **fields)(model)

    def from_the_weights() -> None:
        source = open_checkpoint(model)
        rows = {one.name: source.rows(one, 0, one.shape[0]) for one in source.tensors}
        from_weights(source, rows, threads=1)

    def from_the_folder() -> None:
        open_checkpoint(model)
        from_folder(model, threads=1)

    for load in (from_the_weights, from_the_folder):
        with pytest.raises(Refused, match=r"config\.json"):
            load()
