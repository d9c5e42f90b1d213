"""What our times are compared with: the vendor's library, humming-kernels, vLLM's Marlin.

A reference is a list of calls that do the same work on different copies of the weights, like ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from humming_ext import Operand
from torch import Tensor

if TYPE_CHECKING:
    from .product import Matrix

Call = Callable[[], object]

_SET_BYTES = 250_000_000  # more than four times the L2 of an H200
LIBRARY_NAMES = {Operand.bf16: "cublas_bf16", Operand.e4m3: "cublas_e4m3", Operand.s8: "cublas_int8"}


class UnavailableError(Exception):
    """Why a reference cannot be measured here."""


def num_sets(nbytes: int, device: torch.device) -> int:
    """Copies of a weight of `nbytes` that a rotation needs for every read to come from memory."""
    return max(2, math.ceil(_SET_BYTES / nbytes)) if device.type == "cuda" else 2


def rotation(copies: Sequence, products: Sequence) -> list[tuple]:
    """(copy, product) for each call, in turn: call i makes product i modulo their number, and reaches every copy."""
    count = len(products) * math.ceil(len(copies) / len(products))
    return [(copies[i % len(copies)], products[i % len(products)]) for i in range(count)]


def library_calls(operand: Operand, tokens: int, n: int, k: int, device: torch.device) -> list[Call]:
    """The product of [tokens, k] and [n, k] in the operand's own type. Raises RuntimeError where it does not exist."""
    sets = num_sets(n * k * (2 if operand == Operand.bf16 else 1), device)
    if operand == Operand.s8:
        x = torch.randint(-128, 128, (tokens, k), dtype=torch.int8, device=device)
        weights = [torch.randint(-128, 128, (n, k), dtype=torch.int8, device=device) for _ in range(sets)]
        return [lambda w=w: torch._int_mm(x, w.t()) for w in weights]
    values = torch.randn(tokens, k, dtype=torch.bfloat16, device=device)
    weights = [torch.randn(n, k, dtype=torch.bfloat16, device=device) for _ in range(sets)]
    if operand == Operand.bf16:
        out = torch.empty(tokens, n, dtype=torch.bfloat16, device=device)
        return [lambda w=w: torch.mm(values, w.t(), out=out) for w in weights]
    x, one = values.to(torch.float8_e4m3fn), torch.ones((), device=device)
    weights = [w.to(torch.float8_e4m3fn) for w in weights]
    return [
        lambda w=w: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True) for w in weights
    ]


