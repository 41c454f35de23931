"""Readers of the layouts, transcribed element by element from their descriptions: AutoGPTQ's and
AutoAWQ's packing as vLLM 0.32 reads them, compressed-tensors 0.17, ModelOpt 0.47.

They share no code with the writers. Slow on purpose: one element, one expression. Each takes the
arrays of one linear by the last part of their names and gives codes and values as nested lists;
codes are what is stored: unsigned integers, bytes of e4m3fn, nibbles of e2m1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

Arrays = Mapping[str, Any]
Found = tuple[list[list[int]], list[list[float]]]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def bits_at(word: Any, low: int, count: int) -> int:
    """`count` bits of a 32-bit word from bit `low` up."""
    unsigned = int(word) & 0xFFFFFFFF
    return (unsigned >> low) % (1 << count)


def number(value: Any) -> float:
    """A stored float; an unsigned 16-bit integer is a bfloat16."""
    if value.dtype == "uint16":
        return struct.unpack("<f", struct.pack("<I", int(value) << 16))[0]
    return float(value)


def e4m3(byte: int) -> float:
    """Sign, four exponent bits with bias 7, three mantissa bits; no infinities."""
    sign = -1.0 if byte >= 128 else 1.0
    exponent, mantissa = byte % 128 // 8, byte % 8
    assert not (exponent == 15 and mantissa == 7), "NaN"
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def e2m1(nibble: int) -> float:
    return -E2M1[nibble - 8] if nibble >= 8 else E2M1[nibble]


def gptq(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """qweight [K*b/32, N], qzeros [groups, N*b/32] holding zero - 1, scales [groups, N]."""
    rows, cols = shape
    per = 32 // bits
    codes, values = [], []
    for n in range(rows):
        code_row, value_row = [], []
        for k in range(cols):
            g = int(arrays["g_idx"][k])
            assert g == k // (group or cols)
            code = bits_at(arrays["qweight"][k // per][n], bits * (k % per), bits)
            zero = bits_at(arrays["qzeros"][g][n // per], bits * (n % per), bits) + 1
            code_row.append(code)
            value_row.append((code - zero) * number(arrays["scales"][g][n]))
        codes.append(code_row)
        values.append(value_row)
    return codes, values


def awq(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """qweight [K, N/8], qzeros [groups, N/8], scales [groups, N]; bits 4*i: output ORDER[i]."""
    rows, cols = shape
    codes, values = [], []
    for n in range(rows):
        low = 4 * AWQ_ORDER.index(n % 8)
        code_row, value_row = [], []
        for k in range(cols):
            g = k // (group or cols)
            code = bits_at(arrays["qweight"][k][n // 8], low, 4)
            zero = bits_at(arrays["qzeros"][g][n // 8], low, 4)
            code_row.append(code)
            value_row.append((code - zero) * number(arrays["scales"][g][n]))
        codes.append(code_row)
        values.append(value_row)
    return codes, values


def pack_quantized(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """weight_packed [N, ceil(K*b/32)], weight_scale [N, groups], weight_zero_point
    [ceil(N*b/32), groups], weight_shape [N, K]."""
    rows, cols = shape
    assert [int(size) for size in arrays["weight_shape"]] == [rows, cols]
    per = 32 // bits
    codes, values = [], []
    for n in range(rows):
        code_row, value_row = [], []
        for k in range(cols):
            g = k // (group or cols)
            code = bits_at(arrays["weight_packed"][n][k // per], bits * (k % per), bits)
            zero = 2 ** (bits - 1)
            if "weight_zero_point" in arrays:
                word = arrays["weight_zero_point"][n // per][g]
                zero = bits_at(word, bits * (n % per), bits)
            code_row.append(code)
            value_row.append((code - zero) * number(arrays["weight_scale"][n][g]))
        codes.append(code_row)
        values.append(value_row)
    return codes, values


def int_quantized(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """weight int8 [N, K], weight_scale float32 [N, 1]; codes here count from -128."""
    rows, cols = shape
    signed = [[int(arrays["weight"][n][k]) for k in range(cols)] for n in range(rows)]
    values = [[code * number(arrays["weight_scale"][n][0]) for code in signed[n]]
              for n in range(rows)]  # fmt: skip
    return [[code + 128 for code in row] for row in signed], values


def int_flat(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """ModelOpt: int8 [N, K] with weight_scale float32 [N]; or uint8 [N/2, K], of which a byte holds
    rows 2r (low) and 2r + 1, with weight_scale [N, groups], or [N]. Codes here count from the
    lowest number."""
    rows, cols = shape
    codes, values = [], []
    for n in range(rows):
        code_row, value_row = [], []
        for k in range(cols):
            if bits == 4:
                nibble = int(arrays["weight"][n // 2][k]) // (16 if n % 2 else 1) % 16
                signed = nibble - 16 if nibble >= 8 else nibble
            else:
                signed = int(arrays["weight"][n][k])
            scale = arrays["weight_scale"][n]
            code_row.append(signed + 2 ** (bits - 1))
            value_row.append(signed * number(scale[k // group] if group else scale))
        codes.append(code_row)
        values.append(value_row)
    return codes, values


def fp8(arrays: Arrays, shape: tuple[int, int], scale: Any) -> Found:
    """weight e4m3fn [N, K]; `scale(n, k)`: the multiplier of an element."""
    rows, cols = shape
    codes = [[int(arrays["weight"][n][k]) for k in range(cols)] for n in range(rows)]
    values = [[e4m3(codes[n][k]) * number(scale(n, k)) for k in range(cols)] for n in range(rows)]
    return codes, values


def fp8_channel(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """weight_scale [N, 1]."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][n][0])


