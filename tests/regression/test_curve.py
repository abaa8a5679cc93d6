"""Training gives the numbers that are committed in `curve.json`; update.py beside it records them anew."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
COMMITTED: dict[str, Any] = json.loads((HERE / "curve.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        return runpy.run_path(str(HERE / "update.py"))["record"](tmp_path_factory.mktemp("curve"))


@pytest.mark.parametrize("run", ["pretrain", "finetune"])
def test_the_curve_is_the_committed_one(recorded: Any, run: str) -> None:
    expected, found = COMMITTED[run], recorded[run]
    assert list(found) == list(expected)
    for metric, values in expected.items():
        assert found[metric] == pytest.approx(values, rel=COMMITTED["relative_tolerance"], abs=1e-7), (
            f"{run}, {metric}: recorded with {COMMITTED['environment']}; if the change is wanted: "
            "python tests/regression/update.py"
        )


def test_the_committed_curve_is_worth_comparing() -> None:
    """All three objectives, every step, and every loss moves."""
    pretrain, finetune = COMMITTED["pretrain"], COMMITTED["finetune"]
    for name in ("loss", "loss/vtc", "loss/mlm", "loss/mfm", "grad_norm", "learning_rate"):
        assert len(pretrain[name]) == 12
        assert len(set(pretrain[name])) > 6
    assert len(pretrain["held_out/loss"]) == 2
    assert pretrain["held_out/loss"][1] < pretrain["held_out/loss"][0]
    assert (len(finetune["loss/pair"]), len(finetune["validation/mse"])) == (6, 2)
    assert COMMITTED["relative_tolerance"] == 1e-4
