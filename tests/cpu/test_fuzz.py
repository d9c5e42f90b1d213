"""Random problems on the CPU. A failure names its seed, and `python tests/fuzz.py SEED` repeats it."""

import fuzz
import pytest
import torch
from oracle.formats import FORMATS

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWS, CHUNK = 500, 25


@pytest.mark.parametrize("first", range(0, DRAWS, CHUNK))
def test_random_problems(first: int) -> None:
    assert fuzz.check(range(first, first + CHUNK), "cpu") == 0


def test_the_draws_meet_every_choice() -> None:
    draws = [fuzz.draw(seed) for seed in range(DRAWS)]
    assert {(draw.pair[1], draw.x_kind) for draw in draws} == {
        (operand, kind) for operand, kinds in fuzz.X_KINDS.items() for kind in kinds
    }
    assert {draw.pair[0] for draw in draws} == FORMATS.keys()
    assert {draw.pair[4] for draw in draws} == {"none", "integer", "floating"}
    assert {draw.pair[2] for draw in draws} == {"none", "fp32", "bf16", "fp16", "e8m0", "e4m3"}
    assert {draw.layout for draw in draws} == {"", *fuzz.LAYOUTS}
    assert {draw.epilogue.activation for draw in draws} == fuzz.ACTIVATIONS.keys()
    assert {draw.routing.kind for draw in draws if draw.routing} == fuzz.ROUTINGS.keys()
    assert {draw.simple for draw in draws} == {False, True}


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_a_wrong_element_is_found_and_the_seed_named(
    dense: bool, simple: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fuzz.run

    def wrong(problem, out: torch.Tensor) -> None:
        right(problem, out)
        column = out[..., 0]
        column.add_(0.25 * column.abs().nan_to_num().max() + 0.25)

    monkeypatch.setattr(fuzz, "run", wrong)
    seed = next(
        seed
        for seed, draw in ((seed, fuzz.draw(seed)) for seed in range(DRAWS))
        if (draw.routing is None, draw.simple) == (dense, simple) and draw.problem("cpu").exact.isfinite().any()
    )
    with pytest.raises(AssertionError, match=f"seed {seed}: "):
        fuzz.check([seed], "cpu")
