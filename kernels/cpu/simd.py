"""Sixteen float32 lanes as one value inside numba functions.

The fits work on sixteen rows side by side, one row a lane, so that every sum runs in the same
order as in `plain.py` and gives the same bits on every machine: nothing is reassociated or
contracted, and LLVM splits a 16-lane value where registers are narrower.
Numba's loop vectorizer cannot be relied on for this: arrays carry no aliasing facts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


class Lanes(types.Type):
    """Numba's type of sixteen floats."""


class Mask(types.Type):
    """Numba's type of sixteen truth values."""


lanes_type, mask_type = Lanes("float32x16"), Mask("boolx16")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _BITS)


def _instruction(signature: Any, emit: Callable[..., Any]) -> Any:
    """An intrinsic of a fixed signature whose body is `emit(builder, *values)`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)

    count = len(signature.args)
    if count == 1:
        return intrinsic(lambda typing_context, a: (signature, codegen))
    if count == 2:
        return intrinsic(lambda typing_context, a, b: (signature, codegen))
    return intrinsic(lambda typing_context, a, b, c: (signature, codegen))


def _call(name: str) -> Callable[..., Any]:
    """Emit a call of the LLVM intrinsic `name` on lanes."""

    def emit(builder: Any, *values: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v16f32")
        return builder.call(function, values)

    return emit


def _round_to_half(builder: Any, a: Any) -> Any:
    return builder.fpext(builder.fptrunc(a, _HALVES), _FLOATS)


_unary = lanes_type(lanes_type)
_binary = lanes_type(lanes_type, lanes_type)
_compare = mask_type(lanes_type, lanes_type)

_add = _instruction(_binary, lambda b, x, y: b.fadd(x, y))
_sub = _instruction(_binary, lambda b, x, y: b.fsub(x, y))
_mul = _instruction(_binary, lambda b, x, y: b.fmul(x, y))
_div = _instruction(_binary, lambda b, x, y: b.fdiv(x, y))
_gt = _instruction(_compare, lambda b, x, y: b.fcmp_ordered(">", x, y))
_lt = _instruction(_compare, lambda b, x, y: b.fcmp_ordered("<", x, y))
_le = _instruction(_compare, lambda b, x, y: b.fcmp_ordered("<=", x, y))

absolute = _instruction(_unary, _call("fabs"))
rint = _instruction(_unary, _call("rint"))
half = _instruction(_unary, _round_to_half)
# Selects, not llvm.minnum: these map to one machine instruction each, and no value here is NaN.
smaller = _instruction(_binary, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
larger = _instruction(_binary, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
select = _instruction(
    lanes_type(mask_type, lanes_type, lanes_type), lambda b, m, x, y: b.select(m, x, y)
)
both = _instruction(mask_type(mask_type, mask_type), lambda b, x, y: b.and_(x, y))


def _operator(op: Any, instruction: Any) -> None:
    @overload(op, strict=False)  # the annotations of the two signatures differ
    def typed(a: Any, b: Any) -> Any:
        if isinstance(a, Lanes) and isinstance(b, Lanes):
            return lambda a, b: instruction(a, b)
        return None


for _op, _emit in (
    (operator.add, _add), (operator.sub, _sub), (operator.mul, _mul), (operator.truediv, _div),
    (operator.gt, _gt), (operator.lt, _lt), (operator.le, _le),
):  # fmt: skip
    _operator(_op, _emit)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """All lanes equal to a scalar, taken as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[0], sig.args[0], types.float32)
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, cgutils.int32_t(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), order)

    return lanes_type(value), codegen


@intrinsic
def shorten(typing_context: Any, value: Any, count: Any) -> Any:
    """The lanes without their `count` lowest bits, rounded to nearest, ties to even."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        undefined, order = ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * LANES)
        scalar = context.cast(builder, args[1], sig.args[1], types.int32)
        one = builder.insert_element(undefined, scalar, cgutils.int32_t(0))
        count = builder.shuffle_vector(one, undefined, order)
        unit = ir.Constant(_INTS, [1] * LANES)
        bits = builder.bitcast(args[0], _INTS)
        odd = builder.and_(builder.lshr(bits, count), unit)
        below = builder.sub(builder.shl(unit, builder.sub(count, unit)), unit)
        bits = builder.add(bits, builder.add(below, odd))
        mask = builder.not_(builder.sub(builder.shl(unit, count), unit))
        return builder.bitcast(builder.and_(bits, mask), _FLOATS)

    return lanes_type(value, count), codegen


@intrinsic
def any_lane(typing_context: Any, mask: Any) -> Any:
    """True when a comparison holds in at least one lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask), codegen


def _address(context: Any, builder: Any, sig: Any, args: Any, kind: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], sig.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), kind.as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Sixteen consecutive floats of a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig, args, _FLOATS), align=4)

    return lanes_type(array, index), codegen


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the lanes to sixteen consecutive places of a flat float32 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig, args, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def store_bytes(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes that hold whole numbers 0..255 to sixteen bytes of a flat uint8 array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = builder.trunc(builder.fptosi(args[2], _INTS), _BYTES)
        builder.store(whole, _address(context, builder, sig, args, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Sixteen vectors of sixteen, rows to columns: swap off-diagonal blocks of 8, 4, 2, 1."""
    for distance in (8, 4, 2, 1):
        first = [k if not k & distance else LANES + k - distance for k in range(LANES)]
        second = [k + distance if not k & distance else LANES + k for k in range(LANES)]
        orders = [ir.Constant(_INTS, order) for order in (first, second)]
        for i in (i for i in range(LANES) if not i & distance):
            a, b = rows[i], rows[i + distance]
            rows[i] = builder.shuffle_vector(a, b, orders[0])
            rows[i + distance] = builder.shuffle_vector(a, b, orders[1])
    return rows


@intrinsic
def transpose(
    typing_context: Any, source: Any, at: Any, step: Any, out: Any, there: Any, stride: Any
) -> Any:
    """Sixteen runs of sixteen items, turned: item i of run k, `source[at + k * step + i]`, goes to
    `out[there + i * stride + k]`. Flat arrays of one type, float32 or uint8.
    """
    kind = _FLOATS if source.dtype == types.float32 else _BYTES

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def place(which: int, k: int) -> Any:
            """Address of run k of array `which`, whose start and stride follow it in `args`."""
            array = context.make_array(sig.args[which])(context, builder, args[which])
            start, pitch = (
                context.cast(builder, args[i], sig.args[i], types.intp)
                for i in (which + 1, which + 2)
            )
            position = builder.add(start, builder.mul(pitch, cgutils.intp_t(k)))
            return builder.bitcast(builder.gep(array.data, [position]), kind.as_pointer())

        rows = [builder.load(place(0, k), align=1) for k in range(LANES)]
        for k, column in enumerate(_transposed(builder, rows)):
            builder.store(column, place(3, k), align=1)
        return context.get_dummy_value()

    return types.void(source, at, step, out, there, stride), codegen
