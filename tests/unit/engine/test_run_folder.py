from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.engine.checkpoint import save_checkpoint
from vidsim.engine.run_folder import RunFolder, differences

CONFIG = "seed: 1\nloop:\n  max_steps: 10\n  micro_batch_size: 4\noptimizer:\n  learning_rate: 0.1\ntrackers: []\n"


def checkpoint(run: RunFolder, step: int) -> None:
    module = torch.nn.Linear(1, 1)
    save_checkpoint(
        run.checkpoints,
        step,
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        ema=None,
        state={},
        export=lambda folder: None,
        is_best=False,
        keep=2,
    )


def test_a_new_run_records_its_configuration_and_where_it_runs(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "runs" / "a", CONFIG, False, world_size=2, device="cpu") as run:
        assert not run.is_resumed
    assert (run.path / "config.yaml").read_text() == CONFIG
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["versions"]["vidsim"]
    assert environment["world_size"] == 2
    assert environment["device"] == "cpu"
    assert environment["python"] == sys.version.split()[0]
    assert Path(environment["package_path"], "engine", "run_folder.py").is_file()
    assert environment["run_id"] == run.run_id
    assert len(run.run_id) == 8
    assert environment["earlier_starts"] == []
    assert re.fullmatch(r"None|[0-9a-f]{40}(\+changes)?", str(environment["git_commit"]))


def test_going_on_keeps_the_id_and_the_history(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, True) as first:
        assert not first.is_resumed  # nothing there yet: --resume just starts
        checkpoint(first, 5)
        first.metrics.write_text('{"step": 5}\n')
    for count in (1, 2):
        with RunFolder.create(tmp_path, CONFIG, True) as again:
            assert again.is_resumed
            assert again.run_id == first.run_id
            assert again.metrics.read_text() == '{"step": 5}\n'
        environment = json.loads((tmp_path / "env.json").read_text())
        assert len(environment["earlier_starts"]) == count
        assert environment["world_size"] == 1


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False, world_size=2) as run:
        checkpoint(run, 5)
    with pytest.raises(UserError, match=r"env\.json, field 'world_size': .* with 2 processes, now there are 1"):
        RunFolder.create(tmp_path, CONFIG, True, world_size=1)
    RunFolder.create(tmp_path, CONFIG, True, world_size=2).close()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        checkpoint(run, 5)
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        RunFolder.create(tmp_path, CONFIG, False)
    # Refusing did not keep the folder locked.
    RunFolder.create(tmp_path, CONFIG, True).close()


def test_a_run_that_died_before_its_first_checkpoint_is_started_anew(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        run.metrics.write_text('{"step": 1}\n')
    with RunFolder.create(tmp_path, CONFIG, False) as again:
        assert not again.is_resumed
        assert not again.metrics.exists()
        assert again.run_id != run.run_id
    mended = CONFIG.replace("seed: 1", "seed: 2")
    with RunFolder.create(tmp_path, mended, False):
        assert (tmp_path / "config.yaml").read_text() == mended


def test_a_changed_configuration_is_named(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        checkpoint(run, 5)
    other = CONFIG.replace("0.1", "0.2").replace("seed: 1\n", "") + "ema:\n  decay: 0.9\n"
    with pytest.raises(UserError) as caught:
        RunFolder.create(tmp_path, other, True)
    assert "ema.decay: absent -> 0.9; optimizer.learning_rate: 0.1 -> 0.2; seed: 1 -> absent" in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == CONFIG


def test_what_changes_no_weight_may_change(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        checkpoint(run, 5)
    other = CONFIG.replace("max_steps: 10", "max_steps: 20").replace("trackers: []", "trackers: [tensorboard]")
    with RunFolder.create(tmp_path, other + "resume: true\n", True) as again:
        assert again.is_resumed
    assert (tmp_path / "config.yaml").read_text() == other + "resume: true\n"
    with pytest.raises(UserError, match=r"loop\.micro_batch_size: 4 -> 8"):
        RunFolder.create(tmp_path, other.replace("micro_batch_size: 4", "micro_batch_size: 8"), True)


def test_differences_of_nested_configurations() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}
    assert differences(old, {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}) == []
    assert differences(old, {"a": {"b": 2, "c": [2, 1]}, "d": {"x": 1}, "e": {}}) == [
        "a.b: 1 -> 2",
        "a.c: [1, 2] -> [2, 1]",
        "d: None -> absent",
        "d.x: absent -> 1",
    ]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False), pytest.raises(UserError, match=rf"process {os.getpid()} on"):
        RunFolder.create(tmp_path, CONFIG, True)
    RunFolder.create(tmp_path, CONFIG, True).close()


HOLD = """
import os, sys, time
from vidsim.engine.run_folder import RunFolder
run = RunFolder.create(sys.argv[1], "seed: 1", False)
child = os.fork()  # as a loader worker: it lives on when its parent is killed
print(child if child else "", flush=True)
time.sleep(60)
"""


def test_a_killed_run_lets_go_even_if_its_workers_live_on(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    lines = [holder.stdout.readline().strip() for _ in range(2)]
    worker = int(next(line for line in lines if line))
    try:
        with pytest.raises(UserError, match=f"another run is writing here .process {holder.pid}"):
            RunFolder.create(tmp_path, "seed: 1", False)
        holder.kill()
        holder.wait()
        time.sleep(0.05)
        os.kill(worker, 0)  # still there
        RunFolder.create(tmp_path, "seed: 1", False).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_other_ranks_touch_nothing(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG, False, is_main_process=False)
    assert run.checkpoints == tmp_path / "run" / "checkpoints"
    assert not run.path.exists()


def test_what_a_killed_save_left_is_removed_at_the_start(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        checkpoint(run, 5)
    (run.checkpoints / ".step_000006.1.tmp").mkdir()
    with RunFolder.create(tmp_path, CONFIG, True):
        assert {path.name for path in run.checkpoints.iterdir()} == {"step_000005", "last"}


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"field 'output_dir': cannot be made"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, False)


@pytest.mark.parametrize("content", [None, "a: [", "\xff"])
def test_a_damaged_configuration_of_a_run_is_named(tmp_path: Path, content: str | None) -> None:
    with RunFolder.create(tmp_path, CONFIG, False) as run:
        checkpoint(run, 5)
    file = tmp_path / "config.yaml"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        RunFolder.create(tmp_path, CONFIG, True)