def bit_words(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows, k * bits / 32] of uint8 codes [rows, k]: a bit stream per row, lowest bits first."""
    rows = codes.shape[0]
    flags = (codes[..., None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    packed = (flags.view(rows, -1, 8) << places).sum(-1, dtype=torch.uint8)
    return packed.view(torch.int32)


class HummingKernels:
    """humming-kernels on the same weights: its layer makes them, its forward runs them, its heuristics tune them.

    Experts take their tokens by index, in blocks that its own helper pads beforehand. Raises UnavailableError if it is
    not installed, or cannot take the matrix.
    """

    name = "humming-kernels"
    notes: ClassVar[dict[str, str]] = {}  # what the wheel lacks, and what is timed in its place
    _TENSORS = ("weight", "weight_scale", "zero_point", "bias", "weight_scale_2")
    _FLOATS: ClassVar = {"e2m1": "float4e2m1", "e3m2": "float6e3m2", "e4m3": "float8e4m3"}
    _ACTIVATIONS: ClassVar = {"bf16": "bfloat16", "e4m3": "float8e4m3", "int8": "int8"}

    def __init__(self, matrix: Matrix) -> None:
        if matrix.device.type != "cuda":
            raise UnavailableError("needs a GPU")
        try:
            self._load(matrix)
        except ModuleNotFoundError as error:
            raise UnavailableError(f"{error}") from error
        except Exception as error:  # whatever stops a peer must not stop us
            raise UnavailableError(f"cannot take this matrix: {_brief(error)}") from error

    def _load(self, matrix: Matrix) -> None:
        from humming.config import GemmType
        from humming.layer import HummingLayer

        case, scheme = matrix.case, matrix.case.scheme
        self._gemm_type = GemmType.INDEXED if case.experts else GemmType.DENSE
        name, bits = scheme.format.name, scheme.format.bits
        layer = HummingLayer(
            shape_n=case.n,
            shape_k=case.k,
            num_experts=case.experts,
            has_bias=case.has_bias,
            weight_config={
                "dtype": self._FLOATS.get(name, f"uint{bits}"),
                "group_size": scheme.group,
                "scale_dtype": "float8e8m0" if scheme.scale_dtype == torch.float8_e8m0fnu else "bfloat16",
                "has_zero_point": scheme.has_zero,
                "is_fp_zero_point": False,
            },
            input_config={"dtype": self._ACTIVATIONS[case.activation], "group_size": 0},
            # What the serving engines that use it pad to.
            pad_n_to_multiple=256,
            pad_k_to_multiple=128,
            torch_dtype=torch.bfloat16,
        ).to(matrix.device)
        codes = [bit_words(codes, bits) for codes in matrix.codes.view(-1, case.n, case.k)]
        given = {"weight": torch.stack(codes) if case.experts else codes[0], "weight_scale": matrix.scale}
        if matrix.zero is not None:
            given["zero_point"] = bit_words(matrix.zero.t().contiguous(), bits).t().contiguous()
        if matrix.bias is not None:
            given["bias"] = matrix.bias
        for key, tensor in given.items():
            expected = getattr(layer, key)
            if (expected.shape, expected.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{key} is {expected.dtype} {list(expected.shape)}, not {list(tensor.shape)}")
            setattr(layer, key, torch.nn.Parameter(tensor, requires_grad=False))
        layer.transform()
        self._config = layer.humming_config
        # The first call compiles every interval in the list, side by side: only those that are measured, and that of
        # one row, which its launcher looks up always.
        measured = {1, *(matrix.num_rows(tokens) for tokens in matrix.tokens)}
        self._tuning = [
            (low, high, config)
            for low, high, config in self._heuristics()
            if any(low < rows <= high for rows in measured)
        ]
        tensors = {key: getattr(layer, key, None) for key in self._TENSORS}
        tensors = {key: tensor.data for key, tensor in tensors.items() if tensor is not None}
        locks = layer.locks.to(matrix.device)
        self._sets = [
            {"locks": locks.clone(), **{key: tensor.clone() for key, tensor in tensors.items()}}
            for _ in matrix.weights  # as many as ours
        ]

    def _heuristics(self) -> list[tuple[int, int, dict]]:
        """(rows above these, up to these, how to run them)."""
        from humming.tune import get_heuristics_config

        return get_heuristics_config(layer_config=self._config, gemm_type=self._gemm_type)

    def block(self, rows: int) -> int:
        """Rows that its heuristics pad every expert's to, of this many together."""
        return self._tuned(rows)["block_shape"][0]

    def _tuned(self, rows: int) -> dict:
        return next((config for low, high, config in self._tuning if low < rows <= high), {})

    def uses_pdl(self, rows: int) -> bool:
        """Whether its heuristics launch a product of this many rows with programmatic dependent launch."""
        return bool(self._tuned(rows).get("use_pdl"))

    def _routed(self, topk_ids: Tensor) -> dict:
        from humming.testing.data import generate_moe_tensors

        _, _, sorted_ids, expert_ids, num_padded = generate_moe_tensors(
            topk_ids, self._config.num_experts, self._gemm_type, block_size_config=self.block(topk_ids.numel())
        )
        top_k = topk_ids.shape[1]
        return {"sorted_ids": sorted_ids, "expert_ids": expert_ids, "num_tokens_padded": num_padded, "top_k": top_k}

    def calls(self, x: Tensor, out: Tensor, routings: Sequence[Tensor] = ()) -> list[Call]:
        """Calls that multiply bf16 tokens, quantised beforehand, into `out`. The first call compiles, for seconds.

        With experts, `routings` are int32 [rows of x, top_k]: the experts of each row, of one draw after the other.
        """
        return self.products(self.prepare(x)[1], out, routings)

    def prepare(self, x: Tensor, **activation: str) -> tuple[Call, dict[str, Tensor]]:
        """A call that activates and quantises rows of bf16 as this matrix takes them, and what it fills."""
        from humming.forward import may_process_input

        inputs, group_scales, token_scales = may_process_input(self._config, x, **activation)
        filled = {"outputs": inputs, "group_scales": group_scales, "token_scales": token_scales}
        scales = token_scales if group_scales is None else group_scales
        return (
            lambda: may_process_input(self._config, x, **filled, **activation),
            {"inputs": inputs, "input_scale": scales},
        )

    def products(self, prepared: dict[str, Tensor], out: Tensor, routings: Sequence[Tensor] = ()) -> list[Call]:
        """Calls that multiply what `prepare` filled, as `calls` says."""
        from humming.forward import humming_forward

        options = {
            **prepared,
            "outputs": out,
            "compute_config": json.dumps({"gemm_type": self._gemm_type.value}),
            "tuning_config": json.dumps(self._tuning),
        }
        products = [self._routed(topk_ids) for topk_ids in routings] or [{}]
        return [
            lambda tensors=tensors, product=product: humming_forward(self._config, **options, **tensors, **product)
            for tensors, product in rotation(self._sets, products)
        ]