def fp8_channel_flat(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """ModelOpt: weight_scale [N]."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][n])


def fp8_tensor(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """weight_scale [1]."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][0])


def fp8_tensor_scalar(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """ModelOpt and `fp8`: weight_scale []."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][()])


def fp8_block(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """compressed-tensors: weight_scale [ceil(N/128), ceil(K/128)]."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][n // 128][k // 128])


def fp8_block_inverse(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """`fp8`: weight_scale_inv, which multiplies despite its name."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale_inv"][n // 128][k // 128])


def fp8_block_four(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """ModelOpt: weight_scale [ceil(N/128), 1, K/128, 1]."""
    return fp8(arrays, shape, lambda n, k: arrays["weight_scale"][n // 128][0][k // 128][0])


def fp4(packed: Any, shape: tuple[int, int], scale: Any) -> Found:
    """Byte c of a row: code[2c] | code[2c+1] << 4; `scale(n, k)`: the multiplier of an element."""
    rows, cols = shape
    codes = [
        [int(packed[n][k // 2]) // (16 if k % 2 else 1) % 16 for k in range(cols)]
        for n in range(rows)
    ]
    values = [[e2m1(codes[n][k]) * scale(n, k) for k in range(cols)] for n in range(rows)]
    return codes, values


def nvfp4_divisor(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """compressed-tensors: weight_packed, weight_scale e4m3 [N, K/16], weight_global_scale [1]."""
    whole = number(arrays["weight_global_scale"][0])
    return fp4(arrays["weight_packed"], shape,
               lambda n, k: e4m3(int(arrays["weight_scale"][n][k // 16])) / whole)  # fmt: skip


def nvfp4_multiplier(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """ModelOpt: weight, weight_scale e4m3 [N, K/16], weight_scale_2 []."""
    whole = number(arrays["weight_scale_2"][()])
    return fp4(arrays["weight"], shape,
               lambda n, k: e4m3(int(arrays["weight_scale"][n][k // 16])) * whole)  # fmt: skip


def mxfp4(arrays: Arrays, shape: tuple[int, int], bits: int, group: int) -> Found:
    """compressed-tensors: weight_packed, weight_scale [N, K/32]: exponent + 127."""
    return fp4(arrays["weight_packed"], shape,
               lambda n, k: 2.0 ** (int(arrays["weight_scale"][n][k // 32]) - 127))  # fmt: skip


READERS = {
    ("gptq", "int", None): gptq,
    ("awq", "int", None): awq,
    ("compressed-tensors", "int", None): pack_quantized,
    ("compressed-tensors", "int", "int8"): int_quantized,
    ("compressed-tensors", "fp8_channel", "fp8"): fp8_channel,
    ("compressed-tensors", "fp8_tensor", "fp8"): fp8_tensor,
    ("compressed-tensors", "fp8_block128", "fp8"): fp8_block,
    ("compressed-tensors", "nvfp4", "fp4"): nvfp4_divisor,
    ("compressed-tensors", "nvfp4", None): nvfp4_divisor,
    ("compressed-tensors", "mxfp4", None): mxfp4,
    ("fp8", "fp8_tensor", "fp8"): fp8_tensor_scalar,
    ("fp8", "fp8_block128", "fp8"): fp8_block_inverse,
    ("modelopt", "int", None): int_flat,
    ("modelopt", "int", "int8"): int_flat,
    ("modelopt", "int", "fp8"): int_flat,
    ("modelopt", "fp8_channel", "fp8"): fp8_channel_flat,
    ("modelopt", "fp8_tensor", "fp8"): fp8_tensor_scalar,
    ("modelopt", "fp8_block128", "fp8"): fp8_block_four,
    ("modelopt", "nvfp4", "fp4"): nvfp4_multiplier,
    ("modelopt", "nvfp4", None): nvfp4_multiplier,
}
"""By container, grid ("int" for all integers), and what activations are rounded to."""
