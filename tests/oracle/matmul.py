"""gemm and moe_gemm in float64. Integer operands are exact: every sum stays far below 2^53."""

import numpy as np

from .activations import activate
from .weights import per_column


def scaled_rows(x, x_scale=None, group: int = 0):
    """float64 [M, K]: x times its scale (one number, [M], [M, 1], or [M, G] for groups of `group` columns)."""
    x = np.asarray(x, np.float64)
    if x_scale is None:
        return x
    x_scale = np.asarray(x_scale, np.float64)
    if x_scale.size == 1:
        return x * x_scale.reshape(())
    columns = x_scale if x_scale.ndim == 2 else x_scale[:, None]
    return x * per_column(columns, x.shape[1], group)


def gemm(x, weights, *, bias=None):
    """float64 [M, N] = x [M, K] (scaled) . weights [N, K] (dequantised, scale2 included) + bias [N]."""
    out = np.asarray(x, np.float64) @ np.asarray(weights, np.float64).T
    return out if bias is None else out + np.asarray(bias, np.float64)


def expert_rows(x, weights, expert, *, bias=None, activation: str = "none", args=(), row_weights=None):
    """float64 [R, N']: row r of x through expert[r] of weights [E, N, K]; NaN where expert[r] < 0."""
    x, expert = np.asarray(x, np.float64), np.asarray(expert)
    n = activate(np.zeros((1, weights.shape[1])), activation, args).shape[1]
    out = np.full((x.shape[0], n), np.nan)
    for e in np.unique(expert[expert >= 0]):
        rows = np.flatnonzero(expert == e)
        y = activate(gemm(x[rows], weights[e], bias=None if bias is None else bias[e]), activation, args)
        out[rows] = y if row_weights is None else y * np.asarray(row_weights, np.float64)[rows, None]
    return out


def moe_indexed(x, weights, sorted_ids, expert_ids, num_tokens, top_k: int, *, topk_weights=None, **kwargs):
    """float64 [T * top_k, N']: block b of sorted_ids (pairs; others are padding) goes through expert_ids[b]."""
    x = np.asarray(x, np.float64)
    num_pairs = x.shape[0] * top_k
    block = len(sorted_ids) // max(len(expert_ids), 1)
    expert = np.full(num_pairs, -1)
    for position, pair in enumerate(sorted_ids[:num_tokens]):
        if 0 <= pair < num_pairs:
            expert[pair] = expert_ids[position // block]
    row_weights = None if topk_weights is None else np.asarray(topk_weights).reshape(-1)
    return expert_rows(np.repeat(x, top_k, axis=0), weights, expert, row_weights=row_weights, **kwargs)


def moe_contiguous(x, weights, offsets, *, topk_weights=None, **kwargs):
    """float64 [R, N']: rows offsets[e] .. offsets[e + 1] go through expert e."""
    row = np.arange(len(x))
    expert = np.searchsorted(np.asarray(offsets)[1:], row, side="right")
    expert[(row < offsets[0]) | (row >= offsets[-1])] = -1
    return expert_rows(x, weights, expert, row_weights=topk_weights, **kwargs)


def moe_masked(x, weights, counts, *, topk_weights=None, **kwargs):
    """float64 [E, C, N']: the first counts[e] rows of x[e] go through expert e."""
    x = np.asarray(x, np.float64)
    experts, capacity, k = x.shape
    expert = np.where(np.arange(capacity) < np.asarray(counts)[:, None], np.arange(experts)[:, None], -1)
    row_weights = None if topk_weights is None else np.asarray(topk_weights).reshape(-1)
    out = expert_rows(x.reshape(-1, k), weights, expert.reshape(-1), row_weights=row_weights, **kwargs)
    return out.reshape(experts, capacity, -1)
