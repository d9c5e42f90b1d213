"""The dense product as a thing to measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from humming_ext import PackedWeight, _ops

from .product import Matrix, Product
from .references import LIBRARY_NAMES, Call, HummingKernels, HummingKernelsMmaSync, Marlin, library_calls
from .timing import Work


class GemmMatrix(Matrix):
    """One matrix that every token is multiplied with."""

    PEERS = (HummingKernels, Marlin)
    SAMPLED_CHANNELS = 256

    def bytes_per_call(self, weight: PackedWeight) -> int:
        return weight.nbytes

    def num_rows(self, tokens: int) -> int:
        return tokens

    def problem(self, tokens: int) -> GemmProblem:
        return GemmProblem(self, tokens)


class GemmProblem(Product):
    """Activations quantised beforehand, a call per copy of the weights."""

    def __init__(self, matrix: GemmMatrix, tokens: int) -> None:
        super().__init__(matrix, tokens, tokens)
        self._workspace = _ops._workspace(self.out, _ops._row_copy_bytes(self.x, self.matrix.weights[0].desc))
        self.calls = [self._call(torch.ops.humming.gemm.out, weight) for weight in matrix.weights]

    def _call(self, op, weight: PackedWeight, **options: str) -> Call:
        arguments = (self.x, self.x_scale, weight.packed, weight.scale2, self.matrix.bias, weight.desc)
        outputs = {"out": self.out, "workspace": self._workspace}  # not `self`: a cycle would keep GPU memory
        return lambda: op(*arguments, **outputs, **options)

    @property
    def work(self) -> Work:
        case = self.matrix.case
        return Work(
            bytes=self.matrix.nbytes + self.activation_bytes + self.out.nbytes,
            flops=2 * self.tokens * case.n * case.k,
            operand=self.matrix.spec.operand,
        )

    def instance_calls(self, name: str) -> list[Call]:
        op = torch.ops.humming.gemm.instance
        return [self._call(op, weight, instance=name) for weight in self.matrix.weights]

    def references(self) -> dict[str, Callable[[], list[Call]]]:
        case, operand, device = self.matrix.case, self.matrix.spec.operand, self.matrix.device
        library = {LIBRARY_NAMES[operand]: lambda: library_calls(operand, self.tokens, case.n, case.k, device)}
        return super().references() | library


class MmaSyncMatrix(GemmMatrix):
    """For the kernels of Ampere and Ada on a newer GPU, which the preset `test` has there, and the peer's like them."""

    PEERS = (HummingKernelsMmaSync,)

    def problem(self, tokens: int) -> GemmProblem:
        return MmaSyncProblem(self, tokens)


class MmaSyncProblem(GemmProblem):
    """Their product, by the instance that selection would choose if there were no others."""

    facts: ClassVar[dict[str, str]] = {"loop": "mma.sync sources on sm_90, which emulates those of fp8 and s4"}
    uses_pdl = False

    def __init__(self, matrix: MmaSyncMatrix, tokens: int) -> None:
        super().__init__(matrix, tokens)
        self._instance: str | None = None
        if matrix.device.type == "cuda":
            plans = [plan for plan in self.plans() if plan.name.startswith("gemm_sm80_") and plan.rejection is None]
            if not plans:
                raise RuntimeError("no CUDA instance of gemm_sm80 in this build; the preset `test` has some")
            self._instance = min(plans, key=lambda plan: plan.estimate).name
            self.calls = self.instance_calls(self._instance)

    def instance(self) -> str | None:
        return self._instance
