"""The dense product as a thing to measure.

What bench and retune use of it, and an op beside it in `MATRICES` must have too: `GemmMatrix(case, device, tokens)`
with `weights`, `peers`, `set_bytes` and `problem(tokens)`, and the public names of that problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from humming_ext import PackedWeight, ZeroKind, _explain, _ops
from oracle.formats import finite_codes
from oracle.matmul import gemm, scaled_rows
from oracle.weights import dequantise
from support import assert_as_accurate, operand_rounded

from .cases import ACTIVATIONS, Case
from .references import LIBRARY_NAMES, Call, HummingKernels, Marlin, UnavailableError, library_calls, num_sets
from .timing import Work

_SAMPLED_ROWS, _SAMPLED_TOKENS = 256, 64


class WrongResultError(Exception):
    """A result that is not what the oracle says, or not the same twice. It has no time."""


def _sample(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices below `size`, at most `count`, the first and the last among them."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.concatenate([[0, size - 1], rng.choice(np.arange(1, size - 1), count - 2, replace=False)]))


class GemmMatrix:
    """The weight of a case on `device`: what was packed, the packed copies, and the peers' own."""

    def __init__(self, case: Case, device: torch.device, tokens: Sequence[int]) -> None:
        self.case, self.device, self.tokens = case, device, tokens
        self.rng = np.random.default_rng(case.n + case.k)
        scheme, n, k = case.scheme, case.n, case.k
        torch.manual_seed(case.n + case.k)
        finite = torch.from_numpy(finite_codes(scheme.format.name)).to(device)
        self.codes = finite[torch.randint(len(finite), (n, k), device=device)]  # uint8 [n, k]
        shape = (n, -(-k // scheme.group) if scheme.group else 1)
        if scheme.scale_dtype == torch.float8_e8m0fnu:
            # 2^-7 to 2^0: within the window of binades that e4m3 operands hold.
            self.scale = torch.randint(120, 128, shape, dtype=torch.uint8, device=device).view(scheme.scale_dtype)
        else:
            self.scale = (torch.rand(shape, device=device) + 0.5).to(scheme.scale_dtype)
        self.zero = (
            torch.randint(1 << scheme.format.bits, shape, dtype=torch.uint8, device=device) if scheme.has_zero else None
        )
        self.bias = torch.randn(n, dtype=torch.bfloat16, device=device) if case.has_bias else None

        weight = PackedWeight.pack(self.codes, self.scale, self.zero, spec=scheme.spec(case.activation))
        self.spec = weight.spec
        copies = (self._copy(weight) for _ in range(num_sets(weight.nbytes, device) - 1))
        self.weights = [weight, *copies]

        self.rows = _sample(n, _SAMPLED_ROWS, self.rng)
        index = torch.from_numpy(self.rows).to(device)
        self.values = dequantise(  # float64 [rows, k], by the oracle, from the codes that were packed
            self.codes[index].cpu().numpy(),
            scheme.format.name,
            scale=self._numbers(self.scale, index),
            group=scheme.group,
            zero=None if self.zero is None else self.zero[index].cpu().numpy().astype(np.float64),
        )

    @staticmethod
    def _copy(weight: PackedWeight) -> PackedWeight:
        scale2 = None if weight.scale2 is None else weight.scale2.clone()
        return PackedWeight(weight.packed.clone(), scale2, weight.desc)

    @staticmethod
    def _numbers(scale: torch.Tensor, index: torch.Tensor) -> np.ndarray:
        if scale.dtype == torch.float8_e8m0fnu:
            return np.exp2(scale.view(torch.uint8)[index].cpu().numpy().astype(np.float64) - 127)
        return scale[index].double().cpu().numpy()

    @cached_property
    def peers(self) -> dict[str, HummingKernels | Marlin | str]:
        """By name, the peers that can take this matrix, and the reasons why others cannot."""
        peers: dict[str, HummingKernels | Marlin | str] = {}
        for peer in (HummingKernels, Marlin):
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
        """Bytes of codes, scales and zero points, without the padding of the packed layout."""
        spec, n, k = self.spec, self.case.n, self.case.k
        groups = -(-k // spec.group) if spec.group else 0
        scale_bits = 0 if spec.scale_dtype is None else 8 * spec.scale_dtype.itemsize
        zero_bits = 8 if spec.zero == ZeroKind.integer else 0
        codes_and_scales = n * k * spec.format.bits + n * groups * (scale_bits + zero_bits)
        scale2 = self.weights[0].scale2
        bias = 0 if self.bias is None else self.bias.nbytes
        return -(-codes_and_scales // 8) + (0 if scale2 is None else scale2.nbytes) + bias

    def problem(self, tokens: int) -> GemmProblem:
        """The product of `tokens` random tokens with this matrix."""
        return GemmProblem(self, tokens)


class GemmProblem:
    """One token count: activations quantised beforehand, an output allocated beforehand, a call per copy."""

    def __init__(self, matrix: GemmMatrix, tokens: int) -> None:
        self.matrix, self.tokens = matrix, tokens
        case, device = matrix.case, matrix.device
        self.x16 = torch.randn(tokens, case.k, dtype=torch.bfloat16, device=device)
        self.x, self.x_scale = self.x16, None
        if case.activation != "bf16":
            self.x, self.x_scale = torch.ops.humming.quantize_activation(self.x16, ACTIVATIONS[case.activation], 0)
        self.out = torch.empty(tokens, case.n, dtype=torch.bfloat16, device=device)
        self._workspace = _ops._workspace(self.out, _ops._row_copy_bytes(self.x))
        self.calls = [self._call(torch.ops.humming.gemm.out, weight) for weight in matrix.weights]
        self._first: torch.Tensor | None = None

    def _call(self, op, weight: PackedWeight, **options: str) -> Call:
        arguments = (self.x, self.x_scale, weight.packed, weight.scale2, self.matrix.bias, weight.desc)
        outputs = {"out": self.out, "workspace": self._workspace}  # not `self`: a cycle would keep GPU memory
        return lambda: op(*arguments, **outputs, **options)

    @property
    def work(self) -> Work:
        case = self.matrix.case
        activations = self.tokens * case.k * self.x.element_size()
        activations += 0 if self.x_scale is None else self.x_scale.nbytes
        return Work(
            bytes=self.matrix.nbytes + activations + self.out.nbytes,
            flops=2 * self.tokens * case.n * case.k,
            operand=self.matrix.spec.operand,
        )

    def plans(self) -> list:
        """Every kernel instance's plan for this problem. Raises UnavailableError if this build does not list them."""
        plans = getattr(_explain, "instance_plans", None)
        if plans is None:
            raise UnavailableError("this build of humming_ext has no humming_ext._explain.instance_plans")
        return plans(self.matrix.weights[0], self.x.dtype, self.tokens)

    def instance(self) -> str | None:
        """The instance that selection chose; None off the GPU, and where the build does not say."""
        if self.matrix.device.type != "cuda":
            return None
        try:
            return next((plan.name for plan in self.plans() if plan.chosen), None)
        except UnavailableError:
            return None

    def instance_calls(self, name: str) -> list[Call]:
        """Like `calls`, but through the named instance."""
        op = torch.ops.humming.gemm.instance
        return [self._call(op, weight, instance=name) for weight in self.matrix.weights]

    @property
    def uses_pdl(self) -> bool:
        """Whether our kernels are launched with programmatic dependent launch: on Hopper, all."""
        device = self.matrix.device
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9

    def references(self) -> dict[str, Callable[[], list[Call]]]:
        """By name, how to make the calls of the peers, which write `out` too, and of the library.

        Making or running them fails where a reference cannot take the problem.
        """
        case, operand, device = self.matrix.case, self.matrix.spec.operand, self.matrix.device
        peers = {
            name: lambda peer=peer: peer.calls(self.x16, self.out)
            for name, peer in self.matrix.peers.items()
            if not isinstance(peer, str)
        }
        return {**peers, LIBRARY_NAMES[operand]: lambda: library_calls(operand, self.tokens, case.n, case.k, device)}

    def poison(self) -> None:
        """Fills the output with NaN."""
        self.out.fill_(float("nan"))

    def verify(self, calls: Sequence[Call], repeats: int) -> None:
        """Raises WrongResultError unless the calls agree with the oracle, and `repeats` of them bit for bit."""
        self.poison()
        calls[0]()
        self._compare_with_oracle()
        self._first = self.out.view(torch.int16).clone()
        for i in range(1, repeats + 1):
            self.poison()
            calls[i % len(calls)]()
            self.verify_again(f"run {i + 1}")

    def verify_again(self, what: str) -> None:
        """Raises WrongResultError unless the output has the bits that `verify` found right."""
        assert self._first is not None
        differing = int((self.out.view(torch.int16) != self._first).sum())
        if differing:
            raise WrongResultError(f"{what}: {differing} of {self.out.numel()} elements differ from the first run's")

    def error(self) -> float:
        """The relative error (Frobenius norm) of what `out` holds, on the sample."""
        exact = self._expected[0]
        return float(np.linalg.norm(self._sampled().double().numpy() - exact) / np.linalg.norm(exact))

    @cached_property
    def _sampled_tokens(self) -> torch.Tensor:
        sample = _sample(self.tokens, _SAMPLED_TOKENS, np.random.default_rng(self.tokens))
        return torch.from_numpy(sample).to(self.matrix.device)

    def _sampled(self) -> torch.Tensor:
        rows = torch.from_numpy(self.matrix.rows).to(self.matrix.device)
        return self.out[self._sampled_tokens][:, rows].cpu()

    @cached_property
    def _expected(self) -> tuple[np.ndarray, torch.Tensor]:
        """(the oracle's float64, a plain product in the operand's precision) on the sampled tokens and rows."""
        matrix, index = self.matrix, self._sampled_tokens
        # One-byte floats are indexed as the bytes they are: not every device indexes them.
        raw = self.x.view(torch.uint8) if self.x.element_size() == 1 else self.x
        x = raw[index].cpu().view(self.x.dtype).double().numpy()
        x = scaled_rows(x, None if self.x_scale is None else self.x_scale[index].cpu().numpy())
        bias = None if matrix.bias is None else matrix.bias.double().cpu().numpy()[matrix.rows]
        operand = torch.from_numpy(operand_rounded(matrix.values, matrix.spec.operand.name)).float()
        plain = torch.from_numpy(x).float() @ operand.T
        plain = plain if bias is None else plain + torch.from_numpy(bias).float()
        return gemm(x, matrix.values, bias=bias), plain.bfloat16()

    def _compare_with_oracle(self) -> None:
        if not bool(self.out.isfinite().all()):
            missing = int((~self.out.isfinite()).sum())
            raise WrongResultError(f"{missing} of {self.out.numel()} elements are not written or not finite")
        try:
            assert_as_accurate(self._sampled(), *self._expected)
        except AssertionError as error:
            raise WrongResultError(str(error)) from error


MATRICES = {"gemm": GemmMatrix}
