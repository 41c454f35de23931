"""Blocks of quantized weights to bytes and back, and to the floats that they stand for.

`layout` says how a block lies (`layouts.BlockLayout`). Arrays give arrays, by the body for a
processor unless another is asked for; tensors give tensors on the device they are on. All bodies
give the same bytes, codes and floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.layouts import BlockLayout

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


@overload
def pack(
    codes: Bytes, params: Mapping[str, Array], layout: BlockLayout, *, body: Body | None = None
) -> Bytes: ...
@overload
def pack(
    codes: torch.Tensor,
    params: Mapping[str, torch.Tensor],
    layout: BlockLayout,
    *,
    body: Body | None = None,
) -> torch.Tensor: ...
def pack(
    codes: Any,  # uint8 [rows, cols]
    params: Mapping[str, Any],  # by the names of layout.parameters: [rows, blocks * count]
    layout: BlockLayout,
    *,
    body: Body | None = None,
) -> Any:
    """The bytes of the rows: uint8 [rows, bytes of a row].

    `ValueError` where columns are not whole blocks or a parameter has another shape or type.
    """
    _check(codes, params, layout)
    if isinstance(codes, np.ndarray):
        if body in (None, "cpu"):
            return module("cpu", "packing").pack(codes, params, layout)
        return pack(_tensor(codes), _tensors(params), layout, body=body).numpy()
    body = body_for(codes.device, body)
    if body == "cpu":
        arrays = {name: values.detach().numpy() for name, values in params.items()}
        return _tensor(module(body, "packing").pack(codes.numpy(), arrays, layout))
    return module(body, "packing").pack(codes, params, layout)


@overload
def unpack(
    packed: Bytes, layout: BlockLayout, cols: int, *, body: Body | None = None
) -> tuple[Bytes, dict[str, Array]]: ...
@overload
def unpack(
    packed: torch.Tensor, layout: BlockLayout, cols: int, *, body: Body | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
def unpack(
    packed: Any,  # uint8 [rows, bytes of a row]
    layout: BlockLayout,
    cols: int,
    *,
    body: Body | None = None,
) -> tuple[Any, dict[str, Any]]:
    """What `pack` was given: codes and parameters, bit for bit. `ValueError` on another width."""
    _check_packed(packed, layout, cols)
    if isinstance(packed, np.ndarray):
        if body in (None, "cpu"):
            found: tuple[Bytes, dict[str, Array]]
            found = module("cpu", "packing").unpack(packed, layout, cols)
            return found
        codes, params = unpack(_tensor(packed), layout, cols, body=body)
        return codes.numpy(), {name: values.numpy() for name, values in params.items()}
    body = body_for(packed.device, body)
    if body == "cpu":
        array, arrays = module(body, "packing").unpack(packed.numpy(), layout, cols)
        return _tensor(array), _tensors(arrays)
    tensors: tuple[torch.Tensor, dict[str, torch.Tensor]]
    tensors = module(body, "packing").unpack(packed, layout, cols)
    return tensors


@overload
def dequantize(
    packed: Bytes,
    layout: BlockLayout,
    cols: int,
    dtype: None = None,
    *,
    body: Body | None = None,
) -> NDArray[np.float32]: ...
@overload
def dequantize(
    packed: torch.Tensor,
    layout: BlockLayout,
    cols: int,
    dtype: torch.dtype | None = None,
    *,
    body: Body | None = None,
) -> torch.Tensor: ...
def dequantize(
    packed: Any,  # uint8 [rows, bytes of a row]
    layout: BlockLayout,
    cols: int,
    dtype: torch.dtype | None = None,
    *,
    body: Body | None = None,
) -> Any:
    """The values [rows, cols]: float32 as every decoder computes them, rounded once to `dtype`.

    Arrays give float32. Values that float16 cannot hold come out infinite. `ValueError` on another
    width.
    """
    _check_packed(packed, layout, cols)
    if isinstance(packed, np.ndarray):
        if body in (None, "cpu"):
            return module("cpu", "packing").dequantize(packed, layout, cols)
        return dequantize(_tensor(packed), layout, cols, body=body).numpy()
    import torch

    body = body_for(packed.device, body)
    if body == "cpu":
        values = _tensor(module(body, "packing").dequantize(packed.numpy(), layout, cols))
        return values.to(dtype or torch.float32)
    return module(body, "packing").dequantize(packed, layout, cols, dtype or torch.float32)


def _check(codes: Any, params: Mapping[str, Any], layout: BlockLayout) -> None:
    rows, cols = codes.shape
    layout.row_bytes(cols)
    blocks = cols // layout.cols
    for name, (count, kind) in layout.parameters.items():
        values = params[name]
        found = str(values.dtype).removeprefix("torch.")
        if (found, tuple(values.shape)) != (kind, (rows, blocks * count)):
            raise ValueError(
                f"{name}: {found} {tuple(values.shape)}, not {kind} {(rows, blocks * count)}"
            )


def _check_packed(packed: Any, layout: BlockLayout, cols: int) -> None:
    if packed.shape[1] != layout.row_bytes(cols):
        raise ValueError(f"{packed.shape[1]} bytes a row, not {layout.row_bytes(cols)}")


def _tensor(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: _tensor(array) for name, array in arrays.items()}
