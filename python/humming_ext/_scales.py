"""Checkpoint scales brought to the granularity that packed weights hold."""

import torch
from torch import Tensor

from .spec import QuantSpec


def expand(values: Tensor, name: str, spec: QuantSpec, n: int, k: int, interleaved: bool) -> Tensor:
    """Scales, zero points or offsets of weights [n, k], repeated over the rows and columns that share them.

    values: [weights, ...], of each one per `spec.block_rows` rows and `spec.group` columns, in any shape of that many
        elements. The rows of gate and up are counted apart, unless they alternate (`interleaved`) or share one value.
    Returns [weights, n, ceil(k / spec.packed_group)], with one column if packed_group is 0, of the dtype of `values`.
    Raises ValueError if the number of values is another.
    """
    parts = 2 if spec.gate_up and spec.block_rows and not interleaved else 1
    part_rows = n // parts
    block_rows = spec.block_rows or n
    rows = -(-part_rows // block_rows)
    columns = -(-k // spec.group) if spec.group else 1
    weights = values.shape[0]
    if values.numel() != weights * parts * rows * columns:
        raise ValueError(
            f"{name}: shape {list(values.shape[1:])} does not hold the {parts * rows} x {columns} values of a weight "
            f"[{n}, {k}] with {spec}"
        )
    packed_columns = -(-k // spec.packed_group) if spec.packed_group else 1
    if values.numel() == weights * n * packed_columns:
        return values.reshape(weights, n, packed_columns).contiguous()
    repeats = spec.group // spec.packed_group if spec.group else packed_columns
    row_of = torch.arange(part_rows, device=values.device) // block_rows
    column_of = torch.arange(packed_columns, device=values.device) // repeats
    # One-byte floats are indexed as the bytes they are: not every float8 dtype has an indexing kernel.
    raw = values.view(torch.uint8) if values.element_size() == 1 else values
    expanded = raw.reshape(weights * parts, rows, columns)[:, row_of][:, :, column_of]
    return expanded.reshape(weights, n, packed_columns).view(values.dtype)
