# mypy: disable-error-code="misc,no-any-return"
# (TVM has no types: its modules are bases of Any.)
"""Layers of our graph in `tvm.relax.frontend.nn`: matrices as MLC stores them, norms."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx  # type: ignore[import-not-found,unused-ignore]
from tvm.relax.frontend import nn  # type: ignore[import-not-found,unused-ignore]
from tvm.relax.frontend.nn import op  # type: ignore[import-not-found,unused-ignore]

from qconvert.runtimes.tvm.coded import Coded, coded_matrix, coded_vector
from qconvert.runtimes.tvm.lanes import rounded
from qconvert.runtimes.tvm.plain import plain_matrix, plain_vector
from qconvert.runtimes.tvm.schemes import Scheme


class Matrix(nn.Module):
    """[rows, columns], plain or coded: multiplies tokens, and looks rows up."""

    def __init__(
        self,
        rows: int,
        columns: int,
        scheme: Scheme,
        *,
        exact: bool,
        plain: bool = False,
        bias: bool = False,
    ) -> None:
        self.bias = nn.Parameter((rows,), scheme.dtype) if bias else None
        self.rows, self.columns, self.scheme = rows, columns, scheme
        self.coded = bool(scheme.bits) and not plain
        if self.coded:
            self.matrix = Coded(rows, columns, scheme, exact)
            self.q_weight = nn.Parameter((rows, scheme.words(columns)), "uint32")
            self.q_scale = nn.Parameter((rows, scheme.groups(columns)), scheme.dtype)
        else:
            self.weight = nn.Parameter((rows, columns), scheme.dtype)

    def forward(self, x: Any) -> Any:
        """[tokens, rows] of x [tokens, columns]; one token, when that is what the shape says."""
        one = x.shape[0] == 1 if isinstance(x.shape[0], int) else False
        out = nn.Tensor.placeholder([x.shape[0], self.rows], "float32")
        if self.coded:
            kernel = (coded_vector if one else coded_matrix)(self.matrix)
            found = op.tensor_ir_op(kernel, "coded", [x, self.q_weight, self.q_scale], out)
        else:
            make = plain_vector if one else plain_matrix
            kernel = make(self.rows, self.columns, self.scheme.dtype)
            found = op.tensor_ir_op(kernel, "plain", [x, self.weight], out)
        return found if self.bias is None else found + op.astype(self.bias, "float32")

    def look_up(self, ids: Any) -> Any:
        """[tokens, columns]: the rows of `ids`, an int32 tensor."""
        if self.coded:
            return op.tensor_expr_op(self._decoded, "rows", [ids, self.q_weight, self.q_scale])
        return op.tensor_expr_op(self._converted, "rows", [ids, self.weight])

    def _decoded(self, ids: Any, codes: Any, scales: Any) -> Any:
        one = self.scheme

        def value(i: Any, j: Any) -> Any:
            word = codes[ids[i], j // one.per_word]
            shift = (j % one.per_word * one.bits).astype("uint32")
            code = (word >> shift) & tirx.const(one.mask, "uint32")
            scale = scales[ids[i], j // one.group].astype("float32")
            exact = (code.astype("int32").astype("float32") - float(one.middle)) * scale
            return rounded(exact, one.dtype)

        return te.compute((ids.shape[0], self.columns), value, name="rows")

    def _converted(self, ids: Any, weights: Any) -> Any:
        def value(i: Any, j: Any) -> Any:
            return weights[ids[i], j].astype("float32")

        return te.compute((ids.shape[0], self.columns), value, name="rows")


class Norm(nn.Module):
    """RMSNorm; MLC stores Gemma's weights with their 1 added."""

    def __init__(self, size: int, eps: float, dtype: str) -> None:
        self.weight, self.eps = nn.Parameter((size,), dtype), eps

    def forward(self, x: Any) -> Any:
        return op.rms_norm(x, op.astype(self.weight, "float32"), [-1], self.eps)
