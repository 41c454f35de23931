"""Integer codes are made once: the file holds the very codes and scales that the fit returned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from qconvert.asked import Asked
from qconvert.formats.gguf.grids import GRIDS
from qconvert.importance import importance
from qconvert.job import prepare
from qconvert.pipeline import convert


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q3_K_M", "IQ4_XS", "Q5_1", "Q8_0"])
def test_file_holds_the_codes_that_were_fitted(
    tiny_model: Callable[..., Path], tmp_path: Path, mix: str
) -> None:
    model = tiny_model("llama")
    rtn = Asked(method="rtn")
    job = prepare(model, type=mix, out=tmp_path / "out.gguf", asked=rtn)
    convert(model, type=mix, out=tmp_path / "out.gguf", asked=rtn)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    compared = 0
    for tensor in job.plan.tensors:
        if tensor.grid is None or tensor.source is None:
            continue
        rows = job.source.rows(tensor.source, 0, tensor.shape[0])
        fitted = GRIDS[tensor.dtype].quantize(rows, importance(job.source, tensor.source))
        if tensor.row_order is not None:
            fitted = fitted.take_rows(tensor.row_order)
        found = GRIDS[tensor.dtype].unpack(stored[tensor.name].data, tensor.shape[1])
        assert np.array_equal(found.codes, fitted.codes), tensor.name
        for name, values in fitted.params.items():
            assert found.params[name].tobytes() == values.tobytes(), (tensor.name, name)
        compared += 1
    assert compared >= 14
    assert any(tensor.row_order is not None for tensor in job.plan.tensors)
