"""The MoE layer: two products with an activation between them, and the weighted sum over a token's experts."""

import numpy as np

from .matmul import expert_rows


def exact(rows):
    return rows


def expert_results(
    x, expert, w13, w2, *, biases=(None, None), activation="silu", args=(), row_weights=None, inner=exact
):
    """float64 [R, outer]: row r of x through expert[r] of w13 [E, n, hidden] and w2 [E, outer, inner].

    NaN where expert[r] < 0. `inner` is what becomes of the activated rows before the second product: a rounding.
    """
    h = expert_rows(x, w13, expert, bias=biases[0], activation=activation, args=args)
    used = np.asarray(expert) >= 0
    h[used] = inner(h[used])
    return expert_rows(h, w2, expert, bias=biases[1], row_weights=row_weights)


def fused_moe(
    x, topk_ids, topk_weights, w13, w2, *, scale=1.0, add=None, weight_on_input=False, result=exact, **kwargs
):
    """float64 [T, outer]: scale * sum over the slots with an id >= 0 of weight * expert's result (+ add).

    weight_on_input: the weight multiplies x instead. `result` is a rounding of what every expert gives.
    """
    x, topk_ids = np.asarray(x, np.float64), np.asarray(topk_ids)
    weights = np.asarray(topk_weights, np.float64)
    tokens, top_k = topk_ids.shape
    rows = np.repeat(x, top_k, axis=0)
    if weight_on_input:
        rows, weights = rows * weights.reshape(-1, 1), np.ones_like(weights)
    y = result(expert_results(rows, topk_ids.reshape(-1), w13, w2, **kwargs)).reshape(tokens, top_k, w2.shape[1])
    total = np.where(topk_ids[..., None] >= 0, weights[..., None] * y, 0.0).sum(axis=1)
    return scale * total if add is None else scale * total + np.asarray(add, np.float64)
