"""What the kernel for weights of any format makes of a record: operands, against the oracle's numbers."""

from types import ModuleType

import numpy as np
import pytest
import torch
from cases import legal
from oracle.formats import FORMATS, finite_codes, value_table
from oracle.packing import pack
from support import TORCH, WeightCase, rebase_window, takes_operand

N, K = 64, 128
PAIRS = [
    (name, operand) for operand in ("bf16", "fp16", "e4m3", "s8") for name in FORMATS if takes_operand(name, operand)
]


def _scales(case: WeightCase, groups: int, rng: np.random.Generator) -> torch.Tensor:
    """[N, groups], as records have them: of rebased floats every scale that the operand's window has."""
    if case.scale == "e8m0":
        window = rebase_window(case) if case.rebased else 8
        return torch.from_numpy(rng.integers(127 - window, 128, (N, groups)).astype(np.uint8)).view(TORCH["e8m0"])
    return torch.from_numpy(rng.uniform(0.25, 2, (N, groups))).to(TORCH[case.scale])


def _bytes(entries: torch.Tensor) -> np.ndarray:
    """uint8 [N, groups, bytes of each]."""
    return entries.contiguous().view(torch.uint8).numpy().reshape(*entries.shape, -1)


def _columns(entries: torch.Tensor) -> np.ndarray:
    """float64 [N, K]."""
    return np.repeat(entries.double().numpy(), K // entries.shape[1], axis=1)


def _check(host: ModuleType, case: WeightCase, rng: np.random.Generator) -> None:
    codes = rng.choice(finite_codes(case.fmt), (N, K))
    numbers = value_table(case.fmt)[codes]
    groups = K // case.group if case.group else 1
    scale = _scales(case, groups, rng) if case.scale != "none" else None
    zero = None
    if case.zero == "integer":
        zero = torch.from_numpy(rng.integers(0, 2 ** FORMATS[case.fmt].bits, (N, groups)).astype(np.uint8))
        numbers = numbers - _columns(zero)
    elif case.zero == "floating":
        zero = torch.from_numpy(rng.normal(size=(N, groups))).to(TORCH[case.scale])
    # Of 8-bit operands other scales than powers of two multiply the sums.
    if scale is not None and (case.operand in ("bf16", "fp16") or case.scale == "e8m0"):
        numbers = numbers * _columns(scale)
        if case.zero == "floating":
            numbers = numbers + _columns(zero)
    entries = {name: _bytes(part) for name, part in (("scale", scale), ("zero", zero)) if part is not None}
    record = pack(codes, case.fmt, case.operand, group=case.group, **entries)[0]
    operands, unit = host.operands_of_any(record, case.desc)
    # One rounding in fp32, then one to the operand, for whose range the unit makes room.
    expected = torch.from_numpy((numbers.astype(np.float32) / np.float32(unit)).astype(np.float32))
    if case.operand in ("bf16", "fp16"):
        expected = expected.to(TORCH[case.operand])
    np.testing.assert_array_equal(operands, expected.float().numpy(), err_msg=str(case))
    if case.rebased and case.operand != "bf16":  # which has the range of the scales alone
        np.testing.assert_array_equal(operands.astype(np.float64) * unit, numbers, err_msg=str(case))


@pytest.mark.parametrize(("name", "operand"), PAIRS)
def test_every_scale_and_zero_point(host: ModuleType, name: str, operand: str) -> None:
    """e8m0 scales far below a row's largest were rounded away, and the second of two groups of 16 in 32 columns had the
    scale of the first."""
    rng = np.random.default_rng(FORMATS[name].id)
    for case in legal(name, operand):
        _check(host, WeightCase(case.fmt, case.operand, case.scale, case.group, case.zero, n=N, k=K), rng)
