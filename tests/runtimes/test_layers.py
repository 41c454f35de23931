"""The first block whose output leaves the noise: by hand, and in real runtimes with faults."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.target import target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.findings import LayerError
from qconvert.runtimes.layers import (
    culprit_block,
    first_outside,
    layer_errors,
    merged,
    relative_errors,
)
from qconvert.runtimes.noise import rounded, rounding_of
from qconvert.runtimes.runtime import Runtime, runtimes

TOKENS = np.random.default_rng(0).integers(5, 512, 100).tolist()
BLOCKS = 4


def test_every_position_counts_the_same() -> None:
    """The first is a thousand times longer, and hides nothing."""
    there = np.ones((2, 4, 9), np.float32)
    there[:, 0] = 1000
    found = there.copy()
    found[1, 1:] *= 1.1
    np.testing.assert_allclose(relative_errors(found, there), [0, 0.075], rtol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        relative_errors(found[:1], there)


def test_what_is_not_finite_is_infinitely_far() -> None:
    there = np.ones((3, 4, 8), np.float32)
    found = there.copy()
    found[2, 3, 1] = np.nan
    errors = layer_errors(there, there, found, there)
    assert [one.runtime for one in errors] == [0, 0, math.inf]
    assert culprit_block(errors) == 2


@pytest.mark.parametrize(
    ("runtime", "expected", "block"),
    [
        ([2e-2, 2.1e-2, 2.2e-2], [2e-2, 2e-2, 2.3e-2], None),  # rounding alone
        ([1e-6, 2e-6, 4e-6], [0, 0, 0], None),  # float32 in another order
        ([1e-6, 2e-4, 4e-4], [0, 0, 0], 1),
        ([5e-2, 4e-2, 3e-2], [2e-2, 2e-2, 2e-2], 0),
        ([2e-2, 2.6e-2, 2.4e-2], [2e-2, 2e-2, 2e-2], 1),
        ([2.6e-2, 2.6e-2, 2.7e-2], [2e-2, 2e-2, 2e-2], None),  # rounding that is not repeated
        ([2.6e-2, 2.7e-2, 4e-2], [2e-2, 2e-2, 2e-2], 2),  # and a fault on top
        ([2e-2, math.nan, math.nan], [2e-2, 2e-2, 2e-2], 1),
    ],
)
def test_the_first_that_leaves_the_noise(
    runtime: list[float], expected: list[float], block: int | None
) -> None:
    assert first_outside(runtime, expected) == block


def test_what_was_not_seen_names_no_block() -> None:
    assert culprit_block(()) is None
    assert culprit_block([LayerError(0, 0.1), LayerError(1, 0.1)]) is None
    assert culprit_block([LayerError(0, 0.1, 0.0), LayerError(1, 0.1, 0.2)]) == 1


def test_windows_are_joined() -> None:
    first, second = [LayerError(0, 0.1, 0.2, 0.3)], [LayerError(0, 0.3, 0.4, None)]
    assert merged([first, second]) == (LayerError(0, 0.2, pytest.approx(0.3), None),)
    assert merged([]) == ()


@pytest.fixture(scope="module")
def deep(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama", num_hidden_layers=BLOCKS, dtype="float16"))


@pytest.fixture(scope="module")
def written(
    deep: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """`written("gguf", "Q4_K_M")`: each once."""
    place = tmp_path_factory.mktemp("deep")

    def build(target: str, type: str) -> Path:
        out = place / f"{target}-{type}"
        if not out.exists():
            asked = Asked(method="rtn", calib_rows=2, calib_length=32)
            convert(deep.folder, target, type=type, out=out, threads=1, asked=asked)
        return out

    return build


def none(weights: dict[str, NDArray[Any]]) -> None:
    pass


def parted(
    target: str,
    out: Path,
    runtime: Runtime,
    source: Checkpoint,
    *changes: Callable[[dict[str, NDArray[Any]]], None],
) -> list[tuple[LayerError, ...]]:
    """Blocks of `out` beside the file as decoded, once for each of `changes` to what was decoded:
    as if the runtime read other weights than our reader."""
    reader = target_named(target).reader(out)
    original = reference.from_folder(source.folder, threads=1).blocks(TOKENS)
    with runtime.open(out, threads=1, context=128) as session:
        there: NDArray[np.float32] = getattr(session, "blocks")(TOKENS)  # noqa: B009
        rounding = rounding_of(runtime, session, reader, source)
    assert there.shape == (BLOCKS, len(TOKENS), 256)
    assert there.dtype == np.float32
    found = []
    for change in changes:
        weights = {name: np.array(value) for name, value in reader.weights(source).items()}
        change(weights)
        model = reference.from_weights(source, weights, threads=1)
        with rounded(model, rounding):
            explained = model.blocks(TOKENS)
        found.append(layer_errors(original, model.blocks(TOKENS), there, explained))
    return found


def worse(block: int, part: str) -> Callable[[dict[str, NDArray[Any]]], None]:
    def change(weights: dict[str, NDArray[Any]]) -> None:
        weights[f"model.layers.{block}.{part}.weight"] *= 1.25

    return change


CASES = [
    ("gguf", "Q4_K_M", "llamacpp"), ("gguf", "Q8_0", "llamacpp"), ("gguf", "BF16", "llamacpp"),
    ("onnx", "int4", "onnxruntime"), ("mlc", "q4f16_1", "tvm"), ("vllm", "w8a8", "vllm"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "type", "name"), CASES)
def test_good_files_stay_within_the_noise_and_a_block_is_named(
    target: str, type: str, name: str, written: Callable[..., Path], deep: Checkpoint
) -> None:
    """A block that a reader decodes otherwise than the runtime is what is named, wherever it is."""
    good, first, third, last = parted(
        target, written(target, type), runtimes()[name], deep,
        none, worse(0, "self_attn.v_proj"), worse(2, "mlp.down_proj"), worse(3, "mlp.gate_proj"),
    )  # fmt: skip
    assert culprit_block(good) is None
    assert [culprit_block(one) for one in (first, third, last)] == [0, 2, 3]
    assert [one.block for one in good] == list(range(BLOCKS))
    if type != "BF16":
        assert all(0.01 < one.quantization < 1 for one in good)


def test_another_rope_base_shows_in_the_first_block(
    written: Callable[..., Path], deep: Checkpoint, tmp_path: Path
) -> None:
    good = written("gguf", "Q8_0")
    data = bytearray(good.read_bytes())
    key = b"llama.rope.freq_base"
    at = data.index(key) + len(key)
    assert struct.unpack_from("<If", data, at) == (6, 10000.0)  # of the type float32
    struct.pack_into("<f", data, at + 4, 500.0)
    out = tmp_path / "rope.gguf"
    out.write_bytes(data)
    (found,) = parted("gguf", out, runtimes()["llamacpp"], deep, none)
    assert culprit_block(found) == 0
