"""Super-blocks of GGUF: Q4_K, Q5_K and Q6_K.

From the descriptions of the block types in the ggml project: a row is cut into super-blocks of 256 weights, each with

Q4_K, Q5_K  d, dmin  fp16
            scales   12 bytes: of 8 sub-blocks of 32 weights a scale and a minimum of 6 bits each
            qh       32 bytes (Q5_K): bit s of byte j is bit 4 of code j of sub-block s
            qs       4 times 32 bytes: the low nibbles are the low bits of a sub-block, the high ones of the next
Q6_K        ql, qh   128 and 64 bytes, half for either 128 weights: nibbles, then 2 bits each
            scales   int8 [16], of sub-blocks of 16 weights
            d        fp16

A weight is d * scale * q - dmin * minimum; in Q6_K it is d * scale * (q - 32). Products of a half and a scale fit into
float32 exactly, so that a sub-block is a group like any other.
"""

import torch
from torch import Tensor

SUPER_BLOCK = 256  #: weights of a super-block

_LOW_THEN_HIGH = torch.tensor([0, 4], dtype=torch.uint8)


def decode_super_blocks(type_name: str, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The codes of a type, with the scales and offsets of its sub-blocks.

    blocks: uint8 [..., blocks, bytes of a block].
    Returns (codes uint8 [..., blocks * 256], scales float32 [..., blocks * sub-blocks], offsets of that shape or None).
    """
    if type_name == "Q6_K":
        return _q6(blocks)
    halves = blocks[..., :4].contiguous().view(torch.float16).float()
    scales, minima = _six_bits(blocks[..., 4:16].unflatten(-1, (3, 4)))
    codes = _nibbles(blocks[..., -128:], 32).unflatten(-1, (8, 32))
    if type_name == "Q5_K":
        flags = blocks[..., None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
        codes = codes | flags << 4
    return codes.flatten(-3), (halves[..., :1] * scales).flatten(-2), (-halves[..., 1:] * minima).flatten(-2)


def _q6(blocks: Tensor) -> tuple[Tensor, Tensor, None]:
    low = _nibbles(blocks[..., :128], 64).unflatten(-1, (2, 4, 32))
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None] & 3
    scales = blocks[..., 192:208].view(torch.int8) * blocks[..., 208:].contiguous().view(torch.float16).float()
    return (low | high << 4).flatten(-4), scales.flatten(-2), None


def _nibbles(stored: Tensor, run: int) -> Tensor:
    """uint8 [..., 2 * bytes]: of every `run` bytes the low nibbles, then the high ones."""
    return (stored.unflatten(-1, (-1, 1, run)) >> _LOW_THEN_HIGH[:, None] & 15).flatten(-3)


def _six_bits(stored: Tensor) -> tuple[Tensor, Tensor]:
    """The scales and the minima [..., 8] out of bytes [..., 3, 4].

    The low 6 bits of the first four bytes are the first four scales, those of the next the minima. The last four bytes
    have the other scales in their low nibbles and the other minima in their high ones; the 2 bits that these lack are
    the high ones of the bytes before.
    """
    first, last = stored[..., :2, :], stored[..., 2:, :]
    rest = (last >> _LOW_THEN_HIGH[:, None] & 15) | (first >> 6 << 4)
    both = torch.cat([first & 63, rest], -1)
    return both[..., 0, :], both[..., 1, :]
