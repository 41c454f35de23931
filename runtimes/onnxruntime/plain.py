"""A graph in plain ONNX Runtime: logits, or other outputs of the graph, at every position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA_FOLDER = "session.model_external_initializers_file_folder_path"
IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
ERRORS_ONLY = 3


class Plain:
    """An `InferenceSession`. Every call starts from an empty cache."""

    def __init__(
        self,
        path: Path,
        graph: bytes | None,  # in place of the file's
        shape: Mapping[str, Any],  # `decoder` of genai_config.json
        threads: int,
        options: Mapping[str, str],  # of the session, by key
    ) -> None:
        from onnxruntime import (  # type: ignore[import-not-found,unused-ignore]
            InferenceSession,
            SessionOptions,
        )

        told = SessionOptions()
        told.intra_op_num_threads = threads
        told.inter_op_num_threads = 1
        told.log_severity_level = ERRORS_ONLY
        for key, value in options.items():
            told.add_session_config_entry(key, value)
        if graph is not None:
            told.add_session_config_entry(DATA_FOLDER, str(path.parent))
        opened = str(path) if graph is None else graph
        self._session = InferenceSession(opened, told, providers=["CPUExecutionProvider"])
        self._cache = {
            one.name: np.zeros(_sizes(one.shape, shape), np.float32)
            for one in self._session.get_inputs()
            if one.name not in (IDS, MASK, POSITIONS)
        }
        self._positions = any(one.name == POSITIONS for one in self._session.get_inputs())

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """[len(tokens), vocab]."""
        return self.outputs(tokens, [LOGITS])[0]

    def outputs(self, tokens: NDArray[np.int32], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """[len(tokens), ...] of each of these outputs of the graph."""
        ids = tokens.astype(np.int64)[None]
        feeds = {IDS: ids, MASK: np.ones_like(ids), **self._cache}
        if self._positions:
            feeds[POSITIONS] = np.arange(ids.shape[1], dtype=np.int64)[None]
        found = self._session.run(list(names), feeds)
        return [one[0].astype(np.float32, copy=False) for one in found]


def _sizes(told: list[Any], shape: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """[1, heads of keys and values, 0, width of a head] of an empty cache; where the graph names a
    dimension in place of its size, genai_config.json has it."""
    heads, width = told[1], told[3]
    return (
        1,
        heads if isinstance(heads, int) else int(shape["num_key_value_heads"]),
        0,
        width if isinstance(width, int) else int(shape["head_size"]),
    )
