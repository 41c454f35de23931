"""The quadratic form that output errors are measured in: damped, factored, compared."""

from __future__ import annotations

import numpy as np
import torch

from qconvert.algorithms.slots import Task
from qconvert.formats.refusal import refuse
from qconvert.formats.tensor import QuantizedTensor


def damped(second: torch.Tensor, damping: float) -> torch.Tensor:
    """H + damping * mean(diag H) on the diagonal, float64 [cols, cols]. All zero: the identity."""
    wide = second.double()
    mean = wide.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    wide = wide.clone()
    wide.diagonal().add_(damping * mean)
    return wide


def factor(damped_moments: torch.Tensor, name: str) -> torch.Tensor:
    """Upper triangular U with H^-1 = U'U, float32; `Refused`, naming the tensor, when H does not
    factor.

    H with its order turned round is L L'; turned back, L becomes R with H = R R', upper triangular,
    and U is its inverse: half the work of inverting H and factoring the inverse. The factor is of
    float64; its inverse, as well conditioned as the root of H, is taken in float32.
    """
    lower, failed = torch.linalg.cholesky_ex(damped_moments.flip(0, 1))
    if int(failed):
        raise refuse(
            f"{name}: the second moments of its input do not factor, even damped",
            "give more calibration text (--calib-rows), or use --method rtn",
        )
    unit = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(lower, unit, upper=False)
    return inverse.flip(0, 1).float().contiguous()


def output_error(values: torch.Tensor, task: Task, second: torch.Tensor) -> float:
    """Mean over tokens of |(w - values) x|^2, with the second moments of any set of rows."""
    off = task.w - values
    return float(((off @ second) * off).double().sum())


def decoded(task: Task, tensor: QuantizedTensor) -> torch.Tensor:
    """The values that the file stands for, on the device of the task."""
    return torch.from_numpy(np.ascontiguousarray(task.grid.decode(tensor))).to(task.w.device)