class HummingKernelsMmaSync(HummingKernels):
    """The same with mma.sync, as its heuristics for Ampere tune it."""

    def _heuristics(self) -> list[tuple[int, int, dict]]:
        from humming.tune.sm8x import Sm80Heuristics

        configs = Sm80Heuristics.get_configs(layer_config=self._config, gemm_type=self._gemm_type)
        return [(low, high, {**config, "mma_type": "mma"}) for low, high, config in configs]


class Marlin:
    """vLLM's Marlin kernel for 4-bit weights in groups of 128. Its codes are random: only its time is of interest."""

    name = "vllm-marlin"
    notes: ClassVar[dict[str, str]] = {}

    def __init__(self, matrix: Matrix) -> None:
        case = matrix.case
        if (case.scheme.name, case.activation) != ("int4-g128", "bf16") or case.has_bias:
            raise UnavailableError("compared for int4-g128 x bf16 without bias only")
        if case.n % 64 or case.k % 128:
            raise UnavailableError("needs n in multiples of 64 and k in multiples of 128")
        try:
            from vllm import _custom_ops
            from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_make_workspace_new
            from vllm.scalar_type import scalar_types
        except ImportError as error:
            raise UnavailableError(f"{error}") from error
        self._op, self._type, self._case = _custom_ops.marlin_gemm, scalar_types.uint4b8, case
        self._workspace = marlin_make_workspace_new(matrix.device)
        shape = (case.k // 16, case.n * 2)  # 8 codes per int32
        sets = num_sets(case.n * case.k // 2, matrix.device)
        self._weights = [
            torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=matrix.device) for _ in range(sets)
        ]
        self._scale = matrix.scale.t().contiguous()

    def calls(self, x: Tensor, out: Tensor) -> list[Call]:
        def call(weight: Tensor) -> object:
            return self._op(
                a=x,
                c=out,
                b_q_weight=weight,
                b_bias=None,
                b_scales=self._scale,
                a_scales=None,
                global_scale=None,
                b_zeros=None,
                g_idx=None,
                perm=None,
                workspace=self._workspace,
                b_q_type=self._type,
                size_m=x.shape[0],
                size_n=self._case.n,
                size_k=self._case.k,
                use_fp32_reduce=True,
            )

        return [lambda weight=weight: call(weight) for weight in self._weights]


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
