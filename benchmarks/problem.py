"""What is measured has: weights in copies, a result and the calls that fill it, the check of that result.

An op is measured through a subclass of `Weights`, which bench registers, and of `Problem`, one token count of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from support import assert_as_accurate

from .cases import Case
from .references import Call, UnavailableError
from .timing import Work

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLED_ROWS = 64


class WrongResultError(Exception):
    """A result that is not what the oracle says, or not the same twice. It has no time."""


def sample(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices below `size`, at most `count`, the first and the last among them."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.concatenate([[0, size - 1], rng.choice(np.arange(1, size - 1), count - 2, replace=False)]))


class Weights(ABC):
    """What a case multiplies with on `device`: the packed copies that calls rotate through, and the peers' own."""

    PEERS: tuple[Any, ...] = ()  # classes that raise UnavailableError for what they cannot take
    weights: list[Any]
    channels: np.ndarray  # columns of the result that are compared with the oracle

    def __init__(self, case: Case, device: torch.device, tokens: Sequence[int]) -> None:
        self.case, self.device, self.tokens = case, device, tokens

    def of(self, case: Case) -> Self:
        """These weights, for a case whose `plain` is the same."""
        other = copy(self)
        other.case = case
        return other

    @property
    @abstractmethod
    def set_bytes(self) -> int:
        """Bytes of all packed copies together, as they lie in memory."""

    @abstractmethod
    def problem(self, tokens: int) -> Problem:
        """The op on `tokens` random tokens."""

    @cached_property
    def peers(self) -> dict[str, Any]:
        """By name, the peers that can take these weights, and the reasons (str) why others cannot."""
        peers: dict[str, Any] = {}
        for peer in self.PEERS:
            try:
                peers[peer.name] = peer(self)
            except UnavailableError as error:
                peers[peer.name] = str(error)
        return peers


class Problem(ABC):
    """One token count: random activations, an output allocated beforehand, and the calls that fill it.

    Call i makes product i modulo `num_products`; what differs otherwise is which copy of the weights it reads.
    """

    num_products = 1
    calls: list[Call]
    gemm_calls: list[Call] | None = None  # what references are compared with, if `calls` do more than they
    facts: dict[str, Any] = {}  # noqa: RUF012 - further fields of the row

    def __init__(self, matrix: Any, tokens: int, x_shape: tuple[int, int], out_shape: tuple[int, int]) -> None:
        self.matrix, self.tokens = matrix, tokens
        self.x16 = torch.randn(x_shape, dtype=torch.bfloat16, device=matrix.device)
        self.out = torch.empty(out_shape, dtype=torch.bfloat16, device=matrix.device)
        self._sampled_rows = sample(len(self.out), SAMPLED_ROWS, np.random.default_rng(tokens))
        self._first: list[torch.Tensor] = []
        self._expectations: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    @property
    @abstractmethod
    def work(self) -> Work:
        """What every call must move and multiply."""

    def plans(self) -> list:
        """Every kernel instance's plan for this problem. Raises UnavailableError where none can be chosen."""
        raise UnavailableError(f"{self.matrix.case.op} is not one kernel instance; retune its products")

    def instance(self) -> str | None:
        """The kernel instance that selection chose, if it is one and the build says."""
        if self.matrix.device.type != "cuda":
            return None
        try:
            return next((plan.name for plan in self.plans() if plan.chosen), None)
        except UnavailableError:
            return None

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

    @abstractmethod
    def _compute(self, product: int) -> tuple[np.ndarray, torch.Tensor]:
        """(the oracle's float64, what plain arithmetic in the operand's precision gives) on the sample."""

    def _expected(self, product: int) -> tuple[np.ndarray, torch.Tensor]:
        if product not in self._expectations:
            self._expectations[product] = self._compute(product)
        return self._expectations[product]

    def _compare_with_oracle(self, product: int) -> None:
        if not bool(self.out.isfinite().all()):
            missing = int((~self.out.isfinite()).sum())
            raise WrongResultError(f"{missing} of {self.out.numel()} elements are not written or not finite")
        try:
            assert_as_accurate(self._sampled(), *self._expected(product))
        except AssertionError as error:
            raise WrongResultError(str(error)) from error
