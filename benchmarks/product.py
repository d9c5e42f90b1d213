"""What a dense product and a product with experts share as things to measure: a matrix, and the oracle of its rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from humming_ext import PackedWeight, ZeroKind, _explain
from oracle.formats import finite_codes, value_table
from oracle.matmul import scaled_rows
from products import columns, operand_rounded, power_of_two
from torch import Tensor

from .cases import ACTIVATIONS, Case
from .problem import Problem, Weights, sample
from .references import Call, HummingKernels, UnavailableError, num_sets


class Matrix(Weights):
    """One matrix, or that of every expert: what was packed, and the packed copies.

    Tensors of a case with experts have these as their first dimension: codes are uint8 [n, k] or [experts, n, k].
    `copies`: how many there are to be; by default enough for every read to come from memory.
    """

    PEERS = (HummingKernels,)
    SAMPLED_CHANNELS = 64

    def __init__(self, case: Case, device: torch.device, tokens: Sequence[int], copies: int | None = None) -> None:
        super().__init__(case, device, tokens)
        scheme, n, k = case.scheme, case.n, case.k
        torch.manual_seed(case.n + case.k)
        finite = torch.from_numpy(finite_codes(scheme.format.name)).to(device)
        experts = [case.experts] if case.experts else []
        self.codes = torch.empty([*experts, n, k], dtype=torch.uint8, device=device)
        for codes in self.codes.view(-1, n, k):  # one after the other, because indices take 8 bytes
            codes.copy_(finite[torch.randint(len(finite), (n, k), device=device)])
        shape = (*experts, n, -(-k // scheme.group) if scheme.group else 1)
        size = k**-0.5  # of scales: results are then about as large as tokens and biases, whatever k is
        if scheme.scale_dtype == torch.float8_e8m0fnu:
            top = 128 + round(math.log2(size))  # 8 binades: within the window that e4m3 operands hold
            self.scale = torch.randint(top - 8, top, shape, dtype=torch.uint8, device=device).view(scheme.scale_dtype)
        else:
            self.scale = ((torch.rand(shape, device=device) + 0.5) * size).to(scheme.scale_dtype)
        self.zero = (
            torch.randint(1 << scheme.format.bits, shape, dtype=torch.uint8, device=device) if scheme.has_zero else None
        )
        self.bias = torch.randn(*experts, n, dtype=torch.bfloat16, device=device) if case.has_bias else None

        weight = PackedWeight.pack(self.codes, self.scale, self.zero, spec=case.spec)
        self.spec = weight.spec
        count = copies or num_sets(self.bytes_per_call(weight), device)
        self.weights: list[PackedWeight] = [weight, *(self._copy(weight) for _ in range(count - 1))]
        self.channels = sample(n, self.SAMPLED_CHANNELS, np.random.default_rng(n + k))

    @staticmethod
    def _copy(weight: PackedWeight) -> PackedWeight:
        scale2 = None if weight.scale2 is None else weight.scale2.clone()
        return PackedWeight(weight.packed.clone(), scale2, weight.desc)

    @abstractmethod
    def bytes_per_call(self, weight: PackedWeight) -> int:
        """Bytes of `weight` that the smallest problem reads."""

    @abstractmethod
    def num_rows(self, tokens: int) -> int:
        """Rows of the product of that many tokens."""

    def values(self, expert: int | None, channels: Tensor | slice) -> Tensor:
        """float64 [channels, k] of the matrix, or of one expert: from the codes, by the oracle's table."""
        scheme, k = self.case.scheme, self.case.k

        def rows(tensor: Tensor) -> Tensor:
            return (tensor if expert is None else tensor[expert])[channels]

        table = torch.from_numpy(value_table(scheme.format.name).copy()).to(self.device)
        values = table[rows(self.codes).int()]
        if self.zero is not None:
            values -= columns(rows(self.zero), k, scheme.group)
        if scheme.scale_dtype == torch.float8_e8m0fnu:
            scale = power_of_two(rows(self.scale.view(torch.uint8)).int() - 127)
        else:
            scale = rows(self.scale)
        return values * columns(scale, k, scheme.group)

    def multiply(
        self, x: Tensor, rounded: Tensor, expert: int | None, channels: Tensor | slice
    ) -> tuple[Tensor, Tensor]:
        """Two products with the matrix, or one expert's, and its bias: float64 [rows, channels].

        The first is exact, of x [rows, k]. The second is plain: `rounded` times the weight rounded to the operand, both
        float64 [rows, k] and [channels, k], summed in float32.
        """
        values = self.values(expert, channels)
        operand = operand_rounded(values, self.spec.operand.name)
        exact, plain = x @ values.T, rounded.float() @ operand.float().T
        if self.bias is not None:
            bias = (self.bias if expert is None else self.bias[expert])[channels]
            exact, plain = exact + bias, plain + bias
        return exact, plain.double()

    @property
    def set_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales, zero points and bias of one expert, without the padding of the packed layout."""
        spec, n, k = self.spec, self.case.n, self.case.k
        groups = -(-k // spec.group) if spec.group else 0
        scale_bits = 0 if spec.scale_dtype is None else 8 * spec.scale_dtype.itemsize
        zero_bits = 8 if spec.zero == ZeroKind.integer else 0
        codes_and_scales = n * k * spec.format.bits + n * groups * (scale_bits + zero_bits)
        others = [tensor.nbytes for tensor in (self.weights[0].scale2, self.bias) if tensor is not None]
        return -(-codes_and_scales // 8) + sum(others) // max(self.case.experts, 1)


class Product(Problem):
    """The product of tokens, quantised beforehand where the operand is, with one matrix."""

    def __init__(self, matrix: Matrix, tokens: int, x_rows: int) -> None:
        case = matrix.case
        super().__init__(matrix, tokens, (x_rows, case.k), (matrix.num_rows(tokens), case.n))
        self.x, self.x_scale = self.x16, None
        if case.activation != "bf16":
            self.x, self.x_scale = torch.ops.humming.quantize_activation(self.x16, ACTIVATIONS[case.activation], 0)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the tokens that a call reads, with their scales."""
        scales = 0 if self.x_scale is None else self.x_scale.nbytes
        return self.x.numel() * self.x.element_size() + scales

    @property
    def rows(self) -> int:
        """Of the result."""
        return len(self.out)

    def plans(self) -> list:
        """Every kernel instance's plan for this problem. Raises UnavailableError if this build does not list them."""
        plans = getattr(_explain, "instance_plans", None)
        if plans is None:
            raise UnavailableError("this build of humming_ext has no humming_ext._explain.instance_plans")
        return plans(self.matrix.weights[0], self.x.dtype, self.rows)

    @abstractmethod
    def instance_calls(self, name: str) -> list[Call]:
        """The calls of the product alone, through the named instance."""

    def _sources(self, product: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(row of x, expert) of each sampled row of `out`; without experts None."""
        return self._sampled_rows, None

    def _compute(self, product: int) -> tuple[np.ndarray, Tensor]:
        matrix = self.matrix
        rows, experts = self._sources(product)
        x = torch.from_numpy(self._x_values(rows)).to(matrix.device)
        channels = torch.from_numpy(matrix.channels).to(matrix.device)
        exact, plain = x.new_empty(2, len(rows), len(channels))
        for expert in [None] if experts is None else np.unique(experts).tolist():
            chosen = slice(None) if experts is None else np.flatnonzero(experts == expert)
            exact[chosen], plain[chosen] = matrix.multiply(x[chosen], x[chosen], expert, channels)
        return exact.cpu().numpy(), plain.bfloat16().cpu()

    def _x_values(self, rows: np.ndarray) -> np.ndarray:
        """float64 [rows, k]: what rows of x hold, times their scales."""
        index = torch.from_numpy(rows).to(self.x.device)
        # One-byte floats are indexed as the bytes they are: not every device indexes them.
        raw = self.x.view(torch.uint8) if self.x.element_size() == 1 else self.x
        x = raw[index].cpu().view(self.x.dtype).double().numpy()
        return scaled_rows(x, None if self.x_scale is None else self.x_scale[index].cpu().numpy())
