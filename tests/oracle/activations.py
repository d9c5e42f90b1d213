"""Activation functions and the quantisation of activations."""

from math import erf

import numpy as np

from .formats import value_table
from .rounding import e8m0_value, encode_e4m3, encode_e5m2, encode_e8m0_ceil, pack_int4, round_int

QMAX = {"e4m3": 448, "e5m2": 57344, "int8": 127, "int4": 7}
GATED = ("silu", "swigluoai", "gelu", "gelu_tanh", "relu2")
PLAIN = ("silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul")
_DEFAULTS = {"silu": (0.0, 1.0, 0.0), "swigluoai": (7.0, 1.702, 1.0)}  # limit, alpha, beta


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(erf, otypes=[float])(x / np.sqrt(2.0)))


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _relu2(x):
    return np.maximum(x, 0) ** 2


def activate(y, name: str, args=()):
    """float64: the activation of y [..., N] ([gate | up] if gated, then the result is [..., N/2])."""
    y = np.asarray(y, np.float64)
    if name == "none":
        return y
    if name.endswith("_no_mul"):
        silu = lambda x: x * _sigmoid(x)  # noqa: E731
        return {"silu": silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu2": _relu2}[name[: -len("_no_mul")]](y)
    gate, up = np.split(y, 2, axis=-1)
    if name in _DEFAULTS:
        limit, alpha, beta = (*args, *_DEFAULTS[name][len(args) :])
        if limit > 0:
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return gate * _sigmoid(alpha * gate) * (up + beta)
    return {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu2": _relu2}[name](gate) * up


def quantise(x, dtype: str, group: int, *, static_scale=None, e8m0: bool = False):
    """(q, scale): x [M, K] float32, rounded step by step as documented.

    q: uint8 codes for e4m3 and e5m2, int8 for int8, packed uint8 [M, K/2] for int4.
    scale: float32 [M, G]; uint8 codes if e8m0.
    """
    x = np.asarray(x, np.float32)
    m, k = x.shape
    width = group or max(k, 1)
    num_groups = -(-k // width)
    if static_scale is not None:
        scale = np.float32(static_scale).reshape(1, 1)
        columns = np.broadcast_to(scale, (m, k))
    else:
        scale = np.ones((m, num_groups), np.float32)
        for g in range(num_groups):
            amax = np.abs(x[:, g * width : (g + 1) * width]).max(axis=1)  # NaN wins in numpy too
            scale[:, g] = np.where(amax == 0, np.float32(1), amax / np.float32(QMAX[dtype]))
        if e8m0:
            codes = encode_e8m0_ceil(scale)
            scale = e8m0_value(codes).astype(np.float32)
        columns = np.repeat(scale, width, axis=1)[:, :k]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        ratio = x / columns  # float32: IEEE division
    if dtype == "e4m3":
        q = encode_e4m3(ratio)
    elif dtype == "e5m2":
        q = encode_e5m2(ratio)
    else:
        q = round_int(ratio, QMAX[dtype])
        q = pack_int4(q) if dtype == "int4" else q
    return q, (codes if e8m0 and static_scale is None else scale)


def quantised_values(q, dtype: str):
    """float64 [M, K]: what the codes of `quantise` stand for, without the scale."""
    from .rounding import unpack_int4

    if dtype in ("e4m3", "e5m2"):
        return value_table(dtype)[q]
    return (unpack_int4(q) if dtype == "int4" else q).astype(np.float64)
