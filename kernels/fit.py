"""Fit a matrix onto a grid: which search, over which values, by which body.

A `searches.Fit` is the data of one grid's search; `fit` runs it. The bodies are in `plain/`
(the truth), `cpu/` (numba, the same bits, compiled at first use and cached on disk) and `gpu/`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.searches import Fit

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 16  # the fast body works on this many rows together; threads split at multiples
WEIGHTS_AT_ONCE = 1 << 26  # of a body on tensors: bounds what it holds beside them

LEAST_IMPORTANCE = 1e-6  # of a column, relative to the mean


@overload
def fit(
    x: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    search: Fit,
    *,
    threads: int = 1,
    body: Body | None = None,
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]: ...
@overload
def fit(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    search: Fit,
    *,
    threads: int = 1,
    body: Body | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
def fit(
    x: Any,  # float32 [rows, cols]
    weight: Any,  # float32 [cols], importance; None: all columns alike
    search: Fit,
    *,
    threads: int = 1,
    body: Body | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Codes [rows, cols] and parameters [rows, groups]; the same bits for any `threads` and `body`.

    Of arrays, arrays, by the body for a processor unless another is asked for; of tensors, tensors
    on the device of x. Scales beyond what they are stored as come out infinite: the caller looks
    for them. `ValueError` where importance is negative, not finite, or zero everywhere, and where
    rows are no whole groups: the bodies would go on behind their end.
    """
    lacking = [per for _, per in search.outputs if x.shape[1] % per]
    if lacking:
        raise ValueError(f"rows of {x.shape[1]} are no whole groups of {lacking[0]}")
    if isinstance(x, np.ndarray):
        if body in (None, "cpu"):
            return _on_cpu(x, weight, search, threads)
        import torch

        column = None if weight is None else torch.from_numpy(np.ascontiguousarray(weight))
        rows = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        codes, params = fit(rows, column, search, body=body)
        return codes.numpy(), {name: values.numpy() for name, values in params.items()}
    body = body_for(x.device, body)
    known = None if weight is None else weight.detach().float().cpu().numpy()
    if body == "cpu":
        return _as_tensors(*_on_cpu(x.detach().float().numpy(), known, search, threads))
    return _on_tensors(x.detach().float(), known, search, body)


def _on_cpu(
    x: NDArray[np.float32], weight: NDArray[np.float32] | None, search: Fit, threads: int
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    rows, cols = x.shape
    full = max(rows, ROWS_AT_ONCE)
    if rows < full:
        x = np.concatenate([x, np.zeros((full - rows, cols), np.float32)])
    weight = None if weight is None else usable(weight)
    codes = np.empty((full, cols), np.uint8)
    params = {name: np.empty((full, cols // per), np.float32) for name, per in search.outputs}
    arguments = search.arguments()
    run = getattr(module("cpu", "fit"), search.kernel)

    def part(start: int, stop: int) -> None:
        start = min(start, stop - ROWS_AT_ONCE)  # rows that two parts share get the same values
        outputs = [values[start:stop] for values in params.values()]
        flat = np.ascontiguousarray(x[start:stop], np.float32).reshape(-1)
        run(flat, stop - start, cols, weight, *arguments, codes[start:stop].reshape(-1), *outputs)

    _in_parts(part, full, threads)
    return codes[:rows], {name: values[:rows] for name, values in params.items()}


def _as_tensors(
    codes: NDArray[np.uint8], params: dict[str, NDArray[np.float32]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    import torch

    found = {name: torch.from_numpy(values) for name, values in params.items()}
    return torch.from_numpy(codes), found


def _on_tensors(
    x: torch.Tensor, weight: NDArray[np.float32] | None, search: Fit, body: Body
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    import torch

    per_column = None if weight is None else torch.from_numpy(usable(weight)).to(x.device)
    # of no rows, the plain body on one part, so that every result has its type and width
    run = getattr(module(body if len(x) else "plain", "fit"), search.kernel)
    arguments = [one.tolist() if hasattr(one, "tolist") else one for one in search.arguments()]
    step = max(1, WEIGHTS_AT_ONCE // max(x.shape[1], 1))
    parts = [
        run(x[start : start + step], per_column, *arguments)
        for start in range(0, max(len(x), 1), step)
    ]
    codes, *params = (torch.cat(found) for found in zip(*parts, strict=True))
    names = (name for name, _ in search.outputs)
    return codes, dict(zip(names, params, strict=True))


def usable(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 1, nothing below LEAST_IMPORTANCE: the searches divide by sums of it."""
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
        raise ValueError("importance must be finite, not negative, and not zero everywhere")
    scaled = weight / weight.mean(dtype=np.float64)
    usable: NDArray[np.float32] = np.maximum(scaled, LEAST_IMPORTANCE).astype(np.float32)
    return usable


def _in_parts(part: Callable[[int, int], None], rows: int, threads: int) -> None:
    """Call `part(start, stop)` over all rows, in up to `threads` threads."""
    step = -(-rows // max(threads, 1))
    step = -(-step // ROWS_AT_ONCE) * ROWS_AT_ONCE
    edges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    if len(edges) == 1:
        part(*edges[0])
        return
    with ThreadPoolExecutor(len(edges)) as pool:
        list(pool.map(lambda edge: part(*edge), edges))
