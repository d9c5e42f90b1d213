"""Weights as the tensors that checkpoints store, and as what these stand for.

Each function takes a float32 weight [n, k], mxfp4 [experts, n, k], and returns the tensors by the name of the part, and
float32 of the same shape.
"""

import json

import humming_ext as he
import torch
from oracle.formats import TABLES
from oracle.weights import pack_bitstream

Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
CHANNEL = he.QuantSpec(he.WeightFormat.int8, scale_dtype=torch.float32)
GROUPS = he.QuantSpec(he.WeightFormat.int4, group=32, scale_dtype=torch.float16)
BLOCKS = he.QuantSpec(he.WeightFormat.e4m3, group=128, block_rows=128, scale_dtype=torch.float32)
NF4 = he.QuantSpec(he.WeightFormat.nf4, group=64, scale_dtype=torch.float32)
MXFP4 = he.QuantSpec(he.WeightFormat.e2m1, group=32, scale_dtype=torch.float8_e8m0fnu)
ZEROS = he.QuantSpec(he.WeightFormat.uint4, group=32, scale_dtype=torch.float16, zero=he.ZeroKind.integer)


def int8_tensors(weight: torch.Tensor) -> Quantised:
    q = he.quantize(weight, CHANNEL)
    values = (q["codes"].int() - 128).to(torch.int8)
    return {"weight": values, "weight_scale": q["scale"]}, values * q["scale"]


def gptq_tensors(weight: torch.Tensor, *, scattered: bool = True) -> Quantised:
    """scattered: in activation order, which is another one for every weight."""
    n, k = weight.shape
    seed = int(weight.view(torch.int32).sum())
    columns = torch.randperm(k, generator=torch.Generator().manual_seed(seed)) if scattered else torch.arange(k)
    q = he.quantize(weight[:, columns], GROUPS)
    codes = torch.empty_like(q["codes"])
    codes[:, columns] = q["codes"]
    g_idx = columns.argsort() // 32
    words = torch.from_numpy(pack_bitstream(codes.numpy(), 4)).view(torch.int32)
    zeros = torch.from_numpy(pack_bitstream(torch.full((k // 32, n), 8).numpy(), 4)).view(torch.int32)
    stored = {"qweight": words.t(), "scales": q["scale"].t(), "qzeros": zeros, "g_idx": g_idx.int()}
    return stored, (codes.float() - 8) * q["scale"].float()[:, g_idx]


def hqq_tensors(weight: torch.Tensor) -> Quantised:
    n, k = weight.shape
    q = he.quantize(weight, ZEROS)
    scale, zero = q["scale"].view(-1, 1), q["zero"].view(-1, 1).half()
    codes = q["codes"].view(-1, 32)
    high, low = codes.chunk(2)
    numbers = {"axis": 1, "group_size": 32, "nbits": 4}
    stored = {"W_q": high << 4 | low, "scale": scale, "zero": zero, "shape": torch.tensor([n, k])}
    stored["packing"] = torch.tensor(list(b"4bit_u8"), dtype=torch.uint8)
    stored |= {name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()}
    return stored, ((codes - zero.float()) * scale.float()).view(n, k)


def pack_quantized_tensors(weight: torch.Tensor) -> Quantised:
    """compressed-tensors, 4 bits in groups of 32."""
    q = he.quantize(weight, GROUPS)
    words = torch.from_numpy(pack_bitstream(q["codes"].numpy(), 4)).view(torch.int32)
    stored = {"weight_packed": words, "weight_scale": q["scale"], "weight_shape": torch.tensor(weight.shape)}
    return stored, (q["codes"].float() - 8) * q["scale"].float().repeat_interleave(32, 1)


def fp8_block_tensors(weight: torch.Tensor) -> Quantised:
    """Blocks of 128 x 128."""
    n, k = weight.shape
    q = he.quantize(weight, BLOCKS)
    codes, scale = q["codes"].view(torch.float8_e4m3fn), q["scale"]
    factors = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * factors


def nf4_tensors(weight: torch.Tensor) -> Quantised:
    """bitsandbytes, blocks of 64."""
    q = he.quantize(weight, NF4)
    codes, table = q["codes"], torch.tensor(TABLES["nf4"])
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)})
    stored = {
        "weight": (codes[:, ::2] << 4 | codes[:, 1::2]).view(-1, 1),
        "weight.absmax": q["scale"].view(-1),
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }
    return stored, table[codes.long()] * q["scale"].repeat_interleave(64, 1)


def mxfp4_tensors(weight: torch.Tensor) -> Quantised:
    """gpt-oss."""
    q = he.quantize(weight, MXFP4)
    codes, exponents = q["codes"], q["scale"].view(torch.uint8)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).unflatten(-1, (-1, 16))
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes.long() & 7]
    factors = 2.0 ** (exponents.float() - 127).repeat_interleave(32, -1)
    return {"blocks": blocks, "scales": exponents}, torch.where(codes > 7, -magnitudes, magnitudes) * factors
