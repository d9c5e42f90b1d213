"""moe_align and moe_reduce."""

import numpy as np

from .rounding import fma32


def moe_align(topk_ids, num_experts: int, block: int, expert_map=None):
    """(sorted_pairs, positions, blocks, num_blocks, expert_offsets): int32, as documented for the operation."""
    ids = np.asarray(topk_ids).reshape(-1).astype(np.int64)
    if expert_map is not None:
        ids = np.where(ids >= 0, np.asarray(expert_map)[np.maximum(ids, 0)], -1)
    num_pairs = len(ids)
    sorted_pairs = np.full(num_pairs, -1, np.int32)
    positions = np.full(num_pairs, -1, np.int32)
    blocks = np.zeros((max(1, min(num_pairs, num_pairs // block + num_experts)), 4), np.int32)
    blocks[:, 0] = -1
    offsets = np.zeros(num_experts + 1, np.int32)
    row = num_blocks = 0
    for expert in range(num_experts):
        pairs = np.flatnonzero(ids == expert)
        for start in range(0, len(pairs), block):
            rows = min(block, len(pairs) - start)
            blocks[num_blocks] = (expert, row + start, rows, 0)
            num_blocks += 1
        sorted_pairs[row : row + len(pairs)] = pairs
        positions[pairs] = np.arange(row, row + len(pairs))
        row += len(pairs)
        offsets[expert + 1] = row
    return sorted_pairs, positions, blocks, np.array([num_blocks], np.int32), offsets


def moe_reduce(y, topk_weights, *, topk_ids=None, num_valid_tokens=None, scale: float = 1.0, add=None):
    """float32 [T, H], before the rounding to y's type: scale * sum over j of weight * y (+ add).

    One fp32 fma per expert in the order of j, starting from zero; skipped pairs and tokens are never read.
    """
    y = np.asarray(y, np.float32)
    tokens, top_k, hidden = y.shape
    valid = tokens if num_valid_tokens is None else int(num_valid_tokens)
    out = np.zeros((tokens, hidden), np.float32)
    for t in range(min(tokens, valid)):
        total = np.zeros(hidden, np.float32)
        for j in range(top_k):
            if topk_ids is None or topk_ids[t][j] >= 0:
                total = fma32(np.float32(topk_weights[t][j]), y[t, j], total)
        total = np.float32(scale) * total
        out[t] = total if add is None else total + np.asarray(add, np.float32)[t]
    return out
