from __future__ import annotations

from pathlib import Path

from vidsim.engine.loop import TrainResult
from vidsim.engine.session import describe_result


def test_the_end_and_the_checkpoint_to_take() -> None:
    done = TrainResult(step=1200, best=0.5, best_step=900, metrics={"score": 0.25}, interrupted=False)
    assert describe_result(done, Path("run"))[0] == "done at step 1,200: score 0.2500; best 0.5000 at step 900"
    stopped = TrainResult(step=7, best=None, best_step=None, metrics={}, interrupted=True)
    assert describe_result(stopped, Path("run")) == ["stopped at step 7: not evaluated", "last checkpoint: run/last"]
