"""Running one op on the CPU and on the GPU and comparing bytes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from support import assert_bits_equal, guarded

ops = torch.ops.humming

OUTPUTS = {
    "quantize_activation": ("out", "scale"),
    "moe_align": ("sorted_pairs", "positions", "blocks", "num_blocks", "expert_offsets"),
    "moe_reduce": ("out",),
    "prepack": ("packed", "row_scale", "stats"),
    "decode_packed": ("out",),
}


def moved(value, device: str):
    """`value` on `device`, rows as far apart as they were (torch would make them contiguous)."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_contiguous() or value.numel() == 0:
        return value.to(device)
    raw = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0).to(device)
    return raw.as_strided(value.shape, value.stride(), value.storage_offset())


@dataclass
class Call:
    """One functional call; `expected` are its results on the CPU."""

    op: str
    args: tuple
    kwargs: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        results = getattr(ops, self.op)(*self.args, **self.kwargs)
        results = results if isinstance(results, tuple) else (results,)
        self.expected: dict[str, torch.Tensor] = dict(zip(OUTPUTS[self.op], results, strict=True))

    def on(self, device: str) -> tuple[tuple, dict]:
        """Arguments of the `.out` form on `device`, without the outputs."""
        args = tuple(moved(arg, device) for arg in self.args)
        kwargs = {key: moved(value, device) for key, value in self.kwargs.items() if key != "scale_dtype"}
        if self.op == "quantize_activation":  # the out form takes the dtype from its output
            args = (args[0], args[2])
        return args, kwargs

    def outputs(self, device: str) -> dict[str, torch.Tensor]:
        """Outputs of the same shapes and strides, filled with 0xFF bytes."""
        out = {}
        for name, wanted in self.expected.items():
            tensor = torch.empty_strided(wanted.shape, wanted.stride(), dtype=wanted.dtype, device=device)
            tensor.view(torch.uint8).fill_(0xFF)
            out[name] = tensor
        return out

    def run(self, device: str, outputs: dict[str, torch.Tensor]) -> None:
        args, kwargs = self.on(device)
        getattr(ops, self.op).out(*args, **kwargs, **outputs)

    def check(self, outputs: dict[str, torch.Tensor], what: str = "") -> None:
        """The outputs have the bytes of the CPU's; only NaN of computed floats may be any NaN."""
        for name, wanted in self.expected.items():
            actual, wanted = outputs[name].cpu().contiguous(), wanted.contiguous()
            if self.op in ("moe_reduce", "decode_packed") and wanted.is_floating_point():
                both_nan = actual.isnan() & wanted.isnan()
                actual, wanted = actual.masked_fill(both_nan, 0), wanted.masked_fill(both_nan, 0)
            assert_bits_equal(actual, wanted, f"{self.op} {name} {what}")


def compare(op: str, *args, device: str = "cuda", **kwargs) -> None:
    """The CUDA op writes the CPU op's bytes into poisoned outputs, and no byte around or between their rows."""
    call = Call(op, args, kwargs)
    with ExitStack() as stack:
        outputs = {
            name: stack.enter_context(
                guarded(
                    tuple(wanted.shape),
                    wanted.dtype,
                    device,
                    pitch=wanted.stride(0) if wanted.dim() == 2 and not wanted.is_contiguous() else None,
                )
            )
            for name, wanted in call.expected.items()
        }
        call.run(device, outputs)
        call.check(outputs)
