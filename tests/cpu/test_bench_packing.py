"""The benchmark of packing without a GPU: its data, its check, its row, a whole run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from humming_ext import PackedWeight

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import packing, results  # noqa: E402
from benchmarks.problem import WrongResultError  # noqa: E402

CPU = torch.device("cpu")


def test_the_layer_is_whole() -> None:
    for case in packing.CASES["cuda"]:
        assert (case.n, case.k, case.experts, case.spec.gate_up) == (4096, 4096, 256, True)
        assert (case.down.n, case.down.k, case.down.experts, case.down.spec.gate_up) == (4096, 2048, 256, False)
        assert case.scheme.name == "e2m1-g32-e8m0"
    assert [case.activation for case in packing.CASES["cuda"]] == ["e4m3", "bf16"]


@pytest.mark.parametrize("case", packing.CASES["cpu"], ids=str)
def test_a_wrong_byte_is_found(case: packing.LayerCase) -> None:
    experts = packing.Experts(case.down, CPU)  # 8 experts of 128 rows of 80 columns
    assert experts.nbytes == 8 * 128 * (40 + 3)
    weight = experts.pack()
    experts.verify(weight)
    experts.codes[7, -1, 3] ^= 1
    with pytest.raises(WrongResultError, match="expert 7: 1 of"):
        experts.verify(weight)


def test_smoke_runs_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert packing.main(["--device", "cpu", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("8 experts: ") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_weight_has_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def zeros(experts: packing.Experts) -> PackedWeight:
        return PackedWeight.pack(
            torch.zeros_like(experts.codes), experts.scale, spec=experts.case.spec, k=experts.case.k, code_bits=4
        )

    monkeypatch.setattr(packing.Experts, "pack", zeros)
    assert packing.main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out.count("WRONG: expert 0: ") == 2


def test_rows_live_beside_others() -> None:
    case = packing.CASES["cpu"][0]
    row = {**case.key(0), "op": "prepack", "routing": None, "commit": "c"} | packing.measure(case, CPU)
    assert json.loads(json.dumps(row)) == row
    assert row["bytes"] == 8 * (160 * (64 + 4) + 128 * (40 + 3))
    assert row["us_min"] <= row["us"] <= row["us_max"] and row["library_us"] > 0 and row["peak_experts"] is None
    assert results.gate([row], [])
