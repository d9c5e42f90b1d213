"""What a dense product and a product with experts share as things to measure: the weights, the check of a result.

An op is measured through a subclass of `Matrix`, which bench registers, and of `Problem`, one token count of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from humming_ext import PackedWeight, ZeroKind, _explain
from oracle.formats import finite_codes
from oracle.matmul import gemm, scaled_rows
from oracle.weights import dequantise
from support import assert_as_accurate, operand_rounded

from .cases import ACTIVATIONS, Case
from .references import Call, HummingKernels, Marlin, UnavailableError, num_sets
from .timing import Work

SAMPLED_ROWS = 64


class WrongResultError(Exception):
    """A result that is not what the oracle says, or not the same twice. It has no time."""


def sample(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices below `size`, at most `count`, the first and the last among them."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.concatenate([[0, size - 1], rng.choice(np.arange(1, size - 1), count - 2, replace=False)]))


class Matrix(ABC):
    """The weight of a case on `device`: what was packed, the packed copies, and the peers' own.

    Tensors of a case with experts have these as their first dimension: codes are uint8 [n, k] or [experts, n, k].
    """

    PEERS: tuple[type[HummingKernels] | type[Marlin], ...] = (HummingKernels,)
    SAMPLED_CHANNELS = 64

    def __init__(self, case: Case, device: torch.device, tokens: Sequence[int]) -> None:
        self.case, self.device, self.tokens = case, device, tokens
        self.rng = np.random.default_rng(case.n + case.k)
        scheme, n, k = case.scheme, case.n, case.k
        torch.manual_seed(case.n + case.k)
        finite = torch.from_numpy(finite_codes(scheme.format.name)).to(device)
        experts = [case.experts] if case.experts else []
        self.codes = torch.empty([*experts, n, k], dtype=torch.uint8, device=device)
        for codes in self.codes.view(-1, n, k):  # one after the other, because indices take 8 bytes
            codes.copy_(finite[torch.randint(len(finite), (n, k), device=device)])
        shape = (*experts, n, -(-k // scheme.group) if scheme.group else 1)
        if scheme.scale_dtype == torch.float8_e8m0fnu:
            # 2^-7 to 2^0: within the window of binades that e4m3 operands hold.
            self.scale = torch.randint(120, 128, shape, dtype=torch.uint8, device=device).view(scheme.scale_dtype)
        else:
            self.scale = (torch.rand(shape, device=device) + 0.5).to(scheme.scale_dtype)
        self.zero = (
            torch.randint(1 << scheme.format.bits, shape, dtype=torch.uint8, device=device) if scheme.has_zero else None
        )
        self.bias = torch.randn(*experts, n, dtype=torch.bfloat16, device=device) if case.has_bias else None

        weight = PackedWeight.pack(self.codes, self.scale, self.zero, spec=scheme.spec(case.activation))
        self.spec = weight.spec
        copies = (self._copy(weight) for _ in range(num_sets(self.bytes_per_call(weight), device) - 1))
        self.weights = [weight, *copies]
        self.channels = sample(n, self.SAMPLED_CHANNELS, self.rng)
        self._values: dict[int | None, np.ndarray] = {}

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

    @abstractmethod
    def problem(self, tokens: int) -> Problem:
        """The product of `tokens` random tokens with this matrix."""

    def values(self, expert: int | None = None) -> np.ndarray:
        """float64 [sampled channels, k] of the matrix, or of one expert: by the oracle, from the codes."""
        if expert not in self._values:
            index = torch.from_numpy(self.channels).to(self.device)

            def numbers(tensor: torch.Tensor) -> np.ndarray:
                raw = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor
                values = (raw if expert is None else raw[expert])[index].double().cpu().numpy()
                return values if raw is tensor else np.exp2(values - 127)

            self._values[expert] = dequantise(
                numbers(self.codes).astype(np.uint8),
                self.case.scheme.format.name,
                scale=numbers(self.scale),
                group=self.case.scheme.group,
                zero=None if self.zero is None else numbers(self.zero),
            )
        return self._values[expert]

    @cached_property
    def peers(self) -> dict[str, HummingKernels | Marlin | str]:
        """By name, the peers that can take this matrix, and the reasons why others cannot."""
        peers: dict[str, HummingKernels | Marlin | str] = {}
        for peer in self.PEERS:
            try:
                peers[peer.name] = peer(self)
            except UnavailableError as error:
                peers[peer.name] = str(error)
        return peers

    @property
    def set_bytes(self) -> int:
        """Bytes of all packed copies together, as they lie in memory."""
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


class Problem(ABC):
    """One token count: random activations, an output allocated beforehand, and the calls that fill it.

    Call i makes product i modulo `num_products`; what differs otherwise is which copy of the weights it reads.
    """

    num_products = 1
    calls: list[Call]
    gemm_calls: list[Call] | None = None  # what references are compared with, if `calls` do more than they
    facts: dict[str, Any] = {}  # noqa: RUF012 - further fields of the row

    def __init__(self, matrix: Any, tokens: int, x_rows: int) -> None:
        self.matrix, self.tokens = matrix, tokens
        case, device = matrix.case, matrix.device
        self.x16 = torch.randn(x_rows, case.k, dtype=torch.bfloat16, device=device)
        self.x, self.x_scale = self.x16, None
        if case.activation != "bf16":
            self.x, self.x_scale = torch.ops.humming.quantize_activation(self.x16, ACTIVATIONS[case.activation], 0)
        self.out = torch.empty(matrix.num_rows(tokens), case.n, dtype=torch.bfloat16, device=device)
        self._sampled_rows = sample(len(self.out), SAMPLED_ROWS, np.random.default_rng(tokens))
        self._first: list[torch.Tensor] = []
        self._expectations: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    @property
    @abstractmethod
    def work(self) -> Work:
        """What every call must move and multiply."""

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

    def instance(self) -> str | None:
        """The kernel instance that selection chose, if the build says."""
        if self.matrix.device.type != "cuda":
            return None
        try:
            return next((plan.name for plan in self.plans() if plan.chosen), None)
        except UnavailableError:
            return None

    @abstractmethod
    def instance_calls(self, name: str) -> list[Call]:
        """The calls of the product alone, through the named instance."""

    @property
    def uses_pdl(self) -> bool:
        """Whether our kernels are launched with programmatic dependent launch: on Hopper, all."""
        device = self.matrix.device
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9

    def references(self) -> dict[str, Callable[[], list[Call]]]:
        """By name, how to make the calls of the peers, which write `out` too, and of the library.

        Making or running them fails where a reference cannot take the problem.
        """
        return {
            name: lambda peer=peer: self._peer_calls(peer)
            for name, peer in self.matrix.peers.items()
            if not isinstance(peer, str)
        }

    def _peer_calls(self, peer: Any) -> list[Call]:
        return peer.calls(self.x16, self.out)

    def poison(self) -> None:
        """Fills the output with NaN."""
        self.out.fill_(float("nan"))

    def verify(self, calls: Sequence[Call], repeats: int) -> None:
        """Raises WrongResultError unless every product agrees with the oracle, and `repeats` further calls bit for bit.

        The calls are of this problem, as many as there are products, or a multiple.
        """
        self._first = []
        for index in range(self.num_products):
            self.poison()
            calls[index]()
            self._compare_with_oracle(index)
            self._first.append(self.out.view(torch.int16).clone())
        for i in range(self.num_products, self.num_products + repeats):
            self.poison()
            calls[i % len(calls)]()
            self.verify_again(f"run {i + 1}", i % len(calls))

    def verify_again(self, what: str, call: int) -> None:
        """Raises WrongResultError unless the output has the bits that `verify` found right for this call's product."""
        first = self._first[call % self.num_products]
        differing = int((self.out.view(torch.int16) != first).sum())
        if differing:
            raise WrongResultError(f"{what}: {differing} of {self.out.numel()} elements differ from the first run's")

    def error(self) -> float:
        """The relative error (Frobenius norm) of what `out` holds after the first call of a list, on the sample."""
        exact = self._expected(0)[0]
        return float(np.linalg.norm(self._sampled().double().numpy() - exact) / np.linalg.norm(exact))

    def _sampled(self) -> torch.Tensor:
        rows, channels = (torch.from_numpy(i).to(self.out.device) for i in (self._sampled_rows, self.matrix.channels))
        return self.out[rows][:, channels].cpu()

    def _sources(self, product: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(row of x, expert) of each sampled row of `out`; without experts None."""
        return self._sampled_rows, None

    def _expected(self, product: int) -> tuple[np.ndarray, torch.Tensor]:
        """(the oracle's float64, a plain product in the operand's precision) on the sampled rows and channels."""
        if product not in self._expectations:
            rows, experts = self._sources(product)
            x = self._x_values(rows)
            exact = np.empty((len(rows), len(self.matrix.channels)))
            plain = torch.empty(exact.shape)
            for expert in [None] if experts is None else np.unique(experts).tolist():
                chosen = slice(None) if experts is None else np.flatnonzero(experts == expert)
                exact[chosen], plain[chosen] = self._multiply(x[chosen], expert)
            self._expectations[product] = exact, plain.bfloat16()
        return self._expectations[product]

    def _multiply(self, x: np.ndarray, expert: int | None) -> tuple[np.ndarray, torch.Tensor]:
        matrix = self.matrix
        values, bias = matrix.values(expert), None
        operand = torch.from_numpy(operand_rounded(values, matrix.spec.operand.name)).float()
        plain = torch.from_numpy(x).float() @ operand.T
        if matrix.bias is not None:
            bias = (matrix.bias if expert is None else matrix.bias[expert]).double().cpu().numpy()[matrix.channels]
            plain = plain + torch.from_numpy(bias).float()
        return gemm(x, values, bias=bias), plain

    def _x_values(self, rows: np.ndarray) -> np.ndarray:
        """float64 [rows, k]: what rows of x hold, times their scales."""
        index = torch.from_numpy(rows).to(self.x.device)
        # One-byte floats are indexed as the bytes they are: not every device indexes them.
        raw = self.x.view(torch.uint8) if self.x.element_size() == 1 else self.x
        x = raw[index].cpu().view(self.x.dtype).double().numpy()
        return scaled_rows(x, None if self.x_scale is None else self.x_scale[index].cpu().numpy())

    def _compare_with_oracle(self, product: int) -> None:
        if not bool(self.out.isfinite().all()):
            missing = int((~self.out.isfinite()).sum())
            raise WrongResultError(f"{missing} of {self.out.numel()} elements are not written or not finite")
        try:
            assert_as_accurate(self._sampled(), *self._expected(product))
        except AssertionError as error:
            raise WrongResultError(str(error)) from error
